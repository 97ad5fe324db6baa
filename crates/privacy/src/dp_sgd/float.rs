//! Clipped sums in floating point, under a sensitivity with room for rounding: `mechanism = "fast-gaussian"`.
//!
//! Book-keeping (Bu et al. 2023, arXiv 2210.00038) gives the norm of every example's gradient, and then the sum of all that are
//! scaled by their clip factors, without any single gradient. The sum is a matrix product in f32; no integer sum of
//! clipped examples exists. What one example moves is then not exactly bounded by C:
//!
//! 1. the factor follows from a norm that was computed: a relative error of the norm of up to 2^-8 is allowed for (the engine
//!    keeps it there: where terms of a norm cancel so that it could not, it takes a larger norm, see its own text);
//! 2. the sum is rounded: its error, in norm, is allowed 2^-7 of C for a whole batch (the engine sums in pieces that are small
//!    enough for this, and pieces are added in f64);
//! 3. the sum is rounded to a grid of 2^30 units in C before noise is added, so that adding rounded noise is the same as adding
//!    and then rounding: at most half a unit of each value, √d units between neighbours.
//!
//! Neighbouring sums are both rounded, and a row more shifts what is in all later pieces: the two errors of item 2 are independent, so
//! that their difference is within √2·2^-7. Together below C·(1 + [`SENSITIVITY_MARGIN`]) (√2·2^-7 + 2^-8 < 2^-6) plus the √d units,
//! which is what the noise is scaled to. The first two bounds
//! are those of rounding errors that do not conspire (Higham and Mary 2019, λ = 8), not worst cases, and the noise is a
//! floating-point Gaussian (see [`crate::fast_gaussian`]): that is the caveat of this mechanism, and why it is never the
//! default. The accountant's curve is unchanged: z counts in sensitivities.

use crate::discrete_gaussian::NoiseError;
use crate::fast_gaussian::FastGaussian;
use crate::noise::NoiseRng;
use crate::rounding::{nearest, round};
use undertone_core::limits::MAX_PARAMETERS;

/// What a floating-point sum may move beyond the clip norm, as a part of it.
pub const SENSITIVITY_MARGIN: f64 = 1.0 / 64.0;

/// Fraction bits of the clip norm on the grid of sums.
const BITS: i32 = 30;

/// Evidence that a contract allows floating-point sums; clips by norms.
///
/// ```compile_fail,E0451
/// // Not from a loose number: a mechanism has to give it.
/// let clipping = undertone_privacy::dp_sgd::FloatClipping { clip_norm: 1.0 };
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FloatClipping {
    clip_norm: f64,
}

impl FloatClipping {
    pub(super) fn to(clip_norm: f64) -> Self {
        Self { clip_norm }
    }

    /// min(1, C/‖g‖) for each squared norm, and 0 for one that is not finite: that example counts as zero and must be left
    /// out of the arithmetic, where 0·∞ would be no number.
    pub fn factors(&self, squared_norms: &[f64]) -> Vec<f32> {
        let factor = |squared: &f64| match squared.is_finite() {
            true => (self.clip_norm / libm::sqrt(squared.max(0.0))).min(1.0) as f32,
            false => 0.0,
        };
        // What has fewer digits than other numbers could be too large by more than the margin has room for.
        let precise = |factor: f32| if factor < f32::MIN_POSITIVE { 0.0 } else { factor };
        squared_norms.iter().map(factor).map(precise).collect()
    }
}

/// The noise, with the grid of sums.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct FloatNoise {
    noise: FastGaussian,
    unit: f64,
}

impl FloatNoise {
    pub(super) fn new(noise_multiplier: f64, clip_norm: f64) -> Result<Self, NoiseError> {
        // More noise than any model survives takes a coarser grid, so that it can be drawn at all.
        let bits = if noise_multiplier > 512.0 { BITS - (libm::ilogb(noise_multiplier) - 8) } else { BITS };
        let units = libm::ldexp(1.0, bits);
        let rounding = libm::sqrt(MAX_PARAMETERS as f64).ceil();
        let noise =
            FastGaussian::for_float_sums(noise_multiplier, units * (1.0 + SENSITIVITY_MARGIN) + rounding)?;
        Ok(Self { noise, unit: clip_norm / units })
    }

    pub(super) fn unit(&self) -> f64 {
        self.unit
    }

    pub(super) fn deviation(&self) -> f64 {
        self.noise.sigma() * self.unit
    }

    /// Rounds sums to this grid and adds the noise to each: `len` values, each times `scale` for a unit.
    ///
    /// # Panics
    /// If there are sums, and not so many.
    pub(super) fn mean(&self, sums: FloatSums, len: usize, scale: f64, rng: &mut NoiseRng) -> Vec<f32> {
        let own = 1.0 / self.unit;
        // Sums of integers. Beyond 2^53 they are rounded, which is a function of what was noised already.
        let noised = |sum: f64, draw: f64| ((round(sum * own) + nearest(draw).0) * scale) as f32;
        let mut noise = self.noise.vector(rng);
        match sums {
            FloatSums::None => {
                let mut mean = vec![0.0; len];
                noise.draws(&mut mean, |value, draw| *value = noised(0.0, draw));
                mean
            }
            FloatSums::One(mut sum) => {
                assert_eq!(sum.len(), len, "a value without noise");
                noise.draws(&mut sum, |value, draw| *value = noised(finite(*value), draw));
                sum
            }
            FloatSums::Several(mut sums) => {
                assert_eq!(sums.len(), len, "a value without noise");
                noise.draws(&mut sums, |value, draw| *value = f64::from(noised(*value, draw)));
                sums.into_iter().map(|value| value as f32).collect()
            }
        }
    }
}

/// Sums of clipped gradients that were computed in floating point.
pub(super) enum FloatSums {
    None,
    /// As it came.
    One(Vec<f32>),
    /// Added up; every value is finite.
    Several(Vec<f64>),
}

impl FloatSums {
    /// Adds one more, in which what is not finite counts as zero.
    pub(super) fn add(&mut self, more: Vec<f32>) {
        match self {
            Self::None => *self = Self::One(more),
            _ => self.add_each(more.into_iter().map(finite)),
        }
    }

    /// Adds values that are all finite.
    pub(super) fn add_each(&mut self, more: impl ExactSizeIterator<Item = f64>) {
        let mut sums = match std::mem::replace(self, Self::None) {
            Self::None => vec![0.0; more.len()],
            Self::One(sum) => sum.into_iter().map(finite).collect(),
            Self::Several(sums) => sums,
        };
        sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        *self = Self::Several(sums);
    }
}

fn finite(value: f32) -> f64 {
    if value.is_finite() { value.into() } else { 0.0 }
}
