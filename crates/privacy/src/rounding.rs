//! To the nearest integer, of two equally near to the even one: without a branch or a call, so that loops become vector
//! instructions. Baseline x86-64 has no instruction for it.

/// As both kinds of number; for magnitudes of at most 2^51.
#[inline]
pub(crate) fn nearest(x: f64) -> (f64, i64) {
    // Where one unit is the last bit of the sum.
    const LAST_BIT_IS_ONE: f64 = 1.5 * (1u64 << 52) as f64;
    let sum = x + LAST_BIT_IS_ONE;
    (sum - LAST_BIT_IS_ONE, sum.to_bits() as i64 - LAST_BIT_IS_ONE.to_bits() as i64)
}

/// The same for any number.
#[inline]
pub(crate) fn round(x: f64) -> f64 {
    // From here on all numbers are integers.
    const INTEGERS: f64 = (1u64 << 52) as f64;
    let size = x.abs();
    let rounded = (size + INTEGERS) - INTEGERS;
    (if size < INTEGERS { rounded } else { size }).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_is_both_kinds_of_number() {
        for (x, k) in [
            (0.4, 0),
            (-0.6, -1),
            (0.5, 0),
            (-1.5, -2),
            (1e12 + 0.6, 1_000_000_000_001),
            (-7.0, -7),
            (0.0, 0),
            (-2f64.powi(51), -(1 << 51)),
        ] {
            assert_eq!(nearest(x), (k as f64, k));
        }
    }

    #[test]
    fn any_number_is_rounded_like_ieee_754_says() {
        let halves = (-9..9).map(|i| f64::from(i) / 2.0);
        let large = (48..54).flat_map(|bits| {
            (0..40)
                .map(move |i| libm::ldexp(1.0, bits) + f64::from(i) * libm::ldexp(1.0, (bits - 53).max(-2)))
        });
        for x in halves.chain(large).chain([0.3, 1e-300, 1e300, f64::MAX, f64::INFINITY, 123_456.7]) {
            for x in [x, -x, x.next_up(), x.next_down()] {
                assert_eq!(round(x).to_bits(), x.round_ties_even().to_bits(), "{x:e}");
            }
        }
        assert!(round(f64::NAN).is_nan());
    }
}
