//! q-FedAvg: clients with a higher loss pull harder (Li et al. 2020, "Fair resource allocation in federated learning",
//! algorithm 2).
//!
//! The step is Σ Fₖ^q·L·uₖ / Σ hₖ with hₖ = q·Fₖ^(q-1)·‖L·uₖ‖² + L·Fₖ^q, where Fₖ is the loss on client k's rows of the
//! model that the round began with. (With Δwₖ = -L·uₖ these are the Δₖ and hₖ of the paper.) Numerator and denominator are
//! divided by L·M^q, M being the largest loss that counts: each client then sends uₖ·(Fₖ/M)^q, which is no longer than
//! its update, and beside it hₖ/(L·M^q), rounded up to a grid. The coordinator sums both exactly and divides.

use super::rescale::RescaleError;
use serde::{Deserialize, Serialize};

/// q-FedAvg as a job names it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QFedAvg {
    /// How much fairness counts, 0 (none: the plain mean) to 100.
    pub q: f64,
    /// L, the estimate of the loss's Lipschitz constant: one over the clients' learning rate in the paper.
    pub lipschitz: f64,
    /// M, the largest loss that counts, in nats: a higher one counts as this. Best not far above the first losses.
    pub max_loss: f64,
}

/// q-FedAvg with the job's bound on updates: what [`QFedAvg::resolve`] gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fairness {
    rule: QFedAvg,
    limit: u64,
}

/// Fraction bits of the hₖ.
pub(super) const SLOPE_BITS: u32 = 20;

/// The smallest loss that has powers, in parts of the largest one: a lower one counts as this. (The authors' program adds
/// 10^-10; a bound that is relative keeps hₖ within one that is public.)
const LEAST_SHARE: f64 = 1.0 / (1u32 << 20) as f64;

impl QFedAvg {
    /// Checks the numbers; `max_norm` is the largest L2 norm of an update.
    ///
    /// # Errors
    /// A sentence that says which number is wrong.
    pub fn resolve(&self, max_norm: f64) -> Result<Fairness, String> {
        if !(0.0..=100.0).contains(&self.q) {
            return Err(format!("q of q-fedavg must be 0 to 100, not {}", self.q));
        }
        for (name, value) in [("lipschitz", self.lipschitz), ("max_loss", self.max_loss)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(format!("{name} of q-fedavg must be a positive number, not {value}"));
            }
        }
        let steepest = if self.q < 1.0 { LEAST_SHARE } else { 1.0 };
        let largest = (1.0 + self.slope(steepest, max_norm)) * f64::from(1u32 << SLOPE_BITS);
        // An exact sum of a cohort of them fits with room to spare.
        if !(largest.is_finite() && largest < 2f64.powi(62)) {
            return Err(format!(
                "q-fedavg with q = {}, lipschitz = {} and max_loss = {} can give numbers beyond 2^42 for updates of norm \
                 {max_norm}: lower max_update_norm",
                self.q, self.lipschitz, self.max_loss
            ));
        }
        Ok(Fairness { rule: *self, limit: largest.ceil() as u64 })
    }

    /// The part of h that grows with the update: q·share^(q-1)·L·norm²/M, where share is F/M.
    fn slope(&self, share: f64, norm: f64) -> f64 {
        if self.q == 0.0 {
            return 0.0;
        }
        self.q * libm::pow(share, self.q - 1.0) / self.max_loss * self.lipschitz * norm * norm
    }
}

impl Fairness {
    /// The largest number that may stand beside an update.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// What a client multiplies its update by, and the number that stands beside it; `norm` is the L2 norm of the update.
    ///
    /// # Errors
    /// [`RescaleError::Loss`].
    pub(super) fn share(&self, norm: f64, loss: Option<f64>) -> Result<(f64, u64), RescaleError> {
        let loss = loss.filter(|loss| loss.is_finite() && *loss >= 0.0).ok_or(RescaleError::Loss)?;
        let share = (loss / self.rule.max_loss).clamp(LEAST_SHARE, 1.0);
        let factor = libm::pow(share, self.rule.q);
        let units = (factor + self.rule.slope(share, norm)) * f64::from(1u32 << SLOPE_BITS);
        Ok((factor, (units.ceil() as u64).clamp(1, self.limit)))
    }
}
