//! What each program of bpf/mqspan.bpf.c is for, taken from its name, and where it attaches, from its section. Pure
//! code.

use std::collections::BTreeSet;

use crate::model::values::{HookKind, Op};

/// The calls by the kernel's names.
pub const CALLS: [(Op, &str); 6] = [
    (Op::MqOpen, "mq_open"),
    (Op::MqUnlink, "mq_unlink"),
    (Op::MqTimedsend, "mq_timedsend"),
    (Op::MqTimedreceive, "mq_timedreceive"),
    (Op::MqNotify, "mq_notify"),
    (Op::MqGetsetattr, "mq_getsetattr"),
];

/// The prefixes of the programs' names: by what they are attached, and whether it is the side of the return.
const MEANS: [(&str, Means, bool); 10] = [
    ("fsession_", Means::Fsession, false),
    ("fentry_", Means::Fentry, false),
    ("fexit_", Means::Fentry, true),
    ("session_", Means::Fprobe, false),
    ("multi_", Means::Fprobe, false),
    ("retmulti_", Means::Fprobe, true),
    ("kprobe_", Means::Kprobe, false),
    ("kretprobe_", Means::Kprobe, true),
    ("tp_enter_", Means::Tracepoint, false),
    ("tp_exit_", Means::Tracepoint, true),
];

/// Stands for the name of each call in that of a program that is of all of them.
const EACH_CALL: &str = "mq";

/// What the calls do in between, by the function that is hooked, and what is not captured without it.
const INSIDE: [(&str, &str); 7] = [
    ("do_mq_open", "whether attr changed while mq_open read it is not seen"),
    ("wq_sleep", "whether a call waited is taken from its thread's voluntary switches"),
    ("load_msg", NO_IDENTITY),
    ("store_msg", NO_IDENTITY),
    ("free_msg", NO_IDENTITY),
    ("msg_insert", "how long a message waited is not known, and peaks of queues are those seen at the exits of sends"),
    ("prctl", "a process context that is published after the process's first calls is found late"),
];
const NO_IDENTITY: &str = "receives are not linked to sends, and how long a message waited is not known";
/// Messages are followed where all of these are hooked.
pub const IDENTITY: [&str; 3] = ["load_msg", "store_msg", "free_msg"];

/// Whether a function of the kernel is one that programs may hook, by its name.
pub fn may_be_hooked(function: &str) -> bool {
    function.contains("sys_mq_") || INSIDE.iter().any(|(inside, _)| is_inside(function, inside))
}

/// What is not captured where this function, or tracepoint, is not hooked.
pub fn not_captured_without(target: &str) -> &'static str {
    INSIDE.iter().find(|(inside, _)| is_inside(target, inside)).map_or("", |(_, lost)| lost)
}

/// Wrappers of system calls have a prefix.
fn is_inside(target: &str, inside: &str) -> bool {
    target == inside || inside == "prctl" && target.ends_with("_prctl")
}

/// By what programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// A trampoline with one program for entry and return.
    Fsession,
    /// Trampolines.
    Fentry,
    /// Function tracing, where it serves probes (kprobe.session, kprobe.multi): one program for entry and return, and no bound
    /// on the calls that wait for theirs.
    Fprobe,
    /// Events of tracefs.
    Kprobe,
    /// The tracepoints of the system calls.
    Tracepoint,
}

impl Means {
    /// All, of those of one kind the best first.
    pub const ALL: [Self; 5] = [Self::Fsession, Self::Fentry, Self::Fprobe, Self::Kprobe, Self::Tracepoint];

    /// The kind of hooks, as `--hooks` names it.
    pub fn kind(self) -> HookKind {
        match self {
            Self::Fsession => HookKind::Fsession,
            Self::Fentry => HookKind::Fentry,
            Self::Fprobe | Self::Kprobe => HookKind::Kprobe,
            Self::Tracepoint => HookKind::Tracepoint,
        }
    }
}

/// What a program sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The entry of a call.
    Entry(Op),
    /// Its exit.
    Exit(Op),
    /// Both.
    Call(Op),
    /// Something that the calls do in between: which adds to them, but makes none.
    Inside,
}

/// A program and where it attaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// By what it is attached.
    pub means: Means,
    /// What it sees.
    pub place: Place,
    /// Whether it is attached to a function's return.
    pub returns: bool,
    /// The function, or the tracepoint.
    pub target: String,
}

impl Hook {
    /// What the program of this name and section hooks: nothing, a place, or one place of each call.
    pub fn all_of(program: &str, section: &str) -> Vec<Self> {
        let parts = MEANS
            .into_iter()
            .find_map(|(prefix, means, returns)| Some((program.strip_prefix(prefix)?, means, returns)))
            .zip(section.rsplit_once('/'));
        let Some(((rest, means, returns), (_, target))) = parts else { return Vec::new() };
        let of_call = |call, target: &str| Self {
            means,
            place: match (means, returns) {
                (Means::Fsession | Means::Fprobe, _) => Place::Call(call),
                (_, false) => Place::Entry(call),
                (_, true) => Place::Exit(call),
            },
            returns,
            target: target.into(),
        };
        if rest == EACH_CALL {
            let tracepoint = |name| target.replace(EACH_CALL, name);
            return CALLS.map(|(call, name)| of_call(call, &tracepoint(name))).into();
        }
        vec![match CALLS.into_iter().find(|(_, name)| rest.starts_with(name)) {
            Some((call, _)) => of_call(call, target),
            None => Self { means, place: Place::Inside, returns, target: target.into() },
        }]
    }

    /// Whether it is used, by these means, where these calls are traced. What calls do in between has one side that is looked
    /// at: there a trampoline with one program for both would be fentry or fexit, and is.
    pub fn is_used(&self, means: Means, calls: &BTreeSet<Op>) -> bool {
        let is_of_means = match (means, self.place) {
            (Means::Fsession, Place::Inside) => self.means == Means::Fentry,
            _ => self.means == means,
        };
        is_of_means && self.is_needed(calls)
    }

    /// Whether it is of use where these calls are traced.
    pub fn is_needed(&self, calls: &BTreeSet<Op>) -> bool {
        match self.place {
            Place::Entry(call) | Place::Exit(call) | Place::Call(call) => calls.contains(&call),
            Place::Inside if self.target == "do_mq_open" => calls.contains(&Op::MqOpen),
            // Processes say who they are by it.
            Place::Inside if self.target.ends_with("prctl") => true,
            // The others follow messages.
            Place::Inside => calls.contains(&Op::MqTimedsend) || calls.contains(&Op::MqTimedreceive),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a program from being left out, or taken for another's, for its name.
    #[test]
    fn programs_by_name() {
        let hook = |means, place, returns, target: &str| vec![Hook { means, place, returns, target: target.into() }];
        for (name, section, expected) in [
            (
                "tp_enter_prctl",
                "?tracepoint/syscalls/sys_enter_prctl",
                hook(Means::Tracepoint, Place::Inside, false, "sys_enter_prctl"),
            ),
            (
                "kretprobe_mq_timedsend_time32",
                "?kretprobe/__ia32_sys_mq_timedsend_time32",
                hook(Means::Kprobe, Place::Exit(Op::MqTimedsend), true, "__ia32_sys_mq_timedsend_time32"),
            ),
            (
                "fsession_mq_notify_compat",
                "?fsession/__ia32_compat_sys_mq_notify",
                hook(Means::Fsession, Place::Call(Op::MqNotify), false, "__ia32_compat_sys_mq_notify"),
            ),
            (
                "session_mq_open",
                "?kprobe.session/__x64_sys_mq_open",
                hook(Means::Fprobe, Place::Call(Op::MqOpen), false, "__x64_sys_mq_open"),
            ),
            ("multi_msg_insert", "?kprobe.multi/msg_insert", hook(Means::Fprobe, Place::Inside, false, "msg_insert")),
            ("fexit_load_msg", "?fexit/load_msg", hook(Means::Fentry, Place::Inside, true, "load_msg")),
            ("tree_on_fork", "?raw_tracepoint/sched_process_fork", Vec::new()),
        ] {
            assert_eq!(Hook::all_of(name, section), expected, "{name}");
        }
        let exits = Hook::all_of("tp_exit_mq", "?tracepoint/syscalls/sys_exit_mq");
        assert_eq!(exits.len(), CALLS.len());
        let notify = hook(Means::Tracepoint, Place::Exit(Op::MqNotify), true, "sys_exit_mq_notify");
        assert!(exits.contains(&notify[0]), "{exits:?}");
    }

    /// Prevents sessions from seeing calls without what happens inside them, and from seeing them twice.
    #[test]
    fn sessions_and_what_calls_do_in_between() {
        let sends = BTreeSet::from([Op::MqTimedsend]);
        for (name, used) in [
            ("fsession_mq_timedsend", true),
            ("fentry_mq_timedsend", false),
            ("fexit_mq_timedsend", false),
            ("fexit_load_msg", true),
            ("fentry_prctl", true),
            ("kprobe_free_msg", false),
        ] {
            let hook = Hook::all_of(name, &format!("?kind/{}", name.split_once('_').unwrap().1)).remove(0);
            assert_eq!(hook.is_used(Means::Fsession, &sends), used, "{name}");
        }
    }

    /// Prevents programs from being attached for calls that nobody asked for.
    #[test]
    fn only_what_the_calls_need() {
        let (opens, sends) = (BTreeSet::from([Op::MqOpen]), BTreeSet::from([Op::MqTimedsend]));
        for (name, for_opens, for_sends) in [
            ("fentry_mq_open", true, false),
            ("fentry_do_mq_open", true, false),
            ("fexit_mq_timedsend_compat", false, true),
            ("fentry_wq_sleep", false, true),
            ("kprobe_mq_open", false, false),
            ("fentry_prctl", true, true),
        ] {
            let hooks = Hook::all_of(name, &format!("?fentry/{}", name.split_once('_').unwrap().1));
            let used = [&opens, &sends].map(|calls| hooks[0].is_used(Means::Fentry, calls));
            assert_eq!(used, [for_opens, for_sends], "{name}");
        }
    }
}
