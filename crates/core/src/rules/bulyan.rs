//! Bulyan (El Mhamdi et al. 2018, "The hidden vulnerability of distributed learning in Byzantium").

use super::blocks::walk;
use super::distances::Distances;
use super::krum::{best, enough};
use super::network::{Network, WIDTH, undress};
use super::order_statistics::load;
use super::rows::Chosen;
use super::{Aggregate, Rows, RuleError, Tiling};
use serde::{Deserialize, Serialize};

/// Bulyan over Krum. Krum takes θ = n - 2f updates, one after the other, each out of those that are left; then each
/// coordinate is the mean of the β = θ - 2f values nearest to the median of the θ.
///
/// With n ≥ 4f + 3 updates, f of them bad, each coordinate lies between honest values: a bad update cannot hide a
/// large change of a few coordinates in a small distance (their section 4). Each update counts once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bulyan {
    /// Bad updates that are withstood, f.
    pub byzantine: usize,
}

impl Bulyan {
    pub(super) fn validate(&self, least: usize, most: usize) -> Result<(), String> {
        enough("bulyan", 4, self.byzantine, least, most)
    }

    pub(super) fn aggregate(&self, rows: &dyn Rows, tiling: Tiling) -> Result<Aggregate, RuleError> {
        let selected = select(rows, &Distances::between(rows, tiling)?, self.byzantine)?;
        let beta = selected.len() - 2 * self.byzantine;
        let units = nearest_to_median(&Chosen { all: rows, which: &selected }, tiling, beta)?;
        Ok(Aggregate::Exact { units, denominator: beta as u64 })
    }
}

/// The θ rows that Krum takes one by one. Of r that are left, each is scored by its r - f - 2 nearest, or by the
/// nearest alone where that is less than one.
fn select(rows: &dyn Rows, distances: &Distances, f: usize) -> Result<Vec<usize>, RuleError> {
    let n = rows.rows();
    let nearest_first: Vec<Vec<usize>> = (0..n)
        .map(|i| {
            let mut others: Vec<usize> = (0..n).filter(|&j| j != i).collect();
            others.sort_unstable_by_key(|&j| distances.squared(i, j));
            others
        })
        .collect();
    let mut left: Vec<usize> = (0..n).collect();
    let mut is_left = vec![true; n];
    let mut selected = Vec::with_capacity(n - 2 * f);
    let mut scores = vec![0; n];
    while selected.len() < n - 2 * f {
        let neighbours = left.len().saturating_sub(f + 2).max(1);
        for &i in &left {
            let near = nearest_first[i].iter().filter(|&&j| is_left[j]).take(neighbours);
            scores[i] = near.map(|&j| distances.squared(i, j)).sum();
        }
        let next = best(rows, distances, &scores, &left, 1)?[0];
        left.retain(|&i| i != next);
        is_left[next] = false;
        selected.push(next);
    }
    Ok(selected)
}

/// For each column the sum of the `beta` values nearest to its median. Nearest ones are neighbours in order, so they
/// are one of the windows of the sorted column; of two windows as near the lower is taken.
fn nearest_to_median(rows: &dyn Rows, tiling: Tiling, beta: usize) -> Result<Vec<i64>, RuleError> {
    let lines = rows.rows();
    let network = Network::sorting(lines);
    let mut sums = vec![0; rows.values()];
    let scratch = || (vec![[0.0; WIDTH]; lines], vec![0i64; lines]);
    walk(rows, tiling, &mut sums, scratch, |(tile, column), block, sums| {
        for (nth, sums) in sums.chunks_mut(WIDTH).enumerate() {
            load(tile, block, nth * WIDTH);
            network.run(tile);
            for (at, sum) in sums.iter_mut().enumerate() {
                column.iter_mut().zip(&*tile).for_each(|(value, line)| *value = undress(line[at]).into());
                *sum = window_sum(column, beta);
            }
        }
    })?;
    Ok(sums)
}

fn window_sum(sorted: &[i64], beta: usize) -> i64 {
    let n = sorted.len();
    // Twice the median, an integer also of an even number of values.
    let median = sorted[(n - 1) / 2] + sorted[n / 2];
    let mut from = 0;
    // A window further up is nearer as long as the value that leaves is further away than the one that enters.
    while from + beta < n && median - 2 * sorted[from] > 2 * sorted[from + beta] - median {
        from += 1;
    }
    sorted[from..from + beta].iter().sum()
}
