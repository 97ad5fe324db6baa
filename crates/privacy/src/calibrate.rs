//! From a target ε to the least noise that keeps it.

use crate::rdp::{MAX_NOISE_MULTIPLIER, MIN_NOISE_MULTIPLIER, RdpCurve};

/// The smallest noise multiplier (to one part in a million, on the safe side) at which `steps` steps stay within
/// `epsilon` at `delta`. `None` if even [`MAX_NOISE_MULTIPLIER`] is too little.
///
/// ε falls as noise grows, so bisection finds it; the bound that is given back was itself found to hold.
pub(crate) fn least_noise(sampling_rate: f64, steps: u64, delta: f64, epsilon: f64) -> Option<f64> {
    let holds = |z: f64| RdpCurve::new(z, sampling_rate).is_ok_and(|c| c.epsilon(steps, delta) <= epsilon);
    let (mut low, mut high) = (MIN_NOISE_MULTIPLIER, MIN_NOISE_MULTIPLIER);
    while !holds(high) {
        if high == MAX_NOISE_MULTIPLIER {
            return None;
        }
        low = high;
        high = (high * 2.0).min(MAX_NOISE_MULTIPLIER);
    }
    while high - low > 1e-6 * high {
        let middle = f64::midpoint(low, high);
        if holds(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meets_the_reference_and_is_the_least() {
        // dp-accounting 0.6.0, Rényi accountant.
        let z = least_noise(0.01, 1000, 1e-5, 2.0).unwrap();
        assert!((z / 1.022_289_845_5 - 1.0).abs() < 2e-6, "{z}");
        for (q, steps, delta, epsilon) in
            [(0.25, 40, 1e-3, 5.0), (1.0, 50, 1e-5, 8.0), (0.001, 10, 1e-6, 0.01)]
        {
            let z = least_noise(q, steps, delta, epsilon).unwrap();
            assert!(RdpCurve::new(z, q).unwrap().epsilon(steps, delta) <= epsilon);
            assert!(RdpCurve::new(z * 0.999_99, q).unwrap().epsilon(steps, delta) > epsilon);
        }
    }

    #[test]
    fn the_ends_of_the_range() {
        assert_eq!(least_noise(0.01, 1, 1e-3, 1000.0), Some(MIN_NOISE_MULTIPLIER));
        assert_eq!(least_noise(1.0, 1_000_000_000_000, 1e-9, 1e-6), None);
    }
}
