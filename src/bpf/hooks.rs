//! What each program of bpf/mqspan.bpf.c is for, taken from its name, and where it attaches, from its section. Pure
//! code.

use std::collections::BTreeSet;

use crate::config::values::{HookKind, Op};

/// The calls by the kernel's names.
pub const CALLS: [(Op, &str); 6] = [
    (Op::MqOpen, "mq_open"),
    (Op::MqUnlink, "mq_unlink"),
    (Op::MqTimedsend, "mq_timedsend"),
    (Op::MqTimedreceive, "mq_timedreceive"),
    (Op::MqNotify, "mq_notify"),
    (Op::MqGetsetattr, "mq_getsetattr"),
];

/// The prefixes of the programs' names: kind, and whether it is the side of the return.
const KINDS: [(&str, HookKind, bool); 2] =
    [("tp_enter_", HookKind::Tracepoint, false), ("tp_exit_", HookKind::Tracepoint, true)];

/// A program that hooks a call of the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// By what it is attached.
    pub kind: HookKind,
    /// Whether it runs when the call returns.
    pub returns: bool,
    /// The call whose entry or exit it is.
    pub call: Op,
}

impl Hook {
    /// What the program of this name is; None for one that hooks no call.
    pub fn of(program: &str) -> Option<Self> {
        let (rest, kind, returns) = KINDS
            .into_iter()
            .find_map(|(prefix, kind, returns)| Some((program.strip_prefix(prefix)?, kind, returns)))?;
        let (call, _) = CALLS.into_iter().find(|(_, name)| rest.starts_with(name))?;
        Some(Self { kind, returns, call })
    }

    /// Whether it is used, by hooks of this kind, where these calls are traced.
    pub fn is_used(&self, kind: HookKind, calls: &BTreeSet<Op>) -> bool {
        self.kind == kind && calls.contains(&self.call)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a program from being left out, or taken for another's, for its name.
    #[test]
    fn programs_by_name() {
        let hook = |kind, returns, call| Some(Hook { kind, returns, call });
        for (name, expected) in [
            ("tp_enter_mq_open", hook(HookKind::Tracepoint, false, Op::MqOpen)),
            ("tp_exit_mq_timedreceive", hook(HookKind::Tracepoint, true, Op::MqTimedreceive)),
            ("tree_on_fork", None),
            ("tp_enter_", None),
        ] {
            assert_eq!(Hook::of(name), expected, "{name}");
        }
        let sends = BTreeSet::from([Op::MqTimedsend]);
        let used = |name| Hook::of(name).is_some_and(|hook| hook.is_used(HookKind::Tracepoint, &sends));
        assert!(used("tp_exit_mq_timedsend") && !used("tp_exit_mq_timedreceive"));
    }
}
