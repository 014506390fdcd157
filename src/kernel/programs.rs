//! The programs of bpf/: configured, loaded, attached and read. The one user of libbpf's objects; takes no records.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use libbpf_rs::libbpf_sys::{bpf_obj_get_info_by_fd, bpf_prog_info};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{
    Link, MapCore, MapFlags, MapMut, OpenObject, PrintLevel, ProgramInput, ProgramMut, TracepointCategory, set_print,
};

use super::hooks::{Hook, Place};
use super::obi;
use super::probes::{self, Probes};
use super::skel::types::{counter, rule};
use super::skel::{MqspanSkel, MqspanSkelBuilder, OpenMqspanSkel};
use super::{btf, containers};
use crate::model::buckets::{duration_bounds, size_bounds};
use crate::model::call::ImageKey;
use crate::model::counts::Counts;
use crate::model::filter::Filters;
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
    /// The process of the traced command: only it and its descendants are traced.
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
pub struct Programs<'obj> {
    skel: MqspanSkel<'obj>,
    entries: Vec<Link>,
    rest: Vec<Link>,
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
    let mut storage = MaybeUninit::uninit();
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
    Programs::attach(&mut storage, &config).map(|programs| programs.map_bytes())
}

impl<'obj> Programs<'obj> {
    /// Loads and attaches. Calls whose entry comes after the return are seen.
    pub fn attach(storage: &'obj mut MaybeUninit<OpenObject>, config: &Config<'_>) -> Result<Self, String> {
        keep_warnings();
        let mut open = MqspanSkelBuilder::default().open(storage).map_err(|error| explained(&error))?;
        configure(&mut open, config);
        obi::share(&mut open);
        let skel = open.load().map_err(|error| explained(&error))?;
        let mut programs = Self { skel, entries: Vec::new(), rest: Vec::new(), probes: None };
        let see_self = programs.skel.progs.see_self.test_run(ProgramInput::default()).map(drop);
        see_self
            .and_then(|()| programs.fill_maps(config))
            .and_then(|()| programs.attach_all(config))
            .map_err(|error| explained(&error))?;
        Ok(programs)
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
        match config.tree {
            Some(pid) => maps.tree.update(&pid.to_ne_bytes(), &[1], MapFlags::ANY),
            None => Ok(()),
        }
    }

    /// The entries last: an exit without an entry is told from a call that began before.
    fn attach_all(&mut self, config: &Config<'_>) -> libbpf_rs::Result<()> {
        let progs = &self.skel.progs;
        if config.tree.is_some() {
            self.rest.push(progs.tree_on_fork.attach()?);
            self.rest.push(progs.tree_on_exit.attach()?);
        }
        let mut probes = config.tracefs.filter(|_| config.kind == HookKind::Kprobe).map(Probes::new);
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
        self.rest.append(&mut rest);
        self.entries = entries;
        self.probes = probes;
        Ok(())
    }

    /// The loaded programs that hook calls.
    fn hooks(&self) -> impl Iterator<Item = (Hook, ProgramMut<'_>)> {
        let loaded = self.skel.object().progs_mut().filter(|program| program.autoload());
        loaded.filter_map(|program| Some((hook_of(program.name(), program.section())?, program)))
    }

    /// The entries first: so no call is begun that could not end.
    pub fn detach(&mut self) {
        self.entries.clear();
        self.rest.clear();
        self.probes = None;
    }

    /// The ring of calls.
    pub fn calls(&self) -> &MapMut<'obj> {
        &self.skel.maps.calls
    }

    /// The ring of images.
    pub fn images(&self) -> &MapMut<'obj> {
        &self.skel.maps.images
    }

    /// Has these images recorded again, each with its next call (bpf/image.h).
    pub fn unmark(&self, images: &[ImageKey]) {
        for ImageKey { pid, started_ns, exec_id } in images {
            let hash = (started_ns ^ (u64::from(*pid) << 32 | u64::from(*exec_id))).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let slot = ((hash >> 52) as u32).to_ne_bytes();
            let marked = self.skel.maps.sent.lookup(&slot, MapFlags::ANY).ok().flatten();
            // Another image may have the slot, which is recorded once more where it takes it meanwhile.
            if marked.as_deref() == Some(&hash.to_ne_bytes()) {
                let _ = self.skel.maps.sent.update(&slot, &0u64.to_ne_bytes(), MapFlags::ANY);
            }
        }
    }

    /// The ring of publications.
    pub fn publications(&self) -> &MapMut<'obj> {
        &self.skel.maps.publications
    }

    /// The maps of series: the one that holds the map in use, the names asked for, and the two that take turns; and
    /// those of queues, of names that were unlinked, and of the number of the period.
    pub fn series(&self) -> [&MapMut<'obj>; 7] {
        let maps = &self.skel.maps;
        [&maps.series, &maps.askers, &maps.series_a, &maps.series_b, &maps.queues, &maps.unlinked, &maps.period]
    }

    /// The map of processes that publish their spans, and the one that says how many there are.
    pub fn contexts(&self) -> [&MapMut<'obj>; 2] {
        [&self.skel.maps.publishers, &self.skel.maps.publishing]
    }

    /// The flag that asks the kernel side for a wake-up with its next record.
    pub fn armed(&self) -> &AtomicU32 {
        // libbpf maps the variables of a loaded object always.
        let armed = self.skel.maps.bss_data.as_ref().map(|bss| &raw const bss.armed);
        // SAFETY: shared with the kernel, which writes it atomically; the mapping lives as long as the skeleton.
        armed.map_or(&NEVER_ARMED, |armed| unsafe { AtomicU32::from_ptr(armed.cast_mut()) })
    }

    /// What the kernel side counted so far.
    pub fn counts(&self) -> Counts {
        let read = |which: counter| {
            let values = self.skel.maps.counters.lookup_percpu(&which.0.to_ne_bytes(), MapFlags::ANY);
            let values = values.ok().flatten().unwrap_or_default();
            values.iter().filter_map(|value| value[..8].try_into().ok().map(u64::from_ne_bytes)).sum()
        };
        let profile = self.probes.as_ref().map(Probes::profile);
        let (mut missed, mut missed_inside) = (0, BTreeMap::new());
        for (hook, program) in self.hooks() {
            let by_probe = profile.as_ref().map_or(0, |profile| probes::missed(profile, &hook));
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

static NEVER_ARMED: AtomicU32 = AtomicU32::new(0);

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
