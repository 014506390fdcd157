//! Which names of control groups are containers, to the kernel side's filter and to user space's Resource: both read
//! the names for themselves, and must agree.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use support::{
    otlp::{self, text},
    program::{Mqspan, finish},
    wait,
};

use crate::mqspan;

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const OTHER: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";
const POD: &str = "87654321-abcd-4bcd-8bcd-0123456789ab";

/// A control group, gone with the test.
struct Group {
    root: PathBuf,
    path: PathBuf,
}

impl Group {
    /// Below a folder of this test's own.
    fn new(hierarchy: &Path, test: &str, name: &str) -> Result<Self> {
        let root = hierarchy.join(format!("mqspan-{test}-{}", std::process::id()));
        let path = root.join(name);
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Self { root, path })
    }

    /// Runs a program in it to its end; its process id.
    fn run(&self, mqspan: &Mqspan) -> Result<u32> {
        let mut command = Command::new("bash");
        let script = r#"echo $$ | tee "$1/cgroup.procs"; exec "$0" flat --calls 1 >/dev/null"#;
        command.args(["-c", script]).arg(mqspan.workload()).arg(&self.path);
        let output = finish(command)?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?.lines().next().context("no pid")?.parse()?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that was waited for may be in it for a moment still.
        let _ = wait::until("the group to be empty", || Ok(fs::remove_dir(&self.path).ok()));
        // Those that others of this test still use stay until these go.
        let above = self.path.ancestors().skip(1).take_while(|folder| folder.starts_with(&self.root));
        above.take_while(|folder| fs::remove_dir(folder).is_ok()).for_each(drop);
    }
}

/// Where the unified hierarchy is mounted, and on hosts that have it too that of a controller.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let is_one = |mount: &Vec<&str>| mount[2] == "cgroup2" || mount[2] == "cgroup" && mount[3].contains("pids");
    let found: Vec<PathBuf> = fields.filter(is_one).map(|mount| mount[1].into()).collect();
    ensure!(!found.is_empty(), "no control groups are mounted");
    Ok(found)
}

/// Prevents the filter from passing others than those whose Resource says so, a container from being missed in either
/// hierarchy, and what only looks like one from being taken for it.
#[test]
fn names() -> Result<()> {
    let mqspan = mqspan()?;
    let slice = POD.replace('-', "_");
    let short = ["0123456789abcdef0123456789abcdef-4012345678", "6f265890-5165-7fab-6b52-18d1"];
    let table = [
        (format!("docker/{ID}"), Some(ID), None),
        (format!("docker-{ID}.scope/init.scope"), Some(ID), None),
        (format!("libpod_parent/libpod-{ID}"), Some(ID), None),
        (format!("kubepods/burstable/pod{POD}/{ID}"), Some(ID), Some(POD)),
        (format!("kubepods.slice/kubepods-pod{slice}.slice/cri-containerd-{ID}.scope"), Some(ID), Some(POD)),
        (format!("kubepods-besteffort-pod{slice}.slice:cri-containerd:{ID}"), Some(ID), Some(POD)),
        (format!("docker/{OTHER}/kubelet/kubepods/pod{POD}/{ID}"), Some(ID), Some(POD)),
        (format!("ecs/0123456789abcdef0123456789abcdef/{}", short[0]), Some(short[0]), None),
        (short[1].to_owned(), Some(short[1]), None),
        (format!("libpod-conmon-{ID}.scope"), None, None),
        (format!("libpod_parent/libpod_pod_{ID}"), None, None),
        (format!("docker/{}", &ID[1..]), None, None),
        (format!("docker/{ID}0"), None, None),
        (format!("docker/{ID}.service"), None, None),
        ("run-r0123456789abcdef0123456789abcdef.scope".to_owned(), None, None),
        ("plain".to_owned(), None, None),
    ];
    // Every container passes; what is in none does not.
    let any = "0123456789abcdef".chars().map(|digit| format!("--container={digit}")).collect::<Vec<_>>();
    let file = mqspan.to_file("spans");
    let mut options = vec!["--signals=traces", &file, "--call=mq_open"];
    options.extend(any.iter().map(String::as_str));
    let tracing = mqspan.trace(options)?;
    let mut made = Vec::new();
    for hierarchy in hierarchies()? {
        for (name, id, pod) in &table {
            let group = Group::new(&hierarchy, "names", name)?;
            made.push((group.run(&mqspan)?, group.path.clone(), *id, *pod));
        }
    }
    tracing.stop()?.ok()?;
    let spans = otlp::spans(&mqspan.file("spans"))?;
    for (pid, path, id, pod) in made {
        let span = spans.iter().find(|span| span.pid().is_ok_and(|its| its == pid));
        ensure!(span.is_some() == id.is_some(), "{}: passed: {}", path.display(), span.is_some());
        let Some(span) = span else { continue };
        let resource = &span.origin.resource;
        let found = (text(resource, "container.id"), text(resource, "k8s.pod.uid"));
        ensure!(found == (id, pod), "{}: {found:?}", path.display());
        let group = text(resource, "process.linux.cgroup").context("no process.linux.cgroup")?;
        ensure!(path.ends_with(group.trim_start_matches('/')), "{}: {group}", path.display());
    }
    Ok(())
}

/// Prevents a prefix from matching too much or too little, an exclusion from being undone by a longer prefix, metrics
/// from counting other calls than spans, and a process that moves from being taken for where it was.
#[test]
fn prefixes() -> Result<()> {
    let mqspan = mqspan()?;
    let hierarchy = hierarchies()?.remove(0);
    let [inside, other] = [ID, OTHER].map(|id| Group::new(&hierarchy, "prefixes", id));
    let (inside, other) = (inside?, other?);
    for (options, passing) in [
        (&["--container=0123"][..], &[ID][..]),
        (&["--container=0123", "--container=fe"], &[ID, OTHER]),
        (&["--container=!0123"], &[OTHER, ""]),
        (&["--container=!0123", "--container=01234"], &[]),
        (&["--container=0123", "--container=!01234"], &[]),
    ] {
        let file = mqspan.to_file("calls");
        let tracing = mqspan.trace_counted(&[&[&*file, "--call=mq_open"], options].concat())?;
        let pids = [(inside.run(&mqspan)?, ID), (other.run(&mqspan)?, OTHER), (plain(&mqspan)?, "")];
        let ended = tracing.stop()?.ok()?;
        let spans = otlp::spans(&mqspan.file("calls"))?;
        let passed = |pid: u32| spans.iter().any(|span| span.pid().is_ok_and(|its| its == pid));
        for (pid, id) in pids {
            let wanted = passing.contains(&id);
            ensure!(passed(pid) == wanted, "{options:?}: {id:?} passed: {}", passed(pid));
            let counted = otlp::has_metrics_of(&mqspan.file("calls"), pid)?;
            ensure!(counted == wanted, "{options:?}: {id:?} in metrics: {counted}");
        }
        // A value that is excluded besides did match.
        ensure!(ended.said("matched no call").is_err(), "{options:?}: {:?}", ended.stderr);
    }
    Ok(())
}

fn plain(mqspan: &Mqspan) -> Result<u32> {
    let mut command = Command::new("bash");
    command.args(["-c", r#"echo $$; exec "$0" flat --calls 1 >/dev/null"#]).arg(mqspan.workload());
    Ok(String::from_utf8(finish(command)?.stdout)?.lines().next().context("no pid")?.parse()?)
}
