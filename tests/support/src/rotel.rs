//! rotel, an independent receiver of OTLP: its debug log read, and records written as they stand there.

use opentelemetry_proto::tonic::{
    logs::v1::{LogRecord, SeverityNumber},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};

use crate::otlp::{Attributes, Record, Value, attributes};

/// A span or log record: its lines, the attributes and links in order.
pub type Block = Vec<String>;

/// The spans (`Span #`) or log records (`LogRecord #`) in a log of the verbosity `detailed`.
pub fn blocks(log: &str, start: &str) -> Vec<Block> {
    const ENDS: [&str; 8] =
        ["Span #", "LogRecord #", "Resource", "Scope", "InstrumentationScope", "Metric #", "Descriptor", "\u{1b}"];
    let mut found: Vec<Block> = Vec::new();
    let mut inside = false;
    for line in log.lines() {
        if line.starts_with(start) {
            inside = true;
            found.push(Block::new());
        } else if ENDS.iter().any(|end| line.starts_with(end)) {
            inside = false;
        } else if inside && let Some(block) = found.last_mut() {
            block.push(line.trim().to_owned());
        }
    }
    for block in &mut found {
        block.sort();
    }
    found
}

/// A span as rotel shows it.
pub fn of_span(span: &Record<Span>) -> Block {
    let body = &span.body;
    let mut block = vec![
        format!("Trace ID       : {}", hex(&body.trace_id)),
        format!("Parent ID      : {}", hex(&body.parent_span_id)).trim().to_owned(),
        format!("ID             : {}", hex(&body.span_id)),
        format!("Name           : {}", body.name),
        format!("Kind           : {}", SpanKind::try_from(body.kind).unwrap_or_default().as_str_name()),
        format!("Start time: {}", body.start_time_unix_nano),
        format!("End time: {}", body.end_time_unix_nano),
        "Attributes:".into(),
    ];
    // One that says nothing is not there, or not shown.
    if let Some(status) = body.status.as_ref().filter(|status| status.code != 0) {
        block.push(format!("Status code    : {}", StatusCode::try_from(status.code).unwrap_or_default().as_str_name()));
        block.push(format!("Status message : {}", status.message).trim().to_owned());
    }
    block.extend(of_attributes(&span.attributes));
    if !body.links.is_empty() {
        block.push("Links:".into());
    }
    for (number, link) in body.links.iter().enumerate() {
        block.extend([
            format!("SpanLink #{number}"),
            format!("-> Trace ID: {}", hex(&link.trace_id)),
            format!("-> ID: {}", hex(&link.span_id)),
            "-> TraceState:".into(),
            "-> DroppedAttributesCount: 0".into(),
            "-> Attributes::".into(),
        ]);
        block.extend(of_attributes(&attributes(&link.attributes).unwrap_or_default()));
    }
    block.sort();
    block
}

/// A log record as rotel shows it.
pub fn of_log(log: &Record<LogRecord>) -> Block {
    let body = &log.body;
    let severity = SeverityNumber::try_from(body.severity_number).unwrap_or_default().as_str_name();
    let mut block = vec![
        format!("ObservedTimestamp: {}", body.observed_time_unix_nano),
        format!("Timestamp: {}", body.time_unix_nano),
        format!("SeverityText: {}", body.severity_text),
        format!("SeverityNumber: {severity}({})", body.severity_number),
        format!("EventName: {}", body.event_name),
        format!("Body: Str({})", crate::otlp::body(body).unwrap_or_default()),
        "Attributes:".into(),
        format!("Trace ID       : {}", hex(&body.trace_id)),
        format!("Span ID        : {}", hex(&body.span_id)),
        format!("Flags: {}", body.flags),
    ];
    block.extend(of_attributes(&log.attributes));
    block.sort();
    block
}

fn of_attributes(attributes: &Attributes) -> impl Iterator<Item = String> {
    attributes.iter().map(|(key, value)| {
        let value = match value {
            Value::Text(text) => format!("Str({text})"),
            Value::Int(number) => format!("Int({number})"),
            Value::Double(number) => format!("Double({number})"),
            Value::Bool(is) => format!("Bool({is})"),
            Value::Texts(texts) => format!("Array({texts:?})"),
        };
        format!("-> {key}: {value}")
    })
}

/// An id as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents lines of what comes next from counting as a record's own.
    #[test]
    fn records_of_a_log() {
        let log = "ResourceSpans #0\n     -> host.name: Str(h)\nScopeSpans #0\nSpan #0\n    ID             : 1\n\
                   Attributes:\n     -> a: Int(1)\nSpan #1\n    ID             : 2\nResourceLog #0\nLogRecord #0\nFlags: 1\n\
                   \u{1b}[2m2026\u{1b}[0m INFO\n     -> b: Int(2)\n";
        assert_eq!(
            blocks(log, "Span #"),
            [vec!["-> a: Int(1)", "Attributes:", "ID             : 1"], vec!["ID             : 2"]]
        );
        assert_eq!(blocks(log, "LogRecord #"), [vec!["Flags: 1"]]);
    }
}
