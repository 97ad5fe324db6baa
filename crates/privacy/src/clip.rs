//! The path of a value in the client: raw, clipped, on the grid.
//!
//! The bound that counts is the one on the integers: the L2 norm in units, compared exactly, is at most
//! ⌊bound·2^f⌋. Clipping in floating point alone would exceed the declared sensitivity by rounding.

use crate::rounding::nearest;
use std::fmt;
use undertone_core::fixed::{FixedVector, Grid, MAX_FIXED, integer_bound, squared_norm};

/// A bound below this many units would round most of an update away (and see [`crate::rdp`] on small bounds).
pub const MIN_BOUND_UNITS: u64 = 256;

/// A norm bound that makes no sense, or does not suit the grid.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BoundError {
    /// NaN, infinite, zero or negative.
    #[error("a norm bound must be a finite number above 0, not {0}")]
    NotPositive(f64),
    /// Too few units.
    #[error(
        "a norm bound of {bound} is {units} units of a grid with {fraction_bits} fraction bits, too coarse: raise \
         fraction_bits until it is at least {MIN_BOUND_UNITS}"
    )]
    TooCoarse {
        /// The bound.
        bound: f64,
        /// The bound in units.
        units: u64,
        /// The grid.
        fraction_bits: u8,
    },
    /// More units than the wire's integers hold.
    #[error(
        "a norm bound of {bound} does not fit a grid with {fraction_bits} fraction bits: at most {limit}; lower \
         fraction_bits or the bound"
    )]
    TooFine {
        /// The bound.
        bound: f64,
        /// The grid.
        fraction_bits: u8,
        /// Largest bound on this grid.
        limit: f64,
    },
}

/// Why an update cannot be clipped.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ClipError {
    /// Training diverged. Such an update is not sent; clipping it would send noise or, worse, NaN.
    #[error(
        "value {index} of the update is {value}: training diverged, so nothing is sent; lower learning_rate"
    )]
    NotFinite {
        /// Position in the flat vector.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The bound.
    #[error(transparent)]
    Bound(#[from] BoundError),
}

/// Checks that `bound` suits `grid` and gives it in units: ⌊bound·2^f⌋.
///
/// # Errors
/// [`BoundError`].
pub fn bound_in_units(bound: f64, grid: Grid) -> Result<u64, BoundError> {
    if !(bound.is_finite() && bound > 0.0) {
        return Err(BoundError::NotPositive(bound));
    }
    let units = integer_bound(grid, bound);
    let fraction_bits = grid.into();
    if units < MIN_BOUND_UNITS {
        Err(BoundError::TooCoarse { bound, units, fraction_bits })
    } else if units > MAX_FIXED as u64 {
        Err(BoundError::TooFine { bound, fraction_bits, limit: grid.max_value() })
    } else {
        Ok(units)
    }
}

/// An update as training gave it; not to leave the machine, and not printed.
#[derive(Clone, PartialEq)]
pub struct RawUpdate(Vec<f32>);

impl RawUpdate {
    /// Trained minus received values, over the model's layout.
    pub fn new(values: Vec<f32>) -> Self {
        Self(values)
    }

    pub(crate) fn values(&self) -> &[f32] {
        &self.0
    }
}

impl fmt::Debug for RawUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawUpdate({} values)", self.0.len())
    }
}

/// An update with an L2 norm of at most the bound that it remembers, up to the rounding that
/// [`ClippedUpdate::to_grid`] makes exact.
#[derive(Clone, PartialEq)]
pub struct ClippedUpdate {
    values: Vec<f32>,
    bound: f64,
}

/// Scales an update down to an L2 norm of at most `bound`; a shorter one stays as it is, zero stays zero.
///
/// For a client-level contract `bound` is its clip norm; otherwise the job's limit on the norm of an update, which
/// protects the sum and not the client.
///
/// # Errors
/// [`ClipError`] for a value that is NaN or infinite, or a bound that is not a finite number above zero.
pub fn clip(raw: RawUpdate, bound: f64) -> Result<ClippedUpdate, ClipError> {
    if !(bound.is_finite() && bound > 0.0) {
        return Err(BoundError::NotPositive(bound).into());
    }
    let mut values = raw.0;
    if let Some(index) = values.iter().position(|v| !v.is_finite()) {
        return Err(ClipError::NotFinite { index, value: values[index] });
    }
    let norm = l2_norm(&values);
    if norm > bound {
        let factor = bound / norm;
        for v in &mut values {
            *v = (f64::from(*v) * factor) as f32;
        }
    }
    Ok(ClippedUpdate { values, bound })
}

impl ClippedUpdate {
    /// The bound that it was clipped to.
    pub fn bound(&self) -> f64 {
        self.bound
    }

    /// Rounds to the grid (of two equally near units to the even one) so that the integer L2 norm is at most ⌊bound·2^f⌋, exactly.
    ///
    /// # Errors
    /// [`BoundError`] if the bound does not suit the grid.
    pub fn to_grid(&self, grid: Grid) -> Result<FixedVector, BoundError> {
        let bound = bound_in_units(self.bound, grid)?;
        let fit = Fit::of(&self.values, bound, grid).expect("clip() admits finite values only");
        let units: Vec<i32> = self.values.iter().map(|&v| fit.units(v) as i32).collect();
        debug_assert!(squared_norm(&units) <= u128::from(bound) * u128::from(bound));
        Ok(FixedVector::from_units(grid, units).expect("a norm within MAX_FIXED keeps each value within it"))
    }
}

impl fmt::Debug for ClippedUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClippedUpdate({} values within {})", self.values.len(), self.bound)
    }
}

/// An update that is longer than its bound: its sender did not clip.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("the update has an L2 norm of {norm}, above the bound of {bound}: it was not clipped")]
pub struct TooLong {
    /// The norm of the update.
    pub norm: f64,
    /// The bound.
    pub bound: f64,
}

/// The receiver's check of what [`ClippedUpdate::to_grid`] guarantees, exact on the integers.
///
/// # Errors
/// [`TooLong`].
pub fn check_norm(units: &[i32], grid: Grid, bound: f64) -> Result<(), TooLong> {
    let (squared, units) = (squared_norm(units), u128::from(integer_bound(grid, bound)));
    if squared <= units.saturating_mul(units) {
        Ok(())
    } else {
        Err(TooLong { norm: libm::sqrt(squared as f64) / grid.units_per_one(), bound })
    }
}

/// Adds one example's gradient, scaled down to an L2 norm of at most `clip_norm`, to the integer sum `acc` (DP-SGD,
/// Abadi et al. 2016). The norm of what is added is at most ⌊clip_norm·2^f⌋ units, exactly.
///
/// A gradient with NaN or infinity counts as zero: the example is then as good as absent, which keeps the promise,
/// while refusing it would tell that it is there. Gives back whether the gradient was finite, for local counters.
///
/// # Errors
/// [`BoundError`] if `clip_norm` does not suit the grid; `acc` is then as it was.
///
/// # Panics
/// If `grad` and `acc` differ in length.
pub fn clip_example_to_grid(
    grad: &[f32],
    clip_norm: f64,
    grid: Grid,
    acc: &mut [i64],
) -> Result<bool, BoundError> {
    assert_eq!(grad.len(), acc.len(), "a gradient and the sum it goes into have one layout");
    let bound = bound_in_units(clip_norm, grid)?;
    let Some(fit) = Fit::of(grad, bound, grid) else { return Ok(false) };
    for (sum, &g) in acc.iter_mut().zip(grad) {
        *sum += fit.units(g);
    }
    Ok(true)
}

/// The L2 norm. Neither overflows nor vanishes: an f32 squared fits in an f64, subnormal or huge.
pub(crate) fn l2_norm(values: &[f32]) -> f64 {
    libm::sqrt(summed(values, |v| v * v))
}

/// Σ of what `each` makes of a value, in eight sums side by side: in one, each addition would wait for the one before.
fn summed(values: &[f32], each: impl Fn(f64) -> f64) -> f64 {
    let (blocks, rest) = values.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for block in blocks {
        sums.iter_mut().zip(block).for_each(|(sum, &v)| *sum += each(v.into()));
    }
    sums.iter().sum::<f64>() + rest.iter().map(|&v| each(v.into())).sum::<f64>()
}

/// How values become integers of a norm within a bound.
struct Fit {
    factor: f64,
    toward_zero: bool,
}

impl Fit {
    /// Finds a factor that takes next to nothing more than the bound does, in a few tries (mostly one: see [`aim`]). `None` if a
    /// value is not finite.
    ///
    /// Rounding to the nearest unit may push a vector over the bound; then it is scaled down by as much and rounded
    /// again. Where that does not settle, truncating does: it never lengthens a vector.
    fn of(values: &[f32], bound: u64, grid: Grid) -> Option<Self> {
        const TRIES: u32 = 6;
        let norm = l2_norm(values) * grid.units_per_one();
        if !norm.is_finite() {
            return None;
        }
        let limit = u128::from(bound) * u128::from(bound);
        let aim = aim(bound as f64, values.len());
        let mut factor = grid.units_per_one();
        if norm > bound as f64 {
            factor *= aim / norm;
        }
        for try_ in 0.. {
            let fit = Self { factor, toward_zero: try_ >= TRIES };
            let squared = fit.squared_norm(values, bound);
            if squared <= limit {
                return Some(fit);
            }
            // Each try is shorter than the one before by at least 2^-30·2^try, so this ends (at zero, at the latest).
            factor *= (aim / libm::sqrt(squared as f64)).min(1.0);
            factor *= 1.0 - f64::from(1u32 << try_.min(29)) / f64::from(1u32 << 30);
        }
        unreachable!("the loop has no other end")
    }

    /// Exact. But for the rounding of norm and factor, scaled values are within `bound`.
    fn squared_norm(&self, values: &[f32], bound: u64) -> u128 {
        // Rounding moves each value by at most half a unit; as much again is room.
        let most = bound as f64 + libm::sqrt(values.len() as f64) + 1.0;
        if !self.toward_zero && most * most < (1u64 << 52) as f64 {
            // Every sum on the way is an integer that an f64 has.
            let square = |v: f64| {
                let units = nearest(v * self.factor).0;
                units * units
            };
            return summed(values, square) as u128;
        }
        values.iter().map(|&v| u128::from(self.units(v).unsigned_abs()).pow(2)).sum()
    }

    #[inline]
    fn units(&self, value: f32) -> i64 {
        let scaled = f64::from(value) * self.factor;
        if self.toward_zero { scaled as i64 } else { nearest(scaled).1 }
    }
}

/// The norm to scale `len` values to, so that they are within the bound when they are rounded. Rounding adds len/12 to the
/// squared norm on average, with a standard deviation of bound/√3: four of them are left. Nothing is left where it would be more
/// than a thousandth.
fn aim(bound: f64, len: usize) -> f64 {
    let squared = bound * bound;
    let aimed = squared - len as f64 / 12.0 - bound * 4.0 / libm::sqrt(3.0);
    if aimed > 0.999 * squared { libm::sqrt(aimed) } else { bound }
}

#[cfg(test)]
mod tests;
