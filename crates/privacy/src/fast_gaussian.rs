//! Gaussian noise for large models: a ziggurat over the CSPRNG, rounded to the grid. Only where a contract chooses it.
//!
//! Drawn as floating-point numbers (`normal` has the ziggurat), some ten times as fast as [`crate::discrete_gaussian`]. The sum that it
//! is added to is an integer, so adding and then rounding is the same as adding rounded noise: in real arithmetic the release is
//! post-processing of the Gaussian mechanism with this σ.
//!
//! **Caveat.** A computer's Gaussian is not the real one. Floating-point noise has gaps and repeated values that can
//! give away what it was added to (Mironov 2012; Jin et al. 2022, arXiv 2112.05307), and how long a draw takes depends
//! on its value. Rounding to the grid coarsens the gaps (one unit spans 2^50/σ of them) and values beyond 12.3σ
//! (probability below 1e-33) never occur, but nothing here is *proved* about the floating-point numbers. Therefore it is
//! never the default, and only two contracts can choose it, which the type says: a central one, whose coordinator is trusted
//! with the sum anyway ([`ClientCentral`]), and a record-level one whose clients sum gradients in floating point
//! ([`crate::dp_sgd`]). There is no other way to it.

use crate::discrete_gaussian::{DiscreteGaussian, NoiseError};
use crate::noise::NoiseRng;
use crate::normal::Normals;
use crate::resolve::ClientCentral;
use crate::rounding::nearest;
use std::fmt;
use undertone_core::fixed::Grid;

/// Floating-point Gaussian noise on the grid; σ in units.
///
/// ```compile_fail,E0451
/// // Not from a loose number: the evidence of a central contract is needed.
/// let noise = undertone_privacy::fast_gaussian::FastGaussian { sigma: 4.0 };
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FastGaussian {
    sigma: f64,
}

impl FastGaussian {
    /// The noise for a sum of updates clipped to `clip_norm` under a central contract: σ as in
    /// [`crate::release::Release`].
    ///
    /// # Errors
    /// [`NoiseError`] if the clip norm does not suit the grid, or σ is out of the range that
    /// [`DiscreteGaussian`] has.
    pub fn for_clipped_sum(terms: ClientCentral<'_>, clip_norm: f64, grid: Grid) -> Result<Self, NoiseError> {
        Self::new(terms.sensitivity(clip_norm, grid)?.sigma(terms.update_noise()))
    }

    /// The noise for floating-point sums of clipped gradients, of which one record moves at most `sensitivity` units.
    ///
    /// # Errors
    /// As of [`Self::for_clipped_sum`].
    pub(crate) fn for_float_sums(noise_multiplier: f64, sensitivity: f64) -> Result<Self, NoiseError> {
        Self::new((noise_multiplier * sensitivity).next_up())
    }

    fn new(sigma: f64) -> Result<Self, NoiseError> {
        if (DiscreteGaussian::MIN_SIGMA..=DiscreteGaussian::MAX_SIGMA).contains(&sigma) {
            Ok(Self { sigma })
        } else {
            Err(NoiseError::Sigma(sigma))
        }
    }

    /// The standard deviation in grid units, before rounding (which adds 1/12 to the variance).
    pub fn sigma(&self) -> f64 {
        self.sigma
    }

    /// The noise of one vector, which may come in parts.
    pub fn vector(&self, rng: &mut NoiseRng) -> FastNoise {
        FastNoise { sigma: self.sigma, normals: Box::new(Normals::keyed_by(rng)) }
    }

    /// Adds an independent draw to each of `units`. A draw is below 2^44.
    pub fn add_to(&self, units: &mut [i64], rng: &mut NoiseRng) {
        self.vector(rng).add_to(units);
    }
}

/// The noise of one vector: however that is cut, the same.
pub struct FastNoise {
    sigma: f64,
    normals: Box<Normals>,
}

impl FastNoise {
    /// Adds the next independent draws to `units`. A draw is below 2^44.
    pub fn add_to(&mut self, units: &mut [i64]) {
        self.draws(units, |unit, draw| *unit += nearest(draw).1);
    }

    /// Gives each of `values` the next independent draw, which is not rounded yet.
    pub(crate) fn draws<T>(&mut self, mut values: &mut [T], give: impl Fn(&mut T, f64)) {
        let sigma = self.sigma;
        while !values.is_empty() {
            let draws = self.normals.some(values.len());
            let (now, later) = values.split_at_mut(draws.len());
            now.iter_mut().zip(draws).for_each(|(value, &draw)| give(value, draw * sigma));
            values = later;
        }
    }
}

impl fmt::Debug for FastNoise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FastNoise(sigma {})", self.sigma)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::assert_conforms;
    use crate::contract::{Noise, PrivacyContract};
    use crate::resolve::{Schedule, Terms};

    #[test]
    fn draws_follow_the_rounded_normal() {
        for sigma in [0.25, 1.0, 7.3, 40.0] {
            let noise = FastGaussian::new(sigma).unwrap();
            let mut rng = NoiseRng::seeded_for_tests(sigma.to_bits());
            let mut draws = vec![0; 1_000_000];
            noise.add_to(&mut draws, &mut rng);
            let tail = |x: f64| libm::erfc(x / (sigma * std::f64::consts::SQRT_2)) / 2.0;
            // As a difference of upper tails, which keeps its accuracy far out.
            let cell = |k: i64| match k.unsigned_abs() as f64 {
                0.0 => 1.0 - 2.0 * tail(0.5),
                k => tail(k - 0.5) - tail(k + 0.5),
            };
            assert_conforms(draws.into_iter(), cell, sigma);
        }
    }

    /// Kolmogorov and Smirnov's distance to the normal, where the grid is too fine for cells.
    #[test]
    fn wide_draws_are_normal() {
        let sigma = 1e6;
        let mut rng = NoiseRng::seeded_for_tests(9);
        let mut draws = vec![0; 200_000];
        FastGaussian::new(sigma).unwrap().add_to(&mut draws, &mut rng);
        draws.sort_unstable();
        let n = draws.len() as f64;
        let distance = draws
            .iter()
            .enumerate()
            .map(|(i, &k)| {
                let p = libm::erfc(-(k as f64) / (sigma * std::f64::consts::SQRT_2)) / 2.0;
                (p - i as f64 / n).abs().max((p - (i as f64 + 1.0) / n).abs())
            })
            .fold(0.0, f64::max);
        // 1.95/√n is exceeded once in a thousand times; the seed is fixed.
        assert!(distance < 1.95 / n.sqrt(), "{distance}");
    }

    #[test]
    fn sigma_is_the_contracts() {
        let grid = Grid::new(16).unwrap();
        let contract = PrivacyContract::client_central(0.5, Noise::Multiplier(3.0), 1e-5, 50.0).unwrap();
        let resolved = contract.resolve(Schedule { rounds: 3, local_steps: 1 }).unwrap();
        let Terms::ClientCentral(terms) = resolved.terms() else { panic!("a central contract") };
        let noise = FastGaussian::for_clipped_sum(terms, 0.5, grid).unwrap();
        let exact = DiscreteGaussian::for_clipped_sum(3.0, 0.5, grid).unwrap();
        assert!(noise.sigma() >= 3.0 * 32_768.0);
        assert!((noise.sigma() / exact.sigma() - 1.0).abs() < 1e-6);
        assert!(matches!(
            FastGaussian::for_clipped_sum(terms, 0.5, Grid::new(4).unwrap()),
            Err(NoiseError::Bound(_))
        ));
        assert!(FastGaussian::new(f64::NAN).is_err());
    }
}
