//! Exact, order-free sums.

mod fold;

pub(crate) use fold::add_weighted;

use crate::fixed::{Grid, MAX_FIXED, OffGrid};
use crate::limits::{MAX_COHORT, MAX_WEIGHT};

/// The weighted sum of updates as integers, with the weight that went in.
///
/// Head-room: [`MAX_COHORT`] (2^16) · [`MAX_WEIGHT`] (2^20) · 2^30 = 2^66 would not fit in an i64, so the *sum of
/// weights* is bounded by 2^32 instead ([`IntegerSum::MAX_TOTAL_WEIGHT`]): 2^32 · 2^30 = 2^62.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntegerSum {
    grid: Grid,
    units: Vec<i64>,
    total_weight: u64,
    updates: u32,
}

/// Why an update cannot be added.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FoldError {
    /// The number of values differs from the model's.
    #[error("the update has {found} values, the model has {wanted}")]
    WrongLength {
        /// Values in the update.
        found: usize,
        /// Values in the model.
        wanted: usize,
    },
    /// A weight of zero or beyond the bound, or too many updates.
    #[error("the weights of the cohort sum past the bound of {}", IntegerSum::MAX_TOTAL_WEIGHT)]
    TooHeavy,
    /// A value beyond the wire format's range.
    #[error("value {index} of the update is beyond the range of the wire format")]
    OutOfRange {
        /// Position in the flat vector.
        index: usize,
    },
    /// A real value that the sum's grid cannot hold.
    #[error(transparent)]
    OffGrid(#[from] OffGrid),
}

impl IntegerSum {
    /// Most weight that one sum can hold without a chance of overflow.
    pub const MAX_TOTAL_WEIGHT: u64 = 1 << 32;

    /// A sum of nothing.
    pub fn zero(grid: Grid, len: usize) -> Self {
        Self { grid, units: vec![0; len], total_weight: 0, updates: 0 }
    }

    /// A sum that was made elsewhere, of so many updates with so much weight.
    ///
    /// # Errors
    /// [`FoldError`] if no such updates have this sum.
    pub fn of_units(grid: Grid, units: Vec<i64>, total_weight: u64, updates: u32) -> Result<Self, FoldError> {
        let is_light = total_weight <= u64::from(updates) * u64::from(MAX_WEIGHT);
        if total_weight > Self::MAX_TOTAL_WEIGHT || updates > MAX_COHORT || !is_light {
            return Err(FoldError::TooHeavy);
        }
        let most = total_weight * MAX_FIXED as u64;
        match units.iter().position(|unit| unit.unsigned_abs() > most) {
            Some(index) => Err(FoldError::OutOfRange { index }),
            None => Ok(Self { grid, units, total_weight, updates }),
        }
    }

    /// Adds `weight` times an update; all or nothing.
    ///
    /// # Errors
    /// [`FoldError`]; the sum is then as it was.
    pub fn fold(&mut self, units: &[i32], weight: u32) -> Result<(), FoldError> {
        self.fold_parallel(units, weight, 1)
    }

    /// [`fold`](Self::fold) by `threads` threads (0 is read as 1), each over its range of the model. The bits of
    /// the sum do not depend on how many.
    ///
    /// # Errors
    /// [`FoldError`]; the sum is then as it was.
    pub fn fold_parallel(&mut self, units: &[i32], weight: u32, threads: usize) -> Result<(), FoldError> {
        let total = self.weight_with(units.len(), weight)?;
        if !fold::fold(&mut self.units, units, self.grid, weight, threads) {
            let index = units.iter().position(|u| u.unsigned_abs() > MAX_FIXED as u32);
            return Err(FoldError::OutOfRange { index: index.expect("the fold found one") });
        }
        self.count(total);
        Ok(())
    }

    /// Folds real values, rounded to the grid as [`Grid::encode`] rounds them, without a copy of the update in
    /// between: the bits are those of encoding and folding.
    ///
    /// # Errors
    /// [`FoldError`]; the sum is then as it was.
    pub fn fold_values(&mut self, values: &[f32], weight: u32, threads: usize) -> Result<(), FoldError> {
        let total = self.weight_with(values.len(), weight)?;
        if !fold::fold(&mut self.units, values, self.grid, weight, threads) {
            let mut parts = values.chunks(PART).enumerate();
            let refused =
                parts.find_map(|(nth, part)| Some(moved(self.grid.encode(part).err()?, nth * PART)));
            return Err(refused.expect("the fold found one").into());
        }
        self.count(total);
        Ok(())
    }

    /// The total weight after one more update of `len` values, if there is room for it.
    fn weight_with(&self, len: usize, weight: u32) -> Result<u64, FoldError> {
        if len != self.units.len() {
            return Err(FoldError::WrongLength { found: len, wanted: self.units.len() });
        }
        let total = self.total_weight + u64::from(weight);
        if weight == 0 || weight > MAX_WEIGHT || total > Self::MAX_TOTAL_WEIGHT || self.updates >= MAX_COHORT
        {
            return Err(FoldError::TooHeavy);
        }
        Ok(total)
    }

    fn count(&mut self, total_weight: u64) {
        self.total_weight = total_weight;
        self.updates += 1;
    }

    /// Adds another sum over other clients of the same round.
    ///
    /// # Errors
    /// [`FoldError`]; the sum is then as it was.
    pub fn merge(&mut self, other: &Self) -> Result<(), FoldError> {
        if other.units.len() != self.units.len() || other.grid != self.grid {
            return Err(FoldError::WrongLength { found: other.units.len(), wanted: self.units.len() });
        }
        let total = self.total_weight + other.total_weight;
        if total > Self::MAX_TOTAL_WEIGHT || self.updates + other.updates > MAX_COHORT {
            return Err(FoldError::TooHeavy);
        }
        for (s, &u) in self.units.iter_mut().zip(&other.units) {
            *s += u;
        }
        self.total_weight = total;
        self.updates += other.updates;
        Ok(())
    }

    /// The grid.
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// The summed integers.
    pub fn units(&self) -> &[i64] {
        &self.units
    }

    /// The summed integers, for the mechanism that adds noise to them.
    pub fn into_units(self) -> Vec<i64> {
        self.units
    }

    /// The sum of the weights that went in.
    pub fn total_weight(&self) -> u64 {
        self.total_weight
    }

    /// The number of updates that went in.
    pub fn updates(&self) -> u32 {
        self.updates
    }
}

/// How many values are encoded at a time to find the one to blame.
const PART: usize = 4096;

/// The same refusal, `by` positions later.
fn moved(refused: OffGrid, by: usize) -> OffGrid {
    match refused {
        OffGrid::NotFinite { index, value } => OffGrid::NotFinite { index: index + by, value },
        OffGrid::OutOfRange { index, value, limit } => {
            OffGrid::OutOfRange { index: index + by, value, limit }
        }
    }
}

#[cfg(test)]
mod tests;
