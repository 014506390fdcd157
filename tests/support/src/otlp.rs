//! OTLP JSON, a request a line, read with opentelemetry-proto's types: what mqspan's file output and the Collector's
//! file exporter write.

use std::{collections::BTreeMap, fs, os::unix::ffi::OsStrExt, path::Path, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest,
        trace::v1::ExportTraceServiceRequest,
    },
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    logs::v1::LogRecord,
    trace::v1::Span,
};
use serde::de::DeserializeOwned;

use crate::text::utf8;

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A string.
    Text(String),
    /// An integer.
    Int(i64),
    /// A number.
    Double(f64),
    /// Yes or no.
    Bool(bool),
    /// An array of strings.
    Texts(Vec<String>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

/// Attributes by key; a key that comes twice is an error when they are read.
pub type Attributes = BTreeMap<String, Value>;

/// Who and by what: the part of a record that many share.
#[derive(Clone, Debug, PartialEq)]
pub struct Origin {
    /// The Resource's attributes.
    pub resource: Attributes,
    /// The Resource's schema URL.
    pub resource_schema: String,
    /// The scope's name and version.
    pub scope: (String, String),
    /// The scope's schema URL.
    pub scope_schema: String,
}

/// A span or a log record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record<T> {
    /// What it shares with others.
    pub origin: Arc<Origin>,
    /// Its attributes.
    pub attributes: Attributes,
    /// All of it, without the attributes.
    pub body: T,
}

impl<T> Record<T> {
    /// A string attribute.
    pub fn text(&self, key: &str) -> Option<&str> {
        text(&self.attributes, key)
    }

    /// An integer attribute.
    pub fn int(&self, key: &str) -> Option<i64> {
        int(&self.attributes, key)
    }

    /// An attribute that is a double.
    pub fn double(&self, key: &str) -> Option<f64> {
        match self.attributes.get(key)? {
            Value::Double(number) => Some(*number),
            _ => None,
        }
    }

    /// The thread that made the call; an error in a record of mqspan's own.
    pub fn tid(&self) -> Result<u32> {
        Ok(self.int("thread.id").context("no thread.id")?.try_into()?)
    }

    /// The process that made the call.
    pub fn pid(&self) -> Result<u32> {
        Ok(int(&self.origin.resource, "process.pid").context("no process.pid")?.try_into()?)
    }
}

/// A string among attributes.
pub fn text<'a>(attributes: &'a Attributes, key: &str) -> Option<&'a str> {
    match attributes.get(key)? {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

/// An integer among attributes.
pub fn int(attributes: &Attributes, key: &str) -> Option<i64> {
    match attributes.get(key)? {
        Value::Int(number) => Some(*number),
        _ => None,
    }
}

/// The records of calls that processes of this executable made.
pub fn made_by<T>(records: Vec<Record<T>>, executable: &Path) -> Vec<Record<T>> {
    let path = utf8(executable.as_os_str().as_bytes());
    let is_its = |record: &Record<T>| text(&record.origin.resource, "process.executable.path") == Some(&path);
    records.into_iter().filter(is_its).collect()
}

/// The records of one operation, `mq_open`.
pub fn of_operation<T>(mut records: Vec<Record<T>>, operation: &str) -> Vec<Record<T>> {
    records.retain(|record| record.text("messaging.operation.name") == Some(operation));
    records
}

/// The spans in a file.
pub fn spans(path: &Path) -> Result<Vec<Record<Span>>> {
    let mut records = Vec::new();
    for request in requests::<ExportTraceServiceRequest>(path, "resourceSpans")? {
        for of_resource in request.resource_spans {
            let resource = of_resource.resource.map(|resource| resource.attributes).unwrap_or_default();
            for of_scope in of_resource.scope_spans {
                let origin = origin(&resource, &of_resource.schema_url, of_scope.scope, of_scope.schema_url)?;
                for mut span in of_scope.spans {
                    let attributes = attributes(&std::mem::take(&mut span.attributes))?;
                    records.push(Record { origin: origin.clone(), attributes, body: span });
                }
            }
        }
    }
    Ok(records)
}

/// The log records in a file.
pub fn logs(path: &Path) -> Result<Vec<Record<LogRecord>>> {
    let mut records = Vec::new();
    for request in requests::<ExportLogsServiceRequest>(path, "resourceLogs")? {
        for of_resource in request.resource_logs {
            let resource = of_resource.resource.map(|resource| resource.attributes).unwrap_or_default();
            for of_scope in of_resource.scope_logs {
                let origin = origin(&resource, &of_resource.schema_url, of_scope.scope, of_scope.schema_url)?;
                for mut log in of_scope.log_records {
                    let attributes = attributes(&std::mem::take(&mut log.attributes))?;
                    records.push(Record { origin: origin.clone(), attributes, body: log });
                }
            }
        }
    }
    Ok(records)
}

/// The requests with metrics in a file.
pub fn metrics(path: &Path) -> Result<Vec<ExportMetricsServiceRequest>> {
    requests(path, "resourceMetrics")
}

/// Whether there are metrics of the calls of a process.
pub fn has_metrics_of(path: &Path, pid: u32) -> Result<bool> {
    let resources = metrics(path)?.into_iter().flat_map(|request| request.resource_metrics);
    let attributes = resources.map(|of| attributes(&of.resource.unwrap_or_default().attributes));
    let pids = attributes.map(|attributes| Ok(int(&attributes?, "process.pid")));
    let pids: Vec<Option<i64>> = pids.collect::<Result<_>>()?;
    Ok(pids.contains(&Some(pid.into())))
}

/// The requests that have `field`; other signals' are passed over, anything else is an error.
fn requests<T: DeserializeOwned>(path: &Path, field: &str) -> Result<Vec<T>> {
    const SIGNALS: [&str; 3] = ["resourceSpans", "resourceLogs", "resourceMetrics"];
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut found = Vec::new();
    for line in text.lines() {
        let start: String = line.chars().take(200).collect();
        let request: BTreeMap<String, serde_json::Value> = serde_json::from_str(line).with_context(|| start.clone())?;
        let [(key, _)] = request.iter().collect::<Vec<_>>()[..] else { bail!("not one signal: {start}") };
        ensure!(SIGNALS.contains(&&**key), "not a request: {start}");
        if key == field {
            found.push(serde_json::from_str(line).with_context(|| start.clone())?);
        }
    }
    Ok(found)
}

fn origin(
    resource: &[KeyValue],
    resource_schema: &str,
    scope: Option<InstrumentationScope>,
    scope_schema: String,
) -> Result<Arc<Origin>> {
    let scope = scope.unwrap_or_default();
    Ok(Arc::new(Origin {
        resource: attributes(resource)?,
        resource_schema: resource_schema.into(),
        scope: (scope.name, scope.version),
        scope_schema,
    }))
}

/// Attributes as a map.
pub fn attributes(list: &[KeyValue]) -> Result<Attributes> {
    let mut map = Attributes::new();
    for KeyValue { key, value, .. } in list {
        let value = self::value(value.as_ref()).with_context(|| key.clone())?;
        ensure!(map.insert(key.clone(), value).is_none(), "{key} comes twice");
    }
    Ok(map)
}

fn value(value: Option<&AnyValue>) -> Result<Value> {
    Ok(match value.and_then(|value| value.value.as_ref()).context("no value")? {
        any_value::Value::StringValue(text) => Value::Text(text.clone()),
        any_value::Value::IntValue(number) => Value::Int(*number),
        any_value::Value::DoubleValue(number) => Value::Double(*number),
        any_value::Value::BoolValue(is) => Value::Bool(*is),
        any_value::Value::ArrayValue(array) => Value::Texts(
            array
                .values
                .iter()
                .map(|item| match self::value(Some(item))? {
                    Value::Text(text) => Ok(text),
                    other => bail!("{other:?} in an array"),
                })
                .collect::<Result<_>>()?,
        ),
        other => bail!("{other:?} is not a kind of value that mqspan has"),
    })
}

/// The text of a log record's body.
pub fn body(log: &LogRecord) -> Option<&str> {
    match log.body.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a file from being read wrongly or in part: each signal apart, what is none refused.
    #[test]
    fn lines_of_a_file() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("x");
        let span = r#"{"traceId":"0102030405060708090a0b0c0d0e0f10","spanId":"0102030405060708","name":"n","kind":1,"startTimeUnixNano":"1790000000123456789","attributes":[{"key":"a","value":{"intValue":"-5"}},{"key":"b","value":{"arrayValue":{"values":[{"stringValue":"x"}]}}}],"status":{"code":2,"message":"m"}}"#;
        let lines = format!(
            "{{\"resourceSpans\":[{{\"resource\":{{\"attributes\":[{{\"key\":\"process.pid\",\"value\":{{\"intValue\":\"7\"}}}}]}},\"scopeSpans\":[{{\"scope\":{{\"name\":\"mqspan\"}},\"spans\":[{span}]}}]}}]}}\n{{\"resourceLogs\":[]}}\n"
        );
        fs::write(&path, &lines)?;
        let spans = spans(&path)?;
        assert_eq!((spans.len(), logs(&path)?.len()), (1, 0));
        assert_eq!((spans[0].int("a"), spans[0].pid()?), (Some(-5), 7));
        assert_eq!(spans[0].attributes["b"], Value::Texts(vec!["x".into()]));
        assert_eq!(spans[0].body.start_time_unix_nano, 1_790_000_000_123_456_789);
        assert_eq!(spans[0].body.trace_id.len(), 16);
        for wrong in ["{}", "{\"resourceSpan\":[]}", "x", "{\"resourceSpans\":[]"] {
            fs::write(&path, wrong)?;
            assert!(self::spans(&path).is_err(), "{wrong}");
        }
        Ok(())
    }
}
