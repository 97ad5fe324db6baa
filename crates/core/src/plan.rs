//! The training plan: what a client does locally in one round.

use crate::layout::ModelLayout;
use crate::limits::MAX_LOCAL_STEPS;
use crate::part::{Part, PartError, check_patterns};
use serde::{Deserialize, Serialize};

/// Local training of one round with plain stochastic gradient descent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainPlan {
    /// Step size.
    pub learning_rate: f64,
    /// Classical momentum, in [0, 1); starts at zero in each round.
    #[serde(default)]
    pub momentum: f64,
    /// Number of optimiser steps in a round. Exactly one of this and `local_epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_steps: Option<u32>,
    /// Number of passes over the local data in a round. Not with a record-level privacy contract: the number of
    /// steps would depend on the number of rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_epochs: Option<u32>,
    /// Rows in a batch; absent means all of them. Not with a record-level privacy contract, whose batches are
    /// Poisson samples at the contract's rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<u32>,
    /// FedProx (Li et al. 2020): µ of the term µ/2·‖w - w₀‖² that keeps local training near the model that the round began
    /// with. 0: none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub proximal: f64,
    /// The tensors that are trained and sent, by name, or by name with `*` for anything at its beginning or its end
    /// (`"head.*"`); all others stay as they are. Absent: all are trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensors: Option<Vec<String>>,
}

fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

/// How long a client trains in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalWork {
    /// This many steps.
    Steps(u32),
    /// This many passes over the data.
    Epochs(u32),
}

impl TrainPlan {
    /// Checks the numbers.
    ///
    /// # Errors
    /// A sentence that says which number is wrong.
    pub fn validate(&self) -> Result<(), String> {
        if !(self.learning_rate.is_finite() && self.learning_rate > 0.0) {
            return Err(format!("learning_rate must be a positive number, not {}", self.learning_rate));
        }
        if !(0.0..1.0).contains(&self.momentum) {
            return Err(format!("momentum must be at least 0 and below 1, not {}", self.momentum));
        }
        if !(self.proximal.is_finite() && self.proximal >= 0.0) {
            return Err(format!("proximal must be a number of at least 0, not {}", self.proximal));
        }
        // Beyond this the term alone makes steps overshoot and grow.
        if self.proximal * self.learning_rate >= 2.0 {
            return Err(format!(
                "proximal times learning_rate must be below 2, not {}: training would run away from the model that it is to \
                 stay near",
                self.proximal * self.learning_rate
            ));
        }
        if self.batch_size == Some(0) {
            return Err("batch_size must be at least 1".into());
        }
        if let Some(patterns) = &self.tensors {
            check_patterns(patterns).map_err(|e| e.to_string())?;
        }
        match (self.local_steps, self.local_epochs) {
            (Some(n), None) | (None, Some(n)) if (1..=MAX_LOCAL_STEPS).contains(&n) => Ok(()),
            (Some(n), None) | (None, Some(n)) => {
                Err(format!("local_steps or local_epochs must be 1 to {MAX_LOCAL_STEPS}, not {n}"))
            }
            _ => Err("give exactly one of local_steps and local_epochs".into()),
        }
    }

    /// The part of the model that is trained.
    ///
    /// # Errors
    /// [`PartError`] if `tensors` names what the model does not have.
    pub fn part(&self, layout: &ModelLayout) -> Result<Part, PartError> {
        match &self.tensors {
            Some(patterns) => layout.part(patterns),
            None => Ok(layout.whole()),
        }
    }

    /// The work of one round.
    ///
    /// # Panics
    /// If the plan was not validated.
    pub fn work(&self) -> LocalWork {
        match (self.local_steps, self.local_epochs) {
            (Some(n), None) => LocalWork::Steps(n),
            (None, Some(n)) => LocalWork::Epochs(n),
            _ => unreachable!("validate() admits exactly one of the two"),
        }
    }
}
