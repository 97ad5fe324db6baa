//! Rows that are held out, and when they say that training has gone on for long enough.

use crate::checkpoint::{Best, State};
use crate::evaluate::mean_loss;
use crate::failure::{Failure, Stop};
use crate::nn::{Network, to_vec};
use crate::rows::Rows;
use crate::run::{Model, Trained};
use undertone_core::plan::EarlyStop;
use undertone_core::trainer::TrainerError;

/// Watches one training. See [`EarlyStop`].
#[derive(Debug)]
pub(crate) struct Watch {
    rule: EarlyStop,
    held_out: Vec<i64>,
    /// Steps from one measurement to the next: a pass over the rows that are trained on.
    every: u64,
    best: Option<Best>,
    without_progress: u32,
}

impl Watch {
    /// Measures on these rows every so many steps.
    pub(crate) fn new(rule: EarlyStop, held_out: Vec<i64>, every: u64, resumed: Option<&State>) -> Self {
        let best = resumed.and_then(|state| state.best.clone());
        let without_progress = resumed.map_or(0, |state| state.without_progress);
        Self { rule, held_out, every, best, without_progress }
    }

    /// After `step` of `of` steps: whether training ends here.
    pub(crate) fn ends(
        &mut self,
        network: &Network,
        rows: &Rows,
        model: &Model,
        (step, of): (u64, u64),
        stop: &Stop,
    ) -> Result<bool, Failure> {
        if step % self.every != 0 && step != of {
            return Ok(false);
        }
        let loss = mean_loss(network, &model.tensors, rows, &self.held_out, stop)?;
        if !loss.is_finite() {
            let what = format!("the loss on the rows that are held out is {loss}");
            return Err(TrainerError::Diverged { step, of, what }.into());
        }
        if self.best.as_ref().is_none_or(|best| loss < best.loss - self.rule.min_delta) {
            self.best = Some(Best { loss, step, weights: to_vec(&model.flat)? });
            self.without_progress = 0;
        } else {
            self.without_progress += 1;
        }
        Ok(self.without_progress >= self.rule.patience)
    }

    /// For a checkpoint.
    pub(crate) fn state(&self) -> (Option<Best>, u32) {
        (self.best.clone(), self.without_progress)
    }

    /// What was best.
    ///
    /// # Panics
    /// Before the first measurement.
    pub(crate) fn best(self, of: u64) -> Result<Trained, TrainerError> {
        let best = self.best.expect("the last step is measured if no other is");
        Trained::new(best.weights, best.step, of)
    }
}
