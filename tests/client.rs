//! The OTLP client and real servers on the loopback and on UNIX sockets: where requests arrive, and what is said of
//! servers that are not OTLP's, or speak the other protocol. Needs no root.

#![allow(clippy::unwrap_used)] // Also in what the tests have in common.

use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mqspan::export::batch::Encoding;
use mqspan::export::client::OtlpClient;
use mqspan::export::endpoint::Endpoint;
use mqspan::export::reply::{Accepted, Failure};
use mqspan::model::values::{Compression, Protocol, Signal};
use support::backend::{self, Backend};
use support::certificates;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

/// A request as it came: path, headers, length.
type Arrived = Arc<Mutex<Vec<(String, HeaderMap, usize)>>>;

/// Which HTTP a server speaks.
#[derive(Clone, Copy)]
enum Speaks {
    Http1,
    Http2,
}

/// What a server answers with.
type Answer = fn() -> Response<Full<Bytes>>;

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    speaks: Speaks,
    arrived: Arrived,
    answer: Answer,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let arrived = arrived.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            arrived.lock().unwrap().push((parts.uri.path().into(), parts.headers, body.len()));
            Ok::<_, Infallible>(answer())
        }
    });
    let stream = TokioIo::new(stream);
    let _ = match speaks {
        Speaks::Http1 => hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await,
        Speaks::Http2 => {
            hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service).await
        }
    };
}

/// A server on the loopback; its port.
async fn on_loopback(speaks: Speaks, answer: Answer) -> (u16, Arrived) {
    let (listener, arrived) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), Arrived::default());
    let (port, serving) = (listener.local_addr().unwrap().port(), arrived.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, speaks, serving.clone(), answer));
        }
    });
    (port, arrived)
}

/// A server on a UNIX socket.
async fn on_socket(path: &Path, speaks: Speaks, answer: Answer) -> Arrived {
    let (listener, arrived) = (UnixListener::bind(path).unwrap(), Arrived::default());
    let serving = arrived.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, speaks, serving.clone(), answer));
        }
    });
    arrived
}

fn endpoint(url: &str, protocol: Protocol) -> Endpoint {
    Endpoint {
        url: url.into(),
        socket: None,
        protocol,
        headers: HeaderMap::new(),
        headers_file: None,
        compression: None,
        timeout: Duration::from_secs(20),
        certificate: None,
        client: None,
    }
}

fn taken() -> Response<Full<Bytes>> {
    Response::builder().header("content-type", "application/x-protobuf").body(Full::default()).unwrap()
}

/// The answer of gRPC with an empty message.
fn taken_by_grpc() -> Response<Full<Bytes>> {
    let response = Response::builder().header("content-type", "application/grpc").header("grpc-status", "0");
    response.body(Full::new(Bytes::from_static(&[0; 5]))).unwrap()
}

fn gzipped_bomb(framed: bool) -> Bytes {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&vec![0; 32 << 20]).unwrap();
    let zipped = encoder.finish().unwrap();
    let frame = [&[1][..], &(zipped.len() as u32).to_be_bytes()].concat();
    if framed { [frame, zipped].concat().into() } else { zipped.into() }
}

async fn send(endpoint: &Endpoint) -> Result<Accepted, Failure> {
    let client = OtlpClient::new(Signal::Traces, endpoint).unwrap();
    client.send(Bytes::new(), Encoding::Protobuf).await
}

/// Prevents a backend from having spans, and the headers with them, sent to somebody else.
#[tokio::test]
async fn redirections_are_not_followed() {
    static ELSEWHERE: OnceLock<String> = OnceLock::new();
    let (port, arrived) = on_loopback(Speaks::Http1, taken).await;
    ELSEWHERE.set(format!("http://127.0.0.1:{port}/v1/traces")).unwrap();
    for status in [301, 302, 303, 307, 308] {
        static STATUS: AtomicU16 = AtomicU16::new(0);
        STATUS.store(status, Relaxed);
        let (port, asked) = on_loopback(Speaks::Http1, || {
            let response =
                Response::builder().status(STATUS.load(Relaxed)).header("location", &ELSEWHERE.get().unwrap()[..]);
            response.body(Full::default()).unwrap()
        })
        .await;
        let answer = send(&endpoint(&format!("http://127.0.0.1:{port}/v1/traces"), Protocol::HttpProtobuf)).await;
        assert!(matches!(answer, Err(Failure::Refused(_))), "{status}: {answer:?}");
        assert_eq!((asked.lock().unwrap().len(), arrived.lock().unwrap().len()), (1, 0), "{status}");
    }
}

/// Prevents requests from going anywhere but to the socket that is named, in either protocol.
#[tokio::test]
async fn unix_sockets() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("http");
    let arrived = on_socket(&path, Speaks::Http1, taken).await;
    let mut http = endpoint("http://localhost/v1/traces", Protocol::HttpProtobuf);
    http.socket = Some(path);
    assert_eq!(send(&http).await, Ok(Accepted::default()));
    assert_eq!(arrived.lock().unwrap()[0].0, "/v1/traces");

    let path = folder.path().join("grpc");
    let arrived = on_socket(&path, Speaks::Http2, taken_by_grpc).await;
    let mut grpc = endpoint("http://localhost", Protocol::Grpc);
    grpc.socket = Some(path);
    assert_eq!(send(&grpc).await, Ok(Accepted::default()));
    assert_eq!(arrived.lock().unwrap()[0].0, "/opentelemetry.proto.collector.trace.v1.TraceService/Export");

    for endpoint in [&mut http, &mut grpc] {
        endpoint.socket = Some(folder.path().join("nobody"));
        match send(endpoint).await {
            Err(Failure::Retry { why, .. }) => assert!(why.contains("/nobody"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}

/// Prevents the commonest mistake, the other protocol's port, from being told of as a broken connection.
#[tokio::test]
async fn the_other_protocols_port() {
    let (port, _) = on_loopback(Speaks::Http2, taken_by_grpc).await;
    let url = format!("http://127.0.0.1:{port}/v1/traces");
    let (why, mend) = failure(&endpoint(&url, Protocol::HttpProtobuf)).await;
    assert!(why.starts_with(&url) && mend.contains("4318") && mend.ends_with("--protocol grpc"), "{why} {mend}");
}

/// The same the other way round.
#[tokio::test]
async fn the_other_protocols_port_for_grpc() {
    let (port, _) = on_loopback(Speaks::Http1, taken).await;
    let url = format!("http://127.0.0.1:{port}");
    let (why, mend) = failure(&endpoint(&url, Protocol::Grpc)).await;
    assert!(why.starts_with(&url) && mend.contains("4317") && mend.ends_with("http/protobuf"), "{why} {mend}");
}

/// Why a request was not taken, and the command that mends it.
async fn failure(endpoint: &Endpoint) -> (String, String) {
    let client = OtlpClient::new(Signal::Traces, endpoint).unwrap();
    let failure = client.send(Bytes::new(), Encoding::Protobuf).await.unwrap_err();
    (failure.why().into(), client.mend(&failure).unwrap_or_default())
}

/// Prevents a backend that can't be reached, or shows a certificate that is not to be trusted, from being told of without the
/// command that mends it.
#[tokio::test]
async fn what_mends_it() {
    let folder = tempfile::tempdir().unwrap();
    let [ours, theirs] = ["ours", "theirs"].map(|name| folder.path().join(name));
    for folder in [&ours, &theirs] {
        certificates::write(folder).unwrap();
    }
    let by_tls = |name: &str| Backend::start_tls(&ours, name, |_, _| backend::Answer::Taken).unwrap();
    let [server, elsewhere, expired] = ["server", "elsewhere", "expired"].map(by_tls);
    let plain = Backend::start(|_, _| backend::Answer::Taken).unwrap();
    let refuses = Backend::start(|_, path| match path.starts_with("/v1/") {
        true => backend::Answer::Http(401, None),
        false => backend::Answer::Grpc(tonic::Code::Unauthenticated, None),
    })
    .unwrap();
    let nobody = format!("http://127.0.0.1:{}", backend::free_port().unwrap());
    let without_tls = plain.endpoint().replace("http:", "https:");
    let authority = |folder: &Path| Some(folder.join("ca.pem"));
    for protocol in [Protocol::HttpProtobuf, Protocol::Grpc] {
        let path = if protocol == Protocol::Grpc { "" } else { "/v1/traces" };
        let of = |url: &str, certificate| Endpoint { certificate, ..endpoint(&format!("{url}{path}"), protocol) };
        assert_eq!(send(&of(&server.endpoint(), authority(&ours))).await, Ok(Accepted::default()));
        for (url, certificate, expected) in [
            (server.endpoint(), authority(&theirs), "OTEL_EXPORTER_OTLP_CERTIFICATE=/path/to/ca.pem mqspan run"),
            (elsewhere.endpoint(), authority(&ours), "openssl x509 -noout -ext subjectAltName"),
            (expired.endpoint(), authority(&ours), "openssl x509 -noout -dates"),
            (without_tls.clone(), authority(&ours), "mqspan run --endpoint http://HOST:43"),
            (nobody.clone(), None, "mqspan run --endpoint http://HOST:43"),
            ("http://nobody.invalid:1".into(), None, "mqspan run --endpoint http://HOST:43"),
            (refuses.endpoint(), None, "OTEL_EXPORTER_OTLP_HEADERS='authorization=Bearer%20TOKEN' mqspan run"),
        ] {
            let (why, mend) = failure(&of(&url, certificate)).await;
            println!("{why}\n  {mend}");
            assert!(mend.contains(expected), "{why}: {mend:?}, not {expected}");
        }
    }
}

/// Prevents an answer, a compressed one too, from filling the memory.
#[tokio::test]
async fn answers_are_bounded() {
    let (port, _) = on_loopback(Speaks::Http2, || {
        let response = Response::builder().header("content-type", "application/grpc").header("grpc-encoding", "gzip");
        response.body(Full::new(gzipped_bomb(true))).unwrap()
    })
    .await;
    let answer = send(&endpoint(&format!("http://127.0.0.1:{port}"), Protocol::Grpc)).await;
    assert!(matches!(answer, Err(Failure::Backend(_))), "{answer:?}");
    let (port, _) = on_loopback(Speaks::Http1, || Response::new(Full::new(vec![b'x'; 1 << 20].into()))).await;
    let answer = send(&endpoint(&format!("http://127.0.0.1:{port}/"), Protocol::HttpProtobuf)).await;
    assert!(matches!(answer, Err(Failure::Backend(_))), "{answer:?}");
    let (port, _) = on_loopback(Speaks::Http1, || {
        let response = Response::builder().header("content-encoding", "gzip");
        response.header("content-type", "application/x-protobuf").body(Full::new(gzipped_bomb(false))).unwrap()
    })
    .await;
    let answer = send(&endpoint(&format!("http://127.0.0.1:{port}/"), Protocol::HttpProtobuf)).await;
    assert!(matches!(answer, Err(Failure::Backend(_))), "{answer:?}");
}

/// Prevents a rotated token from being sent no more than the old one, and small requests from being compressed.
#[tokio::test]
async fn headers_of_a_file() {
    let (port, arrived) = on_loopback(Speaks::Http1, taken).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("headers");
    let mut endpoint = endpoint(&format!("http://127.0.0.1:{port}/v1/traces"), Protocol::HttpProtobuf);
    endpoint.headers.insert("authorization", "old".parse().unwrap());
    endpoint.headers_file = Some(path.clone());
    endpoint.compression = Some(Compression::Gzip);
    assert!(OtlpClient::new(Signal::Traces, &endpoint).is_err(), "no such file");
    std::fs::write(&path, "Authorization: first\n").unwrap();
    let client = OtlpClient::new(Signal::Traces, &endpoint).unwrap();
    let send = |length| client.send(vec![0; length].into(), Encoding::Protobuf);
    send(1023).await.unwrap();
    for (text, length) in [("Authorization: second\n", 1024), ("broken", 1)] {
        std::fs::write(&path, text).unwrap();
        client.reload();
        send(length).await.unwrap();
    }
    let arrived = arrived.lock().unwrap();
    let sent =
        |name| arrived.iter().map(|(_, headers, _)| headers.get(name).map(|v| v.to_str().unwrap())).collect::<Vec<_>>();
    assert_eq!(sent("authorization"), [Some("first"), Some("second"), Some("second")]);
    assert_eq!(sent("content-encoding"), [None, Some("gzip"), None]);
}
