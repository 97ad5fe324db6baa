//! Centred clipping (Karimireddy, He, Jaggi 2021, "Learning from history for Byzantine robust optimization").

use super::distances::from_centre;
use super::integer_weights::weighted_sums;
use super::{Aggregate, Rows, RuleError, Tiling};
use crate::fixed::Grid;
use serde::{Deserialize, Serialize};

/// v + Σ (xᵢ - v)·min(1, radius / ‖xᵢ - v‖) / n around the centre v, the result of the round before; again with the
/// new centre for each further iteration (their algorithm 2).
///
/// An iteration moves the centre by at most `radius`, and f bad of n updates by at most f/n·`radius` of it. Each update
/// counts once.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CentredClipping {
    /// How far from the centre an update counts in full, an L2 norm (τ).
    pub radius: f64,
    /// Iterations: 1 unless given, as in the paper's experiments.
    #[serde(default = "one")]
    pub iterations: u32,
}

fn one() -> u32 {
    1
}

impl CentredClipping {
    /// Most iterations.
    pub const MOST_ITERATIONS: u32 = 1000;

    pub(super) fn validate(&self) -> Result<(), String> {
        if !(self.radius.is_finite() && self.radius > 0.0) {
            return Err(format!("radius of centred clipping must be a positive number, not {}", self.radius));
        }
        if !(1..=Self::MOST_ITERATIONS).contains(&self.iterations) {
            let most = Self::MOST_ITERATIONS;
            return Err(format!(
                "iterations of centred clipping must be 1 to {most}, not {}",
                self.iterations
            ));
        }
        Ok(())
    }

    pub(super) fn aggregate(
        &self,
        rows: &dyn Rows,
        grid: Grid,
        tiling: Tiling,
        centre: Option<&[f64]>,
    ) -> Result<Aggregate, RuleError> {
        let wanted = rows.values();
        if let Some(found) = centre.map(<[f64]>::len).filter(|&found| found != wanted) {
            return Err(RuleError::Centre { found, wanted });
        }
        let one = grid.units_per_one();
        let mut centre = centre.map_or(vec![0.0; wanted], |centre| centre.iter().map(|v| v * one).collect());
        let radius = self.radius * one;
        let n = rows.rows();
        // As in the norm-bounded mean: a weight of one as fine as the sum has room for.
        let whole = ((1u64 << 32) / n as u64).min(u64::from(u32::MAX)) as f64;
        for _ in 0..self.iterations {
            let scaled = from_centre(rows, tiling, &centre)?.into_iter().map(|squared| {
                let distance = squared.sqrt();
                let scale = if distance <= radius { 1.0 } else { radius / distance };
                (whole * scale).floor() as u32
            });
            let scaled = Vec::from_iter(scaled);
            let kept = scaled.iter().map(|&w| u64::from(w)).sum::<u64>() as f64;
            let sums = weighted_sums(rows, tiling, &scaled)?;
            for (centre, sum) in centre.iter_mut().zip(sums) {
                *centre += (sum as f64 - kept * *centre) / (whole * n as f64);
            }
        }
        Ok(Aggregate::Real { units: centre })
    }
}
