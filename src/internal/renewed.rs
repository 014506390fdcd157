//! The SDK's exporters, made again when the files change that their connections are made of (certificates, keys, headers), as
//! those of the traced calls are. Sends nothing itself.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogBatch, LogExporter};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

use crate::export::endpoint::Endpoint;
use crate::export::files::{self, FromFiles};
use crate::model::error::Error;

/// Makes an exporter, for a Resource.
type Make<E> = Box<dyn Fn(&Resource) -> Result<E, Error> + Send + Sync>;

/// An exporter that is renewed.
pub struct Renewed<E> {
    made: Mutex<FromFiles<Arc<E>>>,
    make: Make<E>,
    resource: Resource,
}

impl<E> Renewed<E> {
    /// An exporter to the endpoint, made of its files.
    pub fn new(endpoint: &Endpoint, resource: Resource, make: Make<E>) -> Result<Self, Error> {
        let made = FromFiles::new(files::of(endpoint), || make(&resource).map(Arc::new))?;
        Ok(Self { made: Mutex::new(made), make, resource })
    }

    /// As its files are now; as before where they are good for none, which the outputs of the traced calls say.
    fn exporter(&self) -> Arc<E> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = made.refresh(Instant::now(), || (self.make)(&self.resource).map(Arc::new));
        made.value().clone()
    }
}

impl<E: std::fmt::Debug> std::fmt::Debug for Renewed<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Renewed").field(&self.made).finish()
    }
}

impl<E: SpanExporter> SpanExporter for Renewed<E> {
    fn export(&self, batch: Vec<SpanData>) -> impl Future<Output = OTelSdkResult> + Send {
        let exporter = self.exporter();
        async move { exporter.export(batch).await }
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter().shutdown_with_timeout(timeout)
    }
}

impl<E: LogExporter> LogExporter for Renewed<E> {
    fn export(&self, batch: LogBatch<'_>) -> impl Future<Output = OTelSdkResult> + Send {
        let exporter = self.exporter();
        async move { exporter.export(batch).await }
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter().shutdown_with_timeout(timeout)
    }
}

#[cfg(test)]
mod tests {
    use ::http::HeaderMap;

    use super::*;
    use crate::model::values::Protocol;

    /// Prevents mqspan's own telemetry from being sent with a token that was rotated, and from ending where the new file is
    /// good for nothing.
    #[test]
    fn made_again_when_a_file_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("headers");
        std::fs::write(&path, "one").unwrap();
        let endpoint = Endpoint {
            url: "http://127.0.0.1:1/".into(),
            protocol: Protocol::Grpc,
            socket: None,
            headers: HeaderMap::new(),
            headers_file: Some(path.clone()),
            compression: None,
            timeout: Duration::from_secs(1),
            certificate: None,
            client: None,
        };
        let make = {
            let path = path.clone();
            move |_: &Resource| match &*String::from_utf8(files::read(&path, "headers_file")?).unwrap_or_default() {
                "broken" => Err(Error::cannot_run("broken", "mend it")),
                text => Ok(text.to_owned()),
            }
        };
        let renewed = Renewed::new(&endpoint, Resource::builder_empty().build(), Box::new(make)).unwrap();
        let as_of = |text: &str| {
            std::fs::write(&path, text).unwrap();
            renewed.made.lock().unwrap().reload();
            (*renewed.exporter()).clone()
        };
        assert_eq!(*renewed.exporter(), "one");
        assert_eq!(as_of("two"), "two");
        assert_eq!(as_of("broken"), "two");
        assert_eq!(as_of("three"), "three");
    }
}
