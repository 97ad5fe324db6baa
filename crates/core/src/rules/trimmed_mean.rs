//! The coordinate-wise trimmed mean (Yin et al. 2018, "Byzantine-robust distributed learning", option II).

use super::order_statistics::middle_sums;
use super::{Aggregate, Rows, RuleError, Tiling};
use serde::{Deserialize, Serialize};

/// The mean of each coordinate without its ⌊beta·n⌋ least and ⌊beta·n⌋ greatest values. Each update counts once.
///
/// With at most ⌊beta·n⌋ bad updates, each coordinate lies between the least and the greatest honest value.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrimmedMean {
    /// The share that is left out at each end: 0 to below 0.5.
    pub beta: f64,
}

impl TrimmedMean {
    pub(super) fn validate(&self) -> Result<(), String> {
        if (0.0..0.5).contains(&self.beta) {
            Ok(())
        } else {
            Err(format!("beta of the trimmed mean must be at least 0 and below 0.5, not {}", self.beta))
        }
    }

    /// Values left out at each end of `n`; always fewer than n/2.
    pub fn trim(&self, n: usize) -> usize {
        // 0.29 · 100 is 28.999999999999996, and 29 is meant.
        let trim = (self.beta * n as f64 + 1e-9).floor() as usize;
        trim.min(n.saturating_sub(1) / 2)
    }

    pub(super) fn aggregate(&self, rows: &dyn Rows, tiling: Tiling) -> Result<Aggregate, RuleError> {
        let trim = self.trim(rows.rows());
        let units = middle_sums(rows, tiling, trim)?;
        Ok(Aggregate::Exact { units, denominator: (rows.rows() - 2 * trim) as u64 })
    }
}
