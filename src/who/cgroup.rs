//! The control group of a caller: as the kernel recorded it, else from /proc while the process lives.

use std::fs;

use crate::model::call::Image;
use crate::model::container::Container;

/// The path that the kernel side recorded, from the root of the hierarchy, where /proc/PID/cgroup leaves out what is
/// above mqspan's own cgroup namespace; but there systemd's hierarchy is seen too, which helps where this one says `/`.
pub fn recorded(image: &Image) -> Option<String> {
    // As it stands: systemd's own escapes are `\xNN`.
    image.cgroup.as_deref().map(|path| String::from_utf8_lossy(path).into_owned())
}

/// The path of the group of the process that has this id now.
pub fn of_process(pid: u32) -> Option<String> {
    let lines = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    from_lines(&lines).map(Into::into)
}

/// Of the lines of /proc/PID/cgroup (cgroups(7)), the one that names a container, else that of the unified hierarchy
/// unless it says nothing, else that of systemd.
pub fn from_lines(lines: &str) -> Option<&str> {
    let parsed: Vec<(&str, &str)> = lines
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .collect();
    let find = |controllers: &str| parsed.iter().find(|(name, _)| *name == controllers).map(|(_, path)| *path);
    let container = parsed.iter().map(|(_, path)| *path).find(|path| Container::of_path(path).id.is_some());
    container.or(find("").filter(|path| *path != "/")).or(find("name=systemd")).or(find(""))
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
}
