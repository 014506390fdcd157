//! Which ipc namespaces belong to one container or pod: those of whose processes all are in it. From /proc.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind::PermissionDenied;
use std::os::linux::fs::MetadataExt;
use std::path::Path;

use super::calls::numbers;
use crate::model::container::Container;
use crate::who::cgroup;

/// By the namespaces' numbers. None where some container's process may not be looked at: it might be in any. One that is
/// in no container is taken not to be in a container's namespace either.
pub fn containers() -> Option<HashMap<u32, Container>> {
    let mut of_processes = Vec::new();
    for pid in numbers(Path::new("/proc")) {
        let container = cgroup::of_process(pid).map(|path| Container::of_path(&path)).unwrap_or_default();
        let namespace = match fs::metadata(format!("/proc/{pid}/ns/ipc")) {
            Ok(file) => file.st_ino() as u32,
            Err(error) if error.kind() == PermissionDenied && container != Container::default() => return None,
            // Otherwise it has just ended, and has left its namespaces.
            Err(_) => continue,
        };
        of_processes.push((namespace, container));
    }
    Some(shared(of_processes))
}

/// What all processes of a namespace share.
fn shared(of_processes: impl IntoIterator<Item = (u32, Container)>) -> HashMap<u32, Container> {
    let mut shared: HashMap<u32, Container> = HashMap::new();
    for (namespace, container) in of_processes {
        let common = shared.entry(namespace).or_insert_with(|| container.clone());
        for (common, its) in [(&mut common.id, container.id), (&mut common.pod_uid, container.pod_uid)] {
            if *common != its {
                *common = None;
            }
        }
    }
    shared
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a queue that several containers use from being told as one's, and a pod's from having no pod.
    #[test]
    fn what_all_share() {
        let container = |id: &str, pod: &str| {
            let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
            Container { id: text(id), pod_uid: text(pod) }
        };
        let of_processes = [
            (1, container("a", "")),
            (1, container("a", "")),
            (2, container("a", "p")),
            (2, container("b", "p")),
            (3, container("", "")),
            (3, container("a", "p")),
            (4, container("a", "p")),
            (4, container("", "")),
            (4, container("a", "p")),
        ];
        let shared = shared(of_processes);
        for (namespace, id, pod) in [(1, "a", ""), (2, "", "p"), (3, "", ""), (4, "", "")] {
            assert_eq!(shared[&namespace], container(id, pod), "{namespace}");
        }
    }
}
