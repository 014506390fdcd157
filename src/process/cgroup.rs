//! The control group of a caller: from /proc while the process lives, else by the id that the kernel recorded, which
//! is the handle of the group's folder.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use super::host;
use crate::event::Image;

/// Remembered paths; beyond them all are forgotten.
const REMEMBERED: usize = 4096;

/// The paths of groups, by their ids.
#[derive(Debug, Default)]
pub struct Cgroups {
    root: Option<OwnedFd>,
    mount: String,
    by_id: HashMap<u64, Option<String>>,
}

impl Cgroups {
    /// The path of the caller's group, as in /proc/PID/cgroup.
    pub fn path(&mut self, image: &Image) -> Option<String> {
        let lines = fs::read_to_string(format!("/proc/{}/cgroup", image.key.pid)).ok();
        match lines.filter(|_| host::is_running(&image.key)) {
            Some(lines) => from_lines(&lines).map(Into::into),
            None => self.of_id(image.cgroup_id),
        }
    }

    fn of_id(&mut self, id: u64) -> Option<String> {
        if let Some(path) = self.by_id.get(&id) {
            return path.clone();
        }
        let path = self.open(id).and_then(|folder| {
            let path = fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd())).ok()?;
            let inside = path.strip_prefix(&self.mount).ok()?;
            Some(format!("/{}", inside.to_str()?))
        });
        if self.by_id.len() >= REMEMBERED {
            self.by_id.clear();
        }
        self.by_id.insert(id, path.clone());
        path
    }

    /// Opens the folder of a group by its id (open_by_handle_at(2); fs/kernfs/mount.c, kernfs_fh_to_dentry).
    fn open(&mut self, id: u64) -> Option<OwnedFd> {
        #[repr(C)]
        struct Handle {
            bytes: u32,
            kind: i32,
            id: u64,
        }
        const FILEID_KERNFS: i32 = 0xfe;
        if self.root.is_none() {
            self.mount = mount_point(&fs::read_to_string("/proc/self/mounts").ok()?)?.to_owned();
            self.root = Some(fs::File::open(Path::new(&self.mount)).ok()?.into());
        }
        let handle = Handle { bytes: 8, kind: FILEID_KERNFS, id };
        let root = self.root.as_ref()?.as_raw_fd();
        // SAFETY: the handle has the layout of struct file_handle with the eight bytes that it says; the kernel only
        // reads it.
        let fd = unsafe {
            libc::syscall(libc::SYS_open_by_handle_at, root, &raw const handle, libc::O_PATH | libc::O_CLOEXEC)
        };
        // SAFETY: a descriptor that the call above just made, owned by nobody else.
        (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }
}

/// Where the unified hierarchy is mounted.
fn mount_point(mounts: &str) -> Option<&str> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let folder = fields.next()?;
        (fields.next()? == "cgroup2").then_some(folder)
    })
}

/// Of the lines of /proc/PID/cgroup (cgroups(7)), the one that names a container, else that of the unified hierarchy
/// unless it says nothing, else that of systemd.
fn from_lines(lines: &str) -> Option<&str> {
    let parsed: Vec<(&str, &str)> = lines
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .collect();
    let find = |controllers: &str| parsed.iter().find(|(name, _)| *name == controllers).map(|(_, path)| *path);
    let container = parsed.iter().map(|(_, path)| *path).find(|path| names_container(path));
    container.or(find("").filter(|path| *path != "/")).or(find("name=systemd")).or(find(""))
}

/// Whether a component of the path holds the 64 hex digits that every container runtime uses.
fn names_container(path: &str) -> bool {
    path.split('/').any(|component| component.split(|c: char| !c.is_ascii_hexdigit()).any(|run| run.len() == 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a container from being overlooked on a hybrid host, and a line that says nothing from being taken.
    #[test]
    fn the_telling_line() {
        let id = "0123456789abcdef".repeat(4);
        let docker = format!("12:pids:/docker/{id}\n1:name=systemd:/x\n0::/\n");
        assert_eq!(from_lines(&docker), Some(&*format!("/docker/{id}")));
        assert_eq!(from_lines("0::/user.slice/a:b\n"), Some("/user.slice/a:b"));
        assert_eq!(from_lines("4:cpu:/\n1:name=systemd:/init.scope\n0::/\n"), Some("/init.scope"));
        assert_eq!(from_lines("0::/\n"), Some("/"));
        assert_eq!(from_lines(""), None);
    }

    /// Prevents another file system from being taken for the unified hierarchy.
    #[test]
    fn mounts() {
        assert_eq!(mount_point("a /x cgroup rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"), Some("/sys/fs/cgroup"));
        assert_eq!(mount_point("a /cgroup2 tmpfs rw 0 0\n"), None);
    }
}
