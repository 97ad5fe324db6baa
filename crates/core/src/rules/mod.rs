//! Aggregation rules: how the updates of a round become one.
//!
//! One file a rule. [`Rule`] is the table of them as a job names them; [`rows`] is where a rule reads updates from,
//! [`blocks`](Tiling) how it walks through them with bounded memory on several threads. The rules of order statistics
//! ([`median`], [`trimmed_mean`]) share the `network` of comparators, those of distances ([`krum`], [`bulyan`])
//! the exact `distances`; those that weigh by real numbers ([`geometric_median`], [`norm_bounded_mean`],
//! [`centred_clipping`]) round the weights to integers, and the sum is exact again. Beside the table stands [`rescale`]:
//! [`fednova`] and [`q_fedavg`] are the mean of updates that clients have rescaled.
//!
//! All work on the integers that clients sent. So there is no NaN and no infinity to defend against: neither has an
//! integer. And each result is the same bits for any order of the updates, any number of threads, any size of block
//! and on every machine: sums are sums of integers, order statistics do not depend on order, ties go by what the
//! updates hold, and what is left of floating point is + - * / and square roots in a fixed order.
//!
//! None of the robust rules has a sensitivity that noise could be set to: they go with contracts that need none.

pub mod bulyan;
pub mod centred_clipping;
pub mod fednova;
pub mod geometric_median;
pub mod krum;
pub mod median;
pub mod norm_bounded_mean;
pub mod q_fedavg;
pub mod rescale;
pub mod rows;
pub mod staleness;
pub mod trimmed_mean;
pub mod weighted_mean;

mod blocks;
mod distances;
mod integer_weights;
mod network;
mod order_statistics;

#[cfg(test)]
mod tests;

pub use blocks::Tiling;
pub use rows::{MemoryRows, Rows, RowsError};

use crate::fixed::Grid;
use bulyan::Bulyan;
use centred_clipping::CentredClipping;
use geometric_median::GeometricMedian;
use krum::{Krum, MultiKrum};
use norm_bounded_mean::NormBoundedMean;
use serde::{Deserialize, Serialize};
use trimmed_mean::TrimmedMean;

/// An aggregation rule with its parameters, as a job names it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Rule {
    /// The weighted mean (federated averaging, McMahan et al. 2017). One bad update moves it anywhere.
    Mean {},
    /// The coordinate-wise median (Yin et al. 2018).
    Median {},
    /// The coordinate-wise trimmed mean (Yin et al. 2018).
    TrimmedMean(TrimmedMean),
    /// The update nearest to its neighbours (Blanchard et al. 2017).
    Krum(Krum),
    /// The mean of the updates nearest to their neighbours (Blanchard et al. 2017).
    MultiKrum(MultiKrum),
    /// Krum again and again, then a trimmed mean around the median (El Mhamdi et al. 2018).
    Bulyan(Bulyan),
    /// The geometric median, RFA (Pillutla et al. 2022).
    GeometricMedian(GeometricMedian),
    /// The mean of updates scaled down to a norm (Sun et al. 2019).
    NormBoundedMean(NormBoundedMean),
    /// The mean of updates scaled down around the last one (Karimireddy et al. 2021).
    CentredClipping(CentredClipping),
}

impl Default for Rule {
    fn default() -> Self {
        Self::Mean {}
    }
}

/// What a rule makes of the updates, in units of the grid.
#[derive(Debug, Clone, PartialEq)]
pub enum Aggregate {
    /// Integers over one denominator.
    Exact {
        /// The numerators.
        units: Vec<i64>,
        /// The denominator, positive.
        denominator: u64,
    },
    /// Real numbers.
    Real {
        /// The values.
        units: Vec<f64>,
    },
}

impl Aggregate {
    /// The values, no longer in units: what a server optimiser takes.
    pub fn mean(&self, grid: Grid) -> Vec<f64> {
        let one = grid.units_per_one();
        match self {
            Self::Exact { units, denominator } => {
                let divisor = one * *denominator as f64;
                units.iter().map(|&u| u as f64 / divisor).collect()
            }
            Self::Real { units } => units.iter().map(|u| u / one).collect(),
        }
    }
}

/// Why there is no aggregate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// The rule does not work on so many updates.
    #[error("{0}")]
    Refused(String),
    /// An update cannot be read.
    #[error(transparent)]
    Rows(#[from] RowsError),
    /// What was read is not what was received.
    #[error("value {index} of update {row} is beyond the range of the wire format: its file is damaged")]
    OutOfRange {
        /// The row.
        row: usize,
        /// Position in the flat vector.
        index: usize,
    },
    /// The weights do not fit the exact sum.
    #[error(
        "the weights sum to {total}, which must be 1 to {}",
        crate::aggregate::IntegerSum::MAX_TOTAL_WEIGHT
    )]
    Weights {
        /// Their sum.
        total: u64,
    },
    /// The centre is of another model.
    #[error("the centre has {found} values, the updates have {wanted}")]
    Centre {
        /// Values of the centre.
        found: usize,
        /// Values of an update.
        wanted: usize,
    },
}

impl Rule {
    /// Checks the parameters against the fewest and the most updates that a round may end with.
    ///
    /// # Errors
    /// A sentence that says which number is wrong and what would be right.
    pub fn validate(&self, least: usize, most: usize) -> Result<(), String> {
        if least == 0 || least > most {
            return Err(format!(
                "a round must have at least one update and at most {most}, not at least {least}"
            ));
        }
        match self {
            Self::Mean {} | Self::Median {} => Ok(()),
            Self::TrimmedMean(rule) => rule.validate(),
            Self::Krum(rule) => rule.validate(least, most),
            Self::MultiKrum(rule) => rule.validate(least, most),
            Self::Bulyan(rule) => rule.validate(least, most),
            Self::GeometricMedian(rule) => rule.validate(),
            Self::NormBoundedMean(rule) => rule.validate(),
            Self::CentredClipping(rule) => rule.validate(),
        }
    }

    /// Whether all updates must be at hand before the rule can begin; the mean adds up a block of each after another, in an
    /// [`IntegerSum`](crate::aggregate::IntegerSum).
    pub fn needs_all_rows(&self) -> bool {
        !matches!(self, Self::Mean {})
    }

    /// Whether the rule takes the result of the round before as its centre.
    pub fn needs_centre(&self) -> bool {
        matches!(self, Self::CentredClipping(_))
    }

    /// Whether the weights of the clients count. Rules whose promise is about a number of bad clients, whatever these
    /// say of themselves, count each client once.
    pub fn weighs(&self) -> bool {
        matches!(self, Self::Mean {} | Self::GeometricMedian(_) | Self::NormBoundedMean(_))
    }

    /// Aggregates. `centre` is [`Aggregate::mean`] of the round before, for the rule that
    /// [`needs_centre`](Self::needs_centre); `None` in the first round is zero. Memory: 4·rows·block bytes a thread
    /// and two or three vectors of the model's length.
    ///
    /// # Errors
    /// [`RuleError`].
    pub fn aggregate(
        &self,
        rows: &dyn Rows,
        grid: Grid,
        tiling: Tiling,
        centre: Option<&[f64]>,
    ) -> Result<Aggregate, RuleError> {
        self.validate(rows.rows(), rows.rows()).map_err(RuleError::Refused)?;
        match self {
            Self::Mean {} => weighted_mean::aggregate(rows, tiling),
            Self::Median {} => median::aggregate(rows, tiling),
            Self::TrimmedMean(rule) => rule.aggregate(rows, tiling),
            Self::Krum(rule) => rule.aggregate(rows, tiling),
            Self::MultiKrum(rule) => rule.aggregate(rows, tiling),
            Self::Bulyan(rule) => rule.aggregate(rows, tiling),
            Self::GeometricMedian(rule) => rule.aggregate(rows, grid, tiling),
            Self::NormBoundedMean(rule) => rule.aggregate(rows, grid, tiling),
            Self::CentredClipping(rule) => rule.aggregate(rows, grid, tiling, centre),
        }
    }
}
