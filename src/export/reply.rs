//! What a backend's answer means: taken, to be tried again, or refused (OTLP specification, "Failures"). Pure code.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use tonic::{Code, Status};
use tonic_types::pb;

use crate::model::values::Signal;

/// A request was taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Records that were not, for good.
    pub rejected: u64,
    /// Why, or a warning.
    pub message: String,
}

/// A request was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It may be taken later, not before this time has passed.
    Retry {
        /// What the backend asks for.
        after: Option<Duration>,
        /// In a few words.
        why: String,
    },
    /// It never will: something is wrong with this request.
    Refused(String),
    /// Something is wrong with the backend, or with what mqspan may do there: not with this request.
    Backend(String),
    /// Nor will any other request of this signal.
    Unimplemented(String),
}

impl Failure {
    /// The same with more said about it.
    pub fn with(self, explain: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Retry { after, why } => Self::Retry { after, why: explain(why) },
            Self::Refused(why) => Self::Refused(explain(why)),
            Self::Backend(why) => Self::Backend(explain(why)),
            Self::Unimplemented(why) => Self::Unimplemented(explain(why)),
        }
    }

    /// What is said about it.
    pub fn why(&self) -> &str {
        match self {
            Self::Retry { why, .. } | Self::Refused(why) | Self::Backend(why) | Self::Unimplemented(why) => why,
        }
    }
}

/// As much of what a backend says is shown.
const SHOWN: usize = 200;
/// No backend is waited for longer, whatever it asks for.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

fn shown(text: &str) -> String {
    let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// What a gRPC status means. One that the library made of a broken connection or a timeout, whatever its code, has a
/// source.
pub fn of_grpc(status: &Status) -> Failure {
    let mut why = format!("{:?}", status.code());
    if !status.message().is_empty() {
        why = format!("{why}: {}", shown(status.message()));
    }
    if let Some(error) = std::error::Error::source(status) {
        return Failure::Retry { after: None, why: causes(error) };
    }
    // Made by the library, without a source.
    if ["decoded message length too large", "exceeded while decompressing"].iter().any(|w| status.message().contains(w))
    {
        return Failure::Backend(why);
    }
    let retry_info = retry_info(status.details());
    let after = retry_info.flatten();
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Failure::Retry { after, why },
        Code::ResourceExhausted if retry_info.is_some() => Failure::Retry { after, why },
        Code::Unimplemented => Failure::Unimplemented(why),
        Code::Unauthenticated | Code::PermissionDenied | Code::Internal | Code::Unknown => Failure::Backend(why),
        _ => Failure::Refused(why),
    }
}

/// Whether a google.rpc.RetryInfo is among a status's details, and the delay that it asks for. A delay that is negative
/// or no duration at all is none.
fn retry_info(details: &[u8]) -> Option<Option<Duration>> {
    let status = pb::Status::decode(details).ok()?;
    let info = status.details.iter().find(|any| any.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = pb::RetryInfo::decode(&*info.value).ok()?.retry_delay;
    let duration = |seconds: i64, nanos: i32| {
        let nanos = u32::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
        Some(Duration::new(u64::try_from(seconds).ok()?, nanos).min(LONGEST_WAIT))
    };
    Some(delay.and_then(|delay| duration(delay.seconds, delay.nanos)))
}

/// An error with its causes in one line, each once: libraries often repeat the inner one.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = shown(&error.to_string());
    let mut next = error.source();
    while let Some(cause) = next {
        let inner = shown(&cause.to_string());
        if !text.contains(&inner) {
            text = format!("{text}: {inner}");
        }
        next = cause.source();
    }
    text
}

/// How an HTTP answer's body is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Protobuf,
    Json,
    /// Of a web server, a login page or a proxy.
    Html,
    /// Of gRPC: the other protocol.
    Grpc,
    /// Text, or nothing that is named.
    Other,
}

fn content_type(headers: &HeaderMap) -> &str {
    headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn kind(content_type: &str, body: &[u8]) -> Body {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "application/x-protobuf" | "application/protobuf" => Body::Protobuf,
        "application/json" => Body::Json,
        "text/html" | "application/xhtml+xml" => Body::Html,
        essence if essence.starts_with("application/grpc") => Body::Grpc,
        _ if body.trim_ascii_start().first() == Some(&b'<') => Body::Html,
        _ => Body::Other,
    }
}

/// What an HTTP answer means.
pub fn of_http(signal: Signal, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Result<Accepted, Failure> {
    let content_type = content_type(headers);
    let kind = kind(content_type, body);
    if kind == Body::Grpc {
        return Err(Failure::Backend(format!("{status}, answered by gRPC ({content_type})")));
    }
    if status.is_success() {
        return match (body, kind) {
            (_, Body::Html | Body::Grpc) => None,
            ([], _) => Some(Accepted::default()),
            (body, Body::Json) => partial_success_json(signal, body),
            (body, Body::Protobuf) => partial_success(signal, body),
            (body, Body::Other) => {
                let untyped = if content_type.is_empty() { partial_success(signal, body) } else { None };
                untyped.or_else(|| std::str::from_utf8(body).ok().map(|_| Accepted::default()))
            }
        }
        .ok_or_else(|| Failure::Backend(format!("{status}, but the answer is not OTLP's ({content_type})")));
    }
    let why = match message(content_type, body) {
        Some(message) => format!("{status}: {message}"),
        None => status.to_string(),
    };
    Err(match status.as_u16() {
        408 | 429 | 502 | 503 | 504 => Failure::Retry { after: retry_after(headers, SystemTime::now()), why },
        404 => Failure::Unimplemented(why),
        401 | 403 | 407 | 500.. => Failure::Backend(why),
        _ => Failure::Refused(why),
    })
}

/// What is unusual about the answer to a request that was taken: OTLP/HTTP answers in the request's encoding.
pub fn unusual(headers: &HeaderMap, body: &[u8]) -> Option<String> {
    let content_type = content_type(headers);
    let named = if content_type.is_empty() { "no Content-Type" } else { content_type };
    match (kind(content_type, body), body.is_empty()) {
        (Body::Protobuf, _) | (Body::Json, false) => None,
        (_, true) => Some(format!("an empty answer ({named})")),
        (_, false) => Some(format!("an answer that is not OTLP's ({named})")),
    }
}

/// Retry-After (RFC 9110, section 10.2.3): seconds or a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let after = match is_number {
        // A number that is too large for its type is a long time, too.
        true => text.parse().map_or(LONGEST_WAIT, Duration::from_secs),
        false => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(after.min(LONGEST_WAIT))
}

/// What the body of a failure says: a google.rpc.Status, or text.
fn message(content_type: &str, body: &[u8]) -> Option<String> {
    let text = match content_type.starts_with("application/x-protobuf") {
        true => pb::Status::decode(body).ok()?.message,
        false => std::str::from_utf8(body).ok()?.to_owned(),
    };
    Some(shown(&text)).filter(|text| !text.is_empty())
}

/// The three answers differ only in the name of their count.
macro_rules! accepted {
    ($response:expr, $rejected:ident) => {{
        let partial = $response.partial_success.unwrap_or_default();
        let rejected = partial.$rejected.max(0).unsigned_abs();
        Accepted { rejected, message: shown(&partial.error_message) }
    }};
}

/// Reads the answer to a request of this signal; None where it is none.
pub fn partial_success(signal: Signal, body: &[u8]) -> Option<Accepted> {
    Some(match signal {
        Signal::Traces => accepted!(ExportTraceServiceResponse::decode(body).ok()?, rejected_spans),
        Signal::Logs => accepted!(ExportLogsServiceResponse::decode(body).ok()?, rejected_log_records),
        Signal::Metrics => accepted!(ExportMetricsServiceResponse::decode(body).ok()?, rejected_data_points),
    })
}

fn partial_success_json(signal: Signal, body: &[u8]) -> Option<Accepted> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    let partial = body.as_object()?.get("partialSuccess");
    let rejected = partial.and_then(|partial| {
        let count = match signal {
            Signal::Traces => &partial["rejectedSpans"],
            Signal::Logs => &partial["rejectedLogRecords"],
            Signal::Metrics => &partial["rejectedDataPoints"],
        };
        // 64-bit integers are strings in JSON; numbers are taken too.
        count.as_u64().or_else(|| count.as_str()?.parse().ok())
    });
    let message = partial.and_then(|partial| partial["errorMessage"].as_str()).unwrap_or_default();
    Some(Accepted { rejected: rejected.unwrap_or(0), message: shown(message) })
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTracePartialSuccess;
    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;

    fn map(headers: &[(&'static str, &str)]) -> HeaderMap {
        headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn http(status: u16, headers: &[(&'static str, &str)], body: &[u8]) -> Result<Accepted, Failure> {
        of_http(Signal::Traces, StatusCode::from_u16(status).unwrap(), &map(headers), body)
    }

    fn retries(result: Result<Accepted, Failure>) -> Option<Option<u64>> {
        match result {
            Err(Failure::Retry { after, .. }) => Some(after.map(|after| after.as_secs())),
            _ => None,
        }
    }

    /// Prevents a status from being retried that never succeeds, and one from being given up that would.
    #[test]
    fn http_statuses() {
        for status in [408, 429, 502, 503, 504] {
            assert_eq!(retries(http(status, &[], b"")), Some(None), "{status}");
            assert_eq!(retries(http(status, &[("retry-after", "7")], b"")), Some(Some(7)));
        }
        assert_eq!(retries(http(503, &[("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT")], b"")), Some(Some(0)));
        assert_eq!(retries(http(503, &[("retry-after", "soon")], b"")), Some(None));
        for status in [301, 400, 405, 413, 415, 422] {
            assert!(matches!(http(status, &[], b""), Err(Failure::Refused(_))), "{status}");
        }
        for status in [401, 403, 407, 500, 501, 505, 599] {
            assert!(matches!(http(status, &[], b""), Err(Failure::Backend(_))), "{status}");
        }
        assert!(matches!(http(404, &[], b""), Err(Failure::Unimplemented(_))));
        let status = pb::Status { code: 3, message: "bad\n span".into(), details: vec![] };
        let protobuf = http(400, &[("content-type", "application/x-protobuf")], &status.encode_to_vec());
        assert_eq!(protobuf, Err(Failure::Refused("400 Bad Request: bad span".into())));
    }

    /// Prevents a rejected part from counting as delivered, and a page that some web server answers from counting as a
    /// backend's yes.
    #[test]
    fn http_answers() {
        let partial = ExportTracePartialSuccess { rejected_spans: 3, error_message: "full".into() };
        let body = ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec();
        let accepted = Accepted { rejected: 3, message: "full".into() };
        assert_eq!(http(200, &[("content-type", "application/x-protobuf")], &body), Ok(accepted.clone()));
        let json = br#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"full"}}"#;
        assert_eq!(http(200, &[("content-type", "application/json")], json), Ok(accepted));
        assert_eq!(http(200, &[("content-type", "application/json")], b"{}"), Ok(Accepted::default()));
        for (content_type, body, is_usual) in [
            ("application/x-protobuf", &b""[..], true),
            ("application/json", b"{}", true),
            ("application/json", b"", false),
            ("text/plain; charset=utf-8", b"", false),
            ("text/plain", b"OK, thanks", false),
            ("", b"", false),
            ("", b"OK, thanks", false),
        ] {
            let headers = [("content-type", content_type)];
            assert_eq!(http(200, &headers, body), Ok(Accepted::default()), "{content_type} {body:?}");
            assert_eq!(unusual(&map(&headers), body).is_none(), is_usual, "{content_type} {body:?}");
        }
        for (content_type, body) in [
            ("text/html", &b"<html>"[..]),
            ("text/html", b""),
            ("", b" <!doctype html>"),
            ("application/json", b"[]"),
            ("application/x-protobuf", b"OK, thanks"),
            ("application/grpc", b""),
            ("text/plain", b"\xff"),
        ] {
            let answer = http(200, &[("content-type", content_type)], body);
            assert!(matches!(answer, Err(Failure::Backend(_))), "{content_type} {body:?}: {answer:?}");
        }
    }

    /// Prevents a backend's wish from stopping mqspan for years, from overflowing, and from being a panic.
    #[test]
    fn absurd_waits() {
        let day = Some(LONGEST_WAIT);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        for (text, expected) in [
            ("7", Some(Duration::from_secs(7))),
            ("86401", day),
            ("18446744073709551616", day),
            ("-1", None),
            ("1.5", None),
            ("", None),
            ("soon", None),
            ("Fri, 31 Dec 1999 23:59:59 GMT", Some(Duration::ZERO)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", day),
            ("Fri, 99 Foo 9999 23:59:59 GMT", None),
        ] {
            assert_eq!(retry_after(&map(&[("retry-after", text)]), now), expected, "{text:?}");
        }
        // As protobuf: `retry_delay` is field 1; in it, field 1 are seconds and field 2 nanoseconds.
        let varint = |mut value: u64| {
            let mut bytes = Vec::new();
            while value >= 0x80 {
                bytes.push(value as u8 | 0x80);
                value >>= 7;
            }
            bytes.push(value as u8);
            bytes
        };
        let details = |info: Vec<u8>| {
            let any = [&b"\x0a\x28type.googleapis.com/google.rpc.RetryInfo\x12"[..], &varint(info.len() as u64), &info];
            let any = any.concat();
            [&b"\x1a"[..], &varint(any.len() as u64), &any].concat()
        };
        for (seconds, nanos, expected) in [
            (2, 5, Some(Duration::new(2, 5))),
            (i64::MAX, 0, day),
            (i64::MAX, i64::from(i32::MAX), None),
            (i64::MIN, 0, None),
            (-1, 0, None),
            (1, -1, None),
            (1, 1_000_000_000, None),
        ] {
            let delay = [vec![8], varint(seconds as u64), vec![16], varint(nanos as u64)].concat();
            let info = [vec![10, delay.len() as u8], delay].concat();
            assert_eq!(retry_info(&details(info)), Some(expected), "{seconds} {nanos}");
        }
        assert_eq!(retry_info(&details(Vec::new())), Some(None), "without a delay");
        assert_eq!(retry_info(&details(vec![10, 0xff])), None, "cut");
        assert_eq!(retry_info(b"garbage"), None);
        let status = Status::with_details(Code::ResourceExhausted, "m", details(Vec::new()).into());
        assert!(matches!(of_grpc(&status), Failure::Retry { after: None, .. }));
    }

    /// Prevents RESOURCE_EXHAUSTED from being retried without the backend's word, and a cut connection from being
    /// given up.
    #[test]
    fn grpc_codes() {
        let plain = |code| of_grpc(&Status::new(code, "m"));
        for code in [Code::Cancelled, Code::DeadlineExceeded, Code::Aborted, Code::OutOfRange, Code::Unavailable] {
            assert!(matches!(plain(code), Failure::Retry { after: None, .. }), "{code:?}");
        }
        for code in [Code::ResourceExhausted, Code::InvalidArgument, Code::NotFound, Code::FailedPrecondition] {
            assert_eq!(plain(code), Failure::Refused(format!("{code:?}: m")));
        }
        for code in [Code::Unauthenticated, Code::PermissionDenied, Code::Internal, Code::Unknown] {
            assert_eq!(plain(code), Failure::Backend(format!("{code:?}: m")));
        }
        assert!(matches!(plain(Code::Unimplemented), Failure::Unimplemented(_)));
        let patience = ErrorDetails::with_retry_info(Some(Duration::from_secs(2)));
        for code in [Code::ResourceExhausted, Code::Unavailable] {
            let status = Status::with_error_details(code, "m", patience.clone());
            assert!(matches!(of_grpc(&status), Failure::Retry { after: Some(after), .. } if after.as_secs() == 2));
        }
        let cut = Status::from_error(Box::new(std::io::Error::other("cut")));
        assert!(matches!(of_grpc(&cut), Failure::Retry { .. }), "{cut:?}");
    }
}
