//! What of the kernel's own BPF is unsafe on it. Nothing shows these faults but the kernel's version and whether it is
//! PREEMPT_RT: they are the one thing that is decided by a version. Pure code; [`facts`](super::facts) does the looking.

/// A kernel's version: 6, 1 and 115 of 6.1.115.
pub type Release = [u32; 3];

/// What is unsafe here, or counted badly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hazards {
    /// The ring buffer takes a sleeping lock with preemption off (mended by 8b62645b09f8 "bpf: Use raw_spinlock_t in
    /// ringbuf").
    pub ring: bool,
    /// Task storage, at a thread's first use, allocates with preemption off (mended by 08a7ce384e33 and 6ae9d5e99e1d).
    pub task_storage: bool,
    /// Hashes that allocate while a program runs are refused or warned of (until 96da3f7d489d).
    pub hashes: bool,
    /// Runs of kprobe and tracepoint programs that the kernel skips are not counted (until dd8657894c11).
    pub uncounted_skips: bool,
    /// A kprobe counts as missed what is not: that its program read memory that was not there (until ec6aba3d2be1).
    pub faults_are_misses: bool,
}

impl Hazards {
    /// Of a kernel of this version; of one that does not say its version all that there may be.
    pub fn of(realtime: bool, release: Option<Release>) -> Self {
        let release = release.unwrap_or_default();
        // Mended in 6.12, and in the series 6.11 and 6.1 by a later release of each.
        let ring_is_mended = release >= [6, 12, 0]
            || release[..2] == [6, 11] && release[2] >= 6
            || release[..2] == [6, 1] && release[2] >= 115;
        Self {
            ring: realtime && !ring_is_mended,
            task_storage: realtime && release < [6, 4, 0],
            hashes: release < [6, 1, 0],
            uncounted_skips: release < [6, 7, 0],
            faults_are_misses: release < [5, 14, 0],
        }
    }
}

/// The version, by what uname(2) calls the release and the version, and Ubuntu's /proc/version_signature. Distributions
/// leave the third number at 0 in the release (`6.1.0-56-rt-amd64`) and say it elsewhere (`Debian 6.1.192-2`).
pub fn release(release: &str, version: &str, signature: &str) -> Option<Release> {
    let base = numbers(release)?;
    let told = version.split_whitespace().chain(signature.split_whitespace()).filter_map(numbers);
    told.filter(|other| other[..2] == base[..2]).chain([base]).max()
}

/// The three numbers that a word begins with; a missing third is 0.
fn numbers(word: &str) -> Option<Release> {
    let numbers = word.split(['-', '+', '~']).next()?;
    let mut parts = numbers.split('.');
    let (major, minor) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some([major, minor, parts.next().and_then(|patch| patch.parse().ok()).unwrap_or(0)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents a distribution's kernel from being taken for an older one than it is, and so from being refused.
    #[test]
    fn versions() {
        for (uname, version, signature, expected) in [
            ("6.1.0-56-rt-amd64", "#1 SMP PREEMPT_RT Debian 6.1.192-2 (2026-11-16)", "", Some([6, 1, 192])),
            ("6.12.118+deb13-rt-amd64", "#1 SMP PREEMPT_RT Debian 6.12.118-1 (2026-11-20)", "", Some([6, 12, 118])),
            (
                "5.15.0-1032-realtime",
                "#35-Ubuntu SMP PREEMPT_RT",
                "Ubuntu 5.15.0-1032.35-realtime 5.15.60",
                Some([5, 15, 60]),
            ),
            ("6.6.14-yocto-standard", "#1 SMP PREEMPT_RT Tue Jan 1", "", Some([6, 6, 14])),
            ("5.10-rc1", "", "", Some([5, 10, 0])),
            ("6.1.0", "#1 SMP gcc 12.2.0", "", Some([6, 1, 0])),
            ("unknown", "", "", None),
        ] {
            assert_eq!(release(uname, version, signature), expected, "{uname}");
        }
    }

    /// Prevents what is unsafe from being used, and what is safe from being done without.
    #[test]
    fn each_where_it_is() {
        let of = |realtime, release| {
            let Hazards { ring, task_storage, hashes, uncounted_skips, faults_are_misses } =
                Hazards::of(realtime, release);
            [ring, task_storage, hashes, uncounted_skips, faults_are_misses]
        };
        for (release, expected) in [
            ([5, 10, 200], [true, true, true, true, true]),
            ([5, 15, 0], [true, true, true, true, false]),
            ([6, 1, 114], [true, true, false, true, false]),
            ([6, 1, 115], [false, true, false, true, false]),
            ([6, 3, 13], [true, true, false, true, false]),
            ([6, 6, 90], [true, false, false, true, false]),
            ([6, 11, 5], [true, false, false, false, false]),
            ([6, 11, 6], [false, false, false, false, false]),
            ([6, 12, 0], [false, false, false, false, false]),
        ] {
            assert_eq!(of(true, Some(release)), expected, "{release:?}");
            assert_eq!(of(false, Some(release)), [false, false, expected[2], expected[3], expected[4]], "{release:?}");
        }
        assert_eq!(of(true, None), [true; 5]);
    }
}
