//! Where the threads of a running process hold `otel_thread_ctx_v1`: from what its file says ([`elf`](super::elf)), and
//! what the dynamic linker has put into its memory. Pure code.

use super::elf::{Access, Machine, Publisher};
use crate::model::slot::{Slot, Vector};

/// Above this a TLS descriptor's argument is a pointer, below and where negative a distance.
const MOST_DISTANCE: i64 = 0xffff_ffff;

/// A process's memory.
pub trait Memory {
    /// The word at an address.
    fn word(&self, at: u64) -> Option<u64>;
}

/// The C library, which decides how blocks of thread-local storage are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Libc {
    /// GNU's.
    Glibc,
    /// musl.
    Musl,
}

/// The vector: glibc's dtv_t (its length before the first entry), musl's void * (its length in the first entry).
fn vector(machine: Machine, libc: Libc) -> Vector {
    match (machine, libc) {
        (Machine::X86_64, Libc::Glibc) => Vector { at: 8, len_at: -16, step: 16 },
        (Machine::X86_64, Libc::Musl) => Vector { at: 8, len_at: 0, step: 8 },
        (Machine::Aarch64, Libc::Glibc) => Vector { at: 0, len_at: -16, step: 16 },
        (Machine::Aarch64, Libc::Musl) => Vector { at: -8, len_at: 0, step: 8 },
    }
}

/// Finds the slot; `bias` is how far from its linked addresses the file is mapped. None where the dynamic linker is
/// not done yet, or memory holds what it would not put there.
pub fn resolve(publisher: &Publisher, bias: u64, libc: Libc, memory: &impl Memory) -> Option<Slot> {
    let word = |at: u64| memory.word(at.wrapping_add(bias));
    let dynamic = |module: u64, offset: u64| {
        let (module, offset) = (u32::try_from(module).ok()?, u32::try_from(offset).ok()?);
        (module > 0).then_some(Slot::Dynamic { module, offset, vector: vector(publisher.machine, libc) })
    };
    match publisher.access {
        Access::LocalExec { offset } => Some(Slot::Static(offset)),
        Access::InitialExec { slot } => distance(publisher.machine, word(slot)?.cast_signed()),
        Access::Descriptor { slot } => {
            let (resolver, argument) = (word(slot)?, word(slot.wrapping_add(8))?);
            if resolver == 0 {
                return None;
            }
            match argument.cast_signed() {
                pointer if pointer > MOST_DISTANCE => {
                    dynamic(memory.word(argument)?, memory.word(argument.wrapping_add(8))?)
                }
                offset => distance(publisher.machine, offset),
            }
        }
        Access::Module { slot, offset } => {
            let offset = offset.or_else(|| word(slot.wrapping_add(8)))?;
            dynamic(word(slot)?, offset)
        }
    }
}

/// Blocks lie below the thread pointer on x86_64, above it and two words on aarch64.
fn distance(machine: Machine, offset: i64) -> Option<Slot> {
    let is_possible = match machine {
        Machine::X86_64 => offset < 0,
        Machine::Aarch64 => (16..=MOST_DISTANCE).contains(&offset),
    };
    is_possible.then_some(Slot::Static(offset))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    impl Memory for HashMap<u64, u64> {
        fn word(&self, at: u64) -> Option<u64> {
            self.get(&at).copied()
        }
    }

    const BIAS: u64 = 0x7f00_0000_0000;
    const POINTER: u64 = 0x7f00_1234_0000;

    fn publisher(machine: Machine, access: Access) -> Publisher {
        Publisher { access, machine, first: (0, 0) }
    }

    /// Prevents a slot from being looked for where this machine or C library does not have it.
    #[test]
    fn each_model_on_each_machine() {
        use Machine::{Aarch64, X86_64};
        let below = 0u64.wrapping_sub(0x40);
        let slot = 0x1000;
        let dynamic = |at, len_at, step| Slot::Dynamic { module: 3, offset: 8, vector: Vector { at, len_at, step } };
        let glibc = [(X86_64, Libc::Glibc, dynamic(8, -16, 16)), (Aarch64, Libc::Glibc, dynamic(0, -16, 16))];
        let musl = [(X86_64, Libc::Musl, dynamic(8, 0, 8)), (Aarch64, Libc::Musl, dynamic(-8, 0, 8))];
        for (machine, libc, expected) in glibc.into_iter().chain(musl) {
            let memory = HashMap::from([
                (BIAS + slot, 5),
                (BIAS + slot + 8, POINTER),
                (POINTER, 3),
                (POINTER + 8, 8),
                (BIAS + 0x2000, 3),
                (BIAS + 0x2008, 8),
            ]);
            let by = |access| resolve(&publisher(machine, access), BIAS, libc, &memory);
            assert_eq!(by(Access::Descriptor { slot }), Some(expected));
            assert_eq!(by(Access::Module { slot: 0x2000, offset: None }), Some(expected));
            assert_eq!(by(Access::Module { slot: 0x2000, offset: Some(8) }), Some(expected));
            assert_eq!(by(Access::LocalExec { offset: -8 }), Some(Slot::Static(-8)));
        }
        for (machine, word, expected) in
            [(X86_64, below, Some(-0x40)), (X86_64, 0, None), (Aarch64, 0x18, Some(0x18)), (Aarch64, 0, None)]
        {
            let memory = HashMap::from([(BIAS + slot, word), (BIAS + slot - 8, 5)]);
            let by = |access| resolve(&publisher(machine, access), BIAS, Libc::Glibc, &memory);
            assert_eq!(by(Access::InitialExec { slot }), expected.map(Slot::Static), "{machine:?} {word:#x}");
            assert_eq!(by(Access::Descriptor { slot: slot - 8 }), expected.map(Slot::Static), "{machine:?} {word:#x}");
        }
    }

    /// Prevents a process whose dynamic linker is at work, or that lies, from being taken at its word.
    #[test]
    fn what_is_not_there_yet() {
        let resolve = |access, memory: &[(u64, u64)]| {
            let memory: HashMap<u64, u64> = memory.iter().copied().collect();
            resolve(&publisher(Machine::X86_64, access), 0, Libc::Glibc, &memory)
        };
        assert_eq!(resolve(Access::InitialExec { slot: 8 }, &[]), None);
        assert_eq!(resolve(Access::Descriptor { slot: 8 }, &[(8, 0), (16, u64::MAX)]), None);
        assert_eq!(resolve(Access::Descriptor { slot: 8 }, &[(8, 1), (16, POINTER)]), None);
        assert_eq!(resolve(Access::Module { slot: 8, offset: None }, &[(8, 0), (16, 8)]), None);
        assert_eq!(resolve(Access::Module { slot: 8, offset: None }, &[(8, u64::MAX), (16, 8)]), None);
        assert_eq!(resolve(Access::Module { slot: u64::MAX, offset: None }, &[]), None);
    }
}
