//! Krum and Multi-Krum (Blanchard et al. 2017, "Machine learning with adversaries: Byzantine tolerant gradient
//! descent").

use super::distances::{Distances, MOST_ROWS};
use super::integer_weights::weighted_sums;
use super::rows::Chosen;
use super::{Aggregate, Rows, RuleError, Tiling};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// The one update with the least score: the sum of the squared distances to its n - f - 2 nearest others.
///
/// With n ≥ 2f + 3 updates, f of them bad, the result stays within a bound of the honest mean that the honest
/// updates' own spread sets (their proposition 4.2). Each update counts once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Krum {
    /// Bad updates that are withstood, f.
    pub byzantine: usize,
}

/// The mean of the `keep` updates with the least scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MultiKrum {
    /// Bad updates that are withstood, f.
    pub byzantine: usize,
    /// Updates that are averaged, at most n - f; that many if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<usize>,
}

impl Krum {
    pub(super) fn validate(&self, least: usize, most: usize) -> Result<(), String> {
        enough("krum", 2, self.byzantine, least, most)
    }

    pub(super) fn aggregate(&self, rows: &dyn Rows, tiling: Tiling) -> Result<Aggregate, RuleError> {
        average_of_best(rows, tiling, self.byzantine, 1)
    }
}

impl MultiKrum {
    pub(super) fn validate(&self, least: usize, most: usize) -> Result<(), String> {
        enough("multi-krum", 2, self.byzantine, least, most)?;
        match self.keep {
            Some(keep) if !(1..=least - self.byzantine).contains(&keep) => Err(format!(
                "keep of multi-krum must be 1 to {} (the {least} updates that a round may end with, less byzantine = \
                 {}), not {keep}",
                least - self.byzantine,
                self.byzantine
            )),
            _ => Ok(()),
        }
    }

    pub(super) fn aggregate(&self, rows: &dyn Rows, tiling: Tiling) -> Result<Aggregate, RuleError> {
        let keep = self.keep.unwrap_or(rows.rows() - self.byzantine);
        average_of_best(rows, tiling, self.byzantine, keep)
    }
}

/// That there are at least `times`·f + 3 updates, and no more than distances are computed for.
pub(super) fn enough(rule: &str, times: usize, f: usize, least: usize, most: usize) -> Result<(), String> {
    let needed = f.saturating_mul(times).saturating_add(3);
    if least < needed {
        return Err(format!(
            "{rule} with byzantine = {f} needs at least {times}·{f} + 3 = {needed} updates, and a round may end with \
             {least}: raise min_clients or lower byzantine"
        ));
    }
    if most > MOST_ROWS {
        return Err(format!(
            "{rule} compares all updates with each other, at most {MOST_ROWS}, and a round may have {most}"
        ));
    }
    Ok(())
}

fn average_of_best(rows: &dyn Rows, tiling: Tiling, f: usize, keep: usize) -> Result<Aggregate, RuleError> {
    let distances = Distances::between(rows, tiling)?;
    let n = rows.rows();
    let scores: Vec<u128> = (0..n)
        .map(|i| {
            let mut others: Vec<u128> = (0..n).filter(|&j| j != i).map(|j| distances.squared(i, j)).collect();
            others.sort_unstable();
            others.iter().take(n - f - 2).sum()
        })
        .collect();
    let best = best(rows, &distances, &scores, &Vec::from_iter(0..n), keep)?;
    let units = weighted_sums(&Chosen { all: rows, which: &best }, tiling, &vec![1; keep])?;
    Ok(Aggregate::Exact { units, denominator: keep as u64 })
}

/// The `keep` of the `candidates` with the least scores. Equal scores (two updates that are each other's nearest have
/// them) go by what the updates hold, so that the order of the rows has no say.
pub(super) fn best(
    rows: &dyn Rows,
    distances: &Distances,
    scores: &[u128],
    candidates: &[usize],
    keep: usize,
) -> Result<Vec<usize>, RuleError> {
    let mut best = candidates.to_vec();
    let mut failed = None;
    best.sort_by(|&i, &j| {
        scores[i].cmp(&scores[j]).then_with(|| {
            if distances.squared(i, j) == 0 {
                return Ordering::Equal;
            }
            by_content(rows, i, j).unwrap_or_else(|e| {
                failed = Some(e);
                Ordering::Equal
            })
        })
    });
    best.truncate(keep);
    failed.map_or(Ok(best), Err)
}

/// The lexicographic order of two updates that differ: reads up to where they do.
fn by_content(rows: &dyn Rows, i: usize, j: usize) -> Result<Ordering, RuleError> {
    const PART: usize = 4096;
    let (mut one, mut other) = ([0; PART], [0; PART]);
    for from in (0..rows.values()).step_by(PART) {
        let width = PART.min(rows.values() - from);
        rows.read(i, from, &mut one[..width])?;
        rows.read(j, from, &mut other[..width])?;
        let order = one[..width].cmp(&other[..width]);
        if order.is_ne() {
            return Ok(order);
        }
    }
    Ok(Ordering::Equal)
}
