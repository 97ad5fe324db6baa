//! Exact, order-free sums.

use crate::fixed::{Grid, MAX_FIXED};
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
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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
}

impl IntegerSum {
    /// Most weight that one sum can hold without a chance of overflow.
    pub const MAX_TOTAL_WEIGHT: u64 = 1 << 32;

    /// A sum of nothing.
    pub fn zero(grid: Grid, len: usize) -> Self {
        Self { grid, units: vec![0; len], total_weight: 0, updates: 0 }
    }

    /// Adds `weight` times an update; all or nothing.
    ///
    /// # Errors
    /// [`FoldError`]; the sum is then as it was.
    pub fn fold(&mut self, units: &[i32], weight: u32) -> Result<(), FoldError> {
        if units.len() != self.units.len() {
            return Err(FoldError::WrongLength { found: units.len(), wanted: self.units.len() });
        }
        if let Some(index) = units.iter().position(|u| u.unsigned_abs() > MAX_FIXED as u32) {
            return Err(FoldError::OutOfRange { index });
        }
        let total = self.total_weight + u64::from(weight);
        if weight == 0 || weight > MAX_WEIGHT || total > Self::MAX_TOTAL_WEIGHT || self.updates >= MAX_COHORT
        {
            return Err(FoldError::TooHeavy);
        }
        let w = i64::from(weight);
        for (s, &u) in self.units.iter_mut().zip(units) {
            *s += w * i64::from(u);
        }
        self.total_weight = total;
        self.updates += 1;
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn grid() -> Grid {
        Grid::new(16).unwrap()
    }

    #[test]
    fn a_refused_update_leaves_no_trace() {
        let mut sum = IntegerSum::zero(grid(), 2);
        sum.fold(&[1, 2], 3).unwrap();
        let before = sum.clone();
        assert!(sum.fold(&[1], 1).is_err());
        assert!(sum.fold(&[1, i32::MIN], 1).is_err());
        assert!(sum.fold(&[1, 1], 0).is_err());
        assert!(sum.fold(&[1, 1], MAX_WEIGHT + 1).is_err());
        assert_eq!(sum, before);
    }

    proptest! {
        #[test]
        fn any_order_and_any_split_give_the_same_bits(
            updates in prop::collection::vec((prop::collection::vec(-MAX_FIXED..=MAX_FIXED, 4), 1u32..=MAX_WEIGHT), 1..12),
            cut in 0usize..12,
        ) {
            let sum_of = |list: &[(Vec<i32>, u32)]| {
                let mut s = IntegerSum::zero(grid(), 4);
                for (u, w) in list { s.fold(u, *w).unwrap(); }
                s
            };
            let whole = sum_of(&updates);
            let mut reversed = updates.clone();
            reversed.reverse();
            prop_assert_eq!(&whole, &sum_of(&reversed));
            let cut = cut.min(updates.len());
            let mut left = sum_of(&updates[..cut]);
            left.merge(&sum_of(&updates[cut..])).unwrap();
            prop_assert_eq!(whole, left);
        }
    }
}
