//! One attempt to deliver one request over OTLP/gRPC or OTLP/HTTP. Decides nothing: what the answer means is
//! [`reply`]'s, what follows the sender's.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes};
use flate2::write::GzEncoder;
use http::uri::PathAndQuery;
use http::{HeaderMap, header};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use serde::de::DeserializeOwned;
use tonic::client::Grpc;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataMap;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};
use tonic::{Extensions, Status};
use tracing::warn;

use super::batch::Encoding;
use super::endpoint::{ClientIdentity, Endpoint};
use super::files::{self, FromFiles};
use super::headers;
use super::mending;
use super::reply::{self, Accepted, Failure};
use crate::model::error::Error;
use crate::model::values::{Compression, Protocol, Signal};

const USER_AGENT: &str = concat!("mqspan/", env!("CARGO_PKG_VERSION"));
/// A smaller request is not worth compressing.
const COMPRESS_FROM: usize = 1024;
/// A connection that is idle is asked after each, so that one that a firewall forgot is found.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// As much of an answer is read.
const ANSWER: usize = 64 << 10;

/// A connection to the backend of one signal, made when it is first needed and again after it broke or its certificates
/// changed.
#[derive(Clone, Debug)]
pub struct OtlpClient {
    signal: Signal,
    endpoint: Endpoint,
    connection: Arc<Mutex<FromFiles<Connection>>>,
    /// Whether an unusual answer was told of.
    told: Arc<AtomicBool>,
}

/// What the files of an endpoint make of it.
#[derive(Clone, Debug)]
struct Connection {
    headers: HeaderMap,
    carrier: Carrier,
}

#[derive(Clone, Debug)]
enum Carrier {
    Grpc(Channel),
    Http(reqwest::Client),
}

impl OtlpClient {
    /// Prepares the connection: reads certificates and headers, connects to nothing. To be called on a runtime.
    pub fn new(signal: Signal, endpoint: &Endpoint) -> Result<Self, Error> {
        let connection = FromFiles::new(files::of(endpoint), || connection(endpoint))?;
        Ok(Self {
            signal,
            endpoint: endpoint.clone(),
            connection: Arc::new(Mutex::new(connection)),
            told: Arc::default(),
        })
    }

    /// How requests are to be encoded.
    pub fn encoding(&self) -> Encoding {
        match self.endpoint.protocol {
            Protocol::HttpJson => Encoding::Json,
            Protocol::Grpc | Protocol::HttpProtobuf => Encoding::Protobuf,
        }
    }

    /// Has certificates, keys and headers read again before the next request, whether they seem to have changed or not.
    pub fn reload(&self) {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).reload();
    }

    /// The connection as its files have it now; as they had it last where they are broken.
    fn connection(&self) -> Connection {
        let mut watched = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = watched.refresh(Instant::now(), || connection(&self.endpoint)) {
            warn!("otlp.{}: {}; what was read before stays in use", self.signal.name(), error.message);
        }
        watched.value().clone()
    }

    /// Sends a request once. One that an earlier run has left in the spool may be encoded otherwise than this one's.
    pub async fn send(&self, body: Bytes, encoding: Encoding) -> Result<Accepted, Failure> {
        let Connection { headers, carrier } = self.connection();
        let attempt = async {
            match carrier {
                Carrier::Grpc(channel) => {
                    let body = match encoding {
                        Encoding::Protobuf => body,
                        Encoding::Json => self.protobuf_of(&body)?,
                    };
                    self.send_grpc(channel, headers, body).await
                }
                Carrier::Http(client) => self.send_http(&client, headers, encoding, body).await,
            }
        };
        let timeout = self.endpoint.timeout;
        let result = tokio::time::timeout(timeout, attempt)
            .await
            .unwrap_or_else(|_| Err(Failure::Retry { after: None, why: format!("no answer within {timeout:?}") }));
        // With the URL that was tried.
        result.map_err(|failure| failure.with(|why| format!("{}: {why}", self.endpoint.name())))
    }

    /// What mends a failure, as one command, where that is known.
    pub fn mend(&self, failure: &Failure) -> Option<String> {
        mending::mend(&self.endpoint, failure.why())
    }

    /// A request in JSON as protobuf, the one encoding of gRPC.
    fn protobuf_of(&self, json: &[u8]) -> Result<Bytes, Failure> {
        fn convert<T: DeserializeOwned + Message>(json: &[u8]) -> serde_json::Result<Bytes> {
            Ok(serde_json::from_slice::<T>(json)?.encode_to_vec().into())
        }
        match self.signal {
            Signal::Traces => convert::<ExportTraceServiceRequest>(json),
            Signal::Logs => convert::<ExportLogsServiceRequest>(json),
            Signal::Metrics => convert::<ExportMetricsServiceRequest>(json),
        }
        .map_err(|error| Failure::Refused(format!("a request in the spool is damaged: {error}")))
    }

    async fn send_grpc(&self, channel: Channel, headers: HeaderMap, body: Bytes) -> Result<Accepted, Failure> {
        // Servers answer compressed as they are asked.
        let mut grpc = Grpc::new(channel)
            .max_decoding_message_size(ANSWER)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd);
        let compression = self.endpoint.compression.filter(|_| body.len() >= COMPRESS_FROM);
        grpc = match compression {
            Some(Compression::Gzip) => grpc.send_compressed(CompressionEncoding::Gzip),
            Some(Compression::Zstd) => grpc.send_compressed(CompressionEncoding::Zstd),
            _ => grpc,
        };
        let path = PathAndQuery::from_static(match self.signal {
            Signal::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Signal::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
            Signal::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        });
        let metadata = MetadataMap::from_headers(headers);
        let request = tonic::Request::from_parts(metadata, Extensions::default(), body);
        grpc.ready().await.map_err(|error| Failure::Retry { after: None, why: reply::causes(&error) })?;
        let answer = grpc.unary(request, path, Whole).await.map_err(|status| reply::of_grpc(&status))?;
        reply::partial_success(self.signal, &answer.into_inner())
            .ok_or_else(|| Failure::Refused("the answer is not OTLP's".into()))
    }

    async fn send_http(
        &self,
        client: &reqwest::Client,
        headers: HeaderMap,
        encoding: Encoding,
        body: Bytes,
    ) -> Result<Accepted, Failure> {
        let content_type = match encoding {
            Encoding::Protobuf => "application/x-protobuf",
            Encoding::Json => "application/json",
        };
        let compression = self.endpoint.compression.filter(|_| body.len() >= COMPRESS_FROM);
        let body = compress(compression, body).map_err(|error| Failure::Refused(error.to_string()))?;
        let mut request = client.post(&self.endpoint.url).headers(headers).header(header::CONTENT_TYPE, content_type);
        match compression {
            Some(Compression::Gzip) => request = request.header(header::CONTENT_ENCODING, "gzip"),
            Some(Compression::Zstd) => request = request.header(header::CONTENT_ENCODING, "zstd"),
            _ => {}
        }
        let retry = |error: reqwest::Error| Failure::Retry { after: None, why: reply::causes(&error.without_url()) };
        let mut response = request.body(body).send().await.map_err(retry)?;
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(retry)? {
            if answer.len() + chunk.len() > ANSWER {
                let why = format!("{}, with an answer of more than {ANSWER} bytes", response.status());
                return Err(Failure::Backend(why));
            }
            answer.extend_from_slice(&chunk);
        }
        let accepted = reply::of_http(self.signal, response.status(), response.headers(), &answer)?;
        if let Some(what) = reply::unusual(response.headers(), &answer)
            && !self.told.swap(true, Relaxed)
        {
            let status = response.status();
            warn!("otlp.{}: {}: {status} with {what}: taken as success", self.signal.name(), self.endpoint.name());
        }
        Ok(accepted)
    }
}

fn connection(endpoint: &Endpoint) -> Result<Connection, Error> {
    Ok(Connection {
        headers: headers_of(endpoint)?,
        carrier: match endpoint.protocol {
            Protocol::Grpc => Carrier::Grpc(grpc(endpoint)?),
            Protocol::HttpProtobuf | Protocol::HttpJson => Carrier::Http(http(endpoint)?),
        },
    })
}

/// The headers of an endpoint with those of its file, which come first.
pub fn headers_of(endpoint: &Endpoint) -> Result<HeaderMap, Error> {
    let mut headers = endpoint.headers.clone();
    if let Some(path) = &endpoint.headers_file {
        let wrong = |why: String| {
            let message = format!("OTLP: headers_file {}: {why}", path.display());
            Error::cannot_run(message, "write a line `NAME: value` for each header there, in UTF-8")
        };
        let text = String::from_utf8(files::read(path, "headers_file")?).map_err(|_| wrong("not UTF-8".into()))?;
        let of_file = headers::from_file(&text).map_err(wrong)?;
        headers.extend(of_file);
    }
    Ok(headers)
}

fn compress(compression: Option<Compression>, body: Bytes) -> std::io::Result<Bytes> {
    Ok(match compression {
        Some(Compression::Gzip) => {
            let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), flate2::Compression::fast());
            encoder.write_all(&body)?;
            encoder.finish()?.into()
        }
        Some(Compression::Zstd) => zstd::bulk::compress(&body, 1)?.into(),
        _ => body,
    })
}

fn is_tls(endpoint: &Endpoint) -> bool {
    endpoint.url.starts_with("https://")
}

type Pem = Vec<u8>;

/// The certificate and its key, where there are any.
fn identity(endpoint: &Endpoint) -> Result<Option<(Pem, Pem)>, Error> {
    let read = |ClientIdentity { certificate, key }: &ClientIdentity| {
        let pem = files::read(key, "client_key")?;
        if files::is_encrypted(&pem) {
            return Err(Error::cannot_run(
                format!("OTLP: client_key {} is encrypted, and mqspan asks for no passphrase", key.display()),
                "decrypt it: openssl pkey -in KEY -out PLAIN, readable for mqspan only",
            ));
        }
        Ok((files::read(certificate, "client_certificate")?, pem))
    };
    endpoint.client.as_ref().map(read).transpose()
}

/// What stands in the way of TLS where the host's own certificate authorities are to be used.
fn no_authorities(error: &dyn std::error::Error) -> Error {
    Error::cannot_run(
        format!("OTLP: TLS: no certificate authorities of this host could be read: {}", reply::causes(error)),
        "install ca-certificates, or name a PEM file with `certificate` (OTEL_EXPORTER_OTLP_CERTIFICATE)",
    )
}

fn wrong_tls(error: &dyn std::error::Error) -> Error {
    Error::cannot_run(
        format!("OTLP: TLS: {}", reply::causes(error)),
        "check that certificate, client_certificate and client_key are PEM files of the right kind",
    )
}

/// A channel for OTLP/gRPC; also what the exporters of mqspan's own telemetry send with. To be called on a runtime.
pub fn grpc(endpoint: &Endpoint) -> Result<Channel, Error> {
    let wrong = |error: tonic::transport::Error| {
        Error::cannot_run(format!("OTLP: {}", reply::causes(&error)), "give a URL such as http://localhost:4317")
    };
    let mut channel = tonic::transport::Endpoint::from_shared(match &endpoint.socket {
        Some(path) => format!("unix://{}", path.display()),
        None => endpoint.url.clone(),
    })
    .map_err(|error| Error::cannot_run(format!("OTLP: {error}"), "give a URL such as http://localhost:4317"))?
    .user_agent(USER_AGENT)
    .map_err(wrong)?
    .connect_timeout(endpoint.timeout)
    .tcp_keepalive(Some(KEEP_ALIVE))
    .http2_keep_alive_interval(KEEP_ALIVE)
    .keep_alive_timeout(endpoint.timeout);
    if is_tls(endpoint) {
        let mut tls = match &endpoint.certificate {
            Some(path) => {
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(files::read(path, "certificate")?))
            }
            None => {
                let tls = ClientTlsConfig::new().with_native_roots();
                channel.clone().tls_config(tls.clone()).map_err(|error| no_authorities(&error))?;
                tls
            }
        };
        if let Some((certificate, key)) = identity(endpoint)? {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        channel = channel.tls_config(tls).map_err(|error| wrong_tls(&error))?;
    }
    Ok(channel.connect_lazy())
}

/// A client for OTLP/HTTP; also what the SDK's exporters of mqspan's own telemetry send with. It follows no
/// redirections, since those make a GET of a POST.
pub fn http(endpoint: &Endpoint) -> Result<reqwest::Client, Error> {
    // reqwest looks for the provider even where no TLS is used; a second one to install it finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(endpoint.timeout)
        .tcp_keepalive(KEEP_ALIVE)
        .pool_idle_timeout(3 * KEEP_ALIVE);
    if let Some(path) = &endpoint.socket {
        builder = builder.unix_socket(path.clone());
    }
    if !is_tls(endpoint) {
        // Without this the host's certificate authorities would be read, and asked for.
        return builder.tls_certs_only([]).build().map_err(|error| wrong_tls(&error));
    }
    if let Some((certificate, key)) = identity(endpoint)? {
        let pem = [key, b"\n".to_vec(), certificate].concat();
        builder = builder.identity(reqwest::Identity::from_pem(&pem).map_err(|error| wrong_tls(&error))?);
    }
    match &endpoint.certificate {
        Some(path) => {
            let pem = files::read(path, "certificate")?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| wrong_tls(&error))?;
            builder.tls_certs_only(certificates).build().map_err(|error| wrong_tls(&error))
        }
        None => builder.build().map_err(|error| no_authorities(&error)),
    }
}

/// A request that is encoded already, and an answer that is decoded later.
#[derive(Clone, Copy, Debug)]
struct Whole;

impl Codec for Whole {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Whole {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.reserve(item.len());
        to.put(item);
        Ok(())
    }
}

impl Decoder for Whole {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
