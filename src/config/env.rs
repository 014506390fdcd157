//! The environment variables that mqspan reads, all of OpenTelemetry's. An empty one counts as not
//! set, as the specification says. Reads them by a function it is given: never touches the process.

use std::ffi::OsString;

use super::otlp::{Layer, Layers};
use crate::model::error::{Error, Origin};
use crate::model::values::Signal;

/// What a variable of OTLP is for: every signal, or one.
const SCOPES: [Option<Signal>; 4] = [None, Some(Signal::Traces), Some(Signal::Logs), Some(Signal::Metrics)];

/// The environment behind a function that looks a variable up.
pub struct Environment<'a> {
    get: &'a dyn Fn(&str) -> Option<OsString>,
}

impl<'a> Environment<'a> {
    /// An environment that `get` looks variables up in, such as `std::env::var_os`.
    pub fn new(get: &'a dyn Fn(&str) -> Option<OsString>) -> Self {
        Self { get }
    }

    /// The variable's text without white space around it; None where there is none.
    pub fn text(&self, name: &str) -> Result<Option<String>, Error> {
        let Some(value) = (self.get)(name) else {
            return Ok(None);
        };
        let value = value.into_string().map_err(|_| Origin::Variable(name.into()).error("not UTF-8"))?;
        let value = value.trim();
        Ok((!value.is_empty()).then(|| value.into()))
    }

    /// The variable as `parse` reads it.
    pub fn parsed<T>(&self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, Error> {
        self.text(name)?.map(|text| parse(&text).map_err(|why| Origin::Variable(name.into()).error(why))).transpose()
    }

    /// Whether the variable says `true`; as the specification has it, everything else is false.
    pub fn is_true(&self, name: &str) -> Result<bool, Error> {
        Ok(self.text(name)?.is_some_and(|text| text.eq_ignore_ascii_case("true")))
    }

    /// Whether an endpoint is named for any signal.
    pub fn names_endpoint(&self) -> Result<bool, Error> {
        for signal in SCOPES {
            if self.text(&otlp_variable(signal, "endpoint"))?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The variables OTEL_EXPORTER_OTLP_*.
    pub fn otlp(&self) -> Result<Layers, Error> {
        let mut layers = Layers::default();
        for signal in SCOPES {
            let layer = layers.of(signal);
            for key in Layer::KEYS.into_iter().filter(|key| *key != Layer::FILE_ONLY) {
                let name = otlp_variable(signal, key);
                let text = match key {
                    "insecure" if self.text(&name)?.is_some() => Some(self.is_true(&name)?.to_string()),
                    _ => self.text(&name)?,
                };
                if let Some(text) = text {
                    layer.set(key, &text, Origin::Variable(name))?;
                }
            }
        }
        Ok(layers)
    }
}

/// `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`.
fn otlp_variable(signal: Option<Signal>, key: &str) -> String {
    let signal = signal.map_or(String::new(), |signal| format!("{}_", signal.name()));
    format!("OTEL_EXPORTER_OTLP_{signal}{key}").to_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents empty variables from counting as set, and other words than `true` from being true.
    #[test]
    fn empty_is_unset_and_only_true_is_true() {
        let get = |name: &str| match name {
            "EMPTY" => Some(" ".into()),
            "TRUE" => Some("True".into()),
            "ONE" => Some("1".into()),
            _ => None,
        };
        let env = Environment::new(&get);
        assert_eq!(env.text("EMPTY"), Ok(None));
        assert_eq!(env.is_true("TRUE"), Ok(true));
        for name in ["EMPTY", "ONE", "NONE"] {
            assert_eq!(env.is_true(name), Ok(false), "{name}");
        }
    }
}
