//! One step of DP-SGD (Abadi et al. 2016, arXiv 1607.00133), the part that makes the promise: a Poisson batch, each
//! example's gradient clipped onto an integer grid, an exact sum, discrete Gaussian noise.
//!
//! Each arrow is a function from one type to the next, so that a step without noise does not compile:
//!
//! ```text
//! GradientMechanism ─empty_sum─▶ GradientSum ─add─▶ … ─noised─▶ NoisedGradient ─mean─▶ the optimiser
//! ```
//!
//! What the optimiser does with the mean (scaling, momentum, the step itself) is post-processing. An empty batch is a
//! step like any other: it adds noise.

use crate::clip::{BoundError, clip_example_to_grid};
use crate::discrete_gaussian::{DiscreteGaussian, NoiseError};
use crate::noise::NoiseRng;
use std::fmt;
use undertone_core::fixed::Grid;
use undertone_core::trainer::RecordPrivacy;

/// A Poisson sample: each of 0..`rows` is in it independently, with a probability of `rate` (0 to 1) rounded down to
/// a multiple of 2^-64, never more. `bits` gives 64 uniform bits a call: amplification by sampling is a promise as much
/// as noise is, so they must come from a generator that cannot be predicted.
pub fn poisson_batch(rows: usize, rate: f64, mut bits: impl FnMut() -> u64) -> impl Iterator<Item = usize> {
    // Multiplying by a power of two is exact, truncation rounds down. 2^64 itself, at rate 1, needs the wider type.
    let threshold = (rate * 18_446_744_073_709_551_616.0) as u128;
    (0..rows).filter(move |_| u128::from(bits()) < threshold)
}

/// Clipping and noise of one contract, on one grid.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GradientMechanism {
    clip_norm: f64,
    grid: Grid,
    noise: DiscreteGaussian,
    scale: f64,
}

impl GradientMechanism {
    /// The mechanism of a record-level contract.
    ///
    /// The grid has 2^16 to 2^17 units in the clip norm where it can: rounding then moves a clipped gradient by less
    /// than noise of any worth does, and the sum of all rows stays far from overflow. The noise is `noise_multiplier`
    /// times the integer bound ⌊clip_norm·2^bits⌋ that clipping keeps, rounded up.
    ///
    /// # Errors
    /// [`NoiseError`] if the clip norm suits no grid, or the noise cannot be drawn on it.
    pub fn new(privacy: &RecordPrivacy) -> Result<Self, NoiseError> {
        let clip_norm = privacy.clip_norm;
        if !(clip_norm.is_finite() && clip_norm > 0.0) {
            return Err(BoundError::NotPositive(clip_norm).into());
        }
        let bits = (16 - libm::ilogb(clip_norm)).clamp(4, 28);
        let grid = Grid::new(bits as u8).expect("4 to 28 bits make a grid");
        let noise = DiscreteGaussian::for_clipped_sum(privacy.noise_multiplier, clip_norm, grid)?;
        let scale = 1.0 / (grid.units_per_one() * privacy.expected_batch);
        Ok(Self { clip_norm, grid, noise, scale })
    }

    /// The sum of no gradients of `len` values.
    pub fn empty_sum(&self, len: usize) -> GradientSum<'_> {
        GradientSum { mechanism: self, units: vec![0; len] }
    }

    /// The L2 norm that each gradient is scaled down to.
    pub fn clip_norm(&self) -> f64 {
        self.clip_norm
    }

    /// The grid that gradients are summed on.
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// The standard deviation of the noise, in units of the grid.
    pub fn sigma(&self) -> f64 {
        self.noise.sigma()
    }
}

/// The exact sum of clipped gradients: private, not to leave the step, and not printed.
pub struct GradientSum<'a> {
    mechanism: &'a GradientMechanism,
    units: Vec<i64>,
}

impl GradientSum<'_> {
    /// Adds one example's gradient, clipped; one that is not finite counts as zero, and nobody is told: whether it was
    /// finite is a secret of the record.
    ///
    /// # Panics
    /// If the gradient is not of the sum's length.
    pub fn add(&mut self, gradient: &[f32]) {
        let GradientMechanism { clip_norm, grid, .. } = *self.mechanism;
        let _was_finite = clip_example_to_grid(gradient, clip_norm, grid, &mut self.units)
            .expect("the mechanism was made for this clip norm and grid");
    }

    /// Adds the noise, once.
    pub fn noised(mut self, rng: &mut NoiseRng) -> NoisedGradient {
        self.mechanism.noise.add_to(&mut self.units, rng);
        NoisedGradient { units: self.units, scale: self.mechanism.scale }
    }
}

impl fmt::Debug for GradientSum<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GradientSum({} values)", self.units.len())
    }
}

/// What a step may use: the noised sum.
#[derive(Debug, Clone, PartialEq)]
pub struct NoisedGradient {
    units: Vec<i64>,
    scale: f64,
}

impl NoisedGradient {
    /// The noised sum over the *expected* batch, a public constant.
    pub fn mean(&self) -> impl ExactSizeIterator<Item = f64> + '_ {
        self.units.iter().map(move |&u| u as f64 * self.scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use undertone_core::fixed::integer_bound;

    fn privacy(clip_norm: f64, noise_multiplier: f64) -> RecordPrivacy {
        RecordPrivacy { clip_norm, noise_multiplier, sampling_rate: 0.5, expected_batch: 2.0 }
    }

    #[test]
    fn sigma_is_not_rounded_down_on_any_grid() {
        for clip_norm in [1e-5, 0.01, 0.7, 1.0, 1.9999, 2.0, 123.4, 1e5] {
            for noise_multiplier in [0.3, 1.1, 7.7] {
                let m = GradientMechanism::new(&privacy(clip_norm, noise_multiplier)).unwrap();
                let units = integer_bound(m.grid(), clip_norm);
                assert!(m.sigma() >= noise_multiplier * units as f64, "{clip_norm} {noise_multiplier}");
                assert!(m.sigma() <= noise_multiplier * units as f64 * 1.001);
                if (0.001..1000.0).contains(&clip_norm) {
                    assert!((1 << 16..=1 << 17).contains(&units), "{clip_norm}: {units} units");
                }
                let mut sum = m.empty_sum(3);
                sum.add(&[1e9, -1e9, 1e9]);
                let squared: i128 = sum.units.iter().map(|&u| i128::from(u) * i128::from(u)).sum();
                assert!(squared <= i128::from(units) * i128::from(units), "{sum:?} beyond {units}");
            }
        }
    }

    #[test]
    fn what_suits_no_grid_is_refused() {
        for clip_norm in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-300, 1e300] {
            assert!(GradientMechanism::new(&privacy(clip_norm, 1.0)).is_err(), "{clip_norm}");
        }
        for noise_multiplier in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(GradientMechanism::new(&privacy(1.0, noise_multiplier)).is_err(), "{noise_multiplier}");
        }
    }

    #[test]
    fn an_empty_batch_and_one_that_is_not_finite_are_noised_like_any_other() {
        let m = GradientMechanism::new(&privacy(1.0, 1.0)).unwrap();
        for gradient in [None, Some(f32::NAN), Some(f32::INFINITY)] {
            let mut rng = NoiseRng::seeded_for_tests(5);
            let mut sum = m.empty_sum(10_000);
            if let Some(bad) = gradient {
                sum.add(&vec![bad; 10_000]);
            }
            let noised = sum.noised(&mut rng);
            // σ is the clip norm; the mean is over an expected batch of two.
            let deviation = (noised.mean().map(|v| v * v).sum::<f64>() / 10_000.0).sqrt();
            assert!((0.48..0.52).contains(&deviation), "{deviation}");
        }
    }

    proptest! {
        #[test]
        fn the_mean_is_that_of_clipped_gradients_up_to_the_noise(
            gradients in prop::collection::vec(prop::collection::vec(-2f32..2.0, 3), 0..6), seed: u64,
        ) {
            // With the least noise there is, the mean shows what was summed.
            let m = GradientMechanism::new(&privacy(1.0, 1e-6)).unwrap();
            let mut sum = m.empty_sum(3);
            let mut wanted = [0.0; 3];
            for g in &gradients {
                sum.add(g);
                let norm = g.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
                wanted.iter_mut().zip(g).for_each(|(w, &v)| *w += f64::from(v) / norm.max(1.0) / 2.0);
            }
            let noised = sum.noised(&mut NoiseRng::seeded_for_tests(seed));
            prop_assert!(noised.mean().zip(wanted).all(|(m, w)| (m - w).abs() < 1e-3));
        }

        #[test]
        fn a_batch_is_in_order_and_within_the_rows(rows in 0usize..500, rate in 0f64..=1.0, seed: u64) {
            let mut rng = NoiseRng::seeded_for_tests(seed);
            let batch: Vec<usize> = poisson_batch(rows, rate, || rng.bits()).collect();
            prop_assert!(batch.is_sorted() && batch.iter().all(|&row| row < rows));
            prop_assert_eq!(rng.words_drawn(), rows as u64);
            let expected = rate * rows as f64;
            prop_assert!((batch.len() as f64 - expected).abs() <= 7.0 * (expected + 1.0).sqrt());
            prop_assert_eq!(poisson_batch(rows, 1.0, || u64::MAX).count(), rows);
            prop_assert_eq!(poisson_batch(rows, 0.0, || 0).count(), 0);
        }
    }
}
