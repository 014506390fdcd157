//! What the kernel side is told before it runs: which programs are loaded, its constants, and what its maps hold of the
//! filters. Loads and attaches nothing.

use libbpf_rs::skel::OpenSkel;
use libbpf_rs::{MapCore, MapFlags, MapMut};

use super::containers;
use super::facts::Facts;
use super::selection::Selection;
use super::skel::types::{bounds, rule};
use super::skel::{MqspanMaps, OpenMqspanSkel};
use super::variant::Variant;
use crate::model::buckets::{by_exponent, duration_bounds, size_bounds};
use crate::model::filter::Filters;
use crate::model::values::{HookKind, Namespace, Op, Rate};

/// What the kernel side is told before it is loaded.
#[derive(Debug)]
pub struct Config<'a> {
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

impl Config<'_> {
    /// Whether it is inferred from the order of calls whose message a receive got: for links, waits and ages. Calls can't be
    /// numbered on the oldest kernels.
    pub fn infers(&self, kind: HookKind, facts: &Facts) -> bool {
        kind == HookKind::Tracepoint && facts.variant != Variant::Old && (self.makes_records || self.aggregates)
    }
}

/// The function in which a call waits for room or for a message.
const SLEEP: &str = "wq_sleep";
/// The function that puts a message into its queue.
const INSERT: &str = "msg_insert";
/// enum rules_mode of bpf/filter.h.
const ONLY_LISTED: u8 = 1;
const ALL_BUT_EXCLUDED: u8 = 2;
/// Messages that are followed where all of them are in one table (bpf/message.h).
const MESSAGES: u32 = 65_536;
/// BPF_F_NO_PREALLOC of include/uapi/linux/bpf.h.
const NO_PREALLOC: u32 = 1;

/// Before it is loaded: what of it is used, and its constants.
pub fn configure(
    open: &mut OpenMqspanSkel<'_>,
    facts: &Facts,
    config: &Config<'_>,
    selection: &Selection,
) -> libbpf_rs::Result<()> {
    for mut program in open.open_object_mut().progs_mut() {
        let used = program.name().to_str().is_some_and(|name| selection.programs.contains(name));
        program.set_autoload(used);
    }
    open.progs.see_self.set_autoload(true);
    open.progs.see_queue.set_autoload(config.aggregates);
    open.progs.find_queue.set_autoload(config.aggregates);
    open.progs.find_file.set_autoload(config.aggregates);
    open.progs.image_on_exit.set_autoload(true);
    open.progs.tree_on_fork.set_autoload(config.tree.is_some());
    open.progs.tree_on_exit.set_autoload(config.tree.is_some());
    let has_task_storage = facts.uses_task_storage();
    open.progs.state_on_exit.set_autoload(!has_task_storage);
    open.progs.state_on_exec.set_autoload(!has_task_storage);
    configure_maps(open, facts)?;
    let Filters { pid, uid, container, ipc_namespace, .. } = config.filters;
    if let Some(rodata) = &mut open.maps.rodata_data {
        rodata.pid_mode = mode(pid.picks().iter().map(|pick| pick.exclude));
        rodata.uid_mode = mode(uid.picks().iter().map(|pick| pick.exclude));
        rodata.container_mode = mode(container.picks().iter().map(|pick| pick.exclude));
        let all = ipc_namespace.picks().iter().any(|pick| pick.value == Namespace::All);
        let listed = ipc_namespace.picks().iter().filter(|pick| pick.value != Namespace::All);
        // `all` with an exclusion is the exclusion alone.
        rodata.ipc_mode = mode(listed.map(|pick| pick.exclude).filter(|exclude| *exclude || !all));
        rodata.messages_carry_ids = selection.means.kind() != HookKind::Tracepoint;
        rodata.sees_sleep = selection.targets.contains(SLEEP);
        rodata.sees_insert = selection.targets.contains(INSERT);
        rodata.has_task_storage = has_task_storage;
        let both_sides = [Op::MqTimedsend, Op::MqTimedreceive].iter().all(|call| config.filters.call.contains(call));
        rodata.infers_links = config.infers(selection.means.kind(), facts) && both_sides;
        rodata.only_tree = config.tree.is_some();
        rodata.makes_records = config.makes_records;
        rodata.aggregates = config.aggregates;
        rodata.max_rate = config.rate.most;
        rodata.slow_ns = config.rate.slow.as_nanos().try_into().unwrap_or(u64::MAX);
        rodata.aggregates_comm = !config.filters.comm.picks().is_empty();
        rodata.duration_bounds = bounds_of(&duration_bounds());
        rodata.size_bounds = bounds_of(&size_bounds());
        rodata.name_seed = rand::random();
        rodata.only_failed = config.filters.failed;
        let least = config.filters.min_duration.unwrap_or_default().as_nanos();
        rodata.min_duration_ns = least.try_into().unwrap_or(u64::MAX);
    }
    Ok(())
}

/// The bounds of buckets as the kernel side searches them.
fn bounds_of(ascending: &[u64]) -> bounds {
    let (upper, none) = by_exponent(ascending);
    bounds { upper, none }
}

/// Maps that are unsafe here are not made, or made otherwise; what stands in for them is small where it is not needed.
fn configure_maps(open: &mut OpenMqspanSkel<'_>, facts: &Facts) -> libbpf_rs::Result<()> {
    match facts.uses_task_storage() {
        true => open.maps.thread_states.set_max_entries(1)?,
        false => open.maps.threads.set_autocreate(false)?,
    }
    match facts.variant {
        Variant::Old => {
            open.maps.message_sets.set_max_entries(1)?;
            open.maps.messages_beside.set_max_entries(MESSAGES)?;
        }
        _ => open.maps.container_read.set_autocreate(false)?,
    }
    if facts.hazards.hashes {
        for map in [&mut open.maps.publishers, &mut open.maps.tree] {
            map.set_map_flags(map.map_flags() & !NO_PREALLOC)?;
        }
    }
    Ok(())
}

fn mode(excludes: impl Iterator<Item = bool>) -> u8 {
    excludes.fold(0, |mode, exclude| match exclude {
        false => ONLY_LISTED,
        true => mode.max(if mode == ONLY_LISTED { ONLY_LISTED } else { ALL_BUT_EXCLUDED }),
    })
}

/// Once it is loaded: the filters on numbers.
pub fn fill(maps: &MqspanMaps<'_>, config: &Config<'_>) -> libbpf_rs::Result<()> {
    let Filters { pid, uid, container, ipc_namespace, .. } = config.filters;
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

/// A value that is both included and excluded is excluded.
fn put_rule(map: &MapMut<'_>, value: u32, exclude: bool) -> libbpf_rs::Result<()> {
    let known = map.lookup(&value.to_ne_bytes(), MapFlags::ANY)?;
    let excluded = known.is_some_and(|rule| rule[0] != 0);
    let rule = rule { exclude: (exclude || excluded).into(), hit: 0 };
    let bytes = [rule.exclude.to_ne_bytes(), rule.hit.to_ne_bytes()].concat();
    map.update(&value.to_ne_bytes(), &bytes, MapFlags::ANY)
}

#[cfg(test)]
mod tests {
    use super::*;

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
