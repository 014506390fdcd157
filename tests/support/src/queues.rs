//! Queues that stay as they are, and what the gauges say of queues.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::metrics::v1::{metric::Data, number_data_point};

use crate::{
    otlp::{self, int, text},
    program::{Mqspan, without_otel},
    ready,
};

/// The workload while it holds its queues: /NAME-full has 3 of 8 messages, 5 at its peak; 3 threads wait for a message of
/// /NAME-empty.
pub struct Held(Child);

impl Held {
    /// Returns once it holds them.
    pub fn start(mqspan: &Mqspan, name: &str) -> Result<Self> {
        Self::start_with(
            &mqspan.workload(),
            &["hold", "--name", name, "--maxmsg=8", "--sent=5", "--received=2", "--waiting=3"],
            "held",
        )
    }

    /// The workload with a queue that is always full; returns once it makes it so.
    pub fn full(mqspan: &Mqspan) -> Result<Self> {
        Self::start_with(&mqspan.workload(), &["full"], "full")
    }

    /// The workload with many threads that wait, as this kind of caller, at this many queues /NAME-0 and so on.
    pub fn crowd(mqspan: &Mqspan, name: &str, abi: &str, queues: u64, threads: u64) -> Result<Self> {
        let (queues, threads) = (format!("--queues={queues}"), format!("--threads={threads}"));
        let workload = mqspan.workload_of(abi)?;
        Self::start_with(&workload, &["crowd", "--name", name, "--abi", abi, &queues, &threads], "held")
    }

    fn start_with(workload: &Path, args: &[&str], says: &str) -> Result<Self> {
        let mut command = Command::new(workload);
        command.args(args);
        without_otel(&mut command);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
        ensure!(line.trim_end() == says, "{line:?}");
        Ok(Self(child))
    }

    /// Kills it where it waits; its queues stay as they are.
    pub fn kill(mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }

    /// Lets it empty and remove them.
    pub fn let_go(mut self) -> Result<()> {
        drop(self.0.stdin.take());
        let status = self.0.wait()?;
        ensure!(status.success(), "{status}");
        Ok(())
    }
}

/// The last values of the gauges in a file, by name and queue, with the operation or access where there is one.
pub fn gauges(path: &Path) -> Result<BTreeMap<String, i64>> {
    let mut values: BTreeMap<String, i64> = BTreeMap::new();
    let requests = otlp::metrics(path)?;
    let of_resources = requests.iter().flat_map(|request| &request.resource_metrics);
    for metric in of_resources.flat_map(|of| &of.scope_metrics).flat_map(|of| &of.metrics) {
        let Some(Data::Gauge(gauge)) = &metric.data else { continue };
        for point in &gauge.data_points {
            let attributes = otlp::attributes(&point.attributes)?;
            let Some(queue) = text(&attributes, "messaging.destination.name") else { continue };
            ensure!(int(&attributes, "posix_mq.ipc_namespace") == Some(ready::ipc_namespace()?), "{attributes:?}");
            let which = text(&attributes, "messaging.operation.name").or(text(&attributes, "posix_mq.access"));
            let which = which.map(|name| format!(" {name}")).unwrap_or_default();
            let Some(number_data_point::Value::AsInt(value)) = point.value else { continue };
            let last = values.entry(format!("{} {queue}{which}", metric.name)).or_insert(value);
            // A peak is of one interval only.
            *last = if metric.name == "posix_mq.queue.peak_depth" { value.max(*last) } else { value };
        }
    }
    Ok(values)
}
