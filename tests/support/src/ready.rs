//! What the tests need of the machine. Where it is missing they fail, they are not skipped.

use std::{env, path::Path};

use anyhow::{Result, ensure};
use nix::{
    sys::statfs::{FsType, TRACEFS_MAGIC, statfs},
    unistd::geteuid,
};

/// include/uapi/linux/magic.h of older headers has no name for it.
const MQUEUE_MAGIC: FsType = FsType(0x1980_0202);

/// Fails with what is missing and how to mend it.
pub fn machine() -> Result<()> {
    ensure!(geteuid().is_root(), "these tests attach to the kernel: run them as root (make test does)");
    for (path, magic) in [("/sys/kernel/tracing", TRACEFS_MAGIC), ("/dev/mqueue", MQUEUE_MAGIC)] {
        let mounted = statfs(path).is_ok_and(|found| found.filesystem_type() == magic);
        ensure!(mounted, "{path} is not mounted: scripts/setup.sh test mounts it");
    }
    ["strace", "setpriv", "unshare", "mount", "umount", "bash"].into_iter().try_for_each(program)
}

/// Fails where no such program is in PATH.
pub fn program(name: &str) -> Result<()> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).any(|folder| folder.join(name).is_file());
    ensure!(found, "{name} is not installed: scripts/setup.sh test installs what the tests need");
    Ok(())
}

/// The number of this process's ipc namespace, as `/proc/self/ns/ipc` has it.
pub fn ipc_namespace() -> Result<i64> {
    namespace_number(Path::new("/proc/self/ns/ipc"))
}

/// The number in a link such as `ipc:[4026531839]`.
pub fn namespace_number(link: &Path) -> Result<i64> {
    let link = link.read_link()?;
    let text = link.to_string_lossy();
    let digits = text.trim_end_matches(']').rsplit('[').next().unwrap_or_default();
    Ok(digits.parse()?)
}
