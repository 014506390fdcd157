//! What `check` says of this kernel, and what the kernel says itself.

use std::{fs, io};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use support::{
    program::{Ended, Mqspan},
    sessions,
};

use super::kinds;
use crate::MQSPAN;

/// Writes a setting of the kernel's and has it be as before in the end.
struct Setting {
    path: &'static str,
    before: String,
}

impl Setting {
    fn set(path: &'static str, value: &str) -> Result<Self> {
        let setting = Self { path, before: fs::read_to_string(path)? };
        fs::write(path, value).context(path)?;
        Ok(setting)
    }

    /// None where this kernel has it stay as it is.
    fn set_where_allowed(path: &'static str, value: &str) -> Result<Option<Self>> {
        match Self::set(path, value) {
            Err(error) if error.root_cause().downcast_ref().is_some_and(is_not_supported) => Ok(None),
            setting => setting.map(Some),
        }
    }
}

fn is_not_supported(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EOPNOTSUPP)
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = fs::write(self.path, self.before.trim());
    }
}

/// Prevents hooks that see nothing from being called fit, and from being used: kprobes that are disarmed, and functions that
/// are not traced, which some kernels refuse to hook then, and others hook all the same.
#[test]
#[ignore = "needs the kernel that `make test-kernels` boots"]
fn silent_hooks_are_noticed() -> Result<()> {
    let kinds: Vec<&str> = kinds().collect();
    let run = |hooks: &str| -> Result<Ended> {
        let option = format!("--hooks={hooks}");
        Ok(Ended::of(Mqspan::new(MQSPAN)?.output(["run", &*option, "--output=none", "--", "true"])?))
    };
    // Linux 7.3 does not let it be switched off.
    if let Some(_untraced) = Setting::set_where_allowed("/proc/sys/kernel/ftrace_enabled", "0")? {
        for kind in kinds.iter().filter(|kind| **kind != "tracepoint") {
            let ended = run(kind)?;
            println!("{kind}: {:?}", ended.stderr);
            // One whose functions are traced by a breakpoint sees them all the same.
            ensure!(ended.status.code() == Some(1) || ended.said(&format!("by {kind}")).is_ok(), "{ended:?}");
            run(&format!("{kind},tracepoint"))?.ok()?;
        }
        let chosen = said()?["hooks"].as_str().context("no hooks")?.to_owned();
        run(&chosen)?.ok()?.said(&format!("by {chosen}"))?;
    }
    if kinds.contains(&"kprobe") {
        let _disarmed = Setting::set("/sys/kernel/debug/kprobes/enabled", "0")?;
        let ended = run("kprobe")?;
        // Function tracing, where it serves probes, is not disarmed with them.
        if sessions::are_of_probes() {
            ended.ok()?.said("by kprobe")?;
        } else {
            ensure!(ended.status.code() == Some(1), "{ended:?}");
            ended.said("a call of mqspan's own was not seen")?;
            run("kprobe,tracepoint")?.ok()?.said("by tracepoint")?;
            ensure!(said()?["hooks"] != "kprobe", "check chooses kprobe");
        }
    }
    kinds.iter().try_for_each(|kind| run(kind)?.ok()?.said(&format!("by {kind}")).map(drop))
}

/// The kernel's release, as uname(2) says.
pub fn release() -> Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().into())
}

/// The first two numbers of the kernel's version.
pub fn version() -> Result<(u32, u32)> {
    let release = release()?;
    let mut numbers = release.split('.').map(|number| number.parse::<u32>());
    Ok((numbers.next().context("no version")??, numbers.next().context("no second number")??))
}

/// Whether this kernel's BPF can number calls, from which links by tracepoints are inferred.
pub fn numbers_calls() -> Result<bool> {
    Ok(version()? >= (5, 12))
}

/// What `check` says, as an object.
pub fn said() -> Result<Value> {
    let ended = Ended::of(Mqspan::new(MQSPAN)?.output(["check", "--format=json"])?).ok()?;
    println!("{}", String::from_utf8_lossy(&ended.stdout));
    Ok(serde_json::from_slice(&ended.stdout)?)
}

/// Prevents facts of this kernel from being missed, and what is unsafe on it from being used.
#[test]
#[ignore = "needs the kernel that `make test-kernels` boots"]
fn check_tells_what_this_kernel_is() -> Result<()> {
    let said = said()?;
    let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let realtime = file("/proc/version").contains("PREEMPT_RT");
    ensure!(said["realtime"] == realtime, "{said}");
    let call_state = if version()? < (5, 13) || realtime && version()? < (6, 4) { "table" } else { "task storage" };
    ensure!(said["call_state"] == call_state, "{said}");
    let isolated = file("/sys/devices/system/cpu/isolated");
    ensure!(said["isolated_cpus"] == isolated.trim(), "{said}");
    let lockdown = file("/sys/kernel/security/lockdown");
    ensure!(
        lockdown.is_empty() || lockdown.contains(&format!("[{}]", said["lockdown"].as_str().unwrap_or_default())),
        "{said}"
    );
    let map_bytes = said["map_bytes"].as_u64().context("no map_bytes")?;
    ensure!((1 << 20..=64 << 20).contains(&map_bytes), "{said}");
    ensure!(said["left_out"].as_array().is_some_and(Vec::is_empty), "{said}");
    let hooks = said["hooks"].as_str().context("no hooks")?;
    ensure!(kinds().any(|kind| kind == hooks), "{hooks}");
    Ok(())
}
