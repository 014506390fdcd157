//! Where and how OTLP is sent, for each signal. What makes it out of settings is the configuration's. Pure data: opens
//! no connection and reads no file.

use std::path::PathBuf;
use std::time::Duration;

use http::HeaderMap;

use crate::model::values::{Compression, Protocol, Signal};

/// The endpoint of each signal.
#[derive(Clone, Debug)]
pub struct Otlp {
    /// For spans.
    pub traces: Endpoint,
    /// For log records.
    pub logs: Endpoint,
    /// For metrics.
    pub metrics: Endpoint,
}

/// Where and how one signal is sent.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The final URL. For HTTP it has the signal's path; for gRPC it is scheme, host and port. TLS
    /// is used where the scheme is `https`.
    pub url: String,
    /// How requests are carried and encoded.
    pub protocol: Protocol,
    /// The socket that requests go to instead of the URL's host, for `unix:` endpoints.
    pub socket: Option<PathBuf>,
    /// Sent with each request. The values are secrets: they are marked as sensitive, which keeps
    /// them out of `Debug`.
    pub headers: HeaderMap,
    /// File of further headers, which come before those above; read again when it changes.
    pub headers_file: Option<PathBuf>,
    /// None: not compressed.
    pub compression: Option<Compression>,
    /// How long one request may take.
    pub timeout: Duration,
    /// PEM file of the certificates that the backend's is checked against.
    pub certificate: Option<PathBuf>,
    /// What mqspan shows of itself.
    pub client: Option<ClientIdentity>,
}

/// What mqspan shows a backend that asks for a client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientIdentity {
    /// PEM file of the certificate.
    pub certificate: PathBuf,
    /// PEM file of its key.
    pub key: PathBuf,
}

impl Otlp {
    /// The endpoint of a signal.
    pub fn of(&self, signal: Signal) -> &Endpoint {
        match signal {
            Signal::Traces => &self.traces,
            Signal::Logs => &self.logs,
            Signal::Metrics => &self.metrics,
        }
    }
}

impl Endpoint {
    /// As messages name it: without a query, which may hold a token.
    pub fn name(&self) -> String {
        match &self.socket {
            Some(path) => format!("unix://{}", path.display()),
            None => self.url.split('?').next().unwrap_or_default().to_owned(),
        }
    }
}
