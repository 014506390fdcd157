//! Calls that a test makes itself, so that `--pid` tells them from those of others in the kernel already.

use anyhow::{Result, ensure};
use nix::{
    mqueue::{MQ_OFlag, mq_open},
    sys::stat::Mode,
};

/// The option that leaves out everybody else.
pub fn pid() -> String {
    format!("--pid={}", std::process::id())
}

/// Opens a queue that is missing.
pub fn open(name: &str) -> Result<()> {
    ensure!(mq_open(name, MQ_OFlag::O_RDONLY, Mode::empty(), None).is_err(), "{name} exists");
    Ok(())
}

/// The same so many times.
pub fn opens(name: &str, calls: u64) -> Result<()> {
    (0..calls).try_for_each(|_| open(name))
}
