//! The inner loop of a round: sums += weight · update, checked on the way.
//!
//! An update is read once. What is out of range is noticed by the same pass that adds it, and if there was any, the
//! pass is taken back: the sums wrap, so that taking back is exact whatever was added.
//!
//! A value is added as x = units + 2^30, which is never negative, and weight·2^30 is subtracted again: a product of
//! two unsigned 32-bit halves is one instruction on every x86-64 and ARM processor, a signed 64-bit one is not.

use crate::fixed::{Grid, MAX_FIXED};
use std::thread;

/// 2^30, what makes every unit in range positive.
const RAISE: u64 = 1 << 30;
/// A thread costs some 20 µs to start: below this many values the work is done sooner without it.
const LEAST_PER_THREAD: usize = 1 << 15;

/// A value of an update as it arrives.
pub(super) trait Foldable: Copy + Sync {
    /// What a grid makes of such values, worked out once.
    type On: Copy + Send;
    /// For one grid.
    fn on(grid: Grid) -> Self::On;
    /// Whether the value rounds to a number of units beyond ±[`MAX_FIXED`].
    fn is_out_of_range(self, on: Self::On) -> bool;
    /// The value in units plus 2^30, in the lower 32 bits. Of no use for a value out of range.
    fn raised(self, on: Self::On) -> u64;
}

impl Foldable for i32 {
    type On = ();

    fn on(_: Grid) {}

    #[inline(always)]
    fn is_out_of_range(self, (): ()) -> bool {
        self.wrapping_add(MAX_FIXED) as u32 > 2 * MAX_FIXED as u32
    }

    #[inline(always)]
    fn raised(self, (): ()) -> u64 {
        u64::from(self.wrapping_add(RAISE as i32) as u32)
    }
}

/// What [`f32`] needs of a grid.
#[derive(Clone, Copy)]
pub(super) struct Real {
    scale: f64,
    limit_bits: i32,
}

/// 1.5·2^52, where an f64's unit in the last place is one, and the 2^30 that the lower bits shall have in them.
const UNIT_PLACE: f64 = 6_755_399_441_055_744.0 + RAISE as f64;

/// Rounds half away from zero like [`Grid::encode`], without the branch. Adding [`UNIT_PLACE`] rounds half to
/// even, so the scale is 1 + 2^-50 times too large: that moves a value of 24 bits off a half, away from zero, by at
/// least 4 units in the last place of an f64, and no other value across a half, for none is within 2^-24 of one
/// (relatively). The lower bits of the sum are then the integer.
///
/// No f32 is between 2^30 - 64 and 2^30, so that in range is below 2^30 units. Bits of f32 without the sign grow with
/// the magnitude, those of infinities and NaN beyond all others.
impl Foldable for f32 {
    type On = Real;

    fn on(grid: Grid) -> Real {
        let limit = (RAISE as f64 / grid.units_per_one()) as f32;
        let step = f64::from(1u32 << 25).recip();
        Real { scale: grid.units_per_one() * (1.0 + step * step), limit_bits: limit.to_bits() as i32 }
    }

    #[inline(always)]
    fn is_out_of_range(self, on: Real) -> bool {
        self.to_bits() as i32 & i32::MAX >= on.limit_bits
    }

    #[inline(always)]
    fn raised(self, on: Real) -> u64 {
        (f64::from(self) * on.scale + UNIT_PLACE).to_bits()
    }
}

/// Adds `weight` times the values, or takes them back. True if all were in range.
fn pass<T: Foldable, const BACK: bool>(sums: &mut [i64], values: &[T], on: T::On, weight: u32) -> bool {
    let mut out_of_range = 0;
    let raised_zero = (u64::from(weight) * RAISE) as i64;
    for (sum, &value) in sums.iter_mut().zip(values) {
        out_of_range |= i32::from(value.is_out_of_range(on));
        let product = ((value.raised(on) & 0xffff_ffff) * u64::from(weight)) as i64;
        *sum = if BACK {
            sum.wrapping_sub(product).wrapping_add(raised_zero)
        } else {
            sum.wrapping_add(product).wrapping_sub(raised_zero)
        };
    }
    out_of_range == 0
}

/// [`pass`] by several threads, each over its own range of the model.
fn split<T: Foldable, const BACK: bool>(
    sums: &mut [i64],
    values: &[T],
    on: T::On,
    weight: u32,
    threads: usize,
) -> bool {
    let threads = threads.min(sums.len() / LEAST_PER_THREAD).max(1);
    let each = sums.len().div_ceil(threads).max(1);
    let mut parts = sums.chunks_mut(each).zip(values.chunks(each));
    let mine = parts.next();
    thread::scope(|scope| {
        let others: Vec<_> =
            parts.map(|(s, v)| scope.spawn(move || pass::<T, BACK>(s, v, on, weight))).collect();
        let mine = mine.is_none_or(|(s, v)| pass::<T, BACK>(s, v, on, weight));
        others.into_iter().fold(mine, |all, other| all & other.join().expect("a fold does not panic"))
    })
}

/// Adds `weight` times the values, all or nothing: false, and the sums as they were, if a value is out of range.
pub(super) fn fold<T: Foldable>(
    sums: &mut [i64],
    values: &[T],
    grid: Grid,
    weight: u32,
    threads: usize,
) -> bool {
    let on = T::on(grid);
    let good = split::<T, false>(sums, values, on, weight, threads);
    if !good {
        split::<T, true>(sums, values, on, weight, threads);
    }
    good
}

/// sums += weight·units for units that are known to be within ±[`MAX_FIXED`]. The caller
/// keeps the sum of all weights within 2^32.
pub(crate) fn add_weighted(sums: &mut [i64], units: &[i32], weight: u32) {
    let raised_zero = (u64::from(weight) * RAISE) as i64;
    for (sum, &unit) in sums.iter_mut().zip(units) {
        let product = (unit.raised(()) * u64::from(weight)) as i64;
        *sum = sum.wrapping_add(product).wrapping_sub(raised_zero);
    }
}
