//! The discrete Gaussian on the integers, sampled exactly (Canonne, Kamath and Steinke 2020, arXiv 2004.00010,
//! Algorithms 1 to 3).
//!
//! `Pr[k] ∝ exp(-k²/2σ²)`. No floating-point number is drawn: noise whose low bits betray the value under it (Mironov
//! 2012, Jin et al. 2022) cannot occur. All randomness is integer Bernoulli trials with rational odds, over u64 and
//! u128 without truncation.
//!
//! σ is represented as p/r, rounded *up*, by at most one part in 2^21 from σ = 1/2 on:
//! * σ < 2^21: r is a power of two up to 2^22 that puts p below 2^22. The proposal is a discrete Laplace of scale
//!   t = ⌈σ⌉, and the odds of acceptance are exp(-(|Y|·r²t - p²)² / (2p²r²t²)): the divisor is below 2^96.
//! * σ ≥ 2^21: r = 1 and t = p, which makes the odds exp(-(|Y| - p)² / 2p²): the divisor is at most 2^81.
//!
//! In both the squared difference fits in 128 bits for every |Y| below 2^16·t. A proposal beyond (probability below
//! e^-65535: no machine will ever see one) is thrown away rather than truncated.
//!
//! How long a draw takes depends on its value. Draw noise in bulk, not one value per message that others can time.

use crate::clip::{BoundError, bound_in_units};
use crate::noise::NoiseRng;
use undertone_core::fixed::Grid;

/// A discrete Gaussian; σ in units of the grid.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DiscreteGaussian {
    sigma: f64,
    /// Scale t of the proposal.
    scale: u64,
    /// Odds of acceptance are exp(-(|Y|·factor - centre)² / divisor).
    factor: u128,
    centre: u128,
    divisor: u128,
}

/// Why there is no such noise.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NoiseError {
    /// σ is NaN, too small or too large to be sampled exactly.
    #[error(
        "noise with a standard deviation of {0} grid units cannot be drawn exactly: it must be between 0.0625 and \
         2^40; change the grid's fraction_bits"
    )]
    Sigma(f64),
    /// The clip norm does not suit the grid.
    #[error(transparent)]
    Bound(#[from] BoundError),
}

impl DiscreteGaussian {
    /// Smallest standard deviation, in grid units.
    pub const MIN_SIGMA: f64 = 0.0625;
    /// Largest standard deviation, in grid units.
    pub const MAX_SIGMA: f64 = (1u64 << 40) as f64;
    /// Proposals of this many scales or more are thrown away.
    const MAX_SCALES: u64 = 1 << 16;

    /// The distribution with a standard deviation (parameter σ) of at least `sigma` grid units.
    ///
    /// # Errors
    /// [`NoiseError::Sigma`] outside [`Self::MIN_SIGMA`] to [`Self::MAX_SIGMA`].
    pub fn new(sigma: f64) -> Result<Self, NoiseError> {
        if !(Self::MIN_SIGMA..=Self::MAX_SIGMA).contains(&sigma) {
            return Err(NoiseError::Sigma(sigma));
        }
        // Multiplying by a power of two is exact, so that only `ceil` changes the number, upwards.
        let limit = f64::from(1u32 << 22);
        let mut r = 1u128 << 22;
        while r > 1 && sigma * r as f64 > limit {
            r >>= 1;
        }
        let p = (sigma * r as f64).ceil() as u128;
        let rounded = p as f64 / r as f64;
        let shape = if r == 1 {
            Self { sigma: rounded, scale: p as u64, factor: 1, centre: p, divisor: 2 * p * p }
        } else {
            let t = p.div_ceil(r);
            let divisor = 2 * (p * r * t) * (p * r * t);
            Self { sigma: rounded, scale: t as u64, factor: r * r * t, centre: p * p, divisor }
        };
        Ok(shape)
    }

    /// The noise for a sum of integer vectors of which one record or client moves at most one, by an L2 norm of
    /// at most `clip_norm` on `grid`: σ is `noise_multiplier` times the *integer* bound, rounded up.
    ///
    /// # Errors
    /// [`NoiseError`] if `clip_norm` does not suit the grid, or σ is out of range.
    pub fn for_clipped_sum(noise_multiplier: f64, clip_norm: f64, grid: Grid) -> Result<Self, NoiseError> {
        let bound = bound_in_units(clip_norm, grid)?;
        Self::new((noise_multiplier * bound as f64).next_up())
    }

    /// The standard deviation in grid units, as it was rounded up.
    pub fn sigma(&self) -> f64 {
        self.sigma
    }

    /// One draw (Algorithm 3).
    pub fn sample(&self, rng: &mut NoiseRng) -> i64 {
        loop {
            let Some((negative, magnitude)) = discrete_laplace(self.scale, rng) else { continue };
            let distance = (u128::from(magnitude) * self.factor).abs_diff(self.centre);
            if bernoulli_exp(distance * distance, self.divisor, rng) {
                let magnitude = magnitude as i64;
                return if negative { -magnitude } else { magnitude };
            }
        }
    }

    /// Adds an independent draw to each of `units`.
    ///
    /// A draw is below 2^57, so that sums up to [`IntegerSum`](undertone_core::aggregate::IntegerSum)'s 2^62 cannot
    /// overflow.
    pub fn add_to(&self, units: &mut [i64], rng: &mut NoiseRng) {
        for unit in units {
            *unit += self.sample(rng);
        }
    }
}

/// Discrete Laplace of scale t, `Pr[k] ∝ e^{-|k|/t}`, as sign and magnitude (Algorithm 2). `None` beyond
/// [`DiscreteGaussian::MAX_SCALES`].
#[inline]
fn discrete_laplace(t: u64, rng: &mut NoiseRng) -> Option<(bool, u64)> {
    loop {
        let low = rng.below(t);
        if !bernoulli_exp_below_one(u128::from(low), u128::from(t), rng) {
            continue;
        }
        let mut scales = 0;
        while bernoulli_exp_of_one(rng) {
            scales += 1;
            if scales == DiscreteGaussian::MAX_SCALES {
                return None;
            }
        }
        let magnitude = low + t * scales;
        let negative = rng.bits() & 1 == 1;
        // Zero would come up twice as often as it should.
        if !(negative && magnitude == 0) {
            return Some((negative, magnitude));
        }
    }
}

/// True with probability exp(-n/d) (Algorithm 1).
#[inline]
fn bernoulli_exp(mut n: u128, d: u128, rng: &mut NoiseRng) -> bool {
    while n >= d {
        if !bernoulli_exp_of_one(rng) {
            return false;
        }
        n -= d;
    }
    bernoulli_exp_below_one(n, d, rng)
}

/// True with probability exp(-n/d), n < d: the first k at which a trial with odds n/(d·k) fails is odd.
///
/// A trial with odds n/(d·k) is two, with odds 1/k and n/d: so no product d·k has to fit.
#[inline]
fn bernoulli_exp_below_one(n: u128, d: u128, rng: &mut NoiseRng) -> bool {
    let mut k = 1;
    while (k == 1 || rng.below(k) == 0) && rng.below_wide(d) < n {
        k += 1;
    }
    k % 2 == 1
}

/// True with probability 1/e.
#[inline]
fn bernoulli_exp_of_one(rng: &mut NoiseRng) -> bool {
    // At k = 1 the trial with odds 1/k cannot fail.
    let mut k = 2;
    while rng.below(k) == 0 {
        k += 1;
    }
    k % 2 == 1
}

#[cfg(test)]
mod tests;
