//! Sorting networks: the same comparisons for every column, so that many columns are sorted side by side.
//!
//! A comparator puts the smaller of two lines first. There is no branch, and a processor does it to four or eight
//! columns in two instructions. The network is Batcher's merge exchange (Knuth, The Art of Computer Programming,
//! volume 3, section 5.2.2, algorithm M), which works for any number of lines; comparators whose outcome nobody looks
//! at are left out.
//!
//! Lines hold integers in the clothes of floats: x86-64 without extensions has a minimum of f32 and none of i32. See
//! [`dress`].

/// Columns that are sorted side by side. 32 lines of as many are 8 KiB.
pub(crate) const WIDTH: usize = 64;

/// One line: a value of each column.
pub(crate) type Line = [f32; WIDTH];

/// Comparators, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Network(Vec<(u32, u32)>);

impl Network {
    /// Sorts all lines.
    pub(crate) fn sorting(lines: usize) -> Self {
        let mut comparators = Vec::new();
        let top = lines.next_power_of_two() / 2;
        let mut p = top;
        while p > 0 {
            let (mut q, mut r, mut d) = (top, 0, p);
            loop {
                let pairs = (0..lines.saturating_sub(d)).filter(|i| i & p == r);
                comparators.extend(pairs.map(|i| (i as u32, (i + d) as u32)));
                if q == p {
                    break;
                }
                (d, q, r) = (q - p, q / 2, p);
            }
            p /= 2;
        }
        Self(comparators)
    }

    /// Only tells which lines are the `middle`, in no particular order: the lines outside keep nothing of use.
    ///
    /// Going backwards: as long as two lines are both in the middle, or both outside, and nothing later compares
    /// either, it does not matter which value is on which.
    pub(crate) fn separating(lines: usize, middle: std::ops::Range<usize>) -> Self {
        let Self(all) = Self::sorting(lines);
        // What becomes of a line; lines with the same fate may be swapped.
        let mut fate: Vec<usize> = (0..lines).map(|line| usize::from(middle.contains(&line))).collect();
        let mut kept = Vec::with_capacity(all.len());
        for (upper, lower) in all.into_iter().rev() {
            let (i, j) = (upper as usize, lower as usize);
            if fate[i] != fate[j] {
                (fate[i], fate[j]) = (2 + 2 * kept.len(), 3 + 2 * kept.len());
                kept.push((upper, lower));
            }
        }
        kept.reverse();
        Self(kept)
    }

    /// Comparators.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Runs the comparators over the lines.
    pub(crate) fn run(&self, lines: &mut [Line]) {
        for &(upper, lower) in &self.0 {
            let (head, tail) = lines.split_at_mut(lower as usize);
            exchange(&mut head[upper as usize], &mut tail[0]);
        }
    }
}

#[inline(always)]
fn exchange(upper: &mut Line, lower: &mut Line) {
    for (a, b) in upper.iter_mut().zip(lower) {
        let (x, y) = (*a, *b);
        *a = if x < y { x } else { y };
        *b = if x > y { x } else { y };
    }
}

/// 2^23: makes the smallest magnitude a normal float.
const NORMAL: i32 = 1 << 23;

/// An f32 in whose order the integer stands: sign and magnitude, the magnitude read as the bits of a float. For
/// |u| < 2^30 and 2^23 more these bits are those of a normal number below 4.0, and there is one zero, so that no
/// setting of the processor (flush to zero) and no NaN comes into it.
#[inline(always)]
pub(crate) fn dress(unit: i32) -> f32 {
    let negative = unit >> 31;
    let magnitude = (unit ^ negative).wrapping_sub(negative);
    f32::from_bits((magnitude.wrapping_add(NORMAL) | (unit & i32::MIN)) as u32)
}

/// The integer back.
#[inline(always)]
pub(crate) fn undress(value: f32) -> i32 {
    let bits = value.to_bits() as i32;
    let negative = bits >> 31;
    let magnitude = (bits & i32::MAX).wrapping_sub(NORMAL);
    (magnitude ^ negative).wrapping_sub(negative)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixed::MAX_FIXED;

    /// The zero-one principle (Knuth 5.3.4 Z): a network that sorts all zeros and ones sorts everything.
    fn sorted_zeros_and_ones(network: &Network, lines: usize, check: impl Fn(&[bool], u32)) {
        for pattern in 0u32..1 << lines {
            let mut bits: Vec<bool> = (0..lines).map(|i| pattern >> i & 1 == 1).collect();
            for &(i, j) in &network.0 {
                let (a, b) = (bits[i as usize], bits[j as usize]);
                (bits[i as usize], bits[j as usize]) = (a & b, a | b);
            }
            check(&bits, pattern.count_ones());
        }
    }

    #[test]
    fn every_network_up_to_16_lines_sorts_all_zeros_and_ones() {
        for lines in 1..=16 {
            sorted_zeros_and_ones(&Network::sorting(lines), lines, |bits, _| assert!(bits.is_sorted()));
        }
        assert_eq!(Network::sorting(16).len(), 63, "Batcher's count");
        assert_eq!(Network::sorting(32).len(), 191, "Batcher's count");
    }

    #[test]
    fn every_separation_up_to_13_lines_has_the_right_values_in_the_middle() {
        for lines in 1..=13 {
            for trim in 0..=(lines - 1) / 2 {
                let middle = trim..lines - trim;
                let network = Network::separating(lines, middle.clone());
                sorted_zeros_and_ones(&network, lines, |bits, ones| {
                    let first_one = (lines - ones as usize).clamp(trim, lines - trim);
                    let wanted = lines - trim - first_one;
                    assert_eq!(bits[middle.clone()].iter().filter(|b| **b).count(), wanted, "{lines} {trim}");
                });
            }
        }
        assert_eq!(Network::separating(9, 0..9).len(), 0, "a sum needs no order");
        assert!(Network::separating(32, 15..17).len() < Network::sorting(32).len());
    }

    #[test]
    fn dressed_integers_keep_their_order_and_come_back() {
        let mut list: Vec<i32> =
            vec![-MAX_FIXED, MAX_FIXED, 0, 1, -1, 1 << 23, -(1 << 23), (1 << 23) - 1, 1 << 29];
        list.extend((0..2000i32).map(|i| i.wrapping_mul(-1_640_531_527) >> 1));
        list.extend((0..2000i32).map(|i| i.wrapping_mul(-1_640_531_527) >> 12));
        list.sort_unstable();
        list.dedup();
        for pair in list.windows(2) {
            assert!(dress(pair[0]) < dress(pair[1]), "{pair:?}");
        }
        assert!(list.iter().all(|&u| undress(dress(u)) == u && dress(u).is_normal()));
    }
}
