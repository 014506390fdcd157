//! Where and how OTLP is sent for each signal: the settings of the command line, the environment
//! and the file, laid over each other as the OTLP exporter specification says. Pure code: opens no
//! connection and reads no certificate.

use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderMap, Uri};

use super::pairs::pairs;
use crate::cli::choices::choice;
use crate::export::endpoint::{ClientIdentity, Endpoint, Otlp};
use crate::export::headers;
use crate::model::error::{Error, Origin};
use crate::model::values::{Compression, Protocol, Signal, duration};

/// The settings from one place, either for all signals or for one.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    endpoint: Option<(String, Origin)>,
    protocol: Option<Protocol>,
    headers: Option<HeaderMap>,
    headers_file: Option<PathBuf>,
    compression: Option<Compression>,
    timeout: Option<Duration>,
    insecure: Option<bool>,
    certificate: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_key: Option<PathBuf>,
}

impl Layer {
    /// The keys of `set`: in lower case what the variables end with.
    pub const KEYS: [&str; 10] = [
        "endpoint",
        "protocol",
        "headers",
        "compression",
        "timeout",
        "insecure",
        "certificate",
        "client_certificate",
        "client_key",
        // The specification has no variable for it.
        Self::FILE_ONLY,
    ];
    /// The one that only the file has.
    pub const FILE_ONLY: &str = "headers_file";

    /// The settings of the command line: `--endpoint` and `--protocol`.
    pub fn of_options(endpoint: Option<String>, protocol: Option<Protocol>) -> Self {
        Self { endpoint: endpoint.map(|text| (text, Origin::Option("--endpoint"))), protocol, ..Self::default() }
    }

    /// Whether an endpoint is named here.
    pub fn names_endpoint(&self) -> bool {
        self.endpoint.is_some()
    }

    /// Sets what `key` (one of `KEYS`) names from its text. The error is one of `origin` and shows
    /// no value.
    pub fn set(&mut self, key: &str, text: &str, origin: Origin) -> Result<(), Error> {
        let wrong = |why: String| origin.error(why);
        match key {
            "endpoint" => self.endpoint = Some((text.into(), origin)),
            "protocol" => self.protocol = Some(choice(text).map_err(wrong)?),
            "headers" => {
                let pairs = pairs(text).map_err(wrong)?;
                self.set_headers(&pairs, &origin)?;
            }
            "compression" => self.compression = Some(choice(text).map_err(wrong)?),
            "timeout" => self.timeout = Some(timeout(text).map_err(wrong)?),
            "insecure" => {
                let insecure = text.parse().map_err(|_| wrong("neither true nor false".into()))?;
                self.insecure = Some(insecure);
            }
            "certificate" => self.certificate = Some(text.into()),
            "client_certificate" => self.client_certificate = Some(text.into()),
            "client_key" => self.client_key = Some(text.into()),
            Self::FILE_ONLY => self.headers_file = Some(text.into()),
            _ => return Err(wrong("not a setting of OTLP".into())),
        }
        Ok(())
    }

    /// Sets the headers. An error names the header's key at most: what is no valid key may be a
    /// secret that lacks one.
    pub fn set_headers(&mut self, pairs: &[(String, String)], origin: &Origin) -> Result<(), Error> {
        let pairs = pairs.iter().map(|(key, value)| (&**key, &**value));
        let headers = headers::from_pairs(pairs).map_err(|why| origin.error(why))?;
        self.headers = Some(headers);
        Ok(())
    }
}

/// Milliseconds, as in the specification, or a DURATION.
fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = match text.parse() {
        Ok(milliseconds) => Duration::from_millis(milliseconds),
        Err(_) => duration(text).map_err(|why| format!("neither milliseconds nor a duration: {why}"))?,
    };
    match timeout.is_zero() {
        true => Err("no request can be done in no time".into()),
        false => Ok(timeout),
    }
}

/// The settings from the environment or from the file: for all signals, and each signal's own.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    generic: Layer,
    own: [Layer; 3],
}

impl Layers {
    /// The layer of a signal; of all signals for None.
    pub fn of(&mut self, signal: Option<Signal>) -> &mut Layer {
        match signal {
            Some(signal) => &mut self.own[signal as usize],
            None => &mut self.generic,
        }
    }

    /// Whether an endpoint is named for any signal.
    pub fn names_endpoint(&self) -> bool {
        self.generic.names_endpoint() || self.own.iter().any(Layer::names_endpoint)
    }
}

impl Layers {
    /// Lays the command line over the environment over the file, in each of the latter two a
    /// signal's own settings over those for all.
    ///
    /// An error is one of the endpoint's origin where its URL is wrong; exit status 1 for a client
    /// certificate without its key.
    pub fn resolve(command_line: &Layer, environment: &Self, file: &Self) -> Result<Otlp, Error> {
        let of = |signal| {
            let own = signal as usize;
            let layers = [
                (command_line, false),
                (&environment.own[own], true),
                (&environment.generic, false),
                (&file.own[own], true),
                (&file.generic, false),
            ];
            endpoint(signal, &layers)
        };
        Ok(Otlp { traces: of(Signal::Traces)?, logs: of(Signal::Logs)?, metrics: of(Signal::Metrics)? })
    }
}

/// The first layer that has a setting decides it; `true` marks the signal's own layers.
fn endpoint(signal: Signal, layers: &[(&Layer, bool)]) -> Result<Endpoint, Error> {
    fn first<'a, T>(layers: &'a [(&Layer, bool)], setting: impl Fn(&'a Layer) -> Option<T>) -> Option<T> {
        layers.iter().find_map(|(layer, _)| setting(layer))
    }
    let protocol = first(layers, |layer| layer.protocol).unwrap_or(Protocol::HttpProtobuf);
    let insecure = first(layers, |layer| layer.insecure).unwrap_or(false);
    let named = layers.iter().find_map(|(layer, own)| layer.endpoint.as_ref().map(|named| (named, *own)));
    let socket = named.map(|((text, origin), _)| socket(text).map_err(|why| origin.error(why))).transpose()?.flatten();
    let url = match named {
        // The host is the socket's; a Collector does not look at it.
        Some(_) if socket.is_some() && protocol == Protocol::Grpc => "http://localhost".into(),
        Some(_) if socket.is_some() => format!("http://localhost/v1/{}", signal.name()),
        Some(((text, origin), own)) => {
            url(text, protocol, insecure, (!own).then_some(signal)).map_err(|why| origin.error(why))?
        }
        None if protocol == Protocol::Grpc => "http://localhost:4317".into(),
        None => format!("http://localhost:4318/v1/{}", signal.name()),
    };
    let certificate = first(layers, |layer| layer.client_certificate.clone());
    let client = match (certificate, first(layers, |layer| layer.client_key.clone())) {
        (Some(certificate), Some(key)) => Some(ClientIdentity { certificate, key }),
        (None, None) => None,
        _ => {
            return Err(Error::cannot_run(
                format!("OTLP for {}: of a client certificate and its key, only one is set", signal.name()),
                "set both client_certificate and client_key (or their variables), or none",
            ));
        }
    };
    Ok(Endpoint {
        url,
        socket,
        protocol,
        headers: first(layers, |layer| layer.headers.clone()).unwrap_or_default(),
        headers_file: first(layers, |layer| layer.headers_file.clone()),
        compression: first(layers, |layer| layer.compression).filter(|compression| *compression != Compression::None),
        timeout: first(layers, |layer| layer.timeout).unwrap_or(Duration::from_secs(10)),
        certificate: first(layers, |layer| layer.certificate.clone()),
        client,
    })
}

/// The path of `unix:///path`; None for another URL.
fn socket(text: &str) -> Result<Option<PathBuf>, String> {
    match text.strip_prefix("unix:") {
        None => Ok(None),
        Some(path) => match path.strip_prefix("//").unwrap_or(path) {
            // What a sockaddr_un holds, with the zero at its end.
            path if path.starts_with('/') && !path.ends_with('/') && !path.contains('\0') && path.len() <= 107 => {
                Ok(Some(path.into()))
            }
            _ => Err("a socket is unix:///path: absolute, of at most 107 bytes".into()),
        },
    }
}

/// The final URL of an endpoint; `append` is the signal whose path an HTTP URL still lacks. The
/// error does not repeat the text, which may hold credentials.
fn url(text: &str, protocol: Protocol, insecure: bool, append: Option<Signal>) -> Result<String, String> {
    let grpc = protocol == Protocol::Grpc;
    let uri = match (text.contains("://"), grpc, insecure) {
        (true, ..) => text.into(),
        (false, true, true) => format!("http://{text}"),
        (false, true, false) => format!("https://{text}"),
        (false, false, _) => {
            return Err("the URL must begin with http:// or https://, as http://localhost:4318 does".into());
        }
    };
    let uri: Uri = uri.parse().map_err(|error| format!("not a URL: {error}"))?;
    let scheme = match uri.scheme_str() {
        Some(scheme @ ("http" | "https")) => scheme,
        _ => return Err("the URL's scheme is neither http nor https, as in http://localhost:4318".into()),
    };
    let authority = uri.authority().map(|a| a.as_str()).unwrap_or_default();
    let host = uri.host().unwrap_or_default();
    if authority.contains('@') {
        return Err("the URL holds credentials: put them into a header".into());
    }
    if host.is_empty() {
        return Err("the URL has no host".into());
    }
    if authority != host && uri.port_u16().is_none() {
        return Err("the URL's port is not a number up to 65535".into());
    }
    let (path, query) = (uri.path(), uri.query());
    let query = query.map_or(String::new(), |query| format!("?{query}"));
    Ok(match append {
        _ if grpc => format!("{scheme}://{authority}"),
        Some(signal) => format!("{scheme}://{authority}{}/v1/{}{query}", path.trim_end_matches('/'), signal.name()),
        None => format!("{scheme}://{authority}{path}{query}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(settings: &[(&str, &str)]) -> Layer {
        let mut layer = Layer::default();
        for (key, text) in settings {
            layer.set(key, text, Origin::Variable((*key).into())).unwrap();
        }
        layer
    }

    fn layers(generic: &[(&str, &str)], traces: &[(&str, &str)]) -> Layers {
        let mut layers = Layers::default();
        *layers.of(None) = layer(generic);
        *layers.of(Some(Signal::Traces)) = layer(traces);
        layers
    }

    /// Prevents a signal's path from being doubled or missing, a scheme from being guessed for
    /// HTTP, and credentials or nonsense in a URL from reaching the network.
    #[test]
    fn urls() {
        use Protocol::{Grpc, HttpProtobuf as Http};
        for (text, protocol, insecure, append, expected) in [
            ("http://c:4318", Http, false, true, Some("http://c:4318/v1/logs")),
            ("http://c:4318/", Http, false, true, Some("http://c:4318/v1/logs")),
            ("https://c/otlp/", Http, false, true, Some("https://c/otlp/v1/logs")),
            ("https://c/x?k=v", Http, false, true, Some("https://c/x/v1/logs?k=v")),
            ("http://c:4318/in", Http, false, false, Some("http://c:4318/in")),
            ("http://c:4318", Http, false, false, Some("http://c:4318/")),
            ("http://[::1]:4318", Http, false, true, Some("http://[::1]:4318/v1/logs")),
            ("c:4318", Http, true, true, None),
            ("/v1/logs", Http, false, false, None),
            ("http://c:4317", Grpc, false, true, Some("http://c:4317")),
            ("https://c:4317/x", Grpc, true, true, Some("https://c:4317")),
            ("c:4317", Grpc, true, true, Some("http://c:4317")),
            ("c:4317", Grpc, false, false, Some("https://c:4317")),
            ("unix:///run/c", Grpc, false, true, None),
            ("ftp://c", Http, false, true, None),
            ("http://", Http, false, true, None),
            ("http://:4318", Http, false, true, None),
            ("http://c:99999", Http, false, true, None),
            ("http://c:port", Http, false, true, None),
            ("http://me:secret@c", Http, false, true, None),
            ("http://se cret", Http, false, true, None),
        ] {
            let append = append.then_some(Signal::Logs);
            match url(text, protocol, insecure, append) {
                Ok(url) => assert_eq!(Some(&*url), expected, "{text}"),
                Err(why) => {
                    assert_eq!(expected, None, "{text}: {why}");
                    assert!(!why.contains("secret"), "{why}");
                }
            }
        }
    }

    /// Prevents the defaults of the specification from drifting, the port of gRPC above all.
    #[test]
    fn defaults() {
        let http = Layers::resolve(&Layer::default(), &Layers::default(), &Layers::default()).unwrap();
        assert_eq!(http.metrics.url, "http://localhost:4318/v1/metrics");
        assert_eq!(http.metrics.protocol, Protocol::HttpProtobuf);
        assert_eq!(http.metrics.timeout, Duration::from_secs(10));
        assert_eq!(http.metrics.compression, None);
        let grpc = layer(&[("protocol", "grpc")]);
        let grpc = Layers::resolve(&grpc, &Layers::default(), &Layers::default()).unwrap();
        assert_eq!(grpc.logs.url, "http://localhost:4317");
    }

    /// Prevents a wrong order: command line, environment, file, and in each a signal's own first;
    /// and `none` from falling through to a compression further down.
    #[test]
    fn layers_over_each_other() {
        let file = layers(
            &[("compression", "gzip"), ("headers", "a=file"), ("timeout", "5s")],
            &[("endpoint", "http://file/own"), ("timeout", "250")],
        );
        let env = layers(&[("endpoint", "http://env"), ("compression", "none")], &[("headers", "b=env")]);
        let none = Layer::default();
        let otlp = Layers::resolve(&none, &env, &file).unwrap();
        assert_eq!(otlp.traces.url, "http://env/v1/traces");
        assert_eq!(otlp.traces.compression, None);
        assert_eq!(otlp.traces.timeout, Duration::from_millis(250));
        assert_eq!(otlp.logs.timeout, Duration::from_secs(5));
        assert!(otlp.traces.headers.contains_key("b") && otlp.traces.headers.len() == 1);
        assert_eq!(otlp.logs.headers["a"], "file");

        let otlp = Layers::resolve(&none, &Layers::default(), &file).unwrap();
        assert_eq!(otlp.traces.url, "http://file/own");
        assert_eq!(otlp.logs.url, "http://localhost:4318/v1/logs");
        assert_eq!(otlp.logs.compression, Some(Compression::Gzip));

        let own = layers(&[], &[("endpoint", "http://env/own")]);
        let option = layer(&[("endpoint", "http://option")]);
        let otlp = Layers::resolve(&option, &own, &file).unwrap();
        assert_eq!(otlp.traces.url, "http://option/v1/traces");
    }

    /// Prevents a header's value from showing in `Debug` or in an error, also where a token stands
    /// where its name should be.
    #[test]
    fn headers_are_secret() {
        let layers = layers(&[("headers", "Authorization=Bearer secret")], &[]);
        let otlp = Layers::resolve(&Layer::default(), &layers, &Layers::default()).unwrap();
        assert_eq!(otlp.logs.headers["authorization"], "Bearer secret");
        assert!(!format!("{layers:?} {otlp:?}").contains("secret"));
        for text in ["Bearer secret", "Bearer secret==", "a=secret%0a", "a=secret%00"] {
            let origin = Origin::Variable("OTEL_EXPORTER_OTLP_HEADERS".into());
            let error = Layer::default().set("headers", text, origin).unwrap_err();
            assert_eq!(error.status, 1);
            assert!(!format!("{error} {error:?}").contains("sec"), "{error}");
        }
    }

    /// Prevents wrong values from being taken for a default.
    #[test]
    fn wrong_values_are_errors() {
        for (key, text) in [
            ("protocol", "http"),
            ("compression", "snappy"),
            ("timeout", "0"),
            ("timeout", "-1"),
            ("timeout", "soon"),
            ("insecure", "maybe"),
        ] {
            let origin = Origin::Variable("X".into());
            assert!(Layer::default().set(key, text, origin).is_err(), "{key}");
        }
        let half = layers(&[("client_key", "/key.pem")], &[]);
        assert!(Layers::resolve(&Layer::default(), &half, &Layers::default()).is_err());
    }
}
