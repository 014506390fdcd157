//! Containers as Podman and runc make them, without an image: the root file system is a folder with the host's programs.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    program::{Mqspan, finish},
    ready,
};

/// A container that was created; gone with this, whatever runs in it.
pub struct Container {
    id: String,
}

impl Container {
    /// Creates one that will run a command; the test's folder is at the same path in it.
    pub fn create(mqspan: &Mqspan, options: &[&str], command: &[&str]) -> Result<Self> {
        ["podman", "runc"].into_iter().try_for_each(ready::program)?;
        let root = root(&mqspan.file("root"))?;
        let folder = mqspan.file("");
        let mut create = Command::new("podman");
        // crun refuses hybrid control groups. Limits can be no higher than where the tests themselves run in a sandbox.
        create.args(["--runtime", "runc", "create", "--network=none", "--no-hosts"]);
        create.args(["--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000", "--volume=/usr:/usr:ro"]);
        create.arg(format!("--volume={0}:{0}", folder.display())).args(options);
        create.arg("--rootfs").arg(root).args(command);
        Ok(Self { id: said(create)? })
    }

    /// Its whole id, as Podman tells it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Runs it to its end, which must be a success.
    pub fn run(&self) -> Result<()> {
        let mut start = self.start_attached();
        start.stdin(std::process::Stdio::null());
        let output = finish(start)?;
        ensure!(output.status.success(), "{output:?}");
        Ok(())
    }

    /// The command that starts it, and is it to who runs it.
    pub fn start_attached(&self) -> Command {
        let mut start = Command::new("podman");
        start.args(["--runtime", "runc", "start", "--attach", "--sig-proxy", &self.id]);
        start
    }

    /// Starts it.
    pub fn start(&self) -> Result<()> {
        let mut start = Command::new("podman");
        start.args(["--runtime", "runc", "start", &self.id]);
        said(start).map(drop)
    }

    /// Runs another command in it, which is running, to its end.
    pub fn exec(&self, command: &[&str]) -> Result<()> {
        let mut exec = Command::new("podman");
        exec.args(["--runtime", "runc", "exec", &self.id]).args(command);
        said(exec).map(drop)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let mut remove = Command::new("podman");
        remove.args(["--runtime", "runc", "rm", "--force", "--time=0", &self.id]);
        let _ = finish(remove);
    }
}

fn said(command: Command) -> Result<String> {
    let what = format!("{command:?}");
    let output = finish(command)?;
    ensure!(output.status.success(), "{what}: {output:?}");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A root file system in which the host's /usr has its place.
fn root(folder: &Path) -> Result<PathBuf> {
    let folder = folder.to_owned();
    for name in ["usr", "proc", "sys", "dev", "etc", "tmp"] {
        fs::create_dir_all(folder.join(name))?;
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        let host = Path::new("/").join(name);
        let link = folder.join(name);
        if host.exists() && !link.is_symlink() {
            let target = fs::read_link(&host).with_context(|| format!("{} is not merged into /usr", host.display()))?;
            symlink(target, link)?;
        }
    }
    Ok(folder)
}
