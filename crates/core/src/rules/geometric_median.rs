//! The geometric median, RFA (Pillutla, Kakade, Harchaoui 2022, "Robust aggregation for federated learning").

use super::distances::from_centre;
use super::integer_weights::IntegerWeights;
use super::weighted_mean::checked_weights;
use super::{Aggregate, Rows, RuleError, Tiling};
use crate::fixed::Grid;
use serde::{Deserialize, Serialize};

/// The point with the least sum of weighted distances to the updates, by the smoothed Weiszfeld algorithm (their
/// algorithm 2): each iteration is a mean with the weights wᵢ / max(smoothing, distance of update i), and each reads
/// all updates twice. It begins at zero, an update that changes nothing, from where no bad update, however large, has
/// a head start.
///
/// With less than half of the weight bad, the exact geometric median stays within 2·(1-ρ)/(1-2ρ) times the largest
/// distance of an honest update from their mean, ρ the bad share of the weight (Minsker 2015). Clients' weights count.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeometricMedian {
    /// Iterations: 3 unless given, as in the paper.
    #[serde(default = "three")]
    pub iterations: u32,
    /// Distances below it count as it, ν: 1e-6 unless given, as in the paper.
    #[serde(default = "millionth")]
    pub smoothing: f64,
}

fn three() -> u32 {
    3
}

fn millionth() -> f64 {
    1e-6
}

impl Default for GeometricMedian {
    fn default() -> Self {
        Self { iterations: three(), smoothing: millionth() }
    }
}

impl GeometricMedian {
    /// Most iterations.
    pub const MOST_ITERATIONS: u32 = 1000;

    pub(super) fn validate(&self) -> Result<(), String> {
        if !(1..=Self::MOST_ITERATIONS).contains(&self.iterations) {
            let most = Self::MOST_ITERATIONS;
            return Err(format!(
                "iterations of the geometric median must be 1 to {most}, not {}",
                self.iterations
            ));
        }
        if !(self.smoothing.is_finite() && self.smoothing > 0.0) {
            return Err(format!(
                "smoothing of the geometric median must be a positive number, not {}",
                self.smoothing
            ));
        }
        Ok(())
    }

    pub(super) fn aggregate(
        &self,
        rows: &dyn Rows,
        grid: Grid,
        tiling: Tiling,
    ) -> Result<Aggregate, RuleError> {
        let (weights, _) = checked_weights(rows)?;
        let smoothing = self.smoothing * grid.units_per_one();
        let mut point = vec![0.0; rows.values()];
        for _ in 0..self.iterations {
            let squared = from_centre(rows, tiling, &point)?;
            let pull = weights.iter().zip(squared).map(|(&w, s)| f64::from(w) / s.sqrt().max(smoothing));
            let pull = IntegerWeights::of(&Vec::from_iter(pull));
            let total: u64 = pull.weights.iter().map(|&w| u64::from(w)).sum();
            point = IntegerWeights { one: 1.0 / total as f64, ..pull }.sums(rows, tiling)?;
        }
        Ok(Aggregate::Real { units: point })
    }
}
