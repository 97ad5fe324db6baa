//! What both ways of local training begin with and end in.

use crate::checkpoint::{Keeper, State};
use crate::failure::{Failure, Stop};
use crate::memory;
use crate::nn::Network;
use crate::nn::weights::Weights;
use crate::optimizer::{LearningRate, Optimizer};
use tch::{Device, TchError, Tensor};
use undertone_core::part::Part;
use undertone_core::plan::TrainPlan;
use undertone_core::trainer::{RoundOf, TrainerError};

/// One round's local training.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    /// Validated where it is begun.
    pub(crate) plan: &'a TrainPlan,
    pub(crate) round: RoundOf,
    /// All of the model that training begins with.
    pub(crate) weights: &'a [f32],
    /// Of the batches; see [`sampling_rng`](crate::sampling::sampling_rng).
    pub(crate) seed: Option<u64>,
    pub(crate) stop: &'a Stop,
    pub(crate) keeper: Keeper,
}

/// A model in training: the values that are trained as one flat vector, and windows on them.
#[derive(Debug)]
pub(crate) struct Model {
    /// Over the part that is trained.
    pub(crate) flat: Tensor,
    /// Windows on `flat`, and the rest of the model as constants.
    pub(crate) tensors: Weights,
    pub(crate) optimizer: Optimizer,
}

impl<'a> Run<'a> {
    /// Training that belongs to no round, and of which nothing is kept.
    pub(crate) fn apart(plan: &'a TrainPlan, weights: &'a [f32], seed: Option<u64>, stop: &'a Stop) -> Self {
        Self { plan, round: RoundOf::default(), weights, seed, stop, keeper: Keeper::none() }
    }
}

impl Run<'_> {
    /// The model at the beginning, or where a checkpoint left it.
    pub(crate) fn model(
        &self,
        network: &Network,
        device: Device,
        resumed: Option<&State>,
    ) -> Result<Model, Failure> {
        let part = network.part(self.plan)?;
        let whole = network.load(self.weights, device)?;
        let mut flat = gathered(&part, self.weights, device)?;
        let tensors = network
            .weights(&part, &flat, &whole)?
            .computed_in(crate::device::precision(self.plan.precision, device));
        let mut optimizer = Optimizer::new(self.plan, &flat)?;
        if let Some(state) = resumed {
            let (steps, vectors) = &state.optimizer;
            if state.weights.len() != part.len() || vectors.len() != optimizer.state_len() {
                // Its digest says that it is this training's: so it was written by another build.
                return Err(
                    TrainerError::Broken("the checkpoint has another size than the model".into()).into()
                );
            }
            flat.f_copy_(&Tensor::f_from_slice(&state.weights)?)?;
            optimizer.restore(*steps, vectors)?;
        }
        Ok(Model { flat, tensors, optimizer })
    }

    /// The learning rates of so many steps.
    pub(crate) fn learning_rate(&self, steps: u64) -> LearningRate {
        LearningRate::new(self.plan, self.round, steps)
    }
}

/// The values of the part, on the device.
fn gathered(part: &Part, whole: &[f32], device: Device) -> Result<Tensor, TchError> {
    let mut values = memory::room(part.len())?;
    part.gather_into(whole, &mut values);
    Tensor::f_from_slice(&values)?.f_to_device(device)
}

/// Values that training arrived at; all of them finite.
#[derive(Debug)]
pub(crate) struct Trained {
    /// Over the part that is trained.
    pub(crate) weights: Vec<f32>,
    /// Optimiser steps that led to them.
    pub(crate) steps: u64,
}

impl Trained {
    /// Checks, after `step` of `of` steps, that training has not diverged.
    ///
    /// # Errors
    /// [`TrainerError::Diverged`].
    pub(crate) fn new(weights: Vec<f32>, step: u64, of: u64) -> Result<Self, TrainerError> {
        match weights.iter().position(|w| !w.is_finite()) {
            None => Ok(Self { weights, steps: step }),
            Some(i) => {
                let what = format!("value {i} of the weights is {}", weights[i]);
                Err(TrainerError::Diverged { step, of, what })
            }
        }
    }
}
