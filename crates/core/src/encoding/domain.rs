//! The two kinds of vectors that travel: updates as units of a grid, models as f32.
//!
//! A unit of a grid (30 bits and a sign, times a power of two) and an f32 are both f64 values, exactly. So each codec is
//! written once, over exact f64 values, and a domain says how those are made from its items and rounded back to them.

use crate::fixed::{Grid, MAX_FIXED};
use std::fmt::Debug;

mod sealed {
    pub trait Sealed {}
}

/// What the items of a vector are. Sealed: [`Units`] and [`Values`].
pub trait Domain: Copy + Debug + sealed::Sealed {
    /// One item.
    type Item: Copy + Default + PartialEq + Debug;

    /// The exponent e of the smallest step 2^e between items.
    fn finest(self) -> i32;

    /// Whether the item may be sent: within the wire's range, finite.
    fn valid(self, item: Self::Item) -> bool;

    /// The item as a real number, exactly.
    fn real(self, item: Self::Item) -> f64;

    /// Whether the real number rounds to a valid item.
    fn admits(self, real: f64) -> bool;

    /// The nearest item of a real number that is admitted; exact for products of a 24-bit integer and a power of two.
    fn round(self, real: f64) -> Self::Item;

    /// The item times a factor from 0 to 1, rounded towards zero.
    fn shrunk(self, item: Self::Item, factor: f64) -> Self::Item;

    /// The item as a unit of the grid; `None` if it is beyond the wire's range.
    fn to_unit(self, item: Self::Item) -> Option<i32>;

    /// A unit within the wire's range as an item.
    fn of_unit(self, unit: i32) -> Self::Item;

    /// Any unit as a real number: for an error message.
    fn real_of_unit(self, unit: i32) -> f64;

    /// The item as an f32, rounded to nearest even, or towards zero where told to, or where nearest is not admitted.
    fn to_f32(self, item: Self::Item, toward_zero: bool) -> f32;

    /// An f32 that is admitted as an item.
    fn of_f32(self, value: f32) -> Self::Item {
        self.round(f64::from(value))
    }

    /// The item as the upper half of an f32; rounded like [`Domain::to_f32`].
    fn to_bf16(self, item: Self::Item, toward_zero: bool) -> u16;
}

/// Updates: i32 units of a grid.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Units {
    fraction_bits: u8,
    units_per_one: f64,
    unit: f64,
}

impl Units {
    /// Units of this grid.
    pub fn new(grid: Grid) -> Self {
        let units_per_one = grid.units_per_one();
        Self { fraction_bits: grid.into(), units_per_one, unit: 1.0 / units_per_one }
    }

    /// The largest magnitude that rounds to a valid unit lies below this.
    const LIMIT: f64 = MAX_FIXED as f64 + 0.5;
}

/// A number below 2^51 plus this is rounded to an integer (ties to even), which are then the low bits of the sum. A cast
/// would do the same several times slower: it saturates, for which processors have no instruction.
pub(super) const ONES: f64 = (1u64 << 52) as f64;

#[inline]
fn signed(magnitude: u32, like: f64) -> i32 {
    let positive = magnitude as i32;
    if like < 0.0 { positive.wrapping_neg() } else { positive }
}

impl sealed::Sealed for Units {}

impl Domain for Units {
    type Item = i32;

    fn finest(self) -> i32 {
        -i32::from(self.fraction_bits)
    }

    #[inline]
    fn valid(self, item: i32) -> bool {
        item.unsigned_abs() <= MAX_FIXED as u32
    }

    #[inline]
    fn real(self, item: i32) -> f64 {
        f64::from(item) * self.unit
    }

    #[inline]
    fn admits(self, real: f64) -> bool {
        (real * self.units_per_one).abs() < Self::LIMIT
    }

    /// Half away from zero, as [`Grid::encode`] does.
    #[inline]
    fn round(self, real: f64) -> i32 {
        let x = real * self.units_per_one;
        let magnitude = x.abs();
        let shifted = magnitude + ONES;
        // Exact, and 1/2 only where a half was rounded down to an even number.
        let below = magnitude - (shifted - ONES);
        signed((shifted.to_bits() as u32).wrapping_add(u32::from(below >= 0.5)), x)
    }

    #[inline]
    fn shrunk(self, item: i32, factor: f64) -> i32 {
        let x = f64::from(item) * factor;
        let shifted = x.abs() + ONES;
        signed((shifted.to_bits() as u32).wrapping_sub(u32::from(shifted - ONES > x.abs())), x)
    }

    #[inline]
    fn to_unit(self, item: i32) -> Option<i32> {
        self.valid(item).then_some(item)
    }

    #[inline]
    fn of_unit(self, unit: i32) -> i32 {
        unit
    }

    fn real_of_unit(self, unit: i32) -> f64 {
        f64::from(unit) * self.unit
    }

    #[inline]
    fn to_f32(self, item: i32, toward_zero: bool) -> f32 {
        let real = self.real(item);
        let nearest = real as f32;
        let too_long = toward_zero && f64::from(nearest).abs() > real.abs();
        if too_long || !self.admits(f64::from(nearest)) {
            f32::from_bits(nearest.to_bits() - 1)
        } else {
            nearest
        }
    }

    /// From the f64, not from the f32: rounding twice would not round to nearest. A unit is never a subnormal.
    #[inline]
    fn to_bf16(self, item: i32, toward_zero: bool) -> u16 {
        // 45 of the 52 stored bits go.
        const DROPPED: u64 = (1 << 45) - 1;
        let real = self.real(item);
        let bits = real.to_bits();
        let nearest = f64::from_bits((bits + (DROPPED >> 1) + ((bits >> 45) & 1)) & !DROPPED);
        let cut = f64::from_bits(bits & !DROPPED);
        let kept = if toward_zero || !self.admits(nearest) { cut } else { nearest };
        ((kept as f32).to_bits() >> 16) as u16
    }
}

/// Models: f32 values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Values {
    units: Units,
}

impl Values {
    /// Values of a job with this grid (which only `fixed32` uses).
    pub fn new(grid: Grid) -> Self {
        Self { units: Units::new(grid) }
    }
}

impl sealed::Sealed for Values {}

impl Domain for Values {
    type Item = f32;

    fn finest(self) -> i32 {
        -149
    }

    #[inline]
    fn valid(self, item: f32) -> bool {
        item.is_finite()
    }

    #[inline]
    fn real(self, item: f32) -> f64 {
        f64::from(item)
    }

    #[inline]
    fn admits(self, real: f64) -> bool {
        real.abs() <= f64::from(f32::MAX)
    }

    #[inline]
    fn round(self, real: f64) -> f32 {
        real as f32
    }

    fn shrunk(self, item: f32, factor: f64) -> f32 {
        let (exact, rounded) = (f64::from(item) * factor, (f64::from(item) * factor) as f32);
        if f64::from(rounded).abs() > exact.abs() { f32::from_bits(rounded.to_bits() - 1) } else { rounded }
    }

    #[inline]
    fn to_unit(self, item: f32) -> Option<i32> {
        self.units.admits(f64::from(item)).then(|| self.units.round(f64::from(item)))
    }

    #[inline]
    fn of_unit(self, unit: i32) -> f32 {
        self.units.real(unit) as f32
    }

    fn real_of_unit(self, unit: i32) -> f64 {
        self.units.real(unit)
    }

    #[inline]
    fn to_f32(self, item: f32, _toward_zero: bool) -> f32 {
        item
    }

    #[inline]
    fn of_f32(self, value: f32) -> f32 {
        value
    }

    #[inline]
    fn to_bf16(self, item: f32, toward_zero: bool) -> u16 {
        let bits = item.to_bits();
        let nearest = ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
        // Exponent of all ones: rounded to infinity.
        if toward_zero || nearest & 0x7f80 == 0x7f80 { (bits >> 16) as u16 } else { nearest }
    }
}
