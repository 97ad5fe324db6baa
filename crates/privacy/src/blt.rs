//! Correlated noise for fleets without a sampling guarantee: DP-FTRL with buffered linear Toeplitz matrices, BLT
//! (Dvijotham, McMahan, Pillutla, Steinke and Thakurta 2024, arXiv 2404.16706; McMahan, Xu and Zhang 2024, arXiv
//! 2408.08868).
//!
//! What a training run needs are the *prefix sums* of its rounds' sums g. Independent noise in each round adds up;
//! instead, round t's noise takes back a part of the noise before it. With a lower triangular Toeplitz matrix C, what is
//! released is g + C⁻¹z for independent Gaussian z: post-processing of C·g + z, one Gaussian mechanism over the whole
//! run. Its noise is scaled to how far a client can move C·g when it takes part at most k times, at least b rounds apart
//! ([`crate::participation`]); the price of the whole run is that of *one* Gaussian with μ = 1/z, without any claim on
//! how clients are drawn.
//!
//! C has c₀ = 1 and cᵢ = Σ ω_m·θ_m^(i-1), so that C⁻¹z is computed with one buffer of the model's size for each of the
//! one to four m, and no n×n matrix. Read in this order: [`Parameters`] here; `sensitivity`, how far one client moves
//! C·g; `error`, how noisy the prefix sums are; `optimise`, which parameters make their product small;
//! [`BltMechanism`], the noise that a contract pays for; [`BltNoise`], the stream of noise and its durable state.
//!
//! Central trust only: the coordinator keeps the buffers, and whoever reads them can take the noise off.

mod error;
mod mechanism;
mod optimise;
mod sensitivity;
mod stream;

pub use mechanism::BltMechanism;
pub use optimise::optimise;
pub use stream::{BltNoise, BltRound};

use crate::clip::BoundError;
use crate::discrete_gaussian::NoiseError;
use serde::{Deserialize, Serialize};

/// Most buffers. A third and fourth are worth less than one percent of noise.
pub const MAX_BUFFERS: usize = 4;
/// Most rounds of one run: the sensitivity is computed over all of them.
pub const MAX_BLT_ROUNDS: u32 = 100_000;

/// θ and ω are integers over 2^30: C is then known exactly, and so is the arithmetic of the buffers.
const FRACTION_BITS: u32 = 30;
const ONE: i64 = 1 << FRACTION_BITS;

/// Why there is no such mechanism, or no noise for a round.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BltError {
    /// The number of buffers.
    #[error("a BLT has 1 to {MAX_BUFFERS} buffers, with a theta and an omega each, not {theta} and {omega}")]
    Buffers {
        /// Thetas given.
        theta: usize,
        /// Omegas given.
        omega: usize,
    },
    /// A parameter for which the sensitivity would not be known.
    #[error(
        "BLT parameters must keep theta above 0 and below 1, omega above 0 and the sum of omega at most 1, not \
         {what} = {found}: the closed form of the sensitivity needs C to be non-negative and non-increasing"
    )]
    Parameter {
        /// Which.
        what: &'static str,
        /// The number.
        found: f64,
    },
    /// The number of rounds.
    #[error("a BLT run has 1 to {MAX_BLT_ROUNDS} rounds, not {0}")]
    Rounds(u32),
    /// The noise multiplier.
    #[error("noise_multiplier must be a finite number above 0, not {0}")]
    NoiseMultiplier(f64),
    /// The noise cannot be drawn.
    #[error(transparent)]
    Noise(#[from] NoiseError),
    /// The clip norm does not suit the grid.
    #[error(transparent)]
    Bound(#[from] BoundError),
    /// The planned rounds are used up.
    #[error(
        "the noise was planned for {0} rounds, all of which are released: start a new run with a new budget"
    )]
    Finished(u32),
    /// A sum of another model.
    #[error("the sum has {found} values, the noise is for {wanted}")]
    Length {
        /// Values in the sum.
        found: usize,
        /// Values that the noise is for.
        wanted: usize,
    },
    /// The durable state cannot be used.
    #[error("the saved BLT state {0}: its noise cannot go on, restart the mechanism with a new budget")]
    State(&'static str),
    /// Buffers beyond their range, for which noise of a probability below e^-1000 is needed.
    #[error("a BLT buffer left its range: restart the mechanism with a new budget")]
    Overflow,
}

/// The parameters (θ, ω) of C, one pair for each buffer, for which the sensitivity is known in closed form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawParameters", into = "RawParameters")]
pub struct Parameters {
    /// Over 2^30.
    theta: Vec<i64>,
    /// Over 2^30.
    omega: Vec<i64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawParameters {
    theta: Vec<f64>,
    omega: Vec<f64>,
}

impl TryFrom<RawParameters> for Parameters {
    type Error = BltError;

    fn try_from(raw: RawParameters) -> Result<Self, BltError> {
        Self::new(&raw.theta, &raw.omega)
    }
}

impl From<Parameters> for RawParameters {
    fn from(parameters: Parameters) -> Self {
        Self { theta: parameters.theta().collect(), omega: parameters.omega().collect() }
    }
}

impl Parameters {
    /// Parameters rounded to multiples of 2^-30.
    ///
    /// # Errors
    /// [`BltError`] unless all θ are in (0, 1), all ω positive, and Σω ≤ 1: then 1 = c₀ ≥ c₁ ≥ c₂ ≥ … > 0, which the
    /// sensitivity rests on.
    pub fn new(theta: &[f64], omega: &[f64]) -> Result<Self, BltError> {
        if theta.len() != omega.len() || !(1..=MAX_BUFFERS).contains(&theta.len()) {
            return Err(BltError::Buffers { theta: theta.len(), omega: omega.len() });
        }
        let on_grid = |what, limit: i64, values: &[f64]| -> Result<Vec<i64>, BltError> {
            let one = |&found: &f64| {
                let units = (found * ONE as f64).round();
                // Also refuses NaN.
                if units >= 1.0 && units <= limit as f64 {
                    Ok(units as i64)
                } else {
                    Err(BltError::Parameter { what, found })
                }
            };
            values.iter().map(one).collect()
        };
        let parameters =
            Self { theta: on_grid("theta", ONE - 1, theta)?, omega: on_grid("omega", ONE, omega)? };
        if parameters.omega.iter().sum::<i64>() > ONE {
            return Err(BltError::Parameter { what: "the sum of omega", found: omega.iter().sum() });
        }
        Ok(parameters)
    }

    /// Buffers.
    pub fn buffers(&self) -> usize {
        self.theta.len()
    }

    /// θ of each buffer: how much of it stays from round to round.
    pub fn theta(&self) -> impl Iterator<Item = f64> + '_ {
        self.theta.iter().map(|&t| t as f64 / ONE as f64)
    }

    /// ω of each buffer: how much of it is taken back in a round.
    pub fn omega(&self) -> impl Iterator<Item = f64> + '_ {
        self.omega.iter().map(|&w| w as f64 / ONE as f64)
    }

    /// c₀, c₁ … c of `rounds` - 1.
    fn coefficients(&self, rounds: u32) -> impl Iterator<Item = f64> + '_ {
        let mut powers: Vec<(f64, f64)> = self.theta().zip(self.omega()).collect();
        (0..rounds).map(move |i| {
            if i == 0 {
                return 1.0;
            }
            let c = powers.iter().map(|&(_, term)| term).sum();
            powers.iter_mut().for_each(|(theta, term)| *term *= *theta);
            c
        })
    }
}

#[cfg(test)]
mod tests;
