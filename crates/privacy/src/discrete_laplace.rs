//! The discrete Laplace distribution, sampled exactly (Canonne, Kamath and Steinke 2020, arXiv 2004.00010), for
//! counts and other small integer statistics.
//!
//! `Pr[k] ∝ e^(-|k|/s)`. On a statistic of L1 sensitivity Δ it is Δ/s-differentially private, with δ = 0. Not for
//! models: an L2-clipped vector of d values has an L1 norm of up to √d times its L2 norm, and the noise grows with it.
//! The statistic and its sensitivity come from [`crate::l1`].
//!
//! All randomness is integer trials with rational odds; no floating-point number is drawn.

use crate::noise::NoiseRng;
use crate::sensitivity::L1Sensitivity;

/// A discrete Laplace distribution of scale numerator/denominator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiscreteLaplace {
    numerator: u64,
    denominator: u64,
}

/// Why there is no such noise.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum LaplaceError {
    /// The scale is out of range.
    #[error(
        "discrete Laplace noise of scale {0} cannot be drawn exactly: it must be between 2^-10 and 2^40; change \
         epsilon or the bound of the statistic"
    )]
    Scale(f64),
    /// ε is no promise.
    #[error("epsilon must be a finite number above 0, not {0}")]
    Epsilon(f64),
}

impl DiscreteLaplace {
    /// Smallest scale.
    pub const MIN_SCALE: f64 = 1.0 / 1024.0;
    /// Largest scale.
    pub const MAX_SCALE: f64 = (1u64 << 40) as f64;
    /// Values beyond this many scales (probability below e^-65535) are thrown away rather than truncated.
    const MAX_SCALES: u64 = 1 << 16;

    /// The distribution of a scale of at least `scale`, rounded up by at most one part in 2^20 (2^12 near
    /// [`Self::MIN_SCALE`]).
    ///
    /// # Errors
    /// [`LaplaceError::Scale`] outside [`Self::MIN_SCALE`] to [`Self::MAX_SCALE`].
    pub fn new(scale: f64) -> Result<Self, LaplaceError> {
        if !(Self::MIN_SCALE..=Self::MAX_SCALE).contains(&scale) {
            return Err(LaplaceError::Scale(scale));
        }
        // Multiplying by a power of two is exact, so that only `ceil` changes the number, upwards.
        let mut denominator = 1u64 << 22;
        while denominator > 1 && scale * denominator as f64 > Self::MAX_SCALE {
            denominator >>= 1;
        }
        Ok(Self { numerator: (scale * denominator as f64).ceil() as u64, denominator })
    }

    /// The noise that makes a statistic of this sensitivity `epsilon`-differentially private: a scale of Δ/ε, rounded
    /// up.
    ///
    /// # Errors
    /// [`LaplaceError`] if `epsilon` is not a finite number above zero, or the scale is out of range.
    pub fn for_epsilon(sensitivity: L1Sensitivity, epsilon: f64) -> Result<Self, LaplaceError> {
        if !(epsilon.is_finite() && epsilon > 0.0) {
            return Err(LaplaceError::Epsilon(epsilon));
        }
        Self::new((sensitivity.units() as f64 / epsilon).next_up())
    }

    /// The scale, as it was rounded up.
    pub fn scale(&self) -> f64 {
        self.numerator as f64 / self.denominator as f64
    }

    /// One draw, by the paper's rejection sampler.
    pub fn sample(&self, rng: &mut NoiseRng) -> i64 {
        loop {
            // X has Pr[x] ∝ e^(-x/numerator), and ⌊X/denominator⌋ then the scale that is wanted.
            let low = rng.below(self.numerator);
            if !bernoulli_exp(low, self.numerator, rng) {
                continue;
            }
            let mut scales = 0;
            while scales < Self::MAX_SCALES && bernoulli_inverse_e(rng) {
                scales += 1;
            }
            if scales == Self::MAX_SCALES {
                continue;
            }
            let magnitude = ((low + self.numerator * scales) / self.denominator) as i64;
            let negative = rng.bits() & 1 == 1;
            // Zero would come up twice as often as it should.
            if !(negative && magnitude == 0) {
                return if negative { -magnitude } else { magnitude };
            }
        }
    }

    /// Adds an independent draw to each of `values`. A draw is below 2^57.
    pub fn add_to(&self, values: &mut [i64], rng: &mut NoiseRng) {
        for value in values {
            *value += self.sample(rng);
        }
    }
}

/// True with probability e^(-n/d), n < d: the first k at which a trial with odds n/(d·k) fails is odd.
///
/// A trial with odds n/(d·k) is two, with odds 1/k and n/d, so that no product d·k has to fit.
#[inline]
fn bernoulli_exp(n: u64, d: u64, rng: &mut NoiseRng) -> bool {
    let mut k = 1;
    while (k == 1 || rng.below(k) == 0) && rng.below(d) < n {
        k += 1;
    }
    k % 2 == 1
}

/// True with probability 1/e.
#[inline]
fn bernoulli_inverse_e(rng: &mut NoiseRng) -> bool {
    // At k = 1 the trial with odds 1/k cannot fail.
    let mut k = 2;
    while rng.below(k) == 0 {
        k += 1;
    }
    k % 2 == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::assert_conforms;

    #[test]
    fn draws_have_the_exact_probabilities() {
        for scale in [0.25f64, 1.0, 2.5, 40.0] {
            let noise = DiscreteLaplace::new(scale).unwrap();
            assert_eq!(noise.scale(), scale);
            let mut rng = NoiseRng::seeded_for_tests(scale.to_bits());
            let draws = (0..1_000_000).map(|_| noise.sample(&mut rng));
            assert_conforms(draws, |k| libm::exp(-(k.unsigned_abs() as f64) / scale), scale * 1.5);
        }
    }

    #[test]
    fn the_scale_is_never_below_what_epsilon_needs() {
        for bound in [1, 3, 1000] {
            for epsilon in [1e-3, 0.1, 0.3, 1.0, 7.0, 700.0] {
                let sensitivity = L1Sensitivity::of_bounded(bound, crate::sensitivity::Adjacency::ReplaceOne);
                match DiscreteLaplace::for_epsilon(sensitivity, epsilon) {
                    Ok(noise) => {
                        let least = 2.0 * bound as f64 / epsilon;
                        assert!(noise.scale() >= least && noise.scale() < least * 1.0003);
                    }
                    Err(e) => panic!("{bound} {epsilon}: {e}"),
                }
            }
        }
    }

    #[test]
    fn what_promises_nothing_is_refused() {
        let one = L1Sensitivity::of_bounded(1, crate::sensitivity::Adjacency::AddRemove);
        for epsilon in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(DiscreteLaplace::for_epsilon(one, epsilon), Err(LaplaceError::Epsilon(_))));
        }
        for scale in [0.0, -1.0, 1e-4, f64::NAN, f64::INFINITY, 2e12] {
            assert!(matches!(DiscreteLaplace::new(scale), Err(LaplaceError::Scale(_))), "{scale}");
        }
        let wide = DiscreteLaplace::new(DiscreteLaplace::MAX_SCALE).unwrap();
        let mut rng = NoiseRng::seeded_for_tests(1);
        assert!((0..1000).all(|_| wide.sample(&mut rng).unsigned_abs() < 1 << 46));
    }
}
