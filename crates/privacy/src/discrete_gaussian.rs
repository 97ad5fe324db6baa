//! The discrete Gaussian on the integers, sampled exactly.
//!
//! `Pr[k] ∝ exp(-k²/2σ²)` (Canonne, Kamath and Steinke 2020, arXiv 2004.00010). No floating-point number is drawn:
//! noise whose low bits betray the value under it (Mironov 2012, Jin et al. 2022) cannot occur.
//!
//! The sampler is a rejection sampler like theirs, with a closer envelope (after Karney 2016, Algorithm
//! D) and one decision in place of a chain of coin flips. With t = ⌈σ⌉:
//!
//! 1. A level k = 0, 1, 2 … with probability W_k/2^16, where λ·W_k ≥ exp(-k²/2); a sign; j uniform in 0..t, exactly
//!    (Lemire 2019). The proposal is ±(k·t + j), and -0 is thrown away: each integer has one way to come up.
//! 2. It is accepted if V·λ·W_k < exp(-x) for a uniform real V, where x = (k·t + j)²/2σ². That has probability
//!    exp(-x)/(λ·W_k), at most 1 because x ≥ (k·σ)²/2σ². So each integer comes out in proportion to
//!    W_k · exp(-x)/(λ·W_k) = exp(-x), exactly. About 70 % are accepted.
//!
//! The comparison is settled by 64 bits of V and a floating-point value of exp(-x) unless these are closer than 2^-40
//! relative, far above the error of either; then it is settled with integers, over as many bits of V as it takes. Floating
//! point decides only where it cannot be wrong.
//!
//! σ is represented as p/r, rounded *up*, by at most one part in 2^21 from σ = 1/2 on: below 2^21, r is the power of
//! two up to 2^22 that puts p below 2^22; from there on r = 1. Levels of 512 or more (probability below
//! e^-131072: no machine will ever see one) are thrown away, so that nothing is truncated: (k·t + j)·r is below 2^50
//! and x has a numerator below 2^100 and a denominator of at most 2^81.
//!
//! How long a draw takes depends on its value. Draw noise in bulk, not one value per message that others can time.

mod below_exp;

use crate::clip::BoundError;
use crate::noise::NoiseRng;
use crate::sensitivity::{Adjacency, L2Sensitivity};
use below_exp::{Odds, is_below_exp};
use undertone_core::fixed::Grid;

/// A discrete Gaussian; σ in units of the grid.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DiscreteGaussian {
    /// σ = p/r.
    p: u64,
    r: u64,
    /// Values in one level: ⌈σ⌉.
    t: u64,
    /// 2^47 mod t: so many of 2^47 values are too many for a uniform choice of t.
    surplus: u64,
    /// 1/p, for the filter.
    inverse_p: f64,
}

/// Levels that are drawn; a proposal beyond is thrown away.
const LEVELS: u32 = 512;
/// W_0 to W_4, in parts of 2^16; the rest, 2, is the geometric tail W_5 = 1, W_6 = 1/2, W_7 = 1/4 …
const WEIGHTS: [u64; 5] = [37_380, 22_667, 5_058, 416, 13];
/// λ = 7183/2^28, so that λ·W_k ≥ exp(-k²/2) at every level.
const LAMBDA: Odds = Odds { numerator: 7183, shift: 28 };

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
        let mut r = 1u64 << 22;
        while r > 1 && sigma * r as f64 > limit {
            r >>= 1;
        }
        let p = (sigma * r as f64).ceil() as u64;
        let t = p.div_ceil(r);
        Ok(Self { p, r, t, surplus: (1 << OFFSET_BITS) % t, inverse_p: 1.0 / p as f64 })
    }

    /// The noise for a sum of integer vectors of which one record or client moves at most one, by an L2 norm of
    /// at most `clip_norm` on `grid`: σ is `noise_multiplier` times the *integer* bound, rounded up.
    ///
    /// # Errors
    /// [`NoiseError`] if `clip_norm` does not suit the grid, or σ is out of range.
    pub fn for_clipped_sum(noise_multiplier: f64, clip_norm: f64, grid: Grid) -> Result<Self, NoiseError> {
        let sensitivity = L2Sensitivity::of_clipped(clip_norm, grid, Adjacency::AddRemove)?;
        Self::for_sensitivity(noise_multiplier, sensitivity)
    }

    /// The noise for an integer vector that one record or client moves by at most `sensitivity`: σ is
    /// `noise_multiplier` times as much, rounded up.
    ///
    /// # Errors
    /// [`NoiseError::Sigma`] if σ is out of range.
    pub fn for_sensitivity(noise_multiplier: f64, sensitivity: L2Sensitivity) -> Result<Self, NoiseError> {
        Self::new(sensitivity.sigma(noise_multiplier))
    }

    /// The standard deviation in grid units, as it was rounded up.
    pub fn sigma(&self) -> f64 {
        self.p as f64 / self.r as f64
    }

    /// One draw.
    #[inline]
    pub fn sample(&self, rng: &mut NoiseRng) -> i64 {
        loop {
            let word = rng.bits();
            // Disjoint bits of one word: 16 for the level, one for the sign, 47 for the place in the level.
            let product = u128::from(word >> (64 - OFFSET_BITS)) * u128::from(self.t);
            let (offset, remainder) =
                ((product >> OFFSET_BITS) as u64, product as u64 & ((1 << OFFSET_BITS) - 1));
            if remainder < self.surplus {
                continue;
            }
            let Some(level) = Level::of(word & 0xffff, rng) else { continue };
            let magnitude = level.k * self.t + offset;
            let negative = word & (1 << 16) != 0;
            if negative && magnitude == 0 {
                continue;
            }
            if self.accept(magnitude, level, rng) {
                return if negative { -(magnitude as i64) } else { magnitude as i64 };
            }
        }
    }

    /// Adds an independent draw to each of `units`.
    ///
    /// A draw is below 2^51, so that sums up to [`IntegerSum`](undertone_core::aggregate::IntegerSum)'s 2^62 cannot
    /// overflow.
    pub fn add_to(&self, units: &mut [i64], rng: &mut NoiseRng) {
        for unit in units {
            *unit += self.sample(rng);
        }
    }

    /// True with probability exp(-magnitude²/2σ²)/(λ·W).
    #[inline]
    fn accept(&self, magnitude: u64, level: Level, rng: &mut NoiseRng) -> bool {
        let first = rng.bits();
        match self.filter(magnitude, level, first) {
            Some(accepted) => accepted,
            None => self.decide(magnitude, level, first, || rng.bits()),
        }
    }

    /// Whether V·λ·W < exp(-x), if the first 64 bits of V tell.
    ///
    /// Both sides are multiplied by 2^64. `height` is within 2^-52 of the true value relative, and the bits of V that
    /// are missing add less than 2. x has a relative error below 2^-50 and matters up to 64 only (beyond, exp(-x)·2^64
    /// is below 1 and `height` decides alone), so `target` is within 2^-43 relative: libm's exp is within one part in
    /// 2^52. The margin is eight times all of this.
    #[inline]
    fn filter(&self, magnitude: u64, level: Level, first: u64) -> Option<bool> {
        let height = first as f64 * level.envelope;
        let deviations = (magnitude * self.r) as f64 * self.inverse_p;
        let target = libm::exp(-0.5 * deviations * deviations) * TWO_64;
        let margin = target * (1.0 / (1u64 << 40) as f64) + 4.0;
        if height + margin < target {
            Some(true)
        } else if height - margin > target {
            Some(false)
        } else {
            None
        }
    }

    /// The same by integers, with further bits of V from `more`.
    #[cold]
    fn decide(&self, magnitude: u64, level: Level, first: u64, more: impl FnMut() -> u64) -> bool {
        let scaled = u128::from(magnitude * self.r);
        let p = u128::from(self.p);
        is_below_exp(first, level.odds(), scaled * scaled, 2 * p * p, more)
    }
}

const OFFSET_BITS: u32 = 47;
const TWO_64: f64 = (1u128 << 64) as f64;

/// A level of the envelope: k with λ·W_k.
#[derive(Debug, Clone, Copy)]
struct Level {
    k: u64,
    envelope: f64,
}

impl Level {
    /// The level that 16 uniform bits choose. `None` for one that is thrown away.
    #[inline]
    fn of(bits: u64, rng: &mut NoiseRng) -> Option<Self> {
        const STARTS: [u64; 5] = {
            let mut starts = WEIGHTS;
            let mut k = 1;
            while k < 5 {
                starts[k] += starts[k - 1];
                k += 1;
            }
            starts
        };
        const ENVELOPES: [f64; 5] = {
            let mut envelopes = [0.0; 5];
            let mut k = 0;
            while k < 5 {
                envelopes[k] = (WEIGHTS[k] * LAMBDA.numerator) as f64 / (1u64 << LAMBDA.shift) as f64;
                k += 1;
            }
            envelopes
        };
        // Counted without branches: which level it is cannot be predicted.
        let k = STARTS[..4].iter().map(|&start| usize::from(bits >= start)).sum::<usize>();
        if bits < STARTS[4] {
            return Some(Self { k: k as u64, envelope: ENVELOPES[k] });
        }
        // 2 in 2^16 stand for the weights 1 + 1/2 + 1/4 + …: heads go on.
        let mut heads = 0;
        loop {
            let word = rng.bits();
            heads += word.trailing_ones();
            if word != u64::MAX {
                return Self::in_tail(heads);
            }
        }
    }

    /// Level 5 + `heads`, of weight 2^-heads.
    fn in_tail(heads: u32) -> Option<Self> {
        let k = 5 + heads;
        (k < LEVELS).then(|| Self {
            k: u64::from(k),
            envelope: libm::ldexp(LAMBDA.numerator as f64, -((LAMBDA.shift + heads) as i32)),
        })
    }

    /// The envelope as the rational number that it is.
    fn odds(self) -> Odds {
        match WEIGHTS.get(self.k as usize) {
            Some(weight) => Odds { numerator: LAMBDA.numerator * weight, shift: LAMBDA.shift },
            None => Odds { numerator: LAMBDA.numerator, shift: LAMBDA.shift + self.k as u32 - 5 },
        }
    }
}

#[cfg(test)]
mod tests;
