//! The counters that `--stats-file` holds, and what the contract says of them.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// `--stats-file` at exit.
#[derive(Debug, Deserialize)]
pub struct Stats {
    /// What the kernel side saw, lost records included.
    pub captured: u64,
    /// What an output accepted.
    pub exported: u64,
    /// What a filter left out.
    pub filtered: u64,
    /// What --max-rate left out.
    pub limited: u64,
    /// Left in the spool at the end, where there is one.
    #[serde(default)]
    pub spooled: u64,
    /// Found in it at the start.
    #[serde(default)]
    pub restored: u64,
    /// What was lost, by stage.
    pub lost: BTreeMap<String, u64>,
    /// Exits without an entry; outside of the balance.
    pub unpaired: u64,
    /// By output and signal, `otlp.traces`.
    #[serde(default)]
    pub outputs: BTreeMap<String, Output>,
}

/// What became of an output's records of one signal.
#[derive(Debug, Deserialize, PartialEq, Eq)]
pub struct Output {
    /// Accepted.
    pub sent: u64,
    /// Refused by the backend.
    pub rejected: u64,
    /// Given up.
    pub lost: u64,
}

impl Stats {
    /// Reads the file and checks its balance.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let stats: Self = serde_json::from_str(&text).with_context(|| text.clone())?;
        let accounted = stats.exported + stats.filtered + stats.limited + stats.spooled + stats.lost_sum();
        let came = stats.captured + stats.restored;
        ensure!(came == accounted, "captured or restored {came} but accounted for {accounted}: {text}");
        Ok(stats)
    }

    /// At one stage.
    pub fn lost_at(&self, stage: &str) -> u64 {
        self.lost.get(stage).copied().unwrap_or_default()
    }

    /// Over all stages.
    pub fn lost_sum(&self) -> u64 {
        self.lost.values().sum()
    }
}
