//! The weighted mean (federated averaging, McMahan et al. 2017), over updates that are at hand.
//!
//! Where updates come one by one, [`IntegerSum`] folds each as it comes, to the same bits.

use super::integer_weights::weighted_sums;
use super::{Aggregate, Rows, RuleError, Tiling};
use crate::aggregate::IntegerSum;

/// Σ wᵢ·uᵢ over Σ wᵢ.
pub(super) fn aggregate(rows: &dyn Rows, tiling: Tiling) -> Result<Aggregate, RuleError> {
    let (weights, total) = checked_weights(rows)?;
    Ok(Aggregate::Exact { units: weighted_sums(rows, tiling, &weights)?, denominator: total })
}

/// The weights of the rows and their sum, which fits the exact sum.
pub(super) fn checked_weights(rows: &dyn Rows) -> Result<(Vec<u32>, u64), RuleError> {
    let weights: Vec<u32> = (0..rows.rows()).map(|row| rows.weight(row)).collect();
    let total = weights.iter().map(|&w| u64::from(w)).sum();
    if (1..=IntegerSum::MAX_TOTAL_WEIGHT).contains(&total) {
        Ok((weights, total))
    } else {
        Err(RuleError::Weights { total })
    }
}
