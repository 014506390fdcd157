//! The waiting room: the first calls of an image wait here, for a moment, for what is asked about it. All threads of an
//! image wait for the same, so its calls stay in their order, and those of others pass by. Pure code; time is handed in.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::model::call::{Call, ImageKey};

/// Calls wait so long, and no longer.
pub const PATIENCE: Duration = Duration::from_millis(100);
/// As much of one image's calls waits; then they all go on at once.
const MOST_OF_ONE: usize = 256 << 10;
/// As much waits in all; then the image whose calls take the most goes on at once.
const MOST: usize = 2 << 20;
/// As many images are awaited at a time; what is one too many does not wait.
const MOST_IMAGES: usize = 8192;

#[derive(Debug)]
struct Awaited {
    until: Instant,
    calls: Vec<Box<Call>>,
    bytes: usize,
}

/// The room.
#[derive(Debug, Default)]
pub struct WaitingRoom {
    images: HashMap<ImageKey, Awaited>,
    /// The same by process, one after the other: an exec makes another image of it.
    processes: HashMap<(u32, u64), Vec<ImageKey>>,
    /// The same by time.
    until: BTreeSet<(Instant, u32, u64, u32)>,
    bytes: usize,
}

fn process(key: &ImageKey) -> (u32, u64) {
    (key.pid, key.started_ns)
}

fn in_time(until: Instant, key: &ImageKey) -> (Instant, u32, u64, u32) {
    (until, key.pid, key.started_ns, key.exec_id)
}

/// What a call takes, with what it points to.
fn size(call: &Call) -> usize {
    let Call { asked, queue, .. } = call;
    size_of::<Call>() + asked.as_ref().map_or(0, |name| name.len()) + queue.as_ref().map_or(0, |queue| queue.name.len())
}

impl WaitingRoom {
    /// Nothing is awaited.
    pub fn is_idle(&self) -> bool {
        self.images.is_empty()
    }

    /// From now on the image's calls wait, until [`Self::arrived`] or the time is over.
    pub fn expect(&mut self, key: ImageKey, now: Instant) {
        if self.images.len() >= MOST_IMAGES || self.images.contains_key(&key) {
            return;
        }
        let until = now + PATIENCE;
        self.until.insert(in_time(until, &key));
        self.images.insert(key, Awaited { until, calls: Vec::new(), bytes: 0 });
        self.processes.entry(process(&key)).or_default().push(key);
    }

    /// Takes a call. What is to go on now, in this order, is appended to `out`: nothing where the call waits.
    pub fn offer(&mut self, call: Box<Call>, now: Instant, out: &mut Vec<Box<Call>>) {
        let key = call.image;
        // What the process did before its exec comes before: nothing of that image is to be found out any more.
        while let Some(earlier) = self.processes.get(&process(&key)).and_then(|images| images.first()).copied()
            && earlier != key
        {
            self.arrived(&earlier, out);
        }
        let Some(awaited) = self.images.get_mut(&key) else { return out.push(call) };
        let bytes = size(&call);
        if awaited.until <= now || awaited.bytes + bytes > MOST_OF_ONE {
            self.arrived(&key, out);
            return out.push(call);
        }
        awaited.calls.push(call);
        awaited.bytes += bytes;
        self.bytes += bytes;
        if self.bytes > MOST
            && let Some(largest) = self.images.iter().max_by_key(|(_, awaited)| awaited.bytes).map(|(key, _)| *key)
        {
            self.arrived(&largest, out);
        }
    }

    /// What the image's calls waited for is there, or will not come: they are appended to `out`.
    pub fn arrived(&mut self, key: &ImageKey, out: &mut Vec<Box<Call>>) {
        let Some(Awaited { until, calls, bytes }) = self.images.remove(key) else { return };
        self.until.remove(&in_time(until, key));
        if let Some(images) = self.processes.get_mut(&process(key)) {
            images.retain(|image| image != key);
            if images.is_empty() {
                self.processes.remove(&process(key));
            }
        }
        self.bytes -= bytes;
        out.extend(calls);
    }

    /// Appends the calls that have waited long enough.
    pub fn ready(&mut self, now: Instant, out: &mut Vec<Box<Call>>) {
        while let Some((until, pid, started_ns, exec_id)) = self.until.first().copied()
            && until <= now
        {
            self.arrived(&ImageKey { pid, started_ns, exec_id }, out);
        }
    }

    /// Appends all of them: nothing is awaited any more.
    pub fn clear(&mut self, out: &mut Vec<Box<Call>>) {
        while let Some((_, pid, started_ns, exec_id)) = self.until.first().copied() {
            self.arrived(&ImageKey { pid, started_ns, exec_id }, out);
        }
    }

    /// When the next calls will have waited long enough; None where nothing is awaited.
    pub fn deadline(&self) -> Option<Instant> {
        self.until.first().map(|(until, ..)| *until)
    }

    /// When the last of what is awaited now will have been waited for.
    pub fn last_deadline(&self) -> Option<Instant> {
        self.until.last().map(|(until, ..)| *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::examples::example;

    fn call(pid: u32, tid: u32, number: u64) -> Box<Call> {
        let image = ImageKey { pid, started_ns: 5, exec_id: 1 };
        Box::new(Call { image, tid, entered_ns: number, ..example() })
    }

    fn numbers(out: &mut Vec<Box<Call>>) -> Vec<u64> {
        out.drain(..).map(|call| call.entered_ns).collect()
    }

    /// Prevents a call from waiting longer than it may, from overtaking an earlier one of its thread, and calls of other
    /// processes from waiting with it.
    #[test]
    fn calls_wait_for_their_own_image_only() {
        let (mut room, mut out, start) = (WaitingRoom::default(), Vec::new(), Instant::now());
        let image = call(1, 1, 0).image;
        room.expect(image, start);
        assert_eq!(room.deadline(), Some(start + PATIENCE));
        for (pid, tid, number) in [(1, 1, 1), (2, 2, 2), (1, 3, 3)] {
            room.offer(call(pid, tid, number), start, &mut out);
        }
        assert_eq!(numbers(&mut out), [2]);
        room.ready(start + PATIENCE - Duration::from_nanos(1), &mut out);
        assert!(out.is_empty());
        room.ready(start + PATIENCE, &mut out);
        assert_eq!((numbers(&mut out), room.deadline()), (vec![1, 3], None));
        room.offer(call(1, 1, 4), start + PATIENCE, &mut out);
        assert_eq!(numbers(&mut out), [4]);

        room.expect(image, start);
        room.offer(call(1, 1, 5), start, &mut out);
        // Awaited once: no second wait begins.
        room.expect(image, start + PATIENCE / 2);
        room.offer(call(1, 1, 6), start + PATIENCE, &mut out);
        assert_eq!(numbers(&mut out), [5, 6], "those that waited first");

        room.expect(image, start);
        room.offer(call(1, 1, 7), start, &mut out);
        room.arrived(&image, &mut out);
        room.offer(call(1, 1, 8), start, &mut out);
        assert_eq!((numbers(&mut out), room.bytes), (vec![7, 8], 0));

        room.expect(image, start);
        room.offer(call(1, 1, 9), start, &mut out);
        room.clear(&mut out);
        assert_eq!((numbers(&mut out), room.deadline()), (vec![9], None));
    }

    /// Prevents a process, or many, whose calls come faster than any answer from taking more memory than there is, or the
    /// room of others.
    #[test]
    fn the_room_is_bounded() {
        let (mut room, mut out, start) = (WaitingRoom::default(), Vec::new(), Instant::now());
        for pid in 0..100 {
            room.expect(call(pid, 0, 0).image, start);
        }
        room.offer(call(99, 99, u64::MAX), start, &mut out);
        let mut made = 0;
        for number in 0..2000 {
            for pid in 0..50 {
                room.offer(call(pid, pid, number), start, &mut out);
                made += 1;
                assert!(room.bytes <= MOST && room.images.values().all(|awaited| awaited.bytes <= MOST_OF_ONE));
            }
        }
        assert!(out.iter().all(|call| call.entered_ns != u64::MAX), "the modest one still waits");
        room.clear(&mut out);
        assert_eq!(out.len(), made + 1);
        for pid in 0..50 {
            let of_one: Vec<u64> = out.iter().filter(|call| call.tid == pid).map(|call| call.entered_ns).collect();
            assert!(of_one.is_sorted(), "{pid}");
        }
        for pid in 0..2 * MOST_IMAGES as u32 {
            room.expect(call(pid, 0, 0).image, start);
        }
        assert_eq!(room.images.len(), MOST_IMAGES);
    }

    /// Prevents the calls of a thread from being told in another order than they were made, where it has called exec.
    #[test]
    fn calls_before_and_after_an_exec() {
        let (now, mut room, mut out) = (Instant::now(), WaitingRoom::default(), Vec::new());
        let after = |number| {
            let image = ImageKey { exec_id: 2, ..call(7, 7, 0).image };
            Box::new(Call { image, ..*call(7, 7, number) })
        };
        room.expect(call(7, 7, 0).image, now);
        room.offer(call(7, 7, 1), now, &mut out);
        room.expect(after(0).image, now);
        assert!(out.is_empty());
        room.offer(after(2), now, &mut out);
        room.arrived(&after(0).image, &mut out);
        room.offer(after(3), now, &mut out);
        assert_eq!(numbers(&mut out), [1, 2, 3]);
        assert!(room.processes.is_empty() && room.until.is_empty());
    }
}
