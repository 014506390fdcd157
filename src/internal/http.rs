//! What the SDK's exporters send with over HTTP: they run on threads of their own, the client on the runtime.

use std::time::Duration;

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use tokio::runtime::Handle;

/// As much of an answer is read.
const ANSWER: usize = 64 << 10;

/// A client whose requests are made on a runtime.
#[derive(Debug)]
pub struct OnRuntime {
    client: reqwest::Client,
    timeout: Duration,
    runtime: Handle,
}

impl OnRuntime {
    /// A client that waits for an answer at most `timeout`.
    pub fn new(client: reqwest::Client, timeout: Duration, runtime: Handle) -> Self {
        Self { client, timeout, runtime }
    }
}

#[async_trait]
impl HttpClient for OnRuntime {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let request: reqwest::Request = request.try_into()?;
        let (client, timeout) = (self.client.clone(), self.timeout);
        let answer = self.runtime.spawn(async move {
            let answer = async {
                let mut answer = client.execute(request).await?;
                let mut response = Response::builder().status(answer.status());
                if let Some(headers) = response.headers_mut() {
                    *headers = std::mem::take(answer.headers_mut());
                }
                let mut body = Vec::new();
                while let Some(chunk) = answer.chunk().await? {
                    if body.len() + chunk.len() > ANSWER {
                        return Err(format!("an answer of more than {ANSWER} bytes").into());
                    }
                    body.extend_from_slice(&chunk);
                }
                Ok::<_, HttpError>(response.body(body.into())?)
            };
            tokio::time::timeout(timeout, answer).await?
        });
        answer.await?
    }
}
