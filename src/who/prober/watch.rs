//! Which processes are looked at again for what their threads publish: some times while they start, and when what they have
//! mapped has changed, since libraries are loaded late. That is looked at each second, of all that made calls lately at
//! once. Pure code; time is handed in.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::super::registry::Subject;
use crate::model::call::ImageKey;
use crate::model::slot::Slot;

/// After its first call an image is looked at so often.
const TRIES: [Duration; 4] =
    [Duration::from_millis(20), Duration::from_millis(120), Duration::from_millis(420), Duration::from_millis(1420)];
/// The same after it has mapped something else.
const AGAIN: [Duration; 2] = [Duration::ZERO, Duration::from_millis(400)];
/// As many are watched; bpf/context.h has as much room. And as many of one user's.
const MOST: usize = 4096;
const MOST_OF_ONE: usize = 3072;
/// How often it is looked at what those have mapped that made calls lately, and what lately is.
const SWEEP: Duration = Duration::from_secs(1);
const LATELY: Duration = Duration::from_secs(60);
/// One sweep in so many is of all, for those that have ended since their last call.
const ALL: u32 = 60;

#[derive(Debug)]
struct Watched {
    subject: Subject,
    tries: usize,
    called: Instant,
    /// What is mapped, in pages.
    mapped: Option<u64>,
    slot: Option<Slot>,
}

/// The images that are watched: one of each process.
#[derive(Debug, Default)]
pub struct Watch {
    processes: HashMap<u32, Watched>,
    of_users: HashMap<u32, usize>,
    tries: BTreeMap<(Instant, u32), ImageKey>,
    sweep: Option<Instant>,
    sweeps: u32,
}

/// What a sweep found of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swept {
    /// Which image.
    pub image: ImageKey,
    /// The size of what it has mapped, in pages; None where the process has ended or runs another image.
    pub mapped: Option<u64>,
}

impl Watch {
    /// An image has made its first call. Returns the image of its process whose threads are looked at no more for it, and
    /// whether there was room.
    pub fn add(&mut self, subject: Subject, now: Instant) -> (Option<ImageKey>, bool) {
        let pid = subject.image.pid;
        let before = match self.processes.get(&pid).map(|known| known.subject.image) {
            Some(known) if known == subject.image => return (None, true),
            known => known.filter(|known| self.forget(known)),
        };
        if self.processes.len() >= MOST || self.of_users.get(&subject.uid).is_some_and(|of| *of >= MOST_OF_ONE) {
            return (before, false);
        }
        *self.of_users.entry(subject.uid).or_default() += 1;
        self.processes.insert(pid, Watched { subject, tries: 0, called: now, mapped: None, slot: None });
        for after in TRIES {
            self.tries.insert((now + after, pid), subject.image);
        }
        self.sweep.get_or_insert(now + TRIES[TRIES.len() - 1] + SWEEP);
        (before, true)
    }

    fn of(&mut self, image: &ImageKey) -> Option<&mut Watched> {
        self.processes.get_mut(&image.pid).filter(|watched| watched.subject.image == *image)
    }

    /// An image has made calls.
    pub fn called(&mut self, image: &ImageKey, now: Instant) {
        let Some(watched) = self.of(image) else { return };
        watched.called = now;
        let soon = now + SWEEP;
        // The one that is due comes later where nobody had made calls.
        self.sweep = Some(self.sweep.map_or(soon, |sweep| sweep.min(soon)));
    }

    /// An image is no more; returns whether its threads were known to publish.
    pub fn forget(&mut self, image: &ImageKey) -> bool {
        let Some(Watched { slot, .. }) = self.of(image) else { return false };
        let published = slot.is_some();
        if let Some(Watched { subject, .. }) = self.processes.remove(&image.pid)
            && let Some(of) = self.of_users.get_mut(&subject.uid)
        {
            *of -= 1;
            if *of == 0 {
                self.of_users.remove(&subject.uid);
            }
        }
        published
    }

    /// The images to look at now.
    pub fn due(&mut self, now: Instant) -> Vec<Subject> {
        let mut due = Vec::new();
        while let Some(entry) = self.tries.first_entry()
            && entry.key().0 <= now
        {
            let image = entry.remove();
            if let Some(watched) = self.of(&image) {
                watched.tries += 1;
                due.push(watched.subject);
            }
        }
        due
    }

    /// The images of which is to be seen now whether they have mapped anything else, if it is time for that.
    pub fn sweep(&mut self, now: Instant) -> Option<Vec<Subject>> {
        self.sweep.filter(|at| *at <= now)?;
        self.sweeps += 1;
        let lately = |watched: &&Watched| now.saturating_duration_since(watched.called) <= LATELY;
        let has_called = self.processes.values().any(|watched| lately(&watched));
        let is_of_all = !has_called || self.sweeps.is_multiple_of(ALL);
        let pause = if has_called { SWEEP } else { SWEEP * ALL };
        self.sweep = (!self.processes.is_empty()).then_some(now + pause);
        let found = self.processes.values().filter(|watched| is_of_all || lately(watched));
        Some(found.filter(|watched| watched.tries >= TRIES.len()).map(|watched| watched.subject).collect())
    }

    /// Takes what a sweep found: an image that has mapped something else is looked at again, and once more after that,
    /// since the linker may be between mapping a library and filling it in.
    pub fn swept(&mut self, swept: &Swept, now: Instant) {
        let Some(watched) = self.of(&swept.image) else { return };
        let before = std::mem::replace(&mut watched.mapped, swept.mapped);
        if before == swept.mapped {
            return;
        }
        watched.tries = TRIES.len() - AGAIN.len();
        for after in AGAIN {
            self.tries.insert((now + after, swept.image.pid), swept.image);
        }
    }

    /// Takes where an image's threads publish, and what it had mapped before that was looked for; returns whether it is
    /// another place than before.
    pub fn found(&mut self, image: &ImageKey, slot: Option<Slot>, mapped: Option<u64>) -> bool {
        let Some(watched) = self.of(image) else { return false };
        watched.mapped = mapped;
        std::mem::replace(&mut watched.slot, slot) != slot
    }

    /// When there is something to do; None where there is nothing.
    pub fn next(&self) -> Option<Instant> {
        let tried = self.tries.first_key_value().map(|((at, _), _)| *at);
        [tried, self.sweep].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(pid: u32, uid: u32) -> Subject {
        Subject { image: ImageKey { pid, started_ns: 5, exec_id: 1 }, local_pid: pid, uid, environ_at: 1 }
    }

    /// Prevents an image from being looked at without end, one that has mapped a library from being overlooked, and the
    /// watch from waking for processes that make no calls.
    #[test]
    fn tries_and_sweeps() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        let one = subject(1, 0);
        assert_eq!((watch.next(), watch.add(one, start), watch.add(one, start)), (None, (None, true), (None, true)));
        for after in TRIES {
            assert_eq!(watch.next(), Some(start + after));
            assert!(watch.due(start + after - Duration::from_nanos(1)).is_empty());
            assert_eq!(watch.due(start + after), [one]);
        }
        assert!(watch.found(&one.image, Some(Slot::Static(-8)), Some(100)));
        assert!(!watch.found(&one.image, Some(Slot::Static(-8)), Some(100)));
        let mut now = watch.next().unwrap();
        assert_eq!(watch.sweep(now - Duration::from_nanos(1)), None);
        assert_eq!(watch.sweep(now), Some(vec![one]));
        watch.swept(&Swept { image: one.image, mapped: Some(100) }, now);
        assert!(watch.due(now).is_empty());
        watch.swept(&Swept { image: one.image, mapped: Some(101) }, now);
        assert_eq!((watch.due(now), watch.due(now + AGAIN[1])), (vec![one], vec![one]));
        // Without calls it is looked at no more, but for its end.
        let mut sweeps = 0;
        while now < start + LATELY * 10 {
            now = watch.next().unwrap();
            watch.sweep(now);
            sweeps += 1;
        }
        assert!((60..75).contains(&sweeps), "{sweeps}");
        watch.called(&one.image, now);
        assert_eq!(watch.next(), Some(now + SWEEP));
        watch.forget(&one.image);
        assert_eq!((watch.sweep(now + SWEEP), watch.next()), (Some(vec![]), None));
    }

    /// Prevents more processes than the kernel side has room for from being watched, one user's from taking all of it, and
    /// what was found of a program from outliving an exec.
    #[test]
    fn room() {
        let (mut watch, now) = (Watch::default(), Instant::now());
        let added = (0..2 * MOST as u32).filter(|pid| watch.add(subject(*pid, 1), now).1).count();
        assert_eq!(added, MOST_OF_ONE);
        assert_eq!(watch.add(subject(100_000, 2), now), (None, true));
        let mut other = subject(100_000, 2);
        other.image.exec_id = 2;
        assert!(watch.found(&subject(100_000, 2).image, Some(Slot::Static(1)), None));
        assert_eq!(watch.add(other, now), (Some(subject(100_000, 2).image), true));
        assert!(!watch.found(&subject(100_000, 2).image, Some(Slot::Static(2)), None));
        assert!(watch.found(&other.image, Some(Slot::Static(2)), None));
        for pid in 0..MOST as u32 {
            watch.forget(&subject(pid, 1).image);
        }
        assert_eq!((watch.of_users.get(&1), watch.processes.len()), (None, 1));
    }
}
