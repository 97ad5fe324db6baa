//! The coordinate-wise median (Yin et al. 2018, "Byzantine-robust distributed learning", option I).

use super::order_statistics::middle_sums;
use super::{Aggregate, Rows, RuleError, Tiling};

/// The median of each coordinate; of an even number of updates the mean of the two in the middle. Each update counts
/// once.
///
/// With fewer than half of the updates bad, each coordinate lies between the least and the greatest honest value.
pub(super) fn aggregate(rows: &dyn Rows, tiling: Tiling) -> Result<Aggregate, RuleError> {
    let trim = (rows.rows() - 1) / 2;
    let units = middle_sums(rows, tiling, trim)?;
    Ok(Aggregate::Exact { units, denominator: (rows.rows() - 2 * trim) as u64 })
}
