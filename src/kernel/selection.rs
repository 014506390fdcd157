//! Which of the programs are used, and which functions are left out: those that this kernel has not, or refuses. Pure code.

use std::collections::BTreeSet;

use super::hooks::{Hook, IDENTITY, Means, Place};
use crate::model::values::Op;

/// What is used of the programs that are attached by the same means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// By what they are attached.
    pub means: Means,
    /// The programs by their names.
    pub programs: BTreeSet<String>,
    /// The functions that they hook.
    pub targets: BTreeSet<String>,
    /// Functions that calls pass through and that are not hooked: what they would show is not captured.
    pub left_out: BTreeSet<String>,
}

impl Selection {
    /// Of the programs that there are, for these calls, on a kernel that has these `functions` and has refused some hooks.
    pub fn of(
        all: &[(String, Hook)],
        means: Means,
        calls: &BTreeSet<Op>,
        functions: &BTreeSet<String>,
        refused: &BTreeSet<String>,
    ) -> Self {
        // A kernel without 32-bit callers has no functions for them, and small functions may be inlined.
        let is_there = |hook: &Hook| {
            (means == Means::Tracepoint || functions.contains(&hook.target)) && !refused.contains(&hook.target)
        };
        let wanted: Vec<&(String, Hook)> = all.iter().filter(|(_, hook)| hook.is_used(means, calls)).collect();
        let missing = wanted.iter().filter(|(_, hook)| hook.place == Place::Inside && !is_there(hook));
        let left_out: BTreeSet<String> = missing.map(|(_, hook)| hook.target.clone()).collect();
        // A message whose beginning or end goes unseen would be taken for another at the same address.
        let loses_messages = IDENTITY.iter().any(|function| left_out.contains(*function));
        let follows = |hook: &Hook| hook.target == "load_msg" || hook.target == "free_msg";
        let used = wanted.into_iter().filter(|(_, hook)| is_there(hook) && !(loses_messages && follows(hook)));
        let (programs, targets) = used.map(|(name, hook)| (name.clone(), hook.target.clone())).unzip();
        Self { means, programs, targets, left_out }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<(String, Hook)> {
        [
            ("fentry_mq_timedsend", "?fentry/__x64_sys_mq_timedsend"),
            ("fexit_mq_timedsend", "?fexit/__x64_sys_mq_timedsend"),
            ("fentry_mq_timedsend_compat", "?fentry/__ia32_sys_mq_timedsend"),
            ("fexit_load_msg", "?fexit/load_msg"),
            ("fentry_store_msg", "?fentry/store_msg"),
            ("fentry_free_msg", "?fentry/free_msg"),
            ("fentry_msg_insert", "?fentry/msg_insert"),
            ("kprobe_mq_timedsend", "?kprobe/__x64_sys_mq_timedsend"),
            ("tp_exit_mq", "?tracepoint/syscalls/sys_exit_mq"),
        ]
        .into_iter()
        .flat_map(|(name, section)| Hook::all_of(name, section).into_iter().map(|hook| (name.to_owned(), hook)))
        .collect()
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// Prevents one function that is missing or refused from ending all, and messages from being taken for others where
    /// their end goes unseen.
    #[test]
    fn what_is_left_out() {
        const SEND: &str = "__x64_sys_mq_timedsend";
        let functions = set(&[SEND, "load_msg", "store_msg", "free_msg", "msg_insert"]);
        let calls = BTreeSet::from([Op::MqTimedsend]);
        let select = |means, functions: &_, refused: &[&str]| {
            let selection = Selection::of(&all(), means, &calls, functions, &set(refused));
            (selection.programs, selection.left_out)
        };
        let messages = ["fexit_load_msg", "fentry_store_msg", "fentry_free_msg"];
        let pair = ["fentry_mq_timedsend", "fexit_mq_timedsend"];
        let with = |others: &[&str]| set(&[&pair[..], others].concat());
        let all_of = |others: &[&str]| with(&[&messages[..], others].concat());
        assert_eq!(select(Means::Fentry, &functions, &[]), (all_of(&["fentry_msg_insert"]), set(&[])));
        assert_eq!(select(Means::Fentry, &functions, &["msg_insert"]), (all_of(&[]), set(&["msg_insert"])));
        let without_end = with(&["fentry_store_msg", "fentry_msg_insert"]);
        assert_eq!(select(Means::Fentry, &functions, &["free_msg"]), (without_end, set(&["free_msg"])));
        let inlined = set(&[SEND, "load_msg", "free_msg", "msg_insert"]);
        assert_eq!(select(Means::Fentry, &inlined, &[]), (with(&["fentry_msg_insert"]), set(&["store_msg"])));
        assert_eq!(select(Means::Tracepoint, &set(&[]), &[]), (set(&["tp_exit_mq"]), set(&[])));
    }
}
