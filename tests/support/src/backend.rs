//! A backend that does as it is told: what a real one does only when it is in trouble. It takes OTLP over HTTP and gRPC at
//! one port of the loopback, and remembers what came when.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    runtime::{Builder, Runtime},
    sync::Notify,
};
use tokio_rustls::TlsAcceptor;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// What is done with a request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// It is taken.
    Taken,
    /// It is taken after a while.
    TakenAfter(Duration),
    /// It is taken, but for so many spans.
    Partial(i64),
    /// There is no answer, ever.
    Nothing,
    /// The connection is cut before the request is read.
    Cut,
    /// This status of HTTP, and Retry-After in seconds.
    Http(u16, Option<u64>),
    /// 200 with a page that is not OTLP.
    Page,
    /// This status of gRPC, and RetryInfo.
    Grpc(Code, Option<Duration>),
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Arrived {
    /// When.
    pub at: Instant,
    /// When it was answered, if it was.
    pub answered: Option<Instant>,
    /// `/v1/traces`, or a method of gRPC.
    pub path: String,
    /// Bytes of its body, compressed as it came.
    pub size: usize,
    /// Its spans' ids; none where it was not read.
    pub spans: Vec<Vec<u8>>,
    /// Whether it was taken.
    pub taken: bool,
}

type Script = Box<dyn Fn(usize, &str) -> Answer + Send + Sync>;

struct State {
    script: Script,
    arrived: Mutex<Vec<Arrived>>,
}

/// The backend. Dropped, it is gone with all its connections.
pub struct Backend {
    scheme: &'static str,
    port: u16,
    state: Arc<State>,
    runtime: Option<Runtime>,
}

impl Backend {
    /// Starts it; `script` is asked with the number of each request and its path.
    pub fn start(script: impl Fn(usize, &str) -> Answer + Send + Sync + 'static) -> Result<Self> {
        Self::start_at(0, script)
    }

    /// The same at a port.
    pub fn start_at(port: u16, script: impl Fn(usize, &str) -> Answer + Send + Sync + 'static) -> Result<Self> {
        Self::serve(port, None, script)
    }

    /// The same by TLS, with a certificate `NAME.pem` and its key `NAME.key`.
    pub fn start_tls(
        folder: &Path,
        name: &str,
        script: impl Fn(usize, &str) -> Answer + Send + Sync + 'static,
    ) -> Result<Self> {
        let file = |extension: &str| folder.join(name).with_extension(extension);
        let chain = CertificateDer::pem_file_iter(file("pem"))?.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_file(file("key"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut config = config.with_no_client_auth().with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self::serve(0, Some(TlsAcceptor::from(Arc::new(config))), script)
    }

    fn serve(
        port: u16,
        tls: Option<TlsAcceptor>,
        script: impl Fn(usize, &str) -> Answer + Send + Sync + 'static,
    ) -> Result<Self> {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(State { script: Box::new(script), arrived: Mutex::default() });
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let serving = state.clone();
        runtime.spawn(async move {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            while let Ok((stream, _)) = listener.accept().await {
                let (state, tls) = (serving.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => connection(stream, state).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                connection(stream, state).await;
                            }
                        }
                    }
                });
            }
        });
        Ok(Self { scheme, port, state, runtime: Some(runtime) })
    }

    /// Where it is.
    pub fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// What came so far.
    pub fn arrived(&self) -> Vec<Arrived> {
        self.state.arrived().clone()
    }

    /// Ends it; all that ever came. Nothing is taken after this, which can't be said of [`Self::arrived`].
    pub fn stop(mut self) -> Vec<Arrived> {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(10));
        }
        self.arrived()
    }

    /// The ids of the spans that were taken, and how many of them were taken before.
    pub fn taken(&self) -> (BTreeSet<Vec<u8>>, usize) {
        let (mut ids, mut again) = (BTreeSet::new(), 0);
        for id in self.arrived().into_iter().filter(|arrived| arrived.taken).flat_map(|arrived| arrived.spans) {
            again += usize::from(!ids.insert(id));
        }
        (ids, again)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A port that nobody listens on.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

impl State {
    fn arrived(&self) -> std::sync::MutexGuard<'_, Vec<Arrived>> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, state: Arc<State>) {
    let cut = Arc::new(Notify::new());
    let is_cut = cut.clone();
    let service = service_fn(move |request| answer(state.clone(), cut.clone(), request));
    let server = auto::Builder::new(TokioExecutor::new());
    tokio::select! {
        _ = server.serve_connection(TokioIo::new(stream), service) => {}
        () = is_cut.notified() => {}
    }
}

async fn answer(state: Arc<State>, cut: Arc<Notify>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let is_grpc = !path.starts_with("/v1/");
    let number = {
        let mut arrived = state.arrived();
        arrived.push(Arrived {
            at: Instant::now(),
            answered: None,
            path: path.clone(),
            size: 0,
            spans: Vec::new(),
            taken: false,
        });
        arrived.len() - 1
    };
    let answer = (state.script)(number, &path);
    if matches!(answer, Answer::Cut) {
        cut.notify_one();
        std::future::pending::<()>().await;
    }
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    // gRPC's five bytes: not compressed, and the length.
    let message = if is_grpc { body.get(5..).unwrap_or_default() } else { &body[..] };
    let spans = if path.to_lowercase().contains("trace") { ids(message).unwrap_or_default() } else { Vec::new() };
    {
        let arrived = &mut state.arrived()[number];
        (arrived.size, arrived.spans) = (body.len(), spans);
    }
    match answer {
        Answer::Nothing => std::future::pending::<()>().await,
        Answer::TakenAfter(pause) => tokio::time::sleep(pause).await,
        _ => {}
    }
    let rejected = if let Answer::Partial(rejected) = answer { Some(rejected) } else { None };
    let response = match answer {
        Answer::Http(status, after) => of_http(status, after),
        Answer::Page => ok("text/html", b"<html>welcome</html>".to_vec(), false),
        Answer::Grpc(code, after) => {
            let details = after.map_or_else(ErrorDetails::new, |after| ErrorDetails::with_retry_info(Some(after)));
            Status::with_error_details(code, "as told", details).into_http::<Full<Bytes>>().map(BodyExt::boxed)
        }
        _ => {
            state.arrived()[number].taken = true;
            let partial_success = rejected
                .map(|rejected_spans| ExportTracePartialSuccess { rejected_spans, error_message: "as told".into() });
            let message = ExportTraceServiceResponse { partial_success }.encode_to_vec();
            match is_grpc {
                true => {
                    let length = u32::try_from(message.len()).unwrap_or_default().to_be_bytes();
                    ok("application/grpc", [&[0][..], &length, &message].concat(), true)
                }
                false => ok("application/x-protobuf", message, false),
            }
        }
    };
    state.arrived()[number].answered = Some(Instant::now());
    Ok(response)
}

type Body = http_body_util::combinators::BoxBody<Bytes, Infallible>;

fn ok(content_type: &'static str, body: Vec<u8>, with_status: bool) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let body = Full::new(Bytes::from(body));
    let body = match with_status {
        true => body.with_trailers(async move { Some(Ok(trailers)) }).boxed(),
        false => body.boxed(),
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn of_http(status: u16, after: Option<u64>) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::new()).boxed());
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    if let Some(after) = after {
        response.headers_mut().insert(header::RETRY_AFTER, after.into());
    }
    response
}

fn ids(message: &[u8]) -> Result<Vec<Vec<u8>>> {
    let request = match message.first() {
        Some(b'{') => serde_json::from_slice(message)?,
        _ => ExportTraceServiceRequest::decode(message).map_err(|error| anyhow!(error))?,
    };
    let spans = request.resource_spans.into_iter().flat_map(|of| of.scope_spans).flat_map(|of| of.spans);
    Ok(spans.map(|span| span.span_id).collect())
}
