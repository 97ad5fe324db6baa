//! Real weights as integers, so that a sum with real weights is exact and free of order.

use super::RuleError;
use super::blocks::{GROUP, Tiling, walk};
use super::rows::Rows;
use crate::aggregate::add_weighted;

/// Σ wᵢ·uᵢ for each column. The weights sum to at most 2^32, so that the sums are below 2^62.
pub(super) fn weighted_sums(rows: &dyn Rows, tiling: Tiling, weights: &[u32]) -> Result<Vec<i64>, RuleError> {
    debug_assert!(weights.iter().map(|&w| u64::from(w)).sum::<u64>() <= 1 << 32, "the sums could overflow");
    let mut sums = vec![0; rows.values()];
    walk(
        rows,
        tiling,
        &mut sums,
        || (),
        |(), block, sums| {
            // A few thousand sums stay in the nearest cache while all rows are added.
            for (nth, sums) in sums.chunks_mut(8 * GROUP).enumerate() {
                for (row, &weight) in block.rows().zip(weights) {
                    add_weighted(sums, &row[nth * 8 * GROUP..][..sums.len()], weight);
                }
            }
        },
    )?;
    Ok(sums)
}

/// Real weights, not negative, as integers that sum to about 2^31: each is off by at most half of 2^-31 of the total.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct IntegerWeights {
    /// The integers.
    pub(super) weights: Vec<u32>,
    /// What an integer of one stands for.
    pub(super) one: f64,
}

impl IntegerWeights {
    /// Rounds. Weights that are all zero stay so.
    pub(super) fn of(real: &[f64]) -> Self {
        let total = sum(real);
        if total == 0.0 {
            return Self { weights: vec![0; real.len()], one: 0.0 };
        }
        let weights = real.iter().map(|w| (w / total * f64::from(1u32 << 31)).round() as u32).collect();
        Self { weights, one: total / f64::from(1u32 << 31) }
    }

    /// Σ wᵢ·uᵢ for each column, in units.
    pub(super) fn sums(&self, rows: &dyn Rows, tiling: Tiling) -> Result<Vec<f64>, RuleError> {
        let sums = weighted_sums(rows, tiling, &self.weights)?;
        Ok(sums.into_iter().map(|sum| sum as f64 * self.one).collect())
    }
}

/// The sum of real numbers in order of their size, so that it does not depend on theirs.
pub(super) fn sum(real: &[f64]) -> f64 {
    let mut sorted = real.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.into_iter().sum()
}
