//! q-FedAvg: clients with a higher loss pull harder (Li et al. 2020, "Fair resource allocation in federated learning").

use super::distances::squared_norms;
use super::integer_weights::{IntegerWeights, sum};
use super::{Aggregate, Rows, RuleError, Tiling};
use crate::fixed::Grid;
use serde::{Deserialize, Serialize};

/// q-FedAvg (their algorithm 2).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QFedAvg {
    /// How much fairness counts, 0 (none: the plain mean) to 100.
    pub q: f64,
    /// L, the estimate of the loss's Lipschitz constant: one over the clients' learning rate in the paper.
    pub lipschitz: f64,
}

/// Added to a loss, so that a loss of zero has powers, as in the authors' program.
const LEAST_LOSS: f64 = 1e-10;

impl QFedAvg {
    /// Checks the numbers.
    ///
    /// # Errors
    /// A sentence that says which number is wrong.
    pub fn validate(&self) -> Result<(), String> {
        if !(0.0..=100.0).contains(&self.q) {
            return Err(format!("q of q-fedavg must be 0 to 100, not {}", self.q));
        }
        if !(self.lipschitz.is_finite() && self.lipschitz > 0.0) {
            return Err(format!("lipschitz of q-fedavg must be a positive number, not {}", self.lipschitz));
        }
        Ok(())
    }

    /// Σ Fₖ^q·L·uₖ / Σ hₖ with hₖ = q·Fₖ^(q-1)·‖L·uₖ‖² + L·Fₖ^q, where `losses[k]` is Fₖ, the loss of the model that
    /// the round began with on client k's data. (With Δwₖ = -L·uₖ these are the Δₖ and hₖ of the paper.) Each update
    /// counts once.
    ///
    /// # Errors
    /// [`RuleError::Refused`] if the losses are not one finite number, not negative, for each update, or the
    /// parameters are not valid.
    pub fn aggregate(
        &self,
        rows: &dyn Rows,
        grid: Grid,
        tiling: Tiling,
        losses: &[f64],
    ) -> Result<Aggregate, RuleError> {
        self.validate().map_err(RuleError::Refused)?;
        if losses.len() != rows.rows() {
            let text = format!("there are {} losses for {} updates", losses.len(), rows.rows());
            return Err(RuleError::Refused(text));
        }
        if let Some(row) = losses.iter().position(|loss| !(loss.is_finite() && *loss >= 0.0)) {
            let text =
                format!("the loss of update {row} must be a finite number, not negative: {}", losses[row]);
            return Err(RuleError::Refused(text));
        }
        let norms = squared_norms(rows, tiling)?;
        let one = grid.units_per_one();
        let worst = losses.iter().copied().fold(0.0, f64::max) + LEAST_LOSS;
        // Both sums are divided by the worst loss to the q, so that no power overflows.
        let mut pulls = Vec::with_capacity(losses.len());
        let mut denominators = Vec::with_capacity(losses.len());
        for (loss, norm) in losses.iter().zip(norms) {
            let share = (loss + LEAST_LOSS) / worst;
            let power = libm::pow(share, self.q);
            let gradient = self.lipschitz * self.lipschitz * (norm as f64 / (one * one));
            let slope = if self.q == 0.0 { 0.0 } else { self.q * libm::pow(share, self.q - 1.0) / worst };
            pulls.push(power * self.lipschitz);
            denominators.push(slope * gradient + self.lipschitz * power);
        }
        let denominator = sum(&denominators);
        let pulls: Vec<f64> = pulls.iter().map(|pull| pull / denominator).collect();
        Ok(Aggregate::Real { units: IntegerWeights::of(&pulls).sums(rows, tiling)? })
    }
}
