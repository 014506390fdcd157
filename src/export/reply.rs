//! What a backend's answer means: taken, to be tried again, or refused (OTLP specification, "Failures"). Pure code.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use tonic::{Code, Status};
use tonic_types::StatusExt;

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
    /// The backend takes none now, for a reason that is its own and may be mended: who asks, or what it is in.
    Backend(String),
    /// It never will.
    Refused(String),
    /// Nor will any other request of this signal.
    Unimplemented(String),
}

impl Failure {
    /// The same with another reason.
    pub fn with(self, why: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Retry { after, why: before } => Self::Retry { after, why: why(before) },
            Self::Backend(before) => Self::Backend(why(before)),
            Self::Refused(before) => Self::Refused(why(before)),
            Self::Unimplemented(before) => Self::Unimplemented(why(before)),
        }
    }
}

/// As much of what a backend says is shown.
const SHOWN: usize = 200;

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
    let retry_info = status.get_details_retry_info();
    let is_asked_to_retry = retry_info.is_some();
    let after = retry_info.and_then(|info| info.retry_delay);
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Failure::Retry { after, why },
        // Also one without a delay: then the back-off is enough.
        Code::ResourceExhausted if is_asked_to_retry => Failure::Retry { after, why },
        Code::Unimplemented => Failure::Unimplemented(why),
        Code::Unauthenticated | Code::PermissionDenied | Code::Internal | Code::Unknown => Failure::Backend(why),
        _ => Failure::Refused(why),
    }
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

/// What an HTTP answer means.
pub fn of_http(signal: Signal, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Result<Accepted, Failure> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if status.is_success() {
        let is_page = content_type.starts_with("text/html") || body.trim_ascii_start().starts_with(b"<");
        let is_otlp = ["application/json", "application/x-protobuf"].iter().any(|own| content_type.starts_with(own));
        return match body {
            // A proxy's login page: whoever it is, it is not the backend.
            _ if is_page => Err(Failure::Backend(format!("{status}, but the answer is a web page ({content_type})"))),
            [] => {
                Ok(Accepted { message: "its answer is empty, which is taken as a yes".into(), ..Accepted::default() })
            }
            body if content_type.starts_with("application/json") => partial_success_json(signal, body)
                .ok_or_else(|| Failure::Refused(format!("{status}, but the answer is not OTLP's ({content_type})"))),
            body if is_otlp => partial_success(signal, body)
                .ok_or_else(|| Failure::Refused(format!("{status}, but the answer is not OTLP's ({content_type})"))),
            body => Ok(partial_success(signal, body).unwrap_or_else(|| Accepted {
                message: format!("its answer is not OTLP's, which is taken as a yes: {}", shown(&lossy(body))),
                ..Accepted::default()
            })),
        };
    }
    let why = match message(content_type, body) {
        Some(message) => format!("{status}: {message}"),
        None => status.to_string(),
    };
    Err(match status.as_u16() {
        408 | 429 | 502 | 503 | 504 => Failure::Retry { after: retry_after(headers, SystemTime::now()), why },
        404 => Failure::Unimplemented(why),
        401 | 403 | 407 | 500..=599 => Failure::Backend(why),
        _ => Failure::Refused(why),
    })
}

fn lossy(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(4 * SHOWN)]).into_owned()
}

/// Retry-After (RFC 9110, section 10.2.3): seconds or a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() => Some(Duration::MAX),
        Err(_) => httpdate::parse_http_date(text).ok().map(|at| at.duration_since(now).unwrap_or_default()),
    }
}

/// What the body of a failure says: a google.rpc.Status, or text.
fn message(content_type: &str, body: &[u8]) -> Option<String> {
    let text = match content_type.starts_with("application/x-protobuf") {
        true => tonic_types::pb::Status::decode(body).ok()?.message,
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
    use tonic_types::ErrorDetails;

    use super::*;

    fn http(status: u16, headers: &[(&'static str, &str)], body: &[u8]) -> Result<Accepted, Failure> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        of_http(Signal::Traces, StatusCode::from_u16(status).unwrap(), &map, body)
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
        assert_eq!(retries(http(503, &[("retry-after", "99999999999999999999999")], b"")), Some(Some(u64::MAX)));
        assert!(retries(http(503, &[("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT")], b"")).flatten() > Some(1));
        for wrong in ["-1", "1.5", "", "7 s"] {
            assert_eq!(retries(http(503, &[("retry-after", wrong)], b"")), Some(None), "{wrong}");
        }
        for status in [301, 400, 405, 413, 415, 422] {
            assert!(matches!(http(status, &[], b""), Err(Failure::Refused(_))), "{status}");
        }
        for status in [401, 403, 407, 500, 501, 505, 599] {
            assert!(matches!(http(status, &[], b""), Err(Failure::Backend(_))), "{status}");
        }
        assert!(matches!(http(404, &[], b""), Err(Failure::Unimplemented(_))));
        let status = tonic_types::pb::Status { code: 3, message: "bad\n span".into(), details: vec![] };
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
        for (content_type, body) in [("", &b""[..]), ("text/plain", b"OK, thanks"), ("", b"ok\n")] {
            let answer = http(200, &[("content-type", content_type)], body).unwrap();
            assert!(answer.rejected == 0 && answer.message.contains("taken as a yes"), "{content_type}: {answer:?}");
        }
        for (content_type, body) in
            [("text/html", &b"hello"[..]), ("", b"<html>"), ("text/plain", b"\n<!DOCTYPE html>")]
        {
            assert!(matches!(http(200, &[("content-type", content_type)], body), Err(Failure::Backend(_))));
        }
        for (content_type, body) in [("application/json", &b"[]"[..]), ("application/x-protobuf", b"\xff\xff")] {
            assert!(matches!(http(200, &[("content-type", content_type)], body), Err(Failure::Refused(_))));
        }
    }

    /// Prevents RESOURCE_EXHAUSTED from being retried without the backend's word, and a cut connection from being
    /// given up.
    #[test]
    fn grpc_codes() {
        let plain = |code| of_grpc(&Status::new(code, "m"));
        for code in [Code::Cancelled, Code::DeadlineExceeded, Code::Aborted, Code::OutOfRange, Code::Unavailable] {
            assert!(matches!(plain(code), Failure::Retry { after: None, .. }), "{code:?}");
        }
        for code in [Code::ResourceExhausted, Code::InvalidArgument, Code::FailedPrecondition] {
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
        let without_delay = ErrorDetails::with_retry_info(None);
        let status = Status::with_error_details(Code::ResourceExhausted, "m", without_delay);
        assert!(matches!(of_grpc(&status), Failure::Retry { after: None, .. }), "{status:?}");
        let cut = Status::from_error(Box::new(std::io::Error::other("cut")));
        assert!(matches!(of_grpc(&cut), Failure::Retry { .. }), "{cut:?}");
    }
}
