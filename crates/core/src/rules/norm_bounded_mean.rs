//! The norm-bounded mean (Sun et al. 2019, "Can you really backdoor federated learning?").

use super::distances::squared_norms;
use super::integer_weights::weighted_sums;
use super::weighted_mean::checked_weights;
use super::{Aggregate, Rows, RuleError, Tiling};
use crate::fixed::Grid;
use serde::{Deserialize, Serialize};

/// The weighted mean of the updates, each scaled down to an L2 norm of at most `bound`.
///
/// f bad of n updates with equal weights add at most f/n·`bound` to the sum of the others over n. Clients' weights count.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NormBoundedMean {
    /// The largest L2 norm of an update.
    pub bound: f64,
}

impl NormBoundedMean {
    pub(super) fn validate(&self) -> Result<(), String> {
        if self.bound.is_finite() && self.bound > 0.0 {
            Ok(())
        } else {
            Err(format!("bound of the norm-bounded mean must be a positive number, not {}", self.bound))
        }
    }

    pub(super) fn aggregate(
        &self,
        rows: &dyn Rows,
        grid: Grid,
        tiling: Tiling,
    ) -> Result<Aggregate, RuleError> {
        let (weights, total) = checked_weights(rows)?;
        let bound = self.bound * grid.units_per_one();
        // Weights are made finer by a power of two, to a total of 2^31 if there is room, and rounded down: a scaled
        // update is never longer than the bound, and one within it counts for exactly its weight.
        let finer = ((1u64 << 31) >> (64 - (total - 1).leading_zeros())).max(1);
        let norms = squared_norms(rows, tiling)?;
        let scaled = weights.iter().zip(norms).map(|(&weight, squared)| {
            let norm = (squared as f64).sqrt();
            let whole = u64::from(weight) * finer;
            // At most 2^31: either the total is, or the weight was not made finer.
            if norm <= bound { whole as u32 } else { (whole as f64 * (bound / norm)).floor() as u32 }
        });
        let scaled = Vec::from_iter(scaled);
        Ok(Aggregate::Exact { units: weighted_sums(rows, tiling, &scaled)?, denominator: total * finer })
    }
}
