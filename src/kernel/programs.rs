//! The programs of bpf/: configured, loaded, attached and read. The one user of libbpf's objects; takes no records.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libbpf_rs::libbpf_sys::{bpf_obj_get_info_by_fd, bpf_prog_info};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{
    Link, MapCore, MapFlags, MapMut, OpenObject, PrintLevel, ProgramInput, ProgramMut, TracepointCategory, set_print,
};

use super::hooks::{Hook, Place};
use super::obi;
use super::probes::{self, Probes};
use super::ring::Ring;
use super::skel::types::{counter, image_key, rule};
use super::skel::{self, MqspanSkel, MqspanSkelBuilder, OpenMqspanSkel};
use super::{btf, containers, detach};
use crate::capability;
use crate::model::buckets::{duration_bounds, size_bounds};
use crate::model::call::{ImageKey, QueueKey};
use crate::model::counts::Counts;
use crate::model::filter::Filters;
use crate::model::reading::QueueState;
use crate::model::values::Rate;
use crate::model::values::{HookKind, Namespace, Op};

/// What the kernel side is told before it is loaded.
#[derive(Debug)]
pub struct Config<'a> {
    /// The kind of hooks.
    pub kind: HookKind,
    /// Where tracefs is mounted.
    pub tracefs: Option<&'a Path>,
    /// The filters; those on numbers are applied by the kernel side.
    pub filters: &'a Filters,
    /// The number of mqspan's own ipc namespace.
    pub own_ipc_namespace: u32,
    /// The process that waits to become the traced command, a child of this one: only it and its descendants are traced.
    pub tree: Option<u32>,
    /// Whether calls become records; without them there are metrics alone.
    pub makes_records: bool,
    /// Whether calls are aggregated for metrics.
    pub aggregates: bool,
    /// How many calls become records.
    pub rate: Rate,
}

/// The function in which a call waits for room or for a message.
const SLEEP: &str = "wq_sleep";
/// enum rules_mode of bpf/filter.h.
const ONLY_LISTED: u8 = 1;
const ALL_BUT_EXCLUDED: u8 = 2;

/// The programs, attached.
pub struct Programs {
    skel: MqspanSkel<'static>,
    /// Those of entries before all others.
    links: Vec<Link>,
    // After the links: an event that is in use can't be removed.
    probes: Option<Probes>,
}

/// libbpf's warnings since the last look: the last of them says why something failed.
static WARNINGS: Mutex<String> = Mutex::new(String::new());

fn keep_warning(level: PrintLevel, text: String) {
    if level == PrintLevel::Warn {
        let mut kept = WARNINGS.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_str(&end_of(&text));
        kept.push(' ');
    }
}

/// The verifier's log may be long: its last lines before the statistics say why.
fn end_of(text: &str) -> String {
    let is_framed = |line: &&str| line.starts_with("processed ") || line.starts_with("-- END");
    let mut lines: Vec<&str> = text.lines().rev().filter(|line| !is_framed(line)).take(3).collect();
    lines.reverse();
    lines.join(" ").chars().take(300).collect()
}

/// From now on libbpf's warnings are kept, not printed.
pub fn keep_warnings() {
    WARNINGS.lock().unwrap_or_else(PoisonError::into_inner).clear();
    set_print(Some((PrintLevel::Warn, keep_warning)));
}

/// The error with what libbpf had to say, in one line.
fn explained(error: &libbpf_rs::Error) -> String {
    let said = std::mem::take(&mut *WARNINGS.lock().unwrap_or_else(PoisonError::into_inner));
    let said: String = said.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(600).collect();
    match said.is_empty() {
        true => error.to_string(),
        false => format!("{error} ({said})"),
    }
}

/// Attaches for a try and detaches again: some kernels load what they can't attach. Returns how many bytes the maps take
/// in the kernel.
pub fn try_attach(kind: HookKind, tracefs: Option<&Path>) -> Result<u64, String> {
    // One call shows whether the kind works, and is loaded in a sixth of the time of all.
    let none = Filters { call: [Op::MqOpen].into(), ..Filters::default() };
    let config = Config {
        kind,
        tracefs,
        filters: &none,
        own_ipc_namespace: 0,
        tree: None,
        makes_records: true,
        aggregates: true,
        rate: Rate { most: 1, slow: Duration::ZERO },
    };
    Programs::attach(&config).map(|programs| programs.map_bytes())
}

impl Programs {
    /// Loads and attaches. Calls whose entry comes after the return are seen.
    pub fn attach(config: &Config<'_>) -> Result<Self, String> {
        keep_warnings();
        // As large as a pointer; it is never freed, so that the programs can go from thread to thread.
        let storage = Box::leak(Box::new(MaybeUninit::<OpenObject>::uninit()));
        let mut open = MqspanSkelBuilder::default().open(storage).map_err(|error| explained(&error))?;
        configure(&mut open, config);
        obi::share(&mut open);
        let skel = open.load().map_err(|error| explained(&error))?;
        let mut programs = Self { skel, links: Vec::new(), probes: None };
        programs.see_self(config.tree)?;
        programs.fill_maps(config).and_then(|()| programs.attach_all(config)).map_err(|error| explained(&error))?;
        Ok(programs)
    }

    /// Has the kernel side see which process this is, and which of its children is the command to be.
    fn see_self(&self, child: Option<u32>) -> Result<(), String> {
        match self.run(&self.skel.progs.see_self, [child.unwrap_or(0).into(), 0, 0]) {
            Ok(0) => Err("the command's process was not found among mqspan's children".into()),
            Ok(_) => Ok(()),
            Err(error) => Err(explained(&error)),
        }
    }

    /// Runs a program that is attached nowhere in this thread's context; returns what it returns.
    fn run(&self, program: &ProgramMut<'_>, arguments: [u64; 3]) -> libbpf_rs::Result<i32> {
        let mut context = arguments.map(u64::to_ne_bytes);
        let input = ProgramInput { context_in: Some(context.as_flattened_mut()), ..ProgramInput::default() };
        program.test_run(input).map(|output| output.return_value.cast_signed())
    }

    /// What became of a queue.
    pub fn look_at_queue(&self, key: &QueueKey) -> QueueState {
        match self.run(&self.skel.progs.see_queue, [key.inode, key.number, key.namespace]) {
            Ok(state @ 0..) => QueueState::There { depth: (state >> 1).into(), unlinked: state & 1 == 1 },
            Ok(_) => QueueState::Ended,
            Err(_) => QueueState::Unknown,
        }
    }

    /// Keeps the state of a queue that this process has opened; returns whether it could.
    pub fn keep_queue(&self, queue: BorrowedFd<'_>) -> bool {
        let fd = queue.as_raw_fd().unsigned_abs().into();
        self.run(&self.skel.progs.find_queue, [fd, 0, 0]).is_ok_and(|kept| kept != 0)
    }

    /// Keeps the state of a queue that some process has open, by the address of its file; returns whether it could.
    pub fn keep_file(&self, file: u64, queue: &QueueKey) -> bool {
        self.run(&self.skel.progs.find_file, [file, queue.number, 0]).is_ok_and(|kept| kept != 0)
    }

    /// Whether a process, by its number on the host, is of the traced command's tree.
    pub fn is_in_tree(&self, pid: u32) -> bool {
        self.skel.maps.tree.lookup(&pid.to_ne_bytes(), MapFlags::ANY).is_ok_and(|found| found.is_some())
    }

    /// The state of calls in flight.
    pub fn threads(&self) -> &MapMut<'static> {
        &self.skel.maps.threads
    }

    /// mqspan's own pid namespace: how deep it is, and its address.
    pub fn own_pid_namespace(&self) -> (u32, u64) {
        self.skel.maps.bss_data.as_deref().map_or((0, 0), |bss| (bss.own_level, bss.own_namespace))
    }

    /// The image's record is sent again with its next call.
    pub fn unmark_image(&self, key: &ImageKey) {
        let key = image_key { started_ns: key.started_ns, pid: key.pid, exec_id: key.exec_id };
        // SAFETY: a structure of integers without padding.
        let bytes = unsafe { std::slice::from_raw_parts((&raw const key).cast::<u8>(), size_of::<image_key>()) };
        // The kernel side removes the marks of processes that have ended.
        if self.skel.maps.marks.delete(bytes).is_ok() {
            self.variable(|bss| &raw const bss.marks_age).fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The name is sent again with the next series or queue that has it.
    pub fn unmark_name(&self, number: u64) {
        // One that is not there is as good.
        let _ = self.skel.maps.named.delete(&number.to_ne_bytes());
    }

    /// From now on no call begins. Those under way still end.
    pub fn close(&self) {
        self.variable(|bss| &raw const bss.closed).store(1, Ordering::Relaxed);
    }

    /// A variable of the kernel side.
    fn variable(&self, of: fn(&skel::types::bss) -> *const u32) -> &AtomicU32 {
        // libbpf maps the variables of a loaded object always.
        let variable = self.skel.maps.bss_data.as_deref().map(of);
        // SAFETY: shared with the kernel, which writes it atomically; the mapping lives as long as the skeleton.
        variable.map_or(&NOWHERE, |variable| unsafe { AtomicU32::from_ptr(variable.cast_mut()) })
    }

    /// What the maps take in the kernel, in bytes.
    fn map_bytes(&self) -> u64 {
        self.skel.object().maps().map(|map| memlock(map.as_fd())).sum()
    }

    fn fill_maps(&self, config: &Config<'_>) -> libbpf_rs::Result<()> {
        let Filters { pid, uid, container, ipc_namespace, .. } = config.filters;
        let maps = &self.skel.maps;
        containers::put(&maps.container_rules, container.picks())?;
        for pick in pid.picks() {
            put_rule(&maps.pid_rules, pick.value, pick.exclude)?;
        }
        for pick in uid.picks() {
            put_rule(&maps.uid_rules, pick.value, pick.exclude)?;
        }
        for pick in ipc_namespace.picks() {
            match pick.value {
                Namespace::All => {}
                Namespace::Own => put_rule(&maps.ipc_rules, config.own_ipc_namespace, pick.exclude)?,
                Namespace::Number(number) => put_rule(&maps.ipc_rules, number, pick.exclude)?,
            }
        }
        Ok(())
    }

    /// The entries last: an exit without an entry is told from a call that began before.
    fn attach_all(&mut self, config: &Config<'_>) -> libbpf_rs::Result<()> {
        let progs = &self.skel.progs;
        let mut others = vec![progs.image_on_exit.attach()?];
        if config.tree.is_some() {
            others.push(progs.tree_on_fork.attach()?);
            others.push(progs.tree_on_exit.attach()?);
        }
        let own_pid = self.variable(|bss| &raw const bss.own_pid).load(Ordering::Relaxed);
        let tracefs = config.tracefs.filter(|_| config.kind == HookKind::Kprobe);
        let mut probes = tracefs.map(|tracefs| Probes::new(tracefs, own_pid)).transpose()?;
        let (mut entries, mut rest) = (Vec::new(), Vec::new());
        let is_entry = |hook: &Hook| matches!(hook.place, Place::Entry(_));
        for wanted in [false, true] {
            for (hook, program) in self.hooks().filter(|(hook, _)| is_entry(hook) == wanted) {
                let link = match &mut probes {
                    Some(probes) => {
                        let event = probes.add(&hook).map_err(libbpf_rs::Error::from)?;
                        program.attach_tracepoint(TracepointCategory::Custom(probes::GROUP.into()), event)?
                    }
                    None => program.attach()?,
                };
                (if wanted { &mut entries } else { &mut rest }).push(link);
            }
        }
        if let Some(probes) = &mut probes {
            probes.attached();
        }
        self.links = entries;
        self.links.append(&mut rest);
        self.links.append(&mut others);
        self.probes = probes;
        Ok(())
    }

    /// The loaded programs that hook calls.
    fn hooks(&self) -> impl Iterator<Item = (Hook, ProgramMut<'_>)> {
        let loaded = self.skel.object().progs_mut().filter(|program| program.autoload());
        loaded.filter_map(|program| Some((hook_of(program.name(), program.section())?, program)))
    }

    /// Detaches, without waiting for the kernel to have done so. To be called at the end of the process.
    pub fn detach(self: Arc<Self>) {
        capability::take_up(capability::DAC_OVERRIDE);
        let (file, undo) = self.probes.as_ref().map(Probes::removal).unzip();
        detach::leave_to_another(file.as_deref(), &undo.unwrap_or_default());
        // Closed by the end of the process, when that costs nothing any more.
        std::mem::forget(self);
    }

    /// The ring of calls, to be opened once.
    pub fn calls(&self) -> io::Result<Ring> {
        open_ring(&self.skel.maps.calls)
    }

    /// The ring of images and names, to be opened once.
    pub fn images(&self) -> io::Result<Ring> {
        open_ring(&self.skel.maps.images)
    }

    /// The ring of what became of images, to be opened once.
    pub fn notices(&self) -> io::Result<Ring> {
        open_ring(&self.skel.maps.notices)
    }

    /// The maps of series: the one that holds the map in use, the names asked for, and the two that take turns; and
    /// those of queues and of the number of the period.
    pub fn series(&self) -> [&MapMut<'static>; 6] {
        let maps = &self.skel.maps;
        [&maps.series, &maps.askers, &maps.series_a, &maps.series_b, &maps.queues, &maps.period]
    }

    /// The map of processes that publish their spans, and the one that says how many there are.
    pub fn contexts(&self) -> [&MapMut<'static>; 2] {
        [&self.skel.maps.publishers, &self.skel.maps.publishing]
    }

    /// The flag that asks the kernel side for a wake-up with its next record.
    pub fn armed(&self) -> &AtomicU32 {
        self.variable(|bss| &raw const bss.armed)
    }

    /// What the kernel side counted so far.
    pub fn counts(&self) -> Counts {
        let read = |which: counter| {
            let values = self.skel.maps.counters.lookup_percpu(&which.0.to_ne_bytes(), MapFlags::ANY);
            let values = values.ok().flatten().unwrap_or_default();
            values.iter().filter_map(|value| value[..8].try_into().ok().map(u64::from_ne_bytes)).sum()
        };
        let profile = self.probes.as_ref().map(|probes| (probes, probes.profile()));
        let (mut missed, mut missed_inside) = (0, BTreeMap::new());
        for (hook, program) in self.hooks() {
            let by_probe = profile.as_ref().map_or(0, |(probes, profile)| probes.missed(profile, &hook));
            let runs = by_probe + misses(program.as_fd());
            match hook.place {
                Place::Inside if runs > 0 => *missed_inside.entry(hook.target).or_default() += runs,
                Place::Inside => {}
                _ => missed += runs,
            }
        }
        Counts {
            filtered: read(counter::COUNT_FILTERED),
            limited: read(counter::COUNT_LIMITED),
            lost_ring: read(counter::COUNT_LOST_RING),
            lost_state: read(counter::COUNT_LOST_STATE),
            lost_no_exit: read(counter::COUNT_LOST_NO_EXIT),
            unpaired: read(counter::COUNT_UNPAIRED),
            tree_full: read(counter::COUNT_TREE_FULL),
            missed,
            missed_inside,
            untracked: read(counter::COUNT_UNTRACKED),
            images: read(counter::COUNT_IMAGES_LOST),
            queues: read(counter::COUNT_QUEUES_FULL),
            unlinked: 0,
            context_unreadable: read(counter::COUNT_CONTEXT_UNREADABLE),
            context_invalid: read(counter::COUNT_CONTEXT_INVALID),
            context_zero: read(counter::COUNT_CONTEXT_ZERO),
            context_files: 0,
        }
    }

    /// Which values of the filters on numbers no call has matched: `--pid 7`.
    pub fn unmatched(&self, filters: &Filters, own_ipc_namespace: u32) -> Vec<String> {
        let maps = &self.skel.maps;
        let numbers = |option: &str, map: &MapMut<'_>, picks: &[crate::model::filter::Pick<u32>]| -> Vec<String> {
            let missed = picks.iter().filter(|pick| !pick.exclude && !was_hit(map, pick.value));
            missed.map(|pick| format!("{option} {pick}")).collect()
        };
        let namespaces =
            filters.ipc_namespace.picks().iter().filter(|pick| !pick.exclude).filter(|pick| !match pick.value {
                Namespace::All => true,
                Namespace::Own => was_hit(&maps.ipc_rules, own_ipc_namespace),
                Namespace::Number(number) => was_hit(&maps.ipc_rules, number),
            });
        let mut unmatched = numbers("--pid", &maps.pid_rules, filters.pid.picks());
        unmatched.extend(numbers("--uid", &maps.uid_rules, filters.uid.picks()));
        unmatched.extend(containers::unmatched(&maps.container_rules, filters.container.picks()));
        unmatched.extend(namespaces.map(|pick| format!("--ipc-namespace {pick}")));
        unmatched
    }
}

fn hook_of(program: &OsStr, section: &OsStr) -> Option<Hook> {
    Hook::of(program.to_str()?, section.to_str()?)
}

fn open_ring(map: &MapMut<'_>) -> io::Result<Ring> {
    Ring::open(map.as_fd(), map.max_entries() as usize)
}

/// Stands for a variable that is not there.
static NOWHERE: AtomicU32 = AtomicU32::new(0);

fn configure(open: &mut OpenMqspanSkel<'_>, config: &Config<'_>) {
    let hooks = open.open_object().progs().filter_map(|program| hook_of(program.name(), program.section()));
    let targets: BTreeSet<String> = hooks.map(|hook| hook.target).collect();
    // A kernel without 32-bit callers has no functions for them, and small functions may be inlined.
    let functions = match config.kind {
        HookKind::Tracepoint => targets,
        _ => btf::functions(|name| targets.contains(name)),
    };
    for mut program in open.open_object_mut().progs_mut() {
        let used = hook_of(program.name(), program.section())
            .is_some_and(|hook| hook.is_used(config.kind, &config.filters.call) && functions.contains(&hook.target));
        program.set_autoload(used);
    }
    open.progs.see_self.set_autoload(true);
    open.progs.see_queue.set_autoload(config.aggregates);
    open.progs.find_queue.set_autoload(config.aggregates);
    open.progs.find_file.set_autoload(config.aggregates);
    open.progs.image_on_exit.set_autoload(true);
    open.progs.tree_on_fork.set_autoload(config.tree.is_some());
    open.progs.tree_on_exit.set_autoload(config.tree.is_some());
    let Filters { pid, uid, container, ipc_namespace, .. } = config.filters;
    if let Some(rodata) = &mut open.maps.rodata_data {
        rodata.pid_mode = mode(pid.picks().iter().map(|pick| pick.exclude));
        rodata.uid_mode = mode(uid.picks().iter().map(|pick| pick.exclude));
        rodata.container_mode = mode(container.picks().iter().map(|pick| pick.exclude));
        let all = ipc_namespace.picks().iter().any(|pick| pick.value == Namespace::All);
        let listed = ipc_namespace.picks().iter().filter(|pick| pick.value != Namespace::All);
        // `all` with an exclusion is the exclusion alone.
        rodata.ipc_mode = mode(listed.map(|pick| pick.exclude).filter(|exclude| *exclude || !all));
        rodata.messages_carry_ids = config.kind != HookKind::Tracepoint;
        rodata.sees_sleep = config.kind != HookKind::Tracepoint && functions.contains(SLEEP);
        let both_sides = [Op::MqTimedsend, Op::MqTimedreceive].iter().all(|call| config.filters.call.contains(call));
        rodata.infers_links = config.makes_records && config.kind == HookKind::Tracepoint && both_sides;
        rodata.only_tree = config.tree.is_some();
        rodata.makes_records = config.makes_records;
        rodata.aggregates = config.aggregates;
        rodata.max_rate = config.rate.most;
        rodata.slow_ns = config.rate.slow.as_nanos().try_into().unwrap_or(u64::MAX);
        rodata.aggregates_comm = !config.filters.comm.picks().is_empty();
        rodata.duration_bounds = duration_bounds();
        rodata.size_bounds = size_bounds();
        rodata.name_seed = rand::random();
        rodata.only_failed = config.filters.failed;
        let least = config.filters.min_duration.unwrap_or_default().as_nanos();
        rodata.min_duration_ns = least.try_into().unwrap_or(u64::MAX);
    }
}

fn mode(excludes: impl Iterator<Item = bool>) -> u8 {
    excludes.fold(0, |mode, exclude| match exclude {
        false => ONLY_LISTED,
        true => mode.max(if mode == ONLY_LISTED { ONLY_LISTED } else { ALL_BUT_EXCLUDED }),
    })
}

/// A value that is both included and excluded is excluded.
fn put_rule(map: &MapMut<'_>, value: u32, exclude: bool) -> libbpf_rs::Result<()> {
    let known = map.lookup(&value.to_ne_bytes(), MapFlags::ANY)?;
    let excluded = known.is_some_and(|rule| rule[0] != 0);
    let rule = rule { exclude: (exclude || excluded).into(), hit: 0 };
    let bytes = [rule.exclude.to_ne_bytes(), rule.hit.to_ne_bytes()].concat();
    map.update(&value.to_ne_bytes(), &bytes, MapFlags::ANY)
}

fn was_hit(map: &MapMut<'_>, value: u32) -> bool {
    let rule = map.lookup(&value.to_ne_bytes(), MapFlags::ANY).ok().flatten();
    rule.is_some_and(|rule| rule[4] != 0)
}

/// What a map takes in the kernel (kernel/bpf/syscall.c, bpf_map_show_fdinfo).
fn memlock(map: BorrowedFd<'_>) -> u64 {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd())).unwrap_or_default();
    let bytes = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    bytes.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0)
}

/// `recursion_misses` of a program: its runs that the kernel skipped (kernel/bpf/syscall.c, bpf_prog_get_stats).
fn misses(program: BorrowedFd<'_>) -> u64 {
    let mut info = bpf_prog_info::default();
    let mut len = size_of::<bpf_prog_info>() as u32;
    // SAFETY: a structure of that length without pointers to fill; the kernel writes no more than it.
    let failed = unsafe { bpf_obj_get_info_by_fd(program.as_raw_fd(), (&raw mut info).cast(), &raw mut len) };
    if failed != 0 { 0 } else { info.recursion_misses }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents the reason for a refusal from being cut off behind all that was no reason.
    #[test]
    fn the_end_of_a_log() {
        let log = "-- BEGIN PROG LOAD LOG --\n0: R1=ctx()\n1: R2=0\n2: (85) call f\nR1 unbounded\nprocessed 3 insns\n-- END --";
        assert_eq!(end_of(log), "1: R2=0 2: (85) call f R1 unbounded");
        assert_eq!(end_of("one line"), "one line");
    }

    /// Prevents an exclusion from hiding that something was included too.
    #[test]
    fn modes() {
        for (excludes, expected) in
            [(&[][..], 0), (&[false], 1), (&[true], 2), (&[true, false], 1), (&[false, true], 1)]
        {
            assert_eq!(mode(excludes.iter().copied()), expected, "{excludes:?}");
        }
    }
}
