//! One step of DP-SGD (Abadi et al. 2016, arXiv 1607.00133), the part that makes the promise: a Poisson batch, each
//! example's gradient clipped, a sum, Gaussian noise.
//!
//! Each arrow is a function from one type to the next, so that a step without noise does not compile:
//!
//! ```text
//! GradientMechanism ─empty_sum─▶ GradientSum ─add─▶ … ─noised─▶ NoisedGradient ─mean─▶ the optimiser
//! ```
//!
//! There are two mechanisms. `discrete-gaussian`, the default, clips each gradient onto an integer grid, sums integers
//! exactly and adds the exact discrete Gaussian. `fast-gaussian` takes clipped sums that were computed in floating point,
//! which need no gradient of any single example: see `float.rs` for what that promises and what it rests on.
//!
//! What the optimiser does with the mean (scaling, momentum, the step itself) is post-processing. An empty batch is a
//! step like any other: it adds noise. A batch is never cut to a largest size: memory is bounded by summing it in pieces, so
//! that the sampling is Poisson's, as it is accounted.

mod float;

pub use float::{FloatClipping, SENSITIVITY_MARGIN};

use crate::clip::{BoundError, clip_example_to_grid};
use crate::discrete_gaussian::{DiscreteGaussian, NoiseError};
use crate::noise::NoiseRng;
use float::{FloatNoise, FloatSums};
use std::fmt;
use undertone_core::fixed::Grid;
use undertone_core::trainer::{RecordMechanism, RecordPrivacy};

/// A Poisson sample: each of 0..`rows` is in it independently, with a probability of `rate` (0 to 1) rounded down to
/// a multiple of 2^-64, never more. `bits` gives 64 uniform bits a call: amplification by sampling is a promise as much
/// as noise is, so they must come from a generator that cannot be predicted.
pub fn poisson_batch(rows: usize, rate: f64, mut bits: impl FnMut() -> u64) -> impl Iterator<Item = usize> {
    // Multiplying by a power of two is exact, truncation rounds down. 2^64 itself, at rate 1, needs the wider type.
    let threshold = (rate * 18_446_744_073_709_551_616.0) as u128;
    (0..rows).filter(move |_| u128::from(bits()) < threshold)
}

/// Clipping and noise of one contract.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GradientMechanism {
    clip_norm: f64,
    /// Single gradients are clipped on it.
    grid: Grid,
    noise: Noise,
    /// Of the noised sum, per unit.
    scale: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Noise {
    /// In units of the grid.
    Exact(DiscreteGaussian),
    Float(FloatNoise),
}

impl GradientMechanism {
    /// The mechanism of a record-level contract.
    ///
    /// The grid has 2^16 to 2^17 units in the clip norm where it can: rounding then moves a clipped gradient by less
    /// than noise of any worth does, and the sum of all rows stays far from overflow. The noise is `noise_multiplier`
    /// times the integer bound ⌊clip_norm·2^bits⌋ that clipping keeps, rounded up; with floating-point sums
    /// `noise_multiplier` times the bound that `float.rs` gives.
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
        let exact = DiscreteGaussian::for_clipped_sum(privacy.noise_multiplier, clip_norm, grid)?;
        let (noise, unit) = match privacy.mechanism {
            RecordMechanism::DiscreteGaussian => (Noise::Exact(exact), 1.0 / grid.units_per_one()),
            RecordMechanism::FastGaussian => {
                let float = FloatNoise::new(privacy.noise_multiplier, clip_norm)?;
                (Noise::Float(float), float.unit())
            }
        };
        Ok(Self { clip_norm, grid, noise, scale: unit / privacy.expected_batch })
    }

    /// The sum of no gradients of `len` values.
    pub fn empty_sum(&self, len: usize) -> GradientSum<'_> {
        GradientSum { mechanism: self, len, units: Vec::new(), sums: FloatSums::None }
    }

    /// The L2 norm that each gradient is scaled down to.
    pub fn clip_norm(&self) -> f64 {
        self.clip_norm
    }

    /// Evidence that sums may be computed in floating point, with the clipping that they need; `None` where each gradient
    /// must be clipped and added by itself.
    pub fn float_clipping(&self) -> Option<FloatClipping> {
        matches!(self.noise, Noise::Float(_)).then(|| FloatClipping::to(self.clip_norm))
    }

    /// The grid that single gradients are clipped on.
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// The standard deviation of the noise on the sum.
    pub fn deviation(&self) -> f64 {
        match self.noise {
            Noise::Exact(noise) => noise.sigma() / self.grid.units_per_one(),
            Noise::Float(noise) => noise.deviation(),
        }
    }
}

/// The sum of clipped gradients: private, not to leave the step, and not printed.
pub struct GradientSum<'a> {
    mechanism: &'a GradientMechanism,
    len: usize,
    /// Of gradients that were clipped one by one, exact, in units of the grid; empty until there is one.
    units: Vec<i64>,
    sums: FloatSums,
}

impl GradientSum<'_> {
    /// Adds one example's gradient, clipped; one that is not finite counts as zero, and nobody is told: whether it was
    /// finite is a secret of the record.
    ///
    /// # Panics
    /// If the gradient is not of the sum's length.
    pub fn add(&mut self, gradient: &[f32]) {
        let GradientMechanism { clip_norm, grid, .. } = *self.mechanism;
        let _was_finite = clip_example_to_grid(gradient, clip_norm, grid, self.units())
            .expect("the mechanism was made for this clip norm and grid");
    }

    /// Adds Σ cᵢ·gᵢ over some examples, where c comes from [`FloatClipping::factors`] and examples of factor 0 had no part in
    /// the arithmetic. A value that is not finite counts as zero.
    ///
    /// # Panics
    /// If the sum is not of the same length.
    pub fn add_clipped_sum(&mut self, _evidence: &FloatClipping, sum: Vec<f32>) {
        assert_eq!(sum.len(), self.len, "gradients and their sum have one layout");
        self.sums.add(sum);
    }

    /// Adds the noise, once.
    pub fn noised(mut self, rng: &mut NoiseRng) -> NoisedGradient {
        let GradientMechanism { noise, grid, scale, .. } = *self.mechanism;
        match noise {
            Noise::Exact(noise) => {
                noise.add_to(self.units(), rng);
                NoisedGradient(Noised::Exact { units: self.units, scale })
            }
            Noise::Float(noise) => {
                if !self.units.is_empty() {
                    let unit = 1.0 / grid.units_per_one();
                    self.sums.add_each(self.units.iter().map(|&units| units as f64 * unit));
                }
                NoisedGradient(Noised::Float(noise.mean(self.sums, self.len, scale, rng)))
            }
        }
    }

    fn units(&mut self) -> &mut Vec<i64> {
        self.units.resize(self.len, 0);
        &mut self.units
    }
}

impl fmt::Debug for GradientSum<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GradientSum({} values)", self.len)
    }
}

/// What a step may use: the noised sum, over the *expected* batch, a public constant.
#[derive(Debug, Clone, PartialEq)]
pub struct NoisedGradient(Noised);

#[derive(Debug, Clone, PartialEq)]
enum Noised {
    Exact { units: Vec<i64>, scale: f64 },
    Float(Vec<f32>),
}

impl NoisedGradient {
    /// The mean.
    pub fn mean(&self) -> impl ExactSizeIterator<Item = f64> + '_ {
        let len = match &self.0 {
            Noised::Exact { units, .. } => units.len(),
            Noised::Float(mean) => mean.len(),
        };
        (0..len).map(move |i| match &self.0 {
            Noised::Exact { units, scale } => units[i] as f64 * scale,
            Noised::Float(mean) => mean[i].into(),
        })
    }

    /// The mean, as an optimiser takes it.
    pub fn into_mean(self) -> Vec<f32> {
        match self.0 {
            Noised::Exact { units, scale } => units.iter().map(|&u| (u as f64 * scale) as f32).collect(),
            Noised::Float(mean) => mean,
        }
    }
}

#[cfg(test)]
mod tests;
