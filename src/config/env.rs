//! The environment variables that mqspan reads, all of OpenTelemetry's. An empty one counts as not
//! set, as the specification says. Reads them by a function it is given: never touches the process.

use std::ffi::OsString;

use percent_encoding::percent_decode_str;

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
            for key in Layer::KEYS {
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

/// A list `key=value,key2=value2`, percent-decoded; of a key that stands there twice the last
/// value counts. The error tells an entry by its number: it may hold a secret.
pub fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for (index, entry) in text.split(',').enumerate() {
        if entry.trim().is_empty() {
            continue;
        }
        let (key, value) = entry
            .split_once('=')
            .filter(|(key, _)| !key.trim().is_empty())
            .ok_or_else(|| format!("entry {} is not key=value", index + 1))?;
        let decode = |text: &str| match percent_decode_str(text.trim()).decode_utf8() {
            Ok(text) => Ok(text.into_owned()),
            Err(_) => Err(format!("entry {} is not UTF-8", index + 1)),
        };
        let (key, value) = (decode(key)?, decode(value)?);
        pairs.retain(|(other, _)| *other != key);
        pairs.push((key, value));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a value with `=` from being cut, missing decoding, and an entry without a key from
    /// being shown: it may be a token.
    #[test]
    fn lists_of_pairs() {
        for (text, expected) in [
            ("", Some(vec![])),
            ("a=1", Some(vec![("a", "1")])),
            (" a = 1 ,, b=x%2Cy%3D%20 ", Some(vec![("a", "1"), ("b", "x,y= ")])),
            ("auth=Basic dXNlcg==", Some(vec![("auth", "Basic dXNlcg==")])),
            ("a=1,b=2,a=3", Some(vec![("b", "2"), ("a", "3")])),
            ("a=", Some(vec![("a", "")])),
            ("secret", None),
            ("a=1,=secret", None),
            ("a=secret%ff", None),
        ] {
            match (pairs(text), expected) {
                (Ok(pairs), Some(expected)) => {
                    let pairs: Vec<_> = pairs.iter().map(|(k, v)| (&**k, &**v)).collect();
                    assert_eq!(pairs, expected, "{text:?}");
                }
                (Err(why), None) => assert!(!why.contains("secret"), "{why}"),
                (result, _) => panic!("{text:?}: {result:?}"),
            }
        }
    }

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
