//! What the allocator keeps of memory that is free again: by default glibc has an arena for each thread, which keeps what
//! the thread's largest burst took. Sets what mallopt(3) offers; other allocators are left as they are.

/// Arenas: more of them lie beside each other half empty.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;
/// A block from this size on is a mapping of its own, which goes back at once: requests, batches, lists.
#[cfg(target_env = "gnu")]
const MAPPED: libc::c_int = 64 << 10;
/// So much free memory at an arena's end goes back.
#[cfg(target_env = "gnu")]
const TRIMMED: libc::c_int = 256 << 10;

/// To be called before there is any other thread.
pub fn trim_early() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, ARENAS), (libc::M_MMAP_THRESHOLD, MAPPED), (libc::M_TRIM_THRESHOLD, TRIMMED)]
    {
        // SAFETY: numbers only, and no other thread allocates meanwhile. A refusal leaves the default.
        unsafe { libc::mallopt(parameter, value) };
    }
}
