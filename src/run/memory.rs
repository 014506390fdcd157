//! What the allocator keeps of memory that is free again: by default glibc has an arena for each thread, which keeps what
//! the thread's largest burst took, and pages between blocks that are still in use. Sets what mallopt(3) offers, and gives such
//! pages back where there may be many; other allocators are left as they are.

#[cfg(target_env = "gnu")]
use std::fs;

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

/// Memory of its own above which free pages go back: the kernel counts them as this program's.
#[cfg(target_env = "gnu")]
const PLENTY: u64 = 24 << 20;

/// To be called once in a while: returns free pages in the midst of arenas, where this program has plenty.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    if own_memory().is_some_and(|bytes| bytes > PLENTY) {
        // SAFETY: takes the arenas' locks and moves nothing.
        unsafe { libc::malloc_trim(0) };
    }
}

/// Bytes that are resident and of no file (proc_pid_statm(5)).
#[cfg(target_env = "gnu")]
fn own_memory() -> Option<u64> {
    // SAFETY: a number of the system's.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = statm.split(' ').skip(1).map_while(|pages| pages.parse::<u64>().ok());
    let (resident, of_files) = (pages.next()?, pages.next()?);
    Some(resident.saturating_sub(of_files) * page)
}

#[cfg(test)]
#[cfg(target_env = "gnu")]
mod tests {
    use super::*;

    /// Prevents pages that are free again, between blocks that are in use, from staying this program's.
    #[test]
    fn what_is_free_between_others_goes_back() {
        let blocks: Vec<Vec<u8>> = (0..20_000).map(|_| vec![1; 4000]).collect();
        let full = own_memory().unwrap();
        let (kept, freed): (Vec<_>, Vec<_>) = blocks.into_iter().enumerate().partition(|(at, _)| at % 16 == 0);
        drop(freed);
        trim();
        let trimmed = own_memory().unwrap();
        assert!(trimmed + (40 << 20) < full, "{full} bytes, then {trimmed} with {} blocks", kept.len());
    }
}
