//! The training plan: what a client does locally in one round.

mod early_stop;
mod loss;
mod optimizer;
mod schedule;
#[cfg(test)]
mod tests;

pub use early_stop::EarlyStop;
pub use loss::Loss;
pub use optimizer::Optimizer;
pub use schedule::{Over, Schedule};

use crate::augmentation::Augmentation;
use crate::layout::ModelLayout;
use crate::limits::MAX_LOCAL_STEPS;
use crate::part::{Part, PartError, check_patterns};
use crate::shape::Target;
use serde::{Deserialize, Serialize};

/// Local training of one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainPlan {
    /// Step size.
    pub learning_rate: f64,
    /// Classical momentum of SGD, in [0, 1); starts at zero in each round.
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
    /// Views that each example is trained on in place of itself. Absent: the example.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub augmentation: Option<Augmentation>,
    /// What training makes small, and what measurements of the job's models state. Absent: [`Loss::usual`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
    /// How a gradient becomes a step.
    #[serde(default, skip_serializing_if = "Optimizer::is_sgd")]
    pub optimizer: Optimizer,
    /// How much weights shrink; what that means is the optimiser's. Absent: [`Optimizer::usual_weight_decay`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// How the learning rate moves. Absent: it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// A batch's gradient is scaled down to at most this L2 norm before the optimiser sees it. Not with a record-level
    /// privacy contract, which clips each example's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_gradient_norm: Option<f64>,
    /// When training ends before its time. Not with a record-level privacy contract.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_stop: Option<EarlyStop>,
    /// What products with weights are computed in. f32 with a record-level privacy contract.
    #[serde(default, skip_serializing_if = "Precision::is_f32")]
    pub precision: Precision,
}

/// What a training step's products with weights (linear layers, convolutions) are computed in. Weights, gradients,
/// optimiser, losses and all measurements are f32 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// Their factors rounded to bfloat16 (8 bits of precision, f32's range), where the device has it. A device that has
    /// not computes in f32, which is no less exact, and its log says so.
    Bf16,
}

impl Precision {
    fn is_f32(&self) -> bool {
        *self == Self::F32
    }
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
    /// Plain SGD without momentum, all rows in each step: a plan to set fields on.
    pub fn sgd(learning_rate: f64, work: LocalWork) -> Self {
        let (local_steps, local_epochs) = match work {
            LocalWork::Steps(n) => (Some(n), None),
            LocalWork::Epochs(n) => (None, Some(n)),
        };
        Self {
            learning_rate,
            momentum: 0.0,
            local_steps,
            local_epochs,
            batch_size: None,
            proximal: 0.0,
            tensors: None,
            augmentation: None,
            loss: None,
            optimizer: Optimizer::default(),
            weight_decay: None,
            schedule: None,
            clip_gradient_norm: None,
            early_stop: None,
            precision: Precision::F32,
        }
    }

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
        if let Some(augmentation) = &self.augmentation {
            augmentation.validate()?;
        }
        if let Some(patterns) = &self.tensors {
            check_patterns(patterns).map_err(|e| e.to_string())?;
        }
        match (self.local_steps, self.local_epochs) {
            (Some(n), None) | (None, Some(n)) if (1..=MAX_LOCAL_STEPS).contains(&n) => {}
            (Some(n), None) | (None, Some(n)) => {
                return Err(format!("local_steps or local_epochs must be 1 to {MAX_LOCAL_STEPS}, not {n}"));
            }
            _ => return Err("give exactly one of local_steps and local_epochs".into()),
        }
        if let Some(loss) = &self.loss {
            loss.validate()?;
        }
        self.validate_steps()
    }

    /// What is about the steps.
    fn validate_steps(&self) -> Result<(), String> {
        self.optimizer.validate()?;
        if self.momentum > 0.0 && self.optimizer != Optimizer::default() {
            return Err(format!(
                "momentum belongs to sgd; {} has beta1 in its place: leave momentum out",
                self.optimizer.name()
            ));
        }
        let decay = self.weight_decay();
        if !(decay.is_finite() && decay >= 0.0) {
            return Err(format!("weight_decay must be a number of at least 0, not {decay}"));
        }
        // Beyond this a step takes more than all of a weight away.
        if decay * self.learning_rate >= 1.0 {
            return Err(format!(
                "weight_decay times learning_rate must be below 1, not {}: each step would turn the weights around",
                decay * self.learning_rate
            ));
        }
        if let Some(schedule) = &self.schedule {
            schedule.validate()?;
            if let (Over::Round, Some(steps)) = (schedule.over(), self.local_steps) {
                schedule.check_length(steps)?;
            }
        }
        if let Some(norm) = self.clip_gradient_norm.filter(|n| !(n.is_finite() && *n > 0.0)) {
            return Err(format!("clip_gradient_norm must be a positive number, not {norm}"));
        }
        self.early_stop.map_or(Ok(()), |stop| stop.validate())
    }

    /// Checks what a record-level privacy contract rules out.
    ///
    /// # Errors
    /// A sentence that says what, why, and what to do.
    pub fn check_record_privacy(&self) -> Result<(), String> {
        if self.local_steps.is_none() {
            return Err("a record-level contract needs local_steps: with local_epochs the number of noisy steps, and so \
                        the privacy loss, would depend on the private number of rows"
                .into());
        }
        if self.batch_size.is_some() {
            return Err(
                "a record-level contract draws Poisson batches at [privacy] sampling_rate: remove batch_size"
                    .into(),
            );
        }
        if self.clip_gradient_norm.is_some() {
            return Err("a record-level contract clips each example's gradient to [privacy] clip_norm, and noise follows: \
                        remove clip_gradient_norm"
                .into());
        }
        if self.early_stop.is_some() {
            return Err("early_stop does not go with a record-level contract: each look at held-out records would tell of \
                        them without noise, and the number of noisy steps would follow the data; remove it and set \
                        local_steps"
                .into());
        }
        if self.precision != Precision::F32 {
            return Err("precision = \"bf16\" does not go with a record-level contract: the promise that a record moves the \
                        sum by no more than clip_norm allows for the rounding of f32, and bf16 rounds 65,536 times as \
                        coarsely; remove precision"
                .into());
        }
        Ok(())
    }

    /// Checks that what is made small fits what is to be predicted.
    ///
    /// # Errors
    /// See [`Loss::check_target`].
    pub fn check_target(&self, target: Target) -> Result<(), String> {
        self.loss.as_ref().map_or(Ok(()), |loss| loss.check_target(target))
    }

    /// How much weights shrink.
    pub fn weight_decay(&self) -> f64 {
        self.weight_decay.unwrap_or(self.optimizer.usual_weight_decay())
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
