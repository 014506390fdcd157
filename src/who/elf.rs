//! How an ELF file lets threads at its `otel_thread_ctx_v1` (OTEP 4947): the dynamic symbol and the relocation that
//! leads to it. Reads what it needs and no more, since the file is the application's: every count is bounded, nothing
//! is trusted to be where it says. Pure code.

/// What is published, and its size: a pointer.
const SYMBOL: &[u8] = b"otel_thread_ctx_v1";
const SYMBOL_SIZE: u64 = 8;

/// As many program headers, entries of the dynamic section, symbols with the same hash and relocations are looked at.
const MOST_HEADERS: u64 = 128;
const MOST_DYNAMIC: u64 = 512;
const MOST_CHAINED: u32 = 4096;
const MOST_RELOCATIONS: u64 = 1 << 20;
/// So many relocations are read at a time.
const RELOCATIONS: usize = 2048;

/// Where a file's bytes come from.
pub trait ElfSource {
    /// Fills the buffer from this place on; None where it reaches beyond the end.
    fn read(&self, at: u64, buffer: &mut [u8]) -> Option<()>;
}

impl ElfSource for [u8] {
    fn read(&self, at: u64, buffer: &mut [u8]) -> Option<()> {
        let at = usize::try_from(at).ok()?;
        buffer.copy_from_slice(self.get(at..)?.get(..buffer.len())?);
        Some(())
    }
}

/// An instruction set, with its relocations for thread-local storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// x86_64: blocks lie below the thread pointer.
    X86_64,
    /// AArch64: blocks lie above it.
    Aarch64,
}

/// How threads of a process get at the symbol; addresses are those of the file, before it was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// At this distance from the thread pointer: the executable's own.
    LocalExec {
        /// The distance.
        offset: i64,
    },
    /// The distance stands here (TPOFF64, TPREL64).
    InitialExec {
        /// The address.
        slot: u64,
    },
    /// A TLS descriptor stands here, which holds the distance or points to module and offset.
    Descriptor {
        /// The address.
        slot: u64,
    },
    /// The number of the module stands here (DTPMOD64), the offset in its block after it.
    Module {
        /// The address.
        slot: u64,
        /// The offset where only the module is relocated.
        offset: Option<u64>,
    },
}

/// What a file was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publisher {
    /// How to get at it.
    pub access: Access,
    /// Of which machine.
    pub machine: Machine,
    /// Where the first part that is mapped stands in the file, and the address that it was linked to.
    pub first: (u64, u64),
}

/// Why a file tells nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Of another kind, or without the symbol: as nearly all files.
    #[error("no such symbol")]
    Absent,
    /// It says what can't be, or more than is looked at.
    #[error("the file contradicts itself")]
    Malformed,
    /// The symbol is there, but no relocation leads to it.
    #[error("no relocation leads to the symbol")]
    Unreferenced,
}

use Refused::{Absent, Malformed, Unreferenced};

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PT_TLS: u32 = 7;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const DT_PLTRELSZ: u64 = 2;
const DT_HASH: u64 = 4;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
const DT_JMPREL: u64 = 23;
const DT_GNU_HASH: u64 = 0x6fff_fef5;
const DT_FLAGS_1: u64 = 0x6fff_fffb;
const DF_1_PIE: u64 = 0x0800_0000;
const STT_TLS: u8 = 6;

/// A program header.
#[derive(Clone, Copy, Debug)]
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
    align: u64,
}

/// A dynamic symbol.
#[derive(Clone, Copy, Debug)]
struct Symbol {
    index: u32,
    value: u64,
}

struct File<'a, S: ?Sized> {
    source: &'a S,
    segments: Vec<Segment>,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

impl<S: ElfSource + ?Sized> File<'_, S> {
    fn array<const N: usize>(&self, at: u64) -> Result<[u8; N], Refused> {
        let mut bytes = [0; N];
        self.source.read(at, &mut bytes).map(|()| bytes).ok_or(Malformed)
    }

    /// Where in the file an address is.
    fn place(&self, address: u64) -> Result<u64, Refused> {
        let loaded = self.segments.iter().filter(|segment| segment.kind == PT_LOAD);
        let mut places = loaded.filter_map(|segment| {
            let within = address.checked_sub(segment.address).filter(|within| *within < segment.file_size)?;
            segment.offset.checked_add(within)
        });
        places.next().ok_or(Malformed)
    }

    fn mapped<const N: usize>(&self, base: u64, index: u64, step: u64) -> Result<[u8; N], Refused> {
        let address = index.checked_mul(step).and_then(|at| base.checked_add(at)).ok_or(Malformed)?;
        self.array(self.place(address)?)
    }

    fn segment(&self, kind: u32) -> Option<Segment> {
        self.segments.iter().copied().find(|segment| segment.kind == kind)
    }
}

/// The entries of the dynamic section that matter.
#[derive(Debug, Default)]
struct Dynamic {
    symbols: u64,
    strings: u64,
    gnu_hash: Option<u64>,
    hash: Option<u64>,
    relocations: (u64, u64),
    of_plt: (u64, u64),
    is_pie: bool,
}

impl Dynamic {
    fn read(file: &File<'_, impl ElfSource + ?Sized>, segment: Segment) -> Result<Self, Refused> {
        let mut this = Self::default();
        for index in 0..(segment.file_size / 16).min(MOST_DYNAMIC) {
            let entry: [u8; 16] = file.array(segment.offset.checked_add(index * 16).ok_or(Malformed)?)?;
            let value = u64_at(&entry, 8);
            match u64_at(&entry, 0) {
                0 => return Ok(this),
                DT_PLTRELSZ => this.of_plt.1 = value,
                DT_HASH => this.hash = Some(value),
                DT_STRTAB => this.strings = value,
                DT_SYMTAB => this.symbols = value,
                DT_RELA => this.relocations.0 = value,
                DT_RELASZ => this.relocations.1 = value,
                DT_JMPREL => this.of_plt.0 = value,
                DT_GNU_HASH => this.gnu_hash = Some(value),
                DT_FLAGS_1 => this.is_pie = value & DF_1_PIE != 0,
                _ => {}
            }
        }
        Ok(this)
    }

    /// The symbol with this index, if it is the one.
    fn symbol(&self, file: &File<'_, impl ElfSource + ?Sized>, index: u32) -> Result<Option<Symbol>, Refused> {
        let entry: [u8; 24] = file.mapped(self.symbols, index.into(), 24)?;
        let is_defined = u16_at(&entry, 6) != 0;
        if entry[4] & 0xf != STT_TLS || !is_defined || u64_at(&entry, 16) != SYMBOL_SIZE {
            return Ok(None);
        }
        let name: [u8; SYMBOL.len() + 1] = match file.mapped(self.strings, u32_at(&entry, 0).into(), 1) {
            Ok(name) => name,
            // A shorter name at the end of the strings.
            Err(_) => return Ok(None),
        };
        let is_it = name.strip_suffix(b"\0") == Some(SYMBOL);
        Ok(is_it.then(|| Symbol { index, value: u64_at(&entry, 8) }))
    }

    /// Looks the symbol up as the dynamic linker does.
    fn find(&self, file: &File<'_, impl ElfSource + ?Sized>) -> Result<Symbol, Refused> {
        match (self.gnu_hash, self.hash) {
            (Some(table), _) => self.find_by_gnu_hash(file, table),
            (None, Some(table)) => self.find_by_hash(file, table),
            (None, None) => Err(Absent),
        }
    }

    fn find_by_gnu_hash(&self, file: &File<'_, impl ElfSource + ?Sized>, table: u64) -> Result<Symbol, Refused> {
        let head: [u8; 16] = file.mapped(table, 0, 1)?;
        let (buckets, first, filters) = (u32_at(&head, 0), u32_at(&head, 4), u32_at(&head, 8));
        if buckets == 0 {
            return Err(Absent);
        }
        let hash = SYMBOL.iter().fold(5381u32, |hash, byte| hash.wrapping_mul(33).wrapping_add((*byte).into()));
        let bucket_base = table.checked_add(16 + 8 * u64::from(filters)).ok_or(Malformed)?;
        let chain_base = bucket_base.checked_add(4 * u64::from(buckets)).ok_or(Malformed)?;
        let start = u32::from_le_bytes(file.mapped(bucket_base, (hash % buckets).into(), 4)?);
        if start == 0 {
            return Err(Absent);
        }
        for step in 0..MOST_CHAINED {
            let index = start.checked_add(step).ok_or(Malformed)?;
            let chain = index.checked_sub(first).ok_or(Malformed)?;
            let value = u32::from_le_bytes(file.mapped(chain_base, chain.into(), 4)?);
            if value | 1 == hash | 1
                && let Some(symbol) = self.symbol(file, index)?
            {
                return Ok(symbol);
            }
            if value & 1 != 0 {
                return Err(Absent);
            }
        }
        Err(Malformed)
    }

    fn find_by_hash(&self, file: &File<'_, impl ElfSource + ?Sized>, table: u64) -> Result<Symbol, Refused> {
        let buckets = u32::from_le_bytes(file.mapped(table, 0, 4)?);
        if buckets == 0 {
            return Err(Absent);
        }
        let hash = SYMBOL.iter().fold(0u32, |hash, byte| {
            let hash = (hash << 4).wrapping_add((*byte).into());
            let high = hash & 0xf000_0000;
            (hash ^ high >> 24) & !high
        });
        let mut index = u32::from_le_bytes(file.mapped(table, 2 + u64::from(hash % buckets), 4)?);
        for _ in 0..MOST_CHAINED {
            if index == 0 {
                return Err(Absent);
            }
            if let Some(symbol) = self.symbol(file, index)? {
                return Ok(symbol);
            }
            index = u32::from_le_bytes(file.mapped(table, 2 + u64::from(buckets) + u64::from(index), 4)?);
        }
        Err(Malformed)
    }

    /// The relocation that leads to the symbol; a distance that the linker has worked out is the simplest.
    fn access(
        &self,
        file: &File<'_, impl ElfSource + ?Sized>,
        machine: Machine,
        symbol: Symbol,
    ) -> Result<Access, Refused> {
        let mut found = None;
        let mut left = MOST_RELOCATIONS;
        let mut bytes = [0; RELOCATIONS * 24];
        for (base, size) in [self.relocations, self.of_plt] {
            let count = size / 24;
            if count > left {
                return Err(Malformed);
            }
            left -= count;
            let mut at = if count > 0 { file.place(base)? } else { 0 };
            let mut rest = count;
            while rest > 0 {
                let now = rest.min(RELOCATIONS as u64) as usize;
                let bytes = &mut bytes[..now * 24];
                file.source.read(at, bytes).ok_or(Malformed)?;
                for entry in bytes.chunks_exact(24) {
                    match relocation(entry, machine, symbol) {
                        Some(access @ Access::InitialExec { .. }) => return Ok(access),
                        access => found = found.or(access),
                    }
                }
                at = at.checked_add(bytes.len() as u64).ok_or(Malformed)?;
                rest -= now as u64;
            }
        }
        found.ok_or(Unreferenced)
    }
}

/// Where a relocation leads to the symbol: by its index, or, where the linker bound it to the file's own, by its value.
fn relocation(entry: &[u8], machine: Machine, symbol: Symbol) -> Option<Access> {
    let (slot, info, addend) = (u64_at(entry, 0), u64_at(entry, 8), u64_at(entry, 16));
    let (kind, index) = (info as u32, (info >> 32) as u32);
    // x86-64 psABI, 4.4 (Relocation), and the ELF ABI for Arm 64-bit, 5.7.14 (Dynamic relocations).
    let [module, distance, descriptor] = match machine {
        Machine::X86_64 => [16, 18, 36],
        Machine::Aarch64 => [1028, 1030, 1031],
    };
    let is_named = index == symbol.index;
    let is_bound = index == 0 && addend == symbol.value;
    match kind {
        kind if kind == distance && (is_named || is_bound) => Some(Access::InitialExec { slot }),
        kind if kind == descriptor && (is_named || is_bound) => Some(Access::Descriptor { slot }),
        kind if kind == module && is_named => Some(Access::Module { slot, offset: None }),
        kind if kind == module && index == 0 => Some(Access::Module { slot, offset: Some(symbol.value) }),
        _ => None,
    }
}

/// The distance from the thread pointer to a symbol of the executable, which the linker works out by itself.
fn local_exec(machine: Machine, tls: Segment, symbol: Symbol) -> Option<Access> {
    let align = tls.align.max(1);
    if !align.is_power_of_two() || align > 1 << 30 || symbol.value >= tls.memory_size {
        return None;
    }
    let round = |value: u64| value.checked_add(align - 1).map(|value| value & !(align - 1));
    let offset = match machine {
        Machine::X86_64 => i64::try_from(symbol.value).ok()?.checked_sub_unsigned(round(tls.memory_size)?)?,
        Machine::Aarch64 => round(16)?.checked_add(symbol.value)?.try_into().ok()?,
    };
    Some(Access::LocalExec { offset })
}

/// Finds how the file lets threads at the symbol.
pub fn classify(source: &(impl ElfSource + ?Sized)) -> Result<Publisher, Refused> {
    let mut file = File { source, segments: Vec::new() };
    let head: [u8; 64] = file.array(0).map_err(|_| Absent)?;
    let (is_elf64_le, kind) = (head.starts_with(b"\x7fELF\x02\x01"), u16_at(&head, 16));
    let machine = match u16_at(&head, 18) {
        62 => Machine::X86_64,
        183 => Machine::Aarch64,
        _ => return Err(Absent),
    };
    if !is_elf64_le || ![ET_EXEC, ET_DYN].contains(&kind) {
        return Err(Absent);
    }
    let (at, size, count) = (u64_at(&head, 32), u16_at(&head, 54), u64::from(u16_at(&head, 56)));
    if size != 56 || count > MOST_HEADERS {
        return Err(Malformed);
    }
    for index in 0..count {
        let header: [u8; 56] = file.array(at.checked_add(index * 56).ok_or(Malformed)?)?;
        file.segments.push(Segment {
            kind: u32_at(&header, 0),
            offset: u64_at(&header, 8),
            address: u64_at(&header, 16),
            file_size: u64_at(&header, 32),
            memory_size: u64_at(&header, 40),
            align: u64_at(&header, 48),
        });
    }
    let tls = file.segment(PT_TLS).ok_or(Absent)?;
    let dynamic = Dynamic::read(&file, file.segment(PT_DYNAMIC).ok_or(Absent)?)?;
    let symbol = dynamic.find(&file)?;
    let is_executable = kind == ET_EXEC || dynamic.is_pie || file.segment(PT_INTERP).is_some();
    let access = match is_executable {
        true => local_exec(machine, tls, symbol).ok_or(Malformed)?,
        false => dynamic.access(&file, machine, symbol)?,
    };
    let first = file.segment(PT_LOAD).ok_or(Malformed)?;
    Ok(Publisher { access, machine, first: (first.offset, first.address) })
}

#[cfg(test)]
mod tests;
