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
//! Together below C·(1 + [`SENSITIVITY_MARGIN`]) plus the √d units, which is what the noise is scaled to. The first two bounds
//! are those of rounding errors that do not conspire (Higham and Mary 2019, λ = 8), not worst cases, and the noise is a
//! floating-point Gaussian (see [`crate::fast_gaussian`]): that is the caveat of this mechanism, and why it is never the
//! default. The accountant's curve is unchanged: z counts in sensitivities.

use crate::discrete_gaussian::NoiseError;
use crate::fast_gaussian::FastGaussian;
use crate::noise::NoiseRng;
use undertone_core::fixed::Grid;
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
        squared_norms.iter().map(factor).collect()
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

    /// Turns exact `units` on `grid` into noised units of this grid; `values` (empty: none) are part of the sum.
    pub(super) fn add_to(&self, units: &mut [i64], grid: Grid, values: &[f64], rng: &mut NoiseRng) {
        let (own, given) = (1.0 / self.unit, 1.0 / (self.unit * grid.units_per_one()));
        match values.is_empty() {
            true => units.iter_mut().for_each(|u| *u = (*u as f64 * given).round_ties_even() as i64),
            false => units.iter_mut().zip(values).for_each(|(u, v)| {
                *u = (v * own + *u as f64 * given).round_ties_even() as i64;
            }),
        }
        self.noise.add_to(units, rng);
    }
}
