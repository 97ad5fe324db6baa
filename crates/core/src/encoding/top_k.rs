//! Which values a sparse update keeps: the k that are furthest from zero.
//!
//! k is a fixed share of the vector ([`kept`]), so that the size of a message is bounded before it is made. The k-th
//! largest magnitude is found by counting digits from the highest down (two to four passes over the vector, no copy of it);
//! among equal magnitudes the first positions win, so that the choice is a function of the values alone.

/// How many of `values` values are sent: the share `fraction`, rounded up.
pub fn kept(fraction: f64, values: usize) -> usize {
    ((fraction * values as f64).ceil() as usize).clamp(values.min(1), values)
}

/// What a magnitude must have to be among the k largest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Threshold {
    magnitude: u32,
    /// How many with exactly this magnitude are among them.
    ties: usize,
}

/// Bits of the digits that are counted at once.
const DIGIT: u32 = 11;

impl Threshold {
    /// The threshold of the `k` largest, 1 ≤ k ≤ their number.
    pub(super) fn of(magnitudes: impl Iterator<Item = u32> + Clone, k: usize) -> Self {
        // Bits that no magnitude has are not looked at: they would all be counted as the same digit.
        let mut above = 32 - magnitudes.clone().fold(0, |all, m| all | m).leading_zeros();
        // Of the k, `ties` have this prefix; the others are larger.
        let (mut prefix, mut ties) = (0u64, k);
        while above > 0 {
            let shift = above.saturating_sub(DIGIT);
            let (mut counts, mask) = (vec![0usize; 1 << (above - shift)], (1 << (above - shift)) - 1);
            for m in magnitudes.clone() {
                if u64::from(m) >> above == prefix {
                    counts[(m >> shift) as usize & mask] += 1;
                }
            }
            let digit = (0..counts.len()).rev().find(|&digit| {
                let enough = counts[digit] >= ties;
                ties -= if enough { 0 } else { counts[digit] };
                enough
            });
            prefix = prefix << (above - shift) | digit.expect("there are at least k") as u64;
            above = shift;
        }
        let magnitude = prefix as u32;
        Self { magnitude, ties }
    }

    /// Whether the next magnitude, in the order of positions, is among the k.
    #[inline]
    pub(super) fn admits(&mut self, magnitude: u32) -> bool {
        if magnitude == self.magnitude && self.ties > 0 {
            self.ties -= 1;
            return true;
        }
        magnitude > self.magnitude
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_share_is_rounded_up() {
        assert_eq!([kept(0.01, 0), kept(0.01, 1), kept(0.01, 100), kept(0.01, 101)], [0, 1, 1, 2]);
        assert_eq!([kept(0.5, 3), kept(1e-300, 7)], [2, 1]);
    }

    proptest! {
        #[test]
        fn the_k_largest_are_chosen_and_the_first_of_equals(
            magnitudes in prop::collection::vec(prop_oneof![0u32..4, any::<u32>(), Just(1 << 21)], 1..80),
            k in 1usize..80,
        ) {
            let k = k.min(magnitudes.len());
            let mut order: Vec<usize> = (0..magnitudes.len()).collect();
            order.sort_by_key(|&i| (std::cmp::Reverse(magnitudes[i]), i));
            order.truncate(k);
            order.sort_unstable();
            let mut threshold = Threshold::of(magnitudes.iter().copied(), k);
            let chosen: Vec<usize> = (0..magnitudes.len()).filter(|&i| threshold.admits(magnitudes[i])).collect();
            prop_assert_eq!(chosen, order);
        }
    }
}
