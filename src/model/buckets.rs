//! The buckets of the exponential histograms (OpenTelemetry metrics data model, "ExponentialHistogram"): the bounds that
//! the kernel side searches, and what its buckets are in OTLP. Pure code.
//!
//! Scale 2, four buckets for each doubling, is the finest that takes 160 buckets from 84 ns to 25 hours. A bucket with
//! index i holds what lies above 2^(i/4) and not above 2^((i+1)/4), so that a whole number belongs to the bucket whose
//! number is the count of the rounded-down upper bounds below it.

/// OTLP's scale.
pub const SCALE: i32 = 2;
/// How many buckets there are, as in bpf/event.h.
pub const BUCKETS: usize = 160;
/// The index of the first bucket of durations: the smallest power of two is that of a second.
pub const FIRST_DURATION: i32 = -94;
/// The index of the first bucket of sizes, which holds a single byte.
pub const FIRST_SIZE: i32 = -1;

/// As many bounds the kernel side searches, four for each exponent of 64 bits, as in bpf/aggregate.h.
const BOUNDS: usize = 256;
const PER_DOUBLING: usize = 4;
/// A bound that is greater than every value: the kernel side compares 63 bits.
const NONE: u64 = i64::MAX.cast_unsigned();
/// 2^(k/4) for k from 0 to 3, with 62 bits behind the point.
const QUARTERS: [u128; 4] =
    [4_611_686_018_427_387_904, 5_484_249_825_272_419_511, 6_521_908_912_666_391_106, 7_755_900_482_342_532_474];

/// The largest ns in each bucket of durations.
pub fn duration_bounds() -> [u64; BOUNDS] {
    bounds(1_000_000_000, FIRST_DURATION)
}

/// The largest number of bytes in each bucket of sizes.
pub fn size_bounds() -> [u64; BOUNDS] {
    bounds(1, FIRST_SIZE)
}

/// `unit` · 2^((i+1)/4), rounded down, from the bucket `first` on. The last bucket takes everything that is greater.
fn bounds(unit: u128, first: i32) -> [u64; BOUNDS] {
    let mut bounds = [NONE; BOUNDS];
    for (bound, exponent) in bounds[..BUCKETS - 1].iter_mut().zip(first + 1..) {
        let quarter = QUARTERS[exponent.rem_euclid(4) as usize] * unit;
        let shift = 62 - exponent.div_euclid(4);
        *bound = u64::try_from(quarter >> shift).unwrap_or(NONE).min(NONE);
    }
    bounds
}

/// The ascending bounds, those from 2^n to below 2^(n+1) from 4 · n on, where there are four of them: and how many places are
/// before the first bound. A value is above as many bounds as it is above those of its own exponent, with the places before
/// these.
pub fn by_exponent(ascending: &[u64]) -> ([u64; BOUNDS], u64) {
    let exponent = ascending[0].ilog2() as usize;
    let first = ascending.iter().take_while(|bound| bound.ilog2() as usize == exponent).count();
    let none = PER_DOUBLING * (exponent + 1) - first;
    let mut bounds = [NONE; BOUNDS];
    bounds[..none].fill(0);
    for (place, bound) in bounds[none..].iter_mut().zip(ascending) {
        *place = *bound;
    }
    (bounds, none as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket_of(bounds: &[u64; BOUNDS], value: u64) -> usize {
        bounds.iter().filter(|bound| **bound < value).count()
    }

    /// Prevents a value at a bound from falling into the bucket beside its own: compared in whole numbers, to the
    /// fourth power.
    #[test]
    fn exact_at_the_bounds() {
        for (unit, first, bounds) in
            [(1_000_000_000, FIRST_DURATION, duration_bounds()), (1, FIRST_SIZE, size_bounds())]
        {
            for (number, bound) in bounds[..BUCKETS - 1].iter().enumerate() {
                // value ≤ unit · 2^(n/4) ⇔ value^4 ≤ unit^4 · 2^n
                let exponent = first + 1 + number as i32;
                let fits = |value: u64| power_at_most(value, unit, exponent);
                assert!(fits(*bound) && !fits(*bound + 1), "{unit} {number} {bound}");
            }
        }
    }

    /// Prevents the kernel side's way to a bucket, by the value's exponent, from leading to another one than the bounds do.
    #[test]
    fn by_exponent_it_is_the_same() {
        for ascending in [duration_bounds(), size_bounds()] {
            let (upper, none) = by_exponent(&ascending);
            let around = |value: u64| [value.saturating_sub(1), value, value.saturating_add(1)];
            let powers = (0..63).map(|exponent| 1_u64 << exponent);
            for value in ascending.into_iter().chain(powers).flat_map(around).filter(|value| (1..NONE).contains(value))
            {
                let first = PER_DOUBLING * value.ilog2() as usize;
                let above = upper[first..first + PER_DOUBLING].iter().filter(|bound| **bound < value).count();
                let found = (first + above).saturating_sub(none as usize).min(BUCKETS - 1);
                assert_eq!(found, bucket_of(&ascending, value), "{value}");
            }
        }
    }

    /// Whether value^4 ≤ unit^4 · 2^exponent, in limbs of 32 bits.
    fn power_at_most(value: u64, unit: u64, exponent: i32) -> bool {
        let fourth = |value: u64| {
            (0..4).fold(vec![1u32], |power, _| {
                let mut product = vec![0u64; power.len() + 3];
                for (at, limb) in power.iter().enumerate() {
                    for (shift, half) in [value & 0xffff_ffff, value >> 32].into_iter().enumerate() {
                        let mut carry = u64::from(*limb) * half;
                        let mut place = at + shift;
                        while carry > 0 {
                            let sum = product[place] + (carry & 0xffff_ffff);
                            product[place] = sum & 0xffff_ffff;
                            carry = (carry >> 32) + (sum >> 32);
                            place += 1;
                        }
                    }
                }
                product.into_iter().map(|limb| limb as u32).collect()
            })
        };
        let shifted = |mut number: Vec<u32>, bits: i32| {
            for _ in 0..bits {
                let mut carry = 0;
                for limb in &mut number {
                    let next = *limb >> 31;
                    *limb = *limb << 1 | carry;
                    carry = next;
                }
                number.push(carry);
            }
            while number.last() == Some(&0) {
                number.pop();
            }
            number.reverse();
            number
        };
        let (left, right) = (shifted(fourth(value), -exponent), shifted(fourth(unit), exponent));
        (left.len(), left) <= (right.len(), right)
    }

    /// Prevents durations and sizes from being shown in another bucket than OTLP's.
    #[test]
    fn indices() {
        let durations = duration_bounds();
        for (ns, index) in [(1_000_000_000, -1), (1_000_000_001, 0), (2_000_000_000, 3), (500_000_000, -5)] {
            assert_eq!(bucket_of(&durations, ns) as i32 + FIRST_DURATION, index, "{ns}");
        }
        assert_eq!((bucket_of(&durations, 1), bucket_of(&durations, NONE)), (0, BUCKETS - 1));
        let sizes = size_bounds();
        for (bytes, index) in [(1, -1), (2, 3), (3, 6), (4, 7), (5, 9), (1 << 24, 95)] {
            assert_eq!(bucket_of(&sizes, bytes) as i32 + FIRST_SIZE, index, "{bytes}");
        }
    }
}
