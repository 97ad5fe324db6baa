//! Rescaling: what a client does to its update before it leaves, with one number beside it, so that a sum of integers is all
//! that [FedNova](super::fednova) and [q-FedAvg](super::q_fedavg) need.
//!
//! The number is an integer within a limit of the job. Numbers are summed as updates are: exactly, so that the result is the
//! same bits for any order of arrival, and partial sums can be merged. What they come to is a factor for the mean.

use super::fednova::{FedNova, Normalisation};
use super::q_fedavg::{Fairness, QFedAvg, SLOPE_BITS};
use crate::plan::TrainPlan;
use serde::{Deserialize, Serialize};

/// How clients rescale their updates, as a job names it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Rescale {
    /// Not at all.
    Plain {},
    /// By the number of their local steps (Wang et al. 2020).
    #[serde(rename = "fednova")]
    FedNova(FedNova),
    /// By a power of their loss (Li et al. 2020).
    #[serde(rename = "q-fedavg")]
    QFedAvg(QFedAvg),
}

impl Default for Rescale {
    fn default() -> Self {
        Self::Plain {}
    }
}

/// A rescaling with what follows from the rest of the job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rescaling {
    /// FedNova: the number is the client's local steps.
    FedNova(Normalisation),
    /// q-FedAvg: the number is the client's h, in 2^-20ths.
    QFedAvg(Fairness),
}

/// Why an update cannot be rescaled.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum RescaleError {
    /// More steps than the job counts on, or none.
    #[error(
        "the update is of {steps} local steps, which must be 1 to [aggregation] rescale max_steps = {max_steps}"
    )]
    Steps {
        /// The steps.
        steps: u64,
        /// The most.
        max_steps: u32,
    },
    /// The trainer gave no loss, or one that is no number.
    #[error(
        "q-fedavg needs the loss before training, a finite number that is not negative; the trainer gave none"
    )]
    Loss,
}

/// What a client makes of its update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    /// What each value is multiplied by.
    pub factor: f64,
    /// What goes beside the update.
    pub number: u64,
}

impl Rescale {
    /// Whether updates leave as they are.
    pub fn is_plain(&self) -> bool {
        matches!(self, Self::Plain {})
    }

    /// The word of a job file.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Plain {} => "plain",
            Self::FedNova(_) => "fednova",
            Self::QFedAvg(_) => "q-fedavg",
        }
    }

    /// Checks the numbers against the plan and the largest L2 norm of an update. `None`: updates leave as they are.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what would be right.
    pub fn resolve(&self, plan: &TrainPlan, max_norm: f64) -> Result<Option<Rescaling>, String> {
        Ok(match self {
            Self::Plain {} => None,
            Self::FedNova(rule) => Some(Rescaling::FedNova(rule.resolve(plan)?)),
            Self::QFedAvg(rule) => Some(Rescaling::QFedAvg(rule.resolve(max_norm)?)),
        })
    }
}

impl Rescaling {
    /// Whether a client must measure the model before it trains.
    pub fn wants_loss(&self) -> bool {
        matches!(self, Self::QFedAvg(_))
    }

    /// The largest number that may stand beside an update; the smallest is 1.
    pub fn limit(&self) -> u64 {
        match self {
            Self::FedNova(rule) => rule.max_steps().into(),
            Self::QFedAvg(rule) => rule.limit(),
        }
    }

    /// What a client makes of an update with this L2 norm, made in so many local steps from a model with this loss.
    ///
    /// # Errors
    /// [`RescaleError`].
    pub fn share(&self, norm: f64, steps: u64, loss: Option<f64>) -> Result<Share, RescaleError> {
        match self {
            Self::FedNova(rule) => Ok(Share { factor: rule.factor(steps)?, number: steps }),
            Self::QFedAvg(rule) => {
                let (factor, number) = rule.share(norm, loss)?;
                Ok(Share { factor, number })
            }
        }
    }

    /// The L2 norm that an update with this number beside it may have, where the job's bound is `bound`; both in units of the
    /// grid.
    ///
    /// q-FedAvg divides by what clients say, so a client could carry the model away by saying little. But the h of an honest
    /// one is at least its factor: its update is within h times the bound. Held to that, what clients make together stays
    /// within the bound, whatever they say.
    pub fn bound(&self, number: u64, bound: u64) -> u64 {
        match self {
            Self::FedNova(_) => bound,
            Self::QFedAvg(_) => {
                let within = (u128::from(number) * u128::from(bound)) >> SLOPE_BITS;
                u64::try_from(within).unwrap_or(u64::MAX).min(bound)
            }
        }
    }

    /// The smallest number for which [`bound`](Self::bound) lets an update with this exact squared norm pass: rounding to the
    /// grid may have made it a little longer.
    pub fn least_number(&self, squared_norm: u128, bound: u64) -> u64 {
        match self {
            Self::FedNova(_) => 1,
            Self::QFedAvg(_) => {
                let root = squared_norm.isqrt();
                let norm = root + u128::from(root * root < squared_norm);
                let number = (norm << SLOPE_BITS).div_ceil(u128::from(bound.max(1)));
                u64::try_from(number).unwrap_or(u64::MAX).max(1)
            }
        }
    }
}

/// The exact sum of what stood beside updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NumberSum {
    numbers: u128,
    weight: u64,
}

impl NumberSum {
    /// Adds the number beside an update of this weight. No sum of a cohort overflows: 2^62 each, or 2^55 with weights that
    /// sum to 2^32.
    pub fn fold(&mut self, rescaling: &Rescaling, number: u64, weight: u32) {
        self.weight += u64::from(weight);
        self.numbers += u128::from(weight)
            * match rescaling {
                Rescaling::FedNova(rule) => rule.effort(number.min(rescaling.limit()) as u32).into(),
                Rescaling::QFedAvg(_) => u128::from(number),
            };
    }

    /// A sum that was made elsewhere: as [`parts`](Self::parts) gives it.
    pub fn of_parts((numbers, weight): (u128, u64)) -> Self {
        Self { numbers, weight }
    }

    /// The weighted sum of the numbers, and of the weights.
    pub fn parts(&self) -> (u128, u64) {
        (self.numbers, self.weight)
    }

    /// Adds the sum over other clients of the same round.
    pub fn merge(&mut self, other: &Self) {
        self.numbers += other.numbers;
        self.weight += other.weight;
    }

    /// What the weighted mean of the updates is multiplied by. Zero if nothing was added.
    pub fn factor(&self, rescaling: &Rescaling) -> f64 {
        if self.numbers == 0 {
            return 0.0;
        }
        match rescaling {
            Rescaling::FedNova(rule) => rule.effective(self.numbers, self.weight),
            Rescaling::QFedAvg(_) => self.weight as f64 * f64::from(1u32 << SLOPE_BITS) / self.numbers as f64,
        }
    }
}
