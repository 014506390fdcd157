//! The OpenTelemetry Collector, run with tests/collector's configuration: an independent receiver, what it got is read
//! back from its files.

use std::{
    env,
    fs::{self, File},
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest, logs::v1::LogRecord, trace::v1::Span,
};

use crate::{
    otlp::{self, Record},
    wait,
};

/// A Collector that takes OTLP on two ports of the loopback. Dropped, it is killed.
pub struct Collector {
    child: Child,
    folder: PathBuf,
    ports: Ports,
    scheme: &'static str,
}

/// Where a Collector listens, also one that comes after it.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    grpc: u16,
    http: u16,
    health: u16,
}

impl Ports {
    /// Ports that nobody listens on.
    pub fn free() -> Result<Self> {
        let [grpc, http, health] = free_ports()?;
        Ok(Self { grpc, http, health })
    }

    /// Where a protocol is taken, as OTEL_EXPORTER_OTLP_PROTOCOL names it.
    pub fn endpoint(&self, protocol: &str) -> String {
        let port = if protocol == "grpc" { self.grpc } else { self.http };
        format!("http://127.0.0.1:{port}")
    }
}

impl Collector {
    /// Starts it, and waits until it takes requests. It writes into `folder`; with `certificates`, a folder as
    /// [`crate::certificates`] makes it, it takes TLS only.
    pub fn start(folder: PathBuf, certificates: Option<&Path>) -> Result<Self> {
        Self::start_at(Ports::free()?, folder, certificates)
    }

    /// The same at these ports.
    pub fn start_at(ports: Ports, folder: PathBuf, certificates: Option<&Path>) -> Result<Self> {
        Self::start_with(ports, folder, certificates, &[])
    }

    /// One that has less memory than it needs: its memory_limiter refuses everything.
    pub fn start_refusing(ports: Ports, folder: PathBuf) -> Result<Self> {
        Self::start_with(ports, folder, None, &["memory_limiter.yaml"])
    }

    fn start_with(ports: Ports, folder: PathBuf, certificates: Option<&Path>, more: &[&str]) -> Result<Self> {
        let program = env::var_os("MQSPAN_TEST_COLLECTOR")
            .context("MQSPAN_TEST_COLLECTOR is not set: make test sets it to what scripts/collector.sh prints")?;
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("collector");
        fs::create_dir_all(&folder)?;
        let Ports { grpc, http, health } = ports;
        let mut command = Command::new(program);
        command.arg("--config").arg(config.join("config.yaml"));
        for file in more {
            command.arg("--config").arg(config.join(file));
        }
        if let Some(certificates) = certificates {
            command.arg("--config").arg(config.join("tls.yaml")).env("MQSPAN_TEST_CERTIFICATES", certificates);
        }
        let child = command
            .env("MQSPAN_TEST_GRPC_PORT", grpc.to_string())
            .env("MQSPAN_TEST_HTTP_PORT", http.to_string())
            .env("MQSPAN_TEST_HEALTH_PORT", health.to_string())
            .env("MQSPAN_TEST_OUTPUT", &folder)
            .stderr(File::create(folder.join("log"))?)
            .spawn()?;
        let scheme = if certificates.is_some() { "https" } else { "http" };
        let mut this = Self { child, folder, ports, scheme };
        wait::until("the Collector", || {
            let ended = this.child.try_wait()?;
            ensure!(ended.is_none(), "the Collector ended: {}", fs::read_to_string(this.folder.join("log"))?);
            Ok(is_healthy(health).then_some(()))
        })?;
        Ok(this)
    }

    /// Where it takes a protocol, as OTEL_EXPORTER_OTLP_PROTOCOL names it.
    pub fn endpoint(&self, protocol: &str) -> String {
        self.ports.endpoint(protocol).replacen("http", self.scheme, 1)
    }

    /// What it took so far, and has written: it does so within 100 ms.
    pub fn received(&self) -> Received {
        Received(self.folder.clone())
    }

    /// Ends it in the middle of whatever it does.
    pub fn kill(mut self) -> Result<Received> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(self.received())
    }

    /// Ends it, so that all it took is in its files.
    pub fn stop(mut self) -> Result<Received> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        let status = wait::until("the end of the Collector", || Ok(self.child.try_wait()?))?;
        ensure!(status.success(), "{status}: {}", fs::read_to_string(self.folder.join("log"))?);
        Ok(Received(self.folder.clone()))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// What a Collector took.
pub struct Received(PathBuf);

impl Received {
    /// Every span.
    pub fn spans(&self) -> Result<Vec<Record<Span>>> {
        otlp::spans(&self.0.join("traces.jsonl"))
    }

    /// Every log record.
    pub fn logs(&self) -> Result<Vec<Record<LogRecord>>> {
        otlp::logs(&self.0.join("logs.jsonl"))
    }

    /// Every request with metrics.
    pub fn metrics(&self) -> Result<Vec<ExportMetricsServiceRequest>> {
        otlp::metrics(&self.0.join("metrics.jsonl"))
    }
}

/// Ports that nobody listens on: held all at once, so that they differ.
pub fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let bind = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let listeners = (0..N).map(bind).collect::<Result<Vec<_>, _>>()?;
    let ports = listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect::<Result<Vec<_>>>()?;
    ports.try_into().map_err(|_| anyhow::anyhow!("not {N} ports"))
}

fn is_healthy(port: u16) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        std::io::Result::Ok(answer.ends_with(b" 200"))
    };
    ask().unwrap_or(false)
}
