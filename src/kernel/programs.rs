//! The programs of bpf/: configured, loaded, attached and read. The one user of libbpf's objects; takes no records.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use libbpf_rs::libbpf_sys::{bpf_obj_get_info_by_fd, bpf_prog_info};
use libbpf_rs::query::{LinkInfo, LinkTypeInfo};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{Link, MapCore, MapFlags, MapMut, OpenObject, ProgramInput, ProgramMut, TracepointCategory};

use tracing::debug;

use super::configure::{self, Config};
use super::facts::Facts;
use super::hooks::{Hook, Means, Place};
use super::probes::{self, Probes};
use super::ring::Ring;
use super::selection::Selection;
use super::skel::types::{counter, image_key};
use super::skel::{self, MqspanSkel, MqspanSkelBuilder};
use super::warnings::{self, explained};
use super::{containers, detach, obi, own_call};
use crate::capability;
use crate::model::call::{ImageKey, QueueKey};
use crate::model::counts::Counts;
use crate::model::filter::{Filters, Pick};
use crate::model::reading::{QueueSight, QueueState};
use crate::model::values::{HookKind, Namespace, Op};

/// The programs, attached.
pub struct Programs {
    skel: MqspanSkel<'static>,
    /// Those of entries before all others.
    links: Vec<Link>,
    // After the links: an event that is in use can't be removed.
    probes: Option<Probes>,
    left_out: BTreeSet<String>,
}

/// How often mqspan makes a call of its own until it is seen.
const OWN_CALLS: u32 = 3;

/// Why the programs are not attached.
struct Refusal {
    /// The hook that is refused, where it is one of them alone.
    hook: Option<Hook>,
    why: String,
}

impl Refusal {
    /// Of all of them, but for one that libbpf names.
    fn of(error: &libbpf_rs::Error, all: &[(String, Hook)]) -> Self {
        let program = warnings::program();
        let hook = all.iter().find(|(name, _)| Some(name) == program.as_ref()).map(|(_, hook)| hook.clone());
        Self { hook, why: explained(error) }
    }

    fn of_hook(error: &libbpf_rs::Error, hook: &Hook) -> Self {
        Self { hook: Some(hook.clone()), why: explained(error) }
    }

    /// Of all of them.
    fn of_all(error: &libbpf_rs::Error) -> Self {
        Self { hook: None, why: explained(error) }
    }
}

impl Programs {
    /// Loads and attaches, by the first of a kind's means that works. Calls whose entry comes after the return are seen.
    pub fn attach(kind: HookKind, facts: &Facts, config: &Config<'_>) -> Result<Self, String> {
        let mut refusal = String::new();
        for means in facts.means(kind) {
            match Self::attach_by(means, facts, config) {
                Ok(programs) => return Ok(programs),
                Err(why) => {
                    debug!("{means:?}: {why}");
                    refusal = why;
                }
            }
        }
        Err(refusal)
    }

    /// A hook that only adds to calls is left out where the kernel refuses it.
    fn attach_by(means: Means, facts: &Facts, config: &Config<'_>) -> Result<Self, String> {
        let mut refused = BTreeSet::new();
        loop {
            match Self::attach_without(means, facts, config, &refused) {
                Ok(programs) => return Ok(programs),
                Err(Refusal { hook: Some(hook), why })
                    if hook.place == Place::Inside && refused.insert(hook.target.clone()) =>
                {
                    debug!("{} can't be hooked: {why}", hook.target);
                }
                Err(refusal) => return Err(refusal.why),
            }
        }
    }

    fn attach_without(
        means: Means,
        facts: &Facts,
        config: &Config<'_>,
        refused: &BTreeSet<String>,
    ) -> Result<Self, Refusal> {
        warnings::keep();
        // As large as a pointer; it is never freed, so that the programs can go from thread to thread.
        let storage = Box::leak(Box::new(MaybeUninit::<OpenObject>::uninit()));
        let object = facts.variant.object().map_err(|error| Refusal::of_all(&error.into()))?;
        let mut builder = MqspanSkelBuilder { object, ..MqspanSkelBuilder::default() };
        if let Some(file) = facts.types.file() {
            builder.obj_builder.btf_custom_path(file).map_err(|error| Refusal::of_all(&error))?;
        }
        let mut open = builder.open(storage).map_err(|error| Refusal::of_all(&error))?;
        let programs = open.open_object().progs();
        let hooks = programs.flat_map(|program| {
            let name = program.name().to_string_lossy().into_owned();
            hooks_of(program.name(), program.section()).into_iter().map(move |hook| (name.clone(), hook))
        });
        let all: Vec<(String, Hook)> = hooks.collect();
        let selection = Selection::of(&all, means, &config.filters.call, &facts.functions, refused);
        // Made first: the kernel refuses some functions here, and the programs are to know which.
        let mut probes = None;
        if let Some(tracefs) = facts.tracefs.as_deref().filter(|_| means == Means::Kprobe) {
            let made = Probes::new(tracefs, !facts.hazards.faults_are_misses);
            let made = probes.insert(made.map_err(|error| Refusal::of_all(&error.into()))?);
            for (_, hook) in all.iter().filter(|(program, _)| selection.programs.contains(program)) {
                made.add(hook).map_err(|error| Refusal::of_hook(&error.into(), hook))?;
            }
        }
        configure::configure(&mut open, facts, config, &selection).map_err(|error| Refusal::of_all(&error))?;
        obi::share(&mut open);
        let skel = open.load().map_err(|error| Refusal::of(&error, &all))?;
        let mut programs = Self { skel, links: Vec::new(), probes, left_out: selection.left_out };
        programs.see_self(config.tree).map_err(|why| Refusal { hook: None, why })?;
        configure::fill(&programs.skel.maps, config).map_err(|error| Refusal::of_all(&error))?;
        programs.attach_all(facts, config)?;
        match config.filters.call.iter().all(|call| programs.sees(*call)) {
            true => Ok(programs),
            false => Err(Refusal { hook: None, why: own_call::UNSEEN.into() }),
        }
    }

    /// Whether entry and exit of a call are seen.
    fn sees(&self, call: Op) -> bool {
        let [entries, exits] =
            [self.variable(|bss| &raw const bss.own_entries), self.variable(|bss| &raw const bss.own_exits)];
        let seen = || [entries.load(Ordering::Relaxed), exits.load(Ordering::Relaxed)];
        // One may be skipped for another program that was preempted on this CPU.
        (0..OWN_CALLS).any(|_| {
            let [entries_before, exits_before] = seen();
            let came_so_far = own_call::make(call);
            let [entries, exits] = seen();
            !came_so_far || entries != entries_before && exits != exits_before
        })
    }

    /// The functions that are not hooked here, and what they would show is not captured.
    pub fn left_out(&self) -> &BTreeSet<String> {
        &self.left_out
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

    /// What became of a queue. One thread asks.
    pub fn look_at_queue(&self, key: &QueueKey) -> QueueState {
        match self.run(&self.skel.progs.see_queue, [key.inode, key.number, key.namespace]) {
            Ok(state @ 0..) => QueueState::There(QueueSight {
                depth: (state >> 3).into(),
                unlinked: state & 1 == 1,
                at_rest: [state & 4 == 4, state & 2 == 2],
                at_ns: self.number(|bss| &raw const bss.looked_ns),
                oldest_since_ns: Some(self.number(|bss| &raw const bss.oldest_since_ns)).filter(|since| *since != 0),
            }),
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

    /// Where the state of calls in flight is, and whether that is task storage.
    pub fn thread_states(&self) -> (bool, &MapMut<'static>) {
        let maps = &self.skel.maps;
        match maps.rodata_data.is_some_and(|rodata| rodata.has_task_storage) {
            true => (true, &maps.threads),
            false => (false, &maps.thread_states),
        }
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

    /// The same of 64 bits.
    fn number(&self, of: fn(&skel::types::bss) -> *const u64) -> u64 {
        let variable = self.skel.maps.bss_data.as_deref().map(of);
        // SAFETY: as above.
        variable.map_or(0, |variable| unsafe { AtomicU64::from_ptr(variable.cast_mut()) }.load(Ordering::Relaxed))
    }

    /// What the maps take in the kernel, in bytes.
    pub fn map_bytes(&self) -> u64 {
        self.skel.object().maps().map(|map| memlock(map.as_fd())).sum()
    }

    /// The entries last: an exit without an entry is told from a call that began before.
    fn attach_all(&mut self, facts: &Facts, config: &Config<'_>) -> Result<(), Refusal> {
        let progs = &self.skel.progs;
        let mut lifecycle = vec![&progs.image_on_exit];
        if config.tree.is_some() {
            lifecycle.extend([&progs.tree_on_fork, &progs.tree_on_exit]);
        }
        if !facts.uses_task_storage() {
            lifecycle.extend([&progs.state_on_exit, &progs.state_on_exec]);
        }
        let others: libbpf_rs::Result<Vec<Link>> = lifecycle.into_iter().map(|program| program.attach()).collect();
        let mut others = others.map_err(|error| Refusal::of_all(&error))?;
        let (mut entries, mut rest) = (Vec::new(), Vec::new());
        let is_entry = |hook: &Hook| matches!(hook.place, Place::Entry(_) | Place::Call(_));
        // One call's hooks come first: what is attached and silent is found out before all are to be detached again, which
        // takes the kernel long.
        let first = config.filters.call.first().copied();
        let is_first = |hook: &Hook| match hook.place {
            Place::Entry(op) | Place::Exit(op) | Place::Call(op) => Some(op) == first,
            Place::Inside => false,
        };
        for (of_first, of_entries) in [(true, false), (true, true), (false, false), (false, true)] {
            let wanted = |hook: &&Hook| {
                let is_used = hook.is_needed(&config.filters.call);
                is_used && is_first(hook) == of_first && is_entry(hook) == of_entries
            };
            for (hooks, program) in self.hooks() {
                for hook in hooks.iter().filter(wanted) {
                    let link = self.attach_hook(hook, &program).map_err(|error| Refusal::of_hook(&error, hook))?;
                    (if of_entries { &mut entries } else { &mut rest }).push(link);
                }
            }
            if (of_first, of_entries) == (true, true) && !first.is_none_or(|call| self.sees(call)) {
                return Err(Refusal { hook: None, why: own_call::UNSEEN.into() });
            }
        }
        if let Some(probes) = &mut self.probes {
            probes.attached();
        }
        self.links = entries;
        self.links.append(&mut rest);
        self.links.append(&mut others);
        Ok(())
    }

    fn attach_hook(&self, hook: &Hook, program: &ProgramMut<'_>) -> libbpf_rs::Result<Link> {
        match (&self.probes, hook.means) {
            (Some(probes), _) => {
                let category = TracepointCategory::Custom(probes::GROUP.into());
                program.attach_tracepoint(category, probes.event(hook))
            }
            (None, Means::Tracepoint) => program.attach_tracepoint(TracepointCategory::Syscalls, &hook.target),
            (None, _) => program.attach(),
        }
    }

    /// The loaded programs that hook calls, and what they hook.
    fn hooks(&self) -> impl Iterator<Item = (Vec<Hook>, ProgramMut<'_>)> {
        let loaded = self.skel.object().progs_mut().filter(|program| program.autoload());
        let hooks = loaded.map(|program| (hooks_of(program.name(), program.section()), program));
        hooks.filter(|(hooks, _)| !hooks.is_empty())
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
        let by_tracing: BTreeMap<u32, u64> = self.links.iter().filter_map(misses_of_tracing).collect();
        let (mut missed, mut missed_inside) = (0, BTreeMap::new());
        for (hooks, program) in self.hooks() {
            let by_probe = |hook| profile.as_ref().map_or(0, |(probes, profile)| probes.missed(profile, hook));
            let (number, skipped) = misses(program.as_fd());
            let by_tracing = by_tracing.get(&number).copied().unwrap_or_default();
            let runs = hooks.iter().map(by_probe).sum::<u64>() + by_tracing + skipped;
            match hooks.into_iter().next() {
                Some(Hook { place: Place::Inside, target, .. }) if runs > 0 => {
                    *missed_inside.entry(target).or_default() += runs;
                }
                Some(Hook { place: Place::Inside, .. }) | None => {}
                Some(_) => missed += runs,
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
        let numbers = |option: &str, map: &MapMut<'_>, picks: &[Pick<u32>]| -> Vec<String> {
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

fn hooks_of(program: &OsStr, section: &OsStr) -> Vec<Hook> {
    Hook::all_of(&program.to_string_lossy(), &section.to_string_lossy())
}

fn open_ring(map: &MapMut<'_>) -> io::Result<Ring> {
    Ring::open(map.as_fd(), map.max_entries() as usize)
}

/// Stands for a variable that is not there.
static NOWHERE: AtomicU32 = AtomicU32::new(0);

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

/// What function tracing did not bring to a program, by the program's number.
fn misses_of_tracing(link: &Link) -> Option<(u32, u64)> {
    match link.info().ok()? {
        LinkInfo { prog_id, info: LinkTypeInfo::KprobeMulti(probe), .. } => Some((prog_id, probe.missed)),
        _ => None,
    }
}

/// The number of a program, and `recursion_misses`: its runs that the kernel skipped (kernel/bpf/syscall.c,
/// bpf_prog_get_stats).
fn misses(program: BorrowedFd<'_>) -> (u32, u64) {
    let mut info = bpf_prog_info::default();
    let mut len = size_of::<bpf_prog_info>() as u32;
    // SAFETY: a structure of that length without pointers to fill; the kernel writes no more than it.
    let failed = unsafe { bpf_obj_get_info_by_fd(program.as_raw_fd(), (&raw mut info).cast(), &raw mut len) };
    if failed != 0 { (0, 0) } else { (info.id, info.recursion_misses) }
}
