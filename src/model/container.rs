//! The container and the Kubernetes pod that a control group's path names, by the names that container runtimes give.
//! Pure code. bpf/container.h reads the same ids for `--container`; a test compares both.

/// The digits of an id as Docker, containerd, CRI-O and Podman make it.
const LONG: usize = 64;

/// Where a process runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// `container.id`.
    pub id: Option<String>,
    /// `k8s.pod.uid`.
    pub pod_uid: Option<String>,
}

impl Container {
    /// What a path says; of containers inside of others, the innermost.
    pub fn of_path(path: &str) -> Self {
        let innermost = |find: fn(&str) -> Option<String>| path.rsplit('/').find_map(find);
        // Seen from a cgroup namespace, the groups that both are in are left out: `/../../podUID/ID`.
        let in_pod = path.contains("kubepods") || path.starts_with("/../");
        Self { id: innermost(id), pod_uid: innermost(pod_uid).filter(|_| in_pod) }
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// `ID`, `docker-ID.scope`, `libpod-ID`, `kubepods-….slice:cri-containerd:ID`; not `libpod-conmon-ID.scope`, which holds
/// the container's monitor.
fn id(name: &str) -> Option<String> {
    if name.len() < LONG {
        return is_short_id(name).then(|| name.to_owned());
    }
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let (before, id) = name.split_at_checked(name.len().checked_sub(LONG)?)?;
    let is_named = before.is_empty() || before.ends_with(['-', ':']) && !before.ends_with("conmon-");
    (is_named && is_hex(id)).then(|| id.to_owned())
}

/// Names that are ids as a whole: 32 digits, a dash and decimals (ECS), or 8-4-4-4-4 digits (Garden).
fn is_short_id(name: &str) -> bool {
    let groups: Vec<&str> = name.split('-').collect();
    match groups[..] {
        [task, number] => {
            task.len() == 32 && is_hex(task) && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        }
        [first, .., _] if groups.len() == 5 => {
            first.len() == 8
                && groups[1..].iter().all(|group| group.len() == 4)
                && groups.iter().all(|group| is_hex(group))
        }
        _ => false,
    }
}

/// `podUID`, `kubepods-burstable-podUID.slice` with underscores, the same with `:…` behind it. The id of a static pod is
/// 32 digits, that of others a UUID.
fn pod_uid(name: &str) -> Option<String> {
    let name = name.split(':').next()?;
    let (before, uid) = name.strip_suffix(".slice").unwrap_or(name).rsplit_once("pod")?;
    let uid = uid.replace('_', "-");
    let lens: Vec<usize> = uid.split('-').map(str::len).collect();
    let is_uid = lens == [32] || lens == [8, 4, 4, 4, 12];
    let is_named = before.is_empty() || before.ends_with('-');
    (is_named && is_uid && uid.split('-').all(is_hex)).then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const B: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";
    const UID: &str = "87654321-abcd-4bcd-8bcd-0123456789ab";
    const SLICE: &str = "87654321_abcd_4bcd_8bcd_0123456789ab";

    fn expect(path: &str, id: Option<&str>, pod: Option<&str>) {
        let found = Container::of_path(path);
        assert_eq!((found.id.as_deref(), found.pod_uid.as_deref()), (id, pod), "{path}");
    }

    /// Prevents a runtime's containers from going unseen, in the paths that it makes on cgroup v1 and v2, by its own
    /// and by systemd's names.
    #[test]
    fn runtimes() {
        for path in [
            format!("/docker/{A}"),
            format!("/system.slice/docker-{A}.scope"),
            format!("/user.slice/user-1000.slice/user@1000.service/app.slice/docker-{A}.scope"),
            format!("/default/{A}"),
            format!("/system.slice/nerdctl-{A}.scope"),
            format!("/libpod_parent/libpod-{A}"),
            format!("/machine.slice/libpod-{A}.scope"),
            format!("/machine.slice/libpod-{A}.scope/container"),
            format!("/machine.slice/machine-libpod_pod_{B}.slice/libpod-{A}.scope"),
            format!("/libpod_parent/libpod_pod_{B}/libpod-{A}"),
            format!("/system.slice/backup.service/libpod-payload-{A}"),
            format!("/docker/{A}/init.scope"),
            format!("/ecs/cluster/0123456789abcdef0123456789abcdef/{A}"),
        ] {
            expect(&path, Some(A), None);
        }
        for id in ["0123456789abcdef0123456789abcdef-4012345678", "6f265890-5165-7fab-6b52-18d1"] {
            expect(&format!("/ecs/0123456789abcdef0123456789abcdef/{id}"), Some(id), None);
        }
    }

    /// Prevents a pod's id from being lost or left with systemd's underscores.
    #[test]
    fn pods() {
        for path in [
            format!("/kubepods/burstable/pod{UID}/{A}"),
            format!("/kubepods/pod{UID}/crio-{A}"),
            format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SLICE}.slice/docker-{A}.scope"),
            format!("/kubepods.slice/kubepods-pod{SLICE}.slice/cri-containerd-{A}.scope"),
            format!("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{SLICE}.slice/crio-{A}.scope"),
            format!("/kubepods.slice/kubepods-pod{SLICE}.slice/crio-{A}.scope/container"),
            format!("/system.slice/containerd.service/kubepods-besteffort-pod{SLICE}.slice:cri-containerd:{A}"),
            // kind: a node is a container itself.
            format!("/docker/{B}/kubelet/kubepods/besteffort/pod{UID}/{A}"),
            format!(
                "/system.slice/docker-{B}.scope/kubelet.slice/kubelet-kubepods.slice/\
                 kubelet-kubepods-pod{SLICE}.slice/cri-containerd-{A}.scope"
            ),
        ] {
            expect(&path, Some(A), Some(UID));
        }
        let fixed = "0123456789abcdef0123456789abcdef";
        expect(&format!("/kubepods/burstable/pod{fixed}/{A}"), Some(A), Some(fixed));
        expect(&format!("/kubepods/burstable/pod{UID}"), None, Some(UID));
        expect(&format!("/../../pod{UID}/{A}"), Some(A), Some(UID));
    }

    /// Prevents what only looks like a container or a pod from being told as one.
    #[test]
    fn no_containers() {
        for path in [
            "/".to_owned(),
            String::new(),
            "/init.scope".into(),
            "/user.slice/user-1000.slice/session-2.scope".into(),
            "/system.slice/docker.service".into(),
            "/system.slice/run-r0123456789abcdef0123456789abcdef.scope".into(),
            "/jobs/0123456789abcdef0123456789abcdef".into(),
            format!("/jobs/{UID}"),
            "/jobs/0123456789abcdef0123456789abcdef-x".into(),
            format!("/machine.slice/libpod-conmon-{A}.scope"),
            format!("/libpod_parent/libpod_pod_{A}"),
            format!("/machine.slice/machine-libpod_pod_{A}.slice"),
            format!("/docker/{}", &A[1..]),
            format!("/docker/{A}0"),
            format!("/docker/{}G", &A[1..]),
            format!("/docker/{}", A.to_uppercase()),
            format!("/docker/{A}.service"),
            format!("/jobs/pod{UID}"),
            format!("/é{}", &A[1..]),
        ] {
            expect(&path, None, None);
        }
        expect(&format!("/kubepods/burstable/tripod{UID}/{A}"), Some(A), None);
        expect(&format!("/kubepods/burstable/pod{}/{A}", &UID[1..]), Some(A), None);
    }
}
