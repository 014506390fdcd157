//! What mends a delivery that failed, as one command, found by what the libraries and the backend say of it. Pure code.

use http::Uri;

use super::endpoint::Endpoint;
use crate::model::values::Protocol;

/// What to do about it, where that is known; `why` as [`reply::causes`](super::reply::causes) has it.
pub fn mend(endpoint: &Endpoint, why: &str) -> Option<String> {
    let says = |words: &[&str]| words.iter().any(|word| why.contains(word));
    let (port, protocol) = match endpoint.protocol {
        Protocol::Grpc => (4317, " --protocol grpc"),
        Protocol::HttpProtobuf | Protocol::HttpJson => (4318, ""),
    };
    let at = |what: &str| Some(format!("{what}: mqspan run --endpoint http://HOST:{port}{protocol}"));
    // What rustls calls it.
    if says(&["UnknownIssuer", "BadSignature", "CaUsedAsEndEntity"]) {
        return Some(
            "the backend's certificate is of an authority that is not known here; name the authority's own: \
             OTEL_EXPORTER_OTLP_CERTIFICATE=/path/to/ca.pem mqspan run"
                .into(),
        );
    }
    if says(&["NotValidForName", "not valid for name"]) {
        return Some(shown_by(endpoint, "name the host as its certificate does", "-ext subjectAltName"));
    }
    if says(&["Expired", "certificate expired", "NotValidYet", "not valid yet"]) {
        return Some(shown_by(endpoint, "renew its certificate, or set the clock", "-dates"));
    }
    if says(&["CertificateRequired", "HandshakeFailure"]) {
        return Some(
            "the backend asks for a certificate of mqspan's: OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=/path/to/client.pem \
             OTEL_EXPORTER_OTLP_CLIENT_KEY=/path/to/client.key mqspan run"
                .into(),
        );
    }
    if says(&["InvalidContentType"]) {
        return at("that port speaks no TLS");
    }
    if says(&["Connection refused", "No route to host", "Network is unreachable"]) {
        return at("nothing listens there; name where the Collector does");
    }
    if says(&["dns error", "failed to lookup address"]) {
        return at("no such host is known here; name where the Collector is");
    }
    if says(&["401 ", "403 ", "Unauthenticated", "PermissionDenied"]) {
        return Some(
            "it wants to know who sends: OTEL_EXPORTER_OTLP_HEADERS='authorization=Bearer%20TOKEN' mqspan run".into(),
        );
    }
    wrong_protocol(endpoint.protocol, &says)
}

/// Shows what is in the backend's certificate.
fn shown_by(endpoint: &Endpoint, what: &str, field: &str) -> String {
    let uri: Option<Uri> = endpoint.url.parse().ok();
    let host = uri.as_ref().and_then(Uri::host).unwrap_or("HOST");
    let port = uri.as_ref().and_then(Uri::port_u16).unwrap_or(443);
    format!("{what}: openssl s_client -connect {host}:{port} </dev/null | openssl x509 -noout {field}")
}

/// Where an error looks as if the other protocol were spoken at that port.
fn wrong_protocol(protocol: Protocol, says: &dyn Fn(&[&str]) -> bool) -> Option<String> {
    let hint = match protocol {
        // The first bytes of "HTTP/1.1" are the length of a frame that is too long for HTTP/2.
        Protocol::Grpc => says(&[
            "frame with invalid size",
            // Of a server that ends the connection at the preface of HTTP/2.
            "connection error: stream closed because of a broken pipe",
            "connection error: connection reset",
            "mapped from HTTP status code 400",
            "mapped from HTTP status code 404",
            "mapped from HTTP status code 405",
            "mapped from HTTP status code 415",
            "mapped from HTTP status code 505",
        ])
        .then_some(
            "if that is a port of OTLP/HTTP, say so, or give gRPC's, as a rule 4317: mqspan run --protocol http/protobuf",
        ),
        Protocol::HttpProtobuf | Protocol::HttpJson => {
            says(&["invalid HTTP version", "received unexpected message from connection", "(application/grpc"]).then_some(
                "if that is a port of OTLP/gRPC, say so, or give HTTP's, as a rule 4318: mqspan run --protocol grpc",
            )
        }
    };
    hint.map(Into::into)
}
