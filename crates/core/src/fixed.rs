//! Fixed point: how real numbers become integers whose sums are exact.
//!
//! A value v is sent as the integer round(v·2^f). Integer sums are the same bits in whatever order updates
//! arrive, on every machine, and a norm bound checked on the integers holds exactly (floating-point sums may
//! exceed the declared sensitivity: Casacuberta et al. 2022).

use serde::{Deserialize, Serialize};

/// Fraction bits of the grid: one unit is 2^-bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Grid(u8);

/// A number of fraction bits out of bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("fraction_bits must be 4 to 28, not {0}")]
pub struct InvalidGrid(u8);

/// A value that the grid cannot hold.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum OffGrid {
    /// NaN or infinite.
    #[error("value {index} of the update is {value}, not a finite number")]
    NotFinite {
        /// Position in the flat vector.
        index: usize,
        /// The value.
        value: f32,
    },
    /// Further from zero than an i32 of this grid can say.
    #[error("value {index} of the update is {value}, beyond ±{limit} that the job's grid can hold")]
    OutOfRange {
        /// Position in the flat vector.
        index: usize,
        /// The value.
        value: f32,
        /// The largest magnitude.
        limit: f64,
    },
}

/// Largest magnitude of one integer on the wire. One bit below the type, so that a sum of
/// [`MAX_COHORT`](crate::limits::MAX_COHORT) (2^16) values with [`MAX_WEIGHT`](crate::limits::MAX_WEIGHT) (2^20)
/// fits: see [`crate::aggregate::IntegerSum`].
pub const MAX_FIXED: i32 = (1 << 30) - 1;

impl Grid {
    /// A grid of 2^-bits.
    ///
    /// # Errors
    /// If `bits` is not 4 to 28.
    pub fn new(bits: u8) -> Result<Self, InvalidGrid> {
        if (4..=28).contains(&bits) { Ok(Self(bits)) } else { Err(InvalidGrid(bits)) }
    }

    /// Units in 1.0.
    pub fn units_per_one(self) -> f64 {
        f64::from(1u32 << self.0)
    }

    /// The largest magnitude that an update's value may have.
    pub fn max_value(self) -> f64 {
        f64::from(MAX_FIXED) / self.units_per_one()
    }

    /// Rounds each value to the nearest unit.
    ///
    /// # Errors
    /// [`OffGrid`] for the first value that is not finite or out of range.
    pub fn encode(self, values: &[f32]) -> Result<FixedVector, OffGrid> {
        let scale = self.units_per_one();
        let mut out = Vec::with_capacity(values.len());
        for (index, &value) in values.iter().enumerate() {
            if !value.is_finite() {
                return Err(OffGrid::NotFinite { index, value });
            }
            let units = (f64::from(value) * scale).round();
            if units.abs() > f64::from(MAX_FIXED) {
                return Err(OffGrid::OutOfRange { index, value, limit: self.max_value() });
            }
            out.push(units as i32);
        }
        Ok(FixedVector { grid: self, units: out })
    }
}

impl TryFrom<u8> for Grid {
    type Error = InvalidGrid;
    fn try_from(bits: u8) -> Result<Self, InvalidGrid> {
        Self::new(bits)
    }
}

impl From<Grid> for u8 {
    fn from(grid: Grid) -> u8 {
        grid.0
    }
}

/// A vector on a grid; every unit is within ±[`MAX_FIXED`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedVector {
    grid: Grid,
    units: Vec<i32>,
}

impl FixedVector {
    /// The grid.
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// The integers.
    pub fn units(&self) -> &[i32] {
        &self.units
    }

    /// Wraps integers that somebody else made.
    ///
    /// # Errors
    /// The position of the first integer beyond ±[`MAX_FIXED`].
    pub fn from_units(grid: Grid, units: Vec<i32>) -> Result<Self, usize> {
        match units.iter().position(|u| u.unsigned_abs() > MAX_FIXED as u32) {
            Some(index) => Err(index),
            None => Ok(Self { grid, units }),
        }
    }

    /// The squared L2 norm in units, exact: 2^31 values of 2^60 each fit in 2^91.
    pub fn squared_norm(&self) -> u128 {
        squared_norm(&self.units)
    }

    /// The bytes that travel: little-endian i32, one for each value.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.units.iter().flat_map(|u| u.to_le_bytes()).collect()
    }

    /// Back to real numbers.
    pub fn decode(&self) -> Vec<f32> {
        let scale = self.grid.units_per_one();
        self.units.iter().map(|&u| (f64::from(u) / scale) as f32).collect()
    }
}

/// The exact squared L2 norm of integers.
pub fn squared_norm(units: &[i32]) -> u128 {
    units.iter().map(|&u| u128::from((i64::from(u) * i64::from(u)).unsigned_abs())).sum()
}

/// Largest integer r with r ≤ `norm`·2^bits: an integer norm bound that is never above the real one.
pub fn integer_bound(grid: Grid, norm: f64) -> u64 {
    (norm * grid.units_per_one()).floor() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_the_grid_cannot_hold_is_refused_with_its_place() {
        let grid = Grid::new(16).unwrap();
        assert!(matches!(grid.encode(&[0.0, f32::NAN]), Err(OffGrid::NotFinite { index: 1, .. })));
        assert!(matches!(grid.encode(&[f32::NEG_INFINITY]), Err(OffGrid::NotFinite { index: 0, .. })));
        assert!(matches!(grid.encode(&[1e6]), Err(OffGrid::OutOfRange { index: 0, .. })));
        assert_eq!(FixedVector::from_units(grid, vec![0, i32::MIN]), Err(1));
        assert!(Grid::new(3).is_err() && Grid::new(29).is_err());
    }

    proptest! {
        #[test]
        fn rounding_is_at_most_half_a_unit(values in prop::collection::vec(-1000f32..1000f32, 0..50), bits in 4u8..=20) {
            let grid = Grid::new(bits).unwrap();
            let fixed = grid.encode(&values).unwrap();
            for (v, u) in values.iter().zip(fixed.units()) {
                prop_assert!((f64::from(*v) * grid.units_per_one() - f64::from(*u)).abs() <= 0.5);
            }
        }
    }
}
