//! Mechanisms that the accountant knows, with their numbers checked, and what neighbouring means.

use super::AccountantError;
use crate::rdp::{MAX_NOISE_MULTIPLIER, MIN_NOISE_MULTIPLIER};
pub use crate::sensitivity::Adjacency;

/// A mechanism with its numbers, all relative to its sensitivity. Only checked ones exist.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mechanism(pub(super) Kind);

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Gaussian { z: f64 },
    Gdp { mu: f64 },
    PoissonGaussian { z: f64, q: f64 },
    TruncatedPoissonGaussian { z: f64, q: f64, population: u64, cap: u64 },
    Laplace { scale: f64 },
    DiscreteLaplace { rate: f64, sensitivity: u32 },
    DiscreteGaussian { sigma: f64, sensitivity: u32 },
}

/// The largest population of a capped cohort.
pub const MAX_POPULATION: u64 = 1_000_000_000;
/// The largest σ of a discrete Gaussian: beyond, use the Gaussian, from which it differs by less than exp(-2π²σ²).
pub const MAX_DISCRETE_SIGMA: f64 = 20_000.0;
/// The largest integer sensitivity of a discrete mechanism.
pub const MAX_DISCRETE_SENSITIVITY: u32 = 100_000;
/// A mechanism with a pure ε above this in one use is refused.
pub const MAX_PURE_EPSILON: f64 = 50.0;

impl Mechanism {
    /// The Gaussian mechanism: noise of `noise_multiplier` standard deviations a clip norm.
    ///
    /// # Errors
    /// [`AccountantError::Number`] outside [`MIN_NOISE_MULTIPLIER`] to [`MAX_NOISE_MULTIPLIER`].
    pub fn gaussian(noise_multiplier: f64) -> Result<Self, AccountantError> {
        Ok(Self(Kind::Gaussian { z: noise(noise_multiplier)? }))
    }

    /// A release that is exactly as private as telling N(0, 1) from N(`mu`, 1) (Gaussian differential privacy, Dong,
    /// Roth and Su 2019), under whichever adjacency `mu` was computed for. What a matrix mechanism such as BLT is.
    ///
    /// # Errors
    /// [`AccountantError::Number`] unless `mu` is from 1e-6 to 1e4.
    pub fn gdp(mu: f64) -> Result<Self, AccountantError> {
        Ok(Self(Kind::Gdp { mu: within("mu", mu, 1e-6, 1e4)? }))
    }

    /// The Gaussian mechanism on a Poisson sample: each contribution takes part independently with probability
    /// `sampling_rate`. A rate of 1 is the Gaussian mechanism.
    ///
    /// # Errors
    /// [`AccountantError::Number`] for noise or a rate out of range.
    pub fn poisson_gaussian(noise_multiplier: f64, sampling_rate: f64) -> Result<Self, AccountantError> {
        let (z, q) = (noise(noise_multiplier)?, rate(sampling_rate)?);
        Ok(Self(if q == 1.0 { Kind::Gaussian { z } } else { Kind::PoissonGaussian { z, q } }))
    }

    /// A Poisson sample of `population` contributions, cut down to a random subset of `cap` when it is larger.
    ///
    /// With the probability that others alone fill the cap, one contribution can push another out; that part is
    /// charged as a subsampled Gaussian with twice the sensitivity, replace-one (Ganesh 2025, *Tighter Privacy
    /// Analysis for Truncated Poisson Sampling*, arXiv 2508.15089, with its supplement; as in Google's dp-accounting).
    /// The ε is an upper bound of the mechanism; the lower end of the interval belongs to the dominating pair, which
    /// is slightly worse than the mechanism.
    ///
    /// # Errors
    /// [`AccountantError::Number`] for a number out of range; noise must be at least twice
    /// [`MIN_NOISE_MULTIPLIER`].
    pub fn truncated_poisson_gaussian(
        noise_multiplier: f64,
        sampling_rate: f64,
        population: u64,
        cap: u64,
    ) -> Result<Self, AccountantError> {
        let z =
            within("noise_multiplier", noise_multiplier, 2.0 * MIN_NOISE_MULTIPLIER, MAX_NOISE_MULTIPLIER)?;
        let q = rate(sampling_rate)?;
        within("population", population as f64, 1.0, MAX_POPULATION as f64)?;
        within("cap", cap as f64, 1.0, MAX_POPULATION as f64)?;
        if cap >= population {
            return Self::poisson_gaussian(z, q);
        }
        Ok(Self(Kind::TruncatedPoissonGaussian { z, q, population, cap }))
    }

    /// The Laplace mechanism on a scalar, or in L1: `scale` is the noise's b over the L1 sensitivity.
    ///
    /// # Errors
    /// [`AccountantError::Number`] unless `scale` is from 1/[`MAX_PURE_EPSILON`] to 1e6.
    pub fn laplace(scale: f64) -> Result<Self, AccountantError> {
        Ok(Self(Kind::Laplace { scale: within("scale", scale, 1.0 / MAX_PURE_EPSILON, 1e6)? }))
    }

    /// The discrete Laplace mechanism: `Pr[k]` ∝ exp(-`rate`·|k|) on the integers, for a query of integer
    /// `sensitivity`.
    ///
    /// # Errors
    /// [`AccountantError::Number`] unless rate × sensitivity is from 1e-6 to [`MAX_PURE_EPSILON`].
    pub fn discrete_laplace(rate: f64, sensitivity: u32) -> Result<Self, AccountantError> {
        within("sensitivity", f64::from(sensitivity), 1.0, f64::from(MAX_DISCRETE_SENSITIVITY))?;
        within("rate × sensitivity", rate * f64::from(sensitivity), 1e-6, MAX_PURE_EPSILON)?;
        Ok(Self(Kind::DiscreteLaplace { rate, sensitivity }))
    }

    /// The discrete Gaussian mechanism (Canonne, Kamath and Steinke 2020): `Pr[k]` ∝ exp(-k²/2σ²) on the integers, for
    /// a scalar query of integer `sensitivity`.
    ///
    /// # Errors
    /// [`AccountantError::Number`] for σ/sensitivity below [`MIN_NOISE_MULTIPLIER`] or σ above
    /// [`MAX_DISCRETE_SIGMA`].
    pub fn discrete_gaussian(sigma: f64, sensitivity: u32) -> Result<Self, AccountantError> {
        within("sensitivity", f64::from(sensitivity), 1.0, f64::from(MAX_DISCRETE_SENSITIVITY))?;
        within("sigma", sigma, MIN_NOISE_MULTIPLIER * f64::from(sensitivity), MAX_DISCRETE_SIGMA)?;
        Ok(Self(Kind::DiscreteGaussian { sigma, sensitivity }))
    }

    /// Whether all losses are multiples of one number.
    pub(super) fn on_lattice(&self) -> bool {
        matches!(self.0, Kind::DiscreteLaplace { .. } | Kind::DiscreteGaussian { .. })
    }

    /// μ where the mechanism is a pure Gaussian: those compose in closed form.
    pub(super) fn gaussian_mu(&self, adjacency: Adjacency) -> Option<f64> {
        match (self.0, adjacency) {
            (Kind::Gaussian { z }, Adjacency::AddRemove) => Some(1.0 / z),
            (Kind::Gaussian { z }, Adjacency::ReplaceOne) => Some(2.0 / z),
            (Kind::Gdp { mu }, _) => Some(mu),
            _ => None,
        }
    }
}

pub(super) fn within(name: &'static str, value: f64, least: f64, most: f64) -> Result<f64, AccountantError> {
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        Err(AccountantError::Number { name, value, least, most })
    }
}

fn noise(z: f64) -> Result<f64, AccountantError> {
    within("noise_multiplier", z, MIN_NOISE_MULTIPLIER, MAX_NOISE_MULTIPLIER)
}

fn rate(q: f64) -> Result<f64, AccountantError> {
    within("sampling_rate", q, 1e-9, 1.0)
}
