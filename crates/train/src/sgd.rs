//! Local training without a promise to single records: plain stochastic gradient descent.

use crate::failure::{Failure, Stop};
use crate::model::{Network, Parameters, to_vec};
use crate::rows::Rows;
use crate::sampling::{ShuffledBatches, sampling_rng};
use tch::{Reduction, Tensor, no_grad};
use undertone_core::plan::{LocalWork, TrainPlan};
use undertone_core::trainer::TrainerError;

/// Values that training arrived at; all of them finite.
#[derive(Debug)]
pub(crate) struct Trained {
    /// Over the part that is trained.
    pub(crate) weights: Vec<f32>,
    /// Optimiser steps taken.
    pub(crate) steps: u64,
}

impl Trained {
    /// Checks that training has not diverged.
    ///
    /// # Errors
    /// [`TrainerError::Numerical`]. A weight that is once NaN or infinite stays so; hence it is enough to look at the
    /// end.
    pub(crate) fn new(weights: Vec<f32>, steps: u64) -> Result<Self, TrainerError> {
        match weights.iter().position(|w| !w.is_finite()) {
            None => Ok(Self { weights, steps }),
            Some(i) => Err(TrainerError::Numerical(format!(
                "training diverged: value {i} of the weights is {} after {steps} steps; lower the plan's learning_rate",
                weights[i]
            ))),
        }
    }
}

/// Trains the plan's part of the model from `weights`, which are all of it: batches of `batch_size` rows in a random order, or all rows in each step without one.
///
/// Momentum is the classical kind (v ← m·v + g, w ← w - η·v), and starts at zero.
pub(crate) fn train(
    network: &Network,
    rows: &Rows,
    plan: &TrainPlan,
    weights: &[f32],
    seed: Option<u64>,
    stop: &Stop,
) -> Result<Trained, Failure> {
    plan.validate().map_err(TrainerError::Unsupported)?;
    let part = network.part(plan)?;
    let whole = network.load(weights, rows.device())?;
    let mut trained = if part.is_whole() {
        whole.shallow_clone()
    } else {
        Tensor::f_from_slice(&part.gather(weights))?.f_to_device(rows.device())?
    };
    let mut flat = trained.f_requires_grad_(true)?;
    let mut velocity = flat.f_detach()?.f_zeros_like()?;
    // FedProx pulls back to where the round began.
    let start = if plan.proximal > 0.0 {
        let mut start = flat.f_detach()?.f_zeros_like()?;
        start.f_copy_(&flat.f_detach()?)?;
        Some(start)
    } else {
        None
    };

    let size = plan.batch_size.map_or(rows.len(), |n| rows.len().min(n as usize));
    let mut batches = match plan.batch_size {
        Some(_) => Some(ShuffledBatches::new(rows.len(), size, sampling_rng(seed, weights)?)),
        None => None,
    };
    let steps = match plan.work() {
        LocalWork::Steps(n) => n.into(),
        LocalWork::Epochs(n) => u64::from(n) * rows.len().div_ceil(size) as u64,
    };
    for _ in 0..steps {
        stop.check()?;
        let (x, y) = match &mut batches {
            Some(batches) => rows.select(batches.next_batch())?,
            None => rows.all(),
        };
        let (_, logits) = network.forward(Parameters::of(&flat, &whole, &part), &x)?;
        let loss = network.loss(&logits, &y, Reduction::Mean)?;
        let gradient = Tensor::f_run_backward(&[loss], &[&flat], false, false)?.remove(0);
        no_grad(|| -> Result<(), Failure> {
            let _ = velocity.f_mul_scalar_(plan.momentum)?.f_add_(&gradient)?;
            if let Some(start) = &start {
                let _ = velocity.f_add_(&flat.f_sub(start)?.f_mul_scalar_(plan.proximal)?)?;
            }
            let _ = flat.f_sub_(&velocity.f_mul_scalar(plan.learning_rate)?)?;
            Ok(())
        })?;
    }
    Ok(Trained::new(to_vec(&flat)?, steps)?)
}
