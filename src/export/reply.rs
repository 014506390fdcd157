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
    /// The backend does not work, or does not let mqspan in: that says nothing of this request.
    Backend(String),
    /// It never will.
    Refused(String),
    /// Nor will any other request of this signal.
    Unimplemented(String),
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
    let retry_info = status.get_details_retry_info().and_then(|info| info.retry_delay);
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Failure::Retry { after: retry_info, why },
        Code::ResourceExhausted if retry_info.is_some() => Failure::Retry { after: retry_info, why },
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
        return match (body, content_type.starts_with("application/json")) {
            ([], _) => Some(Accepted::default()),
            (body, true) => partial_success_json(signal, body),
            (body, false) => partial_success(signal, body),
        }
        .ok_or_else(|| Failure::Refused(format!("{status}, but the answer is not OTLP's ({content_type})")));
    }
    let why = match message(content_type, body) {
        Some(message) => format!("{status}: {message}"),
        None => status.to_string(),
    };
    Err(match status.as_u16() {
        429 | 502 | 503 | 504 => Failure::Retry { after: retry_after(headers, SystemTime::now()), why },
        404 => Failure::Unimplemented(why),
        401 | 403 | 407 | 408 | 500..=599 => Failure::Backend(why),
        _ => Failure::Refused(why),
    })
}

/// Retry-After (RFC 9110, section 10.2.3): seconds or a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
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
        for status in [429, 502, 503, 504] {
            assert_eq!(retries(http(status, &[], b"")), Some(None), "{status}");
            assert_eq!(retries(http(status, &[("retry-after", "7")], b"")), Some(Some(7)));
        }
        assert_eq!(retries(http(503, &[("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT")], b"")), Some(Some(0)));
        assert_eq!(retries(http(503, &[("retry-after", "soon")], b"")), Some(None));
        for status in [301, 400, 401, 403, 405, 413, 415, 500, 501] {
            assert!(matches!(http(status, &[], b""), Err(Failure::Refused(_))), "{status}");
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
        assert_eq!(http(200, &[], b""), Ok(Accepted::default()));
        for (content_type, body) in [("text/html", &b"<html>"[..]), ("application/json", b"[]"), ("", b"OK, thanks")] {
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
        for code in [Code::ResourceExhausted, Code::InvalidArgument, Code::Unauthenticated, Code::Internal] {
            assert_eq!(plain(code), Failure::Refused(format!("{code:?}: m")));
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
