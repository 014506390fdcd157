//! Prometheus as a backend of the tests: it takes metrics by OTLP, as with docker-compose.yml.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::{
    collector::free_ports,
    http::ask,
    program::Mqspan,
    server::{Server, program},
};

/// A server that runs; its data is in mqspan's folder.
pub struct Prometheus {
    _server: Server,
    /// Where it listens: an address and port.
    pub address: String,
}

impl Prometheus {
    /// Starts it with this configuration; returns when it is ready.
    pub fn start(mqspan: &Mqspan, config: &Path) -> Result<Self> {
        let [port] = free_ports()?;
        let address = format!("127.0.0.1:{port}");
        let mut command = Command::new(program("MQSPAN_TEST_PROMETHEUS")?);
        command.arg("--config.file").arg(config);
        command.arg("--storage.tsdb.path").arg(mqspan.file("tsdb")).args(["--web.listen-address", &address]);
        command.args(["--web.enable-otlp-receiver", "--enable-feature=exemplar-storage,otlp-deltatocumulative"]);
        let is_ready = || ask(&address, "/-/ready").is_ok_and(|(status, _)| status == 200);
        let server = Server::start(command, mqspan.file("prometheus"), is_ready)?;
        Ok(Self { _server: server, address })
    }

    /// Where it takes metrics.
    pub fn endpoint(&self) -> String {
        format!("http://{}/api/v1/otlp/v1/metrics", self.address)
    }
}
