//! Which images make calls, told seldom enough for each call to be asked about. Pure code.

use crate::model::call::ImageKey;

/// Calls of an image are told of so often, in ns.
const EVERY_NS: u64 = 10_000_000_000;
/// Where two images fall on one place, each of them so often: their calls come in turns.
const IN_TURN_NS: u64 = 100_000_000;
/// As many images are kept in mind.
const PLACES: usize = 256;

/// Images that made calls, by a hash, and when that was told.
#[derive(Debug)]
pub(super) struct Called(Vec<(ImageKey, u64)>);

impl Called {
    pub(super) fn new() -> Self {
        Self(vec![(ImageKey { pid: 0, started_ns: 0, exec_id: 0 }, 0); PLACES])
    }

    /// Whether a call of this image, at this time of the kernel's clock in ns, is to be told of.
    pub(super) fn is_due(&mut self, image: &ImageKey, now_ns: u64) -> bool {
        let (last, at_ns) = &mut self.0[place(image)];
        let pause = if last == image { EVERY_NS } else { IN_TURN_NS };
        if *at_ns > 0 && now_ns.saturating_sub(*at_ns) < pause {
            return false;
        }
        (*last, *at_ns) = (*image, now_ns);
        true
    }
}

fn place(image: &ImageKey) -> usize {
    let hash = (image.started_ns ^ u64::from(image.pid)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash >> 56) as usize % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents each call of two images that fall on one place from waking the stage, and either from never being told of.
    #[test]
    fn images_on_one_place() {
        let image = |pid| ImageKey { pid, started_ns: 0, exec_id: 0 };
        let mut called = Called::new();
        // One more than there are places.
        let told = (1..=PLACES as u32 + 1).filter(|pid| called.is_due(&image(*pid), 1)).count();
        assert!((1..=PLACES).contains(&told), "{told}");
        let mut called = Called::new();
        let other = (2..).find(|pid| place(&image(*pid)) == place(&image(1))).unwrap();
        let mut told = [0, 0];
        // A second of calls in turns, each millisecond one of each.
        for ms in 1..=1000_u64 {
            for (count, pid) in told.iter_mut().zip([1, other]) {
                *count += u32::from(called.is_due(&image(pid), ms * 1_000_000));
            }
        }
        assert!(told.iter().sum::<u32>() <= 11 && told.iter().all(|count| *count > 0), "{told:?}");
    }
}
