//! Which of the variants of the programs (bpf/kernel.h, build.rs) fits this kernel, found by trying what they differ in.

use std::sync::OnceLock;
use std::{
    io::{self, Read as _},
    ptr,
};

use libbpf_rs::ProgramType;
use libbpf_rs::libbpf_sys::{
    BPF_FUNC_get_current_task_btf, BPF_PROG_TYPE_SOCKET_FILTER, bpf_func_id, bpf_insn, bpf_prog_load,
};

/// A variant; what the first has and the others have not is done without where it is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// For kernels whose verifier knows what a task is.
    Full,
    /// For those that don't describe their own types: a task is read by a helper.
    Plain,
    /// For those before 5.12: nor can a number in memory be changed and its value be learnt at once.
    Old,
}

impl Variant {
    /// By what this kernel takes, which describes its own types or not.
    pub fn find(describes_types: bool) -> Self {
        match (has_fetching_atomics(), describes_types && helps(ProgramType::Kprobe, BPF_FUNC_get_current_task_btf)) {
            (false, _) => Self::Old,
            (true, false) => Self::Plain,
            (true, true) => Self::Full,
        }
    }

    /// Its programs, which stay in memory.
    ///
    /// # Errors
    ///
    /// Where mqspan's own program is damaged.
    pub fn object(self) -> io::Result<&'static [u8]> {
        // A kernel has one variant, which is loaded again without each hook that it refuses.
        static OBJECT: OnceLock<Vec<u8>> = OnceLock::new();
        match OBJECT.get() {
            Some(object) => Ok(object),
            None => self.unpacked().map(|object| &**OBJECT.get_or_init(|| object)),
        }
    }

    fn unpacked(self) -> io::Result<Vec<u8>> {
        let full = || unpacked(include_bytes!(concat!(env!("OUT_DIR"), "/full/mqspan.bpf.o.zst")), &[]);
        match self {
            Self::Full => full(),
            Self::Plain => unpacked(include_bytes!(concat!(env!("OUT_DIR"), "/plain/mqspan.bpf.o.zst")), &full()?),
            Self::Old => unpacked(include_bytes!(concat!(env!("OUT_DIR"), "/old/mqspan.bpf.o.zst")), &full()?),
        }
    }
}

/// What build.rs compressed with this dictionary.
fn unpacked(compressed: &[u8], dictionary: &[u8]) -> io::Result<Vec<u8>> {
    let mut object = Vec::new();
    zstd::stream::read::Decoder::with_dictionary(compressed, dictionary)?.read_to_end(&mut object)?;
    Ok(object)
}

/// Whether programs of this type may use a helper. Where it can't be asked, programs can't be loaded either.
pub fn helps(kind: ProgramType, helper: bpf_func_id) -> bool {
    kind.is_helper_supported(helper).unwrap_or(true)
}

/// Whether a program may add to a number in memory and learn what it was: by one that does nothing else. Only a kernel that
/// does not know the instruction says that it is invalid.
fn has_fetching_atomics() -> bool {
    // include/uapi/linux/bpf.h: r0 = 1; *(u64 *)(r10 - 8) = r0; r0 = fetch_and_add(r10 - 8, r0); exit
    const PROGRAM: [u64; 4] = [0x1_0000_00b7, 0xfff8_0a7b, 0x1_fff8_0adb, 0x95];
    // SAFETY: instructions are 8 bytes each without padding; the kernel reads as many as there are.
    let program = unsafe {
        bpf_prog_load(
            BPF_PROG_TYPE_SOCKET_FILTER,
            ptr::null(),
            c"GPL".as_ptr(),
            PROGRAM.as_ptr().cast::<bpf_insn>(),
            PROGRAM.len() as libbpf_rs::libbpf_sys::size_t,
            ptr::null_mut(),
        )
    };
    if program >= 0 {
        // SAFETY: nobody else has this descriptor.
        unsafe { libc::close(program) };
    }
    program != -libc::EINVAL
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a variant from being unpacked with another dictionary than it was compressed with.
    #[test]
    fn each_is_what_was_compiled() {
        for (variant, object) in [
            (Variant::Full, &include_bytes!(concat!(env!("OUT_DIR"), "/full/mqspan.bpf.o"))[..]),
            (Variant::Plain, include_bytes!(concat!(env!("OUT_DIR"), "/plain/mqspan.bpf.o"))),
            (Variant::Old, include_bytes!(concat!(env!("OUT_DIR"), "/old/mqspan.bpf.o"))),
        ] {
            assert!(variant.unpacked().unwrap() == object, "{variant:?}");
        }
    }
}
