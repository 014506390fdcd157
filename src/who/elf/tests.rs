//! Files of both machines, made here: only what the reader looks at.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

const STRINGS: u64 = 0x200;
const SYMBOLS: u64 = 0x280;
const HASH: u64 = 0x300;
const RELOCATIONS_AT: u64 = 0x380;
const DYNAMIC: u64 = 0x400;
const SIZE: usize = 0x500;
const VALUE: u64 = 0x10;
/// What addresses are more than places in the file.
const BASE: u64 = 0x10_0000;

struct Made {
    machine: u16,
    kind: u16,
    gnu_hash: bool,
    /// Kind, symbol and addend.
    relocations: Vec<(u32, u32, u64)>,
    is_pie: bool,
    tls_size: u64,
    align: u64,
}

const X86_64: u16 = 62;
const AARCH64: u16 = 183;

fn library(machine: u16, relocations: &[(u32, u32, u64)]) -> Made {
    let relocations = relocations.to_vec();
    Made { machine, kind: ET_DYN, gnu_hash: true, relocations, is_pie: false, tls_size: 0x18, align: 8 }
}

impl Made {
    fn bytes(&self) -> Vec<u8> {
        let mut file = vec![0; SIZE];
        let mut put = |at: u64, bytes: &[u8]| file[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01\x01");
        put(16, &self.kind.to_le_bytes());
        put(18, &self.machine.to_le_bytes());
        put(32, &64u64.to_le_bytes());
        put(54, &56u16.to_le_bytes());
        put(56, &3u16.to_le_bytes());
        let words = |values: &[u64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
        let size = SIZE as u64;
        put(64, &words(&[PT_LOAD.into(), 0, BASE, BASE, size, size, 0x1000]));
        put(120, &words(&[PT_DYNAMIC.into(), DYNAMIC, BASE + DYNAMIC, 0, 0x100, 0x100, 8]));
        put(176, &words(&[PT_TLS.into(), 0, 0, 0, 0, self.tls_size, self.align]));
        put(STRINGS + 1, SYMBOL);
        // Index 1 is another one of the same hash, in a longer name's place.
        for (index, name) in [(1, 0u32), (2, 1)] {
            put(SYMBOLS + 24 * index, &name.to_le_bytes());
            put(SYMBOLS + 24 * index + 4, &[0x10 | STT_TLS, 0, 5, 0]);
            put(SYMBOLS + 24 * index + 8, &words(&[VALUE, SYMBOL_SIZE]));
        }
        let hash = SYMBOL.iter().fold(5381u32, |hash, byte| hash.wrapping_mul(33).wrapping_add((*byte).into()));
        let table: Vec<u32> = match self.gnu_hash {
            true => vec![1, 1, 1, 0, 0, 0, 1, hash & !1, hash | 1],
            false => vec![1, 3, 1, 0, 2, 0],
        };
        put(HASH, &table.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>());
        for (index, (kind, symbol, addend)) in self.relocations.iter().enumerate() {
            let info = u64::from(*symbol) << 32 | u64::from(*kind);
            put(RELOCATIONS_AT + 24 * index as u64, &words(&[0x4000 + 0x10 * index as u64, info, *addend]));
        }
        let hash_tag = if self.gnu_hash { DT_GNU_HASH } else { DT_HASH };
        let flags = if self.is_pie { DF_1_PIE } else { 0 };
        let relocations_size = 24 * self.relocations.len() as u64;
        let entries = [
            [DT_STRTAB, BASE + STRINGS],
            [DT_SYMTAB, BASE + SYMBOLS],
            [hash_tag, BASE + HASH],
            [DT_RELA, BASE + RELOCATIONS_AT],
            [DT_RELASZ, relocations_size],
            [DT_FLAGS_1, flags],
        ];
        put(DYNAMIC, &words(entries.as_flattened()));
        file
    }

    fn access(&self) -> Result<Access, Refused> {
        classify(&*self.bytes()).map(|publisher| publisher.access)
    }
}

/// Prevents a publisher from being looked for by another model than its file has, on either machine.
#[test]
fn each_model_of_each_machine() {
    for (machine, [module, distance, descriptor]) in [(X86_64, [16, 18, 36]), (AARCH64, [1028, 1030, 1031])] {
        let slot = 0x4000;
        let second = 0x4010;
        for (relocations, expected) in [
            (vec![(descriptor, 2, 0)], Ok(Access::Descriptor { slot })),
            (vec![(descriptor, 0, VALUE)], Ok(Access::Descriptor { slot })),
            (vec![(module, 2, 0)], Ok(Access::Module { slot, offset: None })),
            (vec![(module, 0, 0)], Ok(Access::Module { slot, offset: Some(VALUE) })),
            (vec![(distance, 2, 0)], Ok(Access::InitialExec { slot })),
            (vec![(descriptor, 2, 0), (distance, 2, 0)], Ok(Access::InitialExec { slot: second })),
            (vec![(descriptor, 1, 0), (descriptor, 0, 8), (module, 2, 0)], {
                Ok(Access::Module { slot: 0x4020, offset: None })
            }),
            (vec![(descriptor, 1, 0), (7, 2, 0)], Err(Unreferenced)),
            (vec![], Err(Unreferenced)),
        ] {
            for gnu_hash in [true, false] {
                let made = Made { gnu_hash, ..library(machine, &relocations) };
                assert_eq!(made.access(), expected, "{machine} {relocations:?} {gnu_hash}");
            }
        }
        let publisher = classify(&*library(machine, &[(descriptor, 2, 0)]).bytes()).unwrap();
        assert_eq!(publisher.first, (0, BASE));
    }
}

/// Prevents the executable's own storage from being looked for beside where the linker put it.
#[test]
fn local_exec_is_worked_out() {
    for (machine, tls_size, align, offset) in [
        (X86_64, 0x18, 8, -8),
        (X86_64, 0x18, 32, -16),
        (X86_64, 0x41, 64, -0x70),
        (AARCH64, 0x18, 8, 0x20),
        (AARCH64, 0x18, 64, 0x50),
    ] {
        let made = Made { tls_size, align, ..library(machine, &[]) };
        for made in [Made { kind: ET_EXEC, ..made }, Made { is_pie: true, ..library(machine, &[]) }] {
            let made = Made { tls_size, align, ..made };
            assert_eq!(made.access(), Ok(Access::LocalExec { offset }), "{machine} {tls_size:#x} {align}");
        }
    }
    for (tls_size, align) in [(VALUE, 8), (u64::MAX, 1 << 20), (0x18, 3), (0x18, 1 << 40)] {
        let made = Made { kind: ET_EXEC, tls_size, align, ..library(X86_64, &[]) };
        assert_eq!(made.access(), Err(Malformed), "{tls_size:#x} {align}");
    }
}

/// Prevents files that are none of ours from being counted as broken ones.
#[test]
fn others_are_absent() {
    let good = library(X86_64, &[(36, 2, 0)]).bytes();
    let with = |at: usize, byte: u8| {
        let mut file = good.clone();
        file[at] = byte;
        classify(&*file).map(drop)
    };
    for (what, found) in [
        ("empty", classify(&[][..]).map(drop)),
        ("a script", classify(&b"#!/bin/sh\n"[..]).map(drop)),
        ("32 bits", with(4, 1)),
        ("big-endian", with(5, 2)),
        ("another machine", with(18, 3)),
        ("an object", with(16, 1)),
        ("another name", with(STRINGS as usize + 3, b'x')),
        ("not thread-local", with(SYMBOLS as usize + 48 + 4, 0x11)),
        ("undefined", with(SYMBOLS as usize + 48 + 6, 0)),
        ("of another size", with(SYMBOLS as usize + 48 + 16, 4)),
    ] {
        assert_eq!(found, Err(Absent), "{what}");
    }
    assert_eq!(with(56, 255), Err(Malformed), "more program headers than any file has");
}

/// Prevents a hostile file from ending the reader, or from keeping it for long: whatever single bytes, words and cuts
/// do to a good one. A seed that fails is named.
#[test]
fn no_file_ends_the_reader() {
    const CHANGED: [u64; 8] = [0, 1, 0x7f, 0xff, u64::MAX, 1 << 63, u32::MAX as u64, 0x1000];
    for seed in 0..200_000u64 {
        let mut random = SmallRng::seed_from_u64(seed);
        let machine = if random.random() { X86_64 } else { AARCH64 };
        let made = Made { gnu_hash: random.random(), ..library(machine, &[(36, 2, 0), (1031, 2, 0)]) };
        let mut file = made.bytes();
        for _ in 0..random.random_range(1..6) {
            let at = random.random_range(0..SIZE - 8);
            match random.random_range(0..3) {
                0 => file[at] = random.random(),
                1 => file[at & !7..][..8].copy_from_slice(&CHANGED[random.random_range(0..8)].to_le_bytes()),
                _ => file.truncate(random.random_range(SIZE / 2..=file.len())),
            }
            file.resize(SIZE, 0);
        }
        let caught = std::panic::catch_unwind(|| classify(&*file).map(drop));
        assert!(caught.is_ok(), "seed {seed}");
    }
}
