//! What this program keeps of memory that it does not need: by default glibc has an arena for each thread, which keeps what
//! the thread's largest burst took, and pages between blocks that are still in use. Sets what mallopt(3) offers, and gives such
//! pages back where there may be many; other allocators are left as they are. And the pages of the program's files that only
//! starting has needed.

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

/// To be called once, when all that a start needs is done: of the program's own files only those pages come back that are still
/// needed, from the page cache.
pub fn settle() {
    #[cfg(target_env = "gnu")]
    // SAFETY: as in trim().
    unsafe {
        libc::malloc_trim(0)
    };
    for (start, len) in unchanged_pages(&fs::read_to_string("/proc/self/smaps").unwrap_or_default()) {
        // SAFETY: pages of a file that nothing has written to: a later access finds the same bytes. A refusal leaves them.
        unsafe { libc::madvise(start as *mut libc::c_void, len, libc::MADV_DONTNEED) };
    }
}

/// Mappings of files, by address and length, that can't be written to and hold no page of this program's own, as relocated
/// addresses and a debugger's breakpoints are (proc_pid_smaps(5)).
fn unchanged_pages(smaps: &str) -> Vec<(usize, usize)> {
    let mut unchanged = Vec::new();
    let mut mapping = None;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            let hex = |text| usize::from_str_radix(text, 16).ok();
            let is_file =
                matches!(words.next(), Some("r-xp" | "r--p")) && words.nth(3).is_some_and(|path| path.starts_with('/'));
            mapping = hex(start).zip(hex(end)).filter(|_| is_file);
        } else if first == "Anonymous:"
            && let Some((start, end)) = mapping.take()
            && words.next() == Some("0")
        {
            unchanged.push((start, end.saturating_sub(start)));
        }
    }
    unchanged
}

#[cfg(test)]
#[cfg(target_env = "gnu")]
mod tests {
    use super::*;

    /// Prevents pages that were written to, or that are no file's, from being dropped: what they hold would be lost.
    #[test]
    fn only_what_the_file_still_has() {
        let smaps = "10000-12000 r-xp 00000000 fe:00 7    /usr/bin/mqspan\nRss: 8 kB\nAnonymous:             0 kB\n\
                     12000-13000 r--p 00002000 fe:00 7    /usr/bin/mqspan\nAnonymous:             4 kB\n\
                     13000-14000 rw-p 00003000 fe:00 7    /usr/bin/mqspan\nAnonymous:             0 kB\n\
                     14000-15000 r--p 00000000 00:00 0\nAnonymous:             0 kB\n\
                     15000-16000 r--s 00000000 00:0e 3    anon_inode:bpf-map\nAnonymous:             0 kB\n\
                     16000-17000 r--p 00000000 fe:00 8    /usr/lib/libc.so.6\nAnonymous:             0 kB\n\
                     17000-18000 r-xp 00000000 00:00 0    [vdso]\nAnonymous:             0 kB\n";
        assert_eq!(unchanged_pages(smaps), [(0x10000, 0x2000), (0x16000, 0x1000)]);
        assert!(!unchanged_pages(&fs::read_to_string("/proc/self/smaps").unwrap()).is_empty());
        settle();
    }

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
