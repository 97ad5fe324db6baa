//! How far one client or record can move a sum: the number that every mechanism scales its noise to.
//!
//! A sensitivity is a type, made from a clipping bound and the adjacency, so that no loose number can stand in for it
//! (a free `sensitivity` that has nothing to do with the clip norm has been shipped elsewhere).

use crate::clip::{BoundError, bound_in_units};
use serde::{Deserialize, Serialize};
use undertone_core::fixed::Grid;

/// Which data sets are neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Adjacency {
    /// One client (or record) more or less: its contribution moves the sum by its own norm.
    #[default]
    AddRemove,
    /// One client (or record) replaced by another: both contributions move the sum, in opposite directions at worst.
    ReplaceOne,
}

impl Adjacency {
    /// The word in config, reports and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AddRemove => "add-remove",
            Self::ReplaceOne => "replace-one",
        }
    }

    /// Contributions that differ between neighbours: 1 or 2.
    pub fn contributions(self) -> u64 {
        match self {
            Self::AddRemove => 1,
            Self::ReplaceOne => 2,
        }
    }
}

/// An L2 sensitivity in units of the grid, exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct L2Sensitivity(u64);

impl L2Sensitivity {
    /// The sensitivity of a sum of vectors that [`clip`](crate::clip::clip) brought within `clip_norm` on `grid`:
    /// C or 2C in units.
    ///
    /// # Errors
    /// [`BoundError`] if `clip_norm` does not suit the grid.
    pub fn of_clipped(clip_norm: f64, grid: Grid, adjacency: Adjacency) -> Result<Self, BoundError> {
        Ok(Self(bound_in_units(clip_norm, grid)? * adjacency.contributions()))
    }

    /// In units of the grid.
    pub fn units(self) -> u64 {
        self.0
    }

    /// Of contributions that count up to so many times.
    pub fn times(self, weight: u32) -> Self {
        Self(self.0 * u64::from(weight))
    }

    /// The standard deviation of `noise_multiplier` sensitivities, in units, rounded up.
    pub fn sigma(self, noise_multiplier: f64) -> f64 {
        (noise_multiplier * self.0 as f64).next_up()
    }
}

/// An L1 sensitivity of an integer statistic, exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct L1Sensitivity(u64);

impl L1Sensitivity {
    /// The sensitivity of a sum of statistics of which each has an L1 norm of at most `bound`.
    pub(crate) fn of_bounded(bound: u64, adjacency: Adjacency) -> Self {
        Self(bound * adjacency.contributions())
    }

    /// In units of the statistic.
    pub fn units(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replacing_one_counts_twice() {
        let grid = Grid::new(16).unwrap();
        let of = |adjacency| L2Sensitivity::of_clipped(1.0, grid, adjacency).unwrap().units();
        assert_eq!((of(Adjacency::AddRemove), of(Adjacency::ReplaceOne)), (65_536, 131_072));
        assert!(L2Sensitivity::of_clipped(f64::NAN, grid, Adjacency::AddRemove).is_err());
        assert!(L2Sensitivity(3).sigma(0.1) > 0.3);
    }
}
