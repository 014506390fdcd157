//! The configuration file: a YAML map whose keys are the options of `run`, besides the sections
//! `otlp` and `metrics`. Its options become the command-line arguments that they stand for, so
//! there is one list of options and one reading of their values. Does not merge anything.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::otlp::{Layer, Layers};
use super::yaml::{Node, YamlEntry, YamlValue, parse};
use crate::cli::{self, RunArgs, RunOption};
use crate::model::error::{Error, Origin};
use crate::model::values::MetricLimits;
use crate::model::values::Signal;

/// What a file says.
#[derive(Debug, Default)]
pub struct ConfigFile {
    /// The options of `run`.
    pub run: RunArgs,
    /// The section `otlp`, with the options endpoint and protocol.
    pub otlp: Layers,
    /// The section `metrics`.
    pub limits: MetricLimits,
}

impl ConfigFile {
    /// Reads the file at `path`. Whatever is wrong with it is exit status 1.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(|error| {
            Error::cannot_run(
                format!("{}: {error}", path.display()),
                "name a readable YAML file with --config, or leave it out",
            )
        })?;
        Self::from_text(path, &text)
    }

    /// Reads the text of the file at `path`.
    pub fn from_text(path: &Path, text: &str) -> Result<Self, Error> {
        let mut reader = SectionReader {
            path: path.into(),
            options: cli::run_options(),
            known: keys(),
            arguments: Vec::new(),
            lines: BTreeMap::new(),
            file: Self::default(),
        };
        let root = parse(text).map_err(|error| {
            Error::cannot_run(
                format!("{}:{}: {}", path.display(), error.line, error.why),
                "correct it there; docs/configuration.md shows how a value is written",
            )
        })?;
        reader.section("", root)?;
        reader.finish()
    }
}

/// All keys, as dotted paths: the options first.
pub fn keys() -> Vec<String> {
    // A file can't name another one.
    let options = cli::run_options().into_iter().map(|option| option.name).filter(|name| *name != "config");
    let own = Layer::KEYS.iter().filter(|key| !is_option(key));
    let generic = own.map(|key| format!("otlp.{key}"));
    let signals = Signal::ALL.iter().flat_map(|signal| {
        let key = |key| format!("otlp.{}.{key}", signal.name());
        Layer::KEYS.iter().map(key)
    });
    let metrics = ["metrics.max_series", "metrics.max_processes"].map(String::from);
    options.chain(generic).chain(signals).chain(metrics).collect()
}

/// Whether a setting of OTLP is an option, and so stands at the top of the file.
fn is_option(key: &str) -> bool {
    matches!(key, "endpoint" | "protocol")
}

struct SectionReader {
    path: PathBuf,
    /// The options.
    options: Vec<RunOption>,
    /// All keys, see `keys`.
    known: Vec<String>,
    /// The arguments that the options of the file stand for.
    arguments: Vec<String>,
    /// On which line each of these options stands.
    lines: BTreeMap<String, usize>,
    file: ConfigFile,
}

impl SectionReader {
    /// Reads the entries of a section; its path is empty at the top, else ends with a dot.
    fn section(&mut self, path: &str, node: Node) -> Result<(), Error> {
        let entries = match node.value {
            YamlValue::Map(entries) => entries,
            YamlValue::Null => return Ok(()),
            _ => {
                let section = match path {
                    "" => "the file",
                    path => path.trim_end_matches('.'),
                };
                return Err(self.origin(section, node.line).error("holds keys, each with its value"));
            }
        };
        for YamlEntry { key, line, node } in entries {
            let key = format!("{path}{key}");
            match key.as_str() {
                "otlp" | "otlp.traces" | "otlp.logs" | "otlp.metrics" | "metrics" => {
                    self.section(&format!("{key}."), node)?;
                }
                _ => self.setting(key, line, node)?,
            }
        }
        Ok(())
    }

    fn setting(&mut self, key: String, line: usize, node: Node) -> Result<(), Error> {
        if !self.known.contains(&key) {
            return Err(Error::cannot_run(
                format!("{}:{line}: unknown key `{key}`", self.path.display()),
                format!("the nearest known key is `{}`", nearest(&key, &self.known)),
            ));
        }
        let origin = self.origin(&key, line);
        match (key.split_once('.'), node.value) {
            (_, YamlValue::Null) => Ok(()),
            (Some(("otlp", rest)), value) => {
                let (signal, key) = match rest.split_once('.') {
                    Some((section, key)) => {
                        let named = |signal: &Signal| signal.name() == section;
                        (Signal::ALL.into_iter().find(named), key)
                    }
                    None => (None, rest),
                };
                let layer = self.file.otlp.of(signal);
                match value {
                    YamlValue::Scalar(text) => layer.set(key, &text, origin),
                    YamlValue::Map(entries) if key == "headers" => {
                        layer.set_headers(&headers(entries, &origin)?, &origin)
                    }
                    _ => Err(origin.error("takes one value")),
                }
            }
            (Some((_, key)), value) => {
                let count = match value {
                    YamlValue::Scalar(text) => text.parse().ok().filter(|count| *count > 0),
                    _ => None,
                };
                let count = count.ok_or_else(|| origin.error("takes a number from 1"))?;
                match key {
                    "max_series" => self.file.limits.max_series = count,
                    _ => self.file.limits.max_processes = count,
                }
                Ok(())
            }
            (None, YamlValue::Scalar(text)) if is_option(&key) => self.file.otlp.of(None).set(&key, &text, origin),
            (None, value) => {
                self.lines.insert(key.clone(), line);
                self.option(&key, value, &origin)
            }
        }
    }

    /// Adds the arguments that an option of the file stands for.
    fn option(&mut self, key: &str, value: YamlValue, origin: &Origin) -> Result<(), Error> {
        let option = self.options.iter().find(|option| option.name == key);
        let repeatable = option.is_some_and(|option| option.is_repeatable);
        let takes_value = option.is_some_and(|option| option.takes_value);
        let mut add = |text: &str| self.arguments.push(format!("--{key}={text}"));
        match value {
            YamlValue::Scalar(text) if takes_value => add(&text),
            YamlValue::Scalar(text) => match text.as_str() {
                "true" => self.arguments.push(format!("--{key}")),
                "false" => {}
                _ => return Err(origin.error("neither true nor false")),
            },
            YamlValue::List(list) if repeatable => {
                for node in list {
                    match node.value {
                        YamlValue::Scalar(text) => add(&text),
                        _ => return Err(origin.error("a list of single values is due here")),
                    }
                }
            }
            _ if repeatable => return Err(origin.error("takes a value or a list of values")),
            _ => return Err(origin.error("takes one value")),
        }
        Ok(())
    }

    /// Reads all options at once, so that those that exclude each other are found.
    fn finish(mut self) -> Result<ConfigFile, Error> {
        self.file.run = cli::parse_options(&self.arguments).map_err(|(key, why)| {
            let line = self.lines.get(&key).copied().unwrap_or(1);
            self.origin(&key, line).error(why)
        })?;
        Ok(self.file)
    }

    fn origin(&self, key: &str, line: usize) -> Origin {
        Origin::File { path: self.path.clone(), line, key: key.into() }
    }
}

/// The entries of the map `headers`. The error names the key only.
fn headers(entries: Vec<YamlEntry>, origin: &Origin) -> Result<Vec<(String, String)>, Error> {
    let header = |YamlEntry { key, node, .. }| match node.value {
        YamlValue::Scalar(text) => Ok((key, text)),
        YamlValue::Null => Ok((key, String::new())),
        _ => Err(origin.error(format!("{key} takes one value"))),
    };
    entries.into_iter().map(header).collect()
}

/// The known key that comes nearest: one of the same name in another section, else one that is
/// spelt alike.
fn nearest<'a>(key: &str, known: &'a [String]) -> &'a str {
    let name = |path: &str| path.rsplit('.').next().map(String::from);
    let alike = |known: &str| strsim::jaro_winkler(key, known);
    let elsewhere = known.iter().find(|known| name(known) == name(key));
    let spelt_alike = || known.iter().max_by(|a, b| alike(a).total_cmp(&alike(b)));
    elsewhere.or_else(spelt_alike).map_or("", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::values::{Op, Output};

    fn read(text: &str) -> Result<ConfigFile, Error> {
        ConfigFile::from_text(Path::new("m.yaml"), text)
    }

    /// Prevents a key of the example from going stale, and the file's keys from drifting away from
    /// the command line and the documentation.
    #[test]
    fn the_example_is_valid_and_every_key_is_documented() {
        let path = Path::new("otel-config/mqspan.yaml");
        let example = ConfigFile::from_text(path, include_str!("../../otel-config/mqspan.yaml"));
        assert!(example.is_ok(), "{example:?}");
        let documentation = include_str!("../../docs/configuration.md");
        for key in keys() {
            // The three subsections of `otlp` are documented as one, by the last part of a key.
            let name = match key.split('.').collect::<Vec<_>>()[..] {
                [_, _, name] => format!("`{name}`"),
                _ => format!("| `{key}` |"),
            };
            assert!(documentation.contains(&name), "{name}");
        }
    }

    /// Prevents lists from being accepted in one form only, and flags from being set by `false`.
    #[test]
    fn scalars_and_lists() {
        let file = read(
            "output: [otlp, 'file:/x']\nsignals: traces,logs\ncall: [mq_open, mq_send]\n\
             comm: yes\nqueue:\n- orders\n- '!*'\npid: 7\nfailed: true\nquiet: false\n\
             min-duration: 1m30s\ncpus: 0\nuid:\n",
        );
        let run = file.unwrap().run;
        assert_eq!(run.output, [Output::Otlp, Output::File("/x".into())]);
        assert_eq!(run.signals, [Signal::Traces, Signal::Logs]);
        assert_eq!(run.filters.call, [Op::MqOpen, Op::MqTimedsend]);
        assert_eq!(run.filters.comm[0].to_string(), "yes");
        assert_eq!(run.filters.queue[0].to_string(), "/orders");
        assert!(run.filters.queue[1].exclude && run.filters.uid.is_empty());
        assert!(run.filters.failed && !run.quiet);
    }

    /// Prevents errors without the place, the reason or the way out, and secrets in them.
    #[test]
    fn errors_name_place_and_key() {
        for (text, message, hint) in [
            ("ouput: otlp\n", "m.yaml:1: unknown key `ouput`", "`output`"),
            ("min_duration: 1s\n", "unknown key `min_duration`", "`min-duration`"),
            ("config: /x\n", "unknown key `config`", "`"),
            ("timeout: 1s\n", "unknown key `timeout`", "`otlp.timeout`"),
            ("max_series: 5\n", "unknown key", "`metrics.max_series`"),
            ("otlp:\n  endpoint: x\n", "m.yaml:2: unknown key `otlp.endpoint`", "`endpoint`"),
            ("otlp:\n  traces: {hedaers: x}\n", "`otlp.traces.hedaers`", "`otlp.traces.headers`"),
            ("quiet: true\n\npid: x\n", "m.yaml:3: pid: invalid value 'x'", "`pid`"),
            ("pid: [1, x]\n", "m.yaml:1: pid: invalid value 'x'", "`pid`"),
            ("pid: {a: b}\n", "pid: takes a value or a list", "`pid`"),
            ("cpus: [1]\n", "cpus: takes one value", "`cpus`"),
            ("failed: 1\n", "failed: neither true nor false", "`failed`"),
            ("quiet: true\nverbose: true\n", "cannot be used with", "--config"),
            ("min-duration: 5\n", "m.yaml:1: min-duration: ", "`min-duration`"),
            ("protocol: http\n", "protocol: none of grpc", "`protocol`"),
            ("otlp: 5\n", "m.yaml:1: otlp: holds keys", "`otlp`"),
            ("- a\n", "m.yaml:1: the file: holds keys", "--config"),
            ("otlp:\n  timeout: soon\n", "m.yaml:2: otlp.timeout: ", "`otlp.timeout`"),
            ("metrics: {max_series: 0}\n", "metrics.max_series: takes a number", "`"),
            ("queue: !x\n", "m.yaml:1: what begins with !", "docs/configuration.md"),
            ("otlp:\n  headers: secret\n", "m.yaml:2: otlp.headers: entry 1", "`otlp.headers`"),
            ("otlp:\n  headers: [secret]\n", "otlp.headers: takes one value", "`"),
            ("otlp:\n  headers: {a: [secret]}\n", "otlp.headers: a takes one value", "`"),
            ("otlp:\n  headers: {a: *secret}\n", "m.yaml:2: what begins with *", "docs"),
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(error.status, 1, "{text}");
            assert!(error.message.contains(message), "{text}: {error}");
            let mend = error.hint.as_deref().unwrap_or_default();
            assert!(mend.contains(hint), "{text}: {error}");
            let lines = error.to_string();
            assert!(!lines.contains("secret") && lines.lines().count() == 2, "{error}");
        }
        let error = ConfigFile::read(Path::new("/nonexistent.yaml")).unwrap_err();
        assert!(error.status == 1 && error.message.contains("No such file"));
    }
}
