//! mqspan and rotel, a receiver of OTLP that shares no code with the OpenTelemetry Collector: what it read from the
//! requests stands in its debug log. Needs root and what `scripts/backends.sh rotel` installs: `make test` runs it.

use std::{net::TcpStream, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use support::{
    collector::free_ports,
    orders,
    program::Mqspan,
    rotel::{Block, blocks, of_log, of_span},
    server::{Server, program},
    wait,
};

/// Fails unless the log has each of these blocks, all of `start`, once.
fn same(log: &str, start: &str, mut own: Vec<Block>) -> Result<()> {
    let mut found = blocks(log, start);
    // mqspan's own spans and log records are there, too.
    found.retain(|block| block.iter().any(|line| line == "-> messaging.system: Str(posix_mq)"));
    ensure!(found.len() == own.len(), "{start}: {} arrived of {}", found.len(), own.len());
    found.sort();
    own.sort();
    for (found, own) in found.iter().zip(&own) {
        let more: Vec<_> = found.iter().filter(|line| !own.contains(line)).collect();
        let missing: Vec<_> = own.iter().filter(|line| !found.contains(line)).collect();
        ensure!(found == own, "only arrived: {more:?}; only in the file: {missing:?}");
    }
    Ok(())
}

fn arrives(protocol: &str, compression: &str) -> Result<()> {
    let mqspan = Mqspan::new(env!("CARGO_BIN_EXE_mqspan"))?;
    let [grpc, http] = free_ports()?;
    let mut command = Command::new(program("MQSPAN_TEST_ROTEL")?);
    command.args(["start", "--exporter=blackhole", "--debug-log-verbosity=detailed"]);
    command.args(["traces", "logs", "metrics"].map(|signal| format!("--debug-log={signal}")));
    command.arg(format!("--otlp-grpc-endpoint=127.0.0.1:{grpc}"));
    command.arg(format!("--otlp-http-endpoint=127.0.0.1:{http}"));
    for file in ["pid", "log"] {
        command.arg(format!("--{file}-file={}", mqspan.file(file).display()));
    }
    let port = if protocol == "grpc" { grpc } else { http };
    let rotel = Server::start(command, mqspan.file("rotel"), || TcpStream::connect(("127.0.0.1", port)).is_ok())?;

    let endpoint = format!("http://127.0.0.1:{port}");
    let options = ["--endpoint", &endpoint, "--protocol", protocol];
    orders::run(&mqspan, &options, &[("OTEL_EXPORTER_OTLP_COMPRESSION", compression)])?;
    let count = |start| Ok::<_, anyhow::Error>(blocks(&rotel.said()?, start).len() as u64);
    // It shows a request after it has answered.
    wait::until_every(Duration::from_millis(100), "spans and log records in rotel's log", || {
        Ok((count("Span #")? >= orders::sum() && count("LogRecord #")? >= orders::sum()).then_some(()))
    })?;
    let log = rotel.stop()?;
    same(&log, "Span #", orders::spans(&mqspan)?.iter().map(of_span).collect())?;
    same(&log, "LogRecord #", orders::logs(&mqspan)?.iter().map(of_log).collect())?;
    for metric in ["messaging.client.operation.duration", "messaging.client.sent.messages", "mqspan.calls.captured"] {
        ensure!(log.contains(&format!("-> Name: {metric}\n")), "no {metric}");
    }
    Ok(())
}

/// Prevents what only the Collector's reader forgives, over gRPC.
#[test]
fn by_grpc() -> Result<()> {
    for compression in ["none", "gzip"] {
        arrives("grpc", compression).context(compression)?;
    }
    Ok(())
}

/// Prevents the same over HTTP.
#[test]
fn by_http_with_protobuf() -> Result<()> {
    for compression in ["none", "gzip"] {
        arrives("http/protobuf", compression).context(compression)?;
    }
    Ok(())
}
