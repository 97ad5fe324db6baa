//! A model on made-up examples: what a step of training costs on this machine, and what the model computes, without data.

use crate::failure::{Failure, Stop};
use crate::nn::weights::Weights;
use crate::nn::{Network, to_vec};
use crate::rows::Rows;
use crate::run::Run;
use crate::sgd;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha20Rng;
use tch::{Device, TchError, Tensor, no_grad_guard};
use undertone_core::layout::ModelLayout;
use undertone_core::model::ModelSpec;
use undertone_core::plan::TrainPlan;
use undertone_core::shape::{Input, Shape, Target};
use undertone_core::trainer::TrainerError;

/// A model with its initial weights, and examples drawn for it.
#[derive(Debug)]
pub struct Rehearsal {
    network: Network,
    rows: Rows,
    weights: Vec<f32>,
}

impl Rehearsal {
    /// Draws so many examples of this shape: numbers from [-1, 1], picture elements from [0, 1], tokens and classes all
    /// equally likely.
    ///
    /// # Errors
    /// [`TrainerError::Unsupported`] if the model makes no sense for this shape; [`TrainerError::Broken`] from libtorch.
    pub fn new(
        spec: &ModelSpec,
        shape: &Shape,
        examples: usize,
        seed: u64,
        device: Device,
    ) -> Result<Self, TrainerError> {
        let network = Network::new(spec, shape)?;
        let weights = spec.initial_values(shape);
        let rows = draw(shape, examples, seed, device).map_err(|e| TrainerError::Broken(e.to_string()))?;
        Ok(Self { network, rows, weights })
    }

    /// The model's tensors.
    pub fn layout(&self) -> &ModelLayout {
        self.network.layout()
    }

    /// The weights that it begins with.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// The examples, row-major; tokens as numbers.
    ///
    /// # Errors
    /// [`TrainerError::Broken`] from libtorch.
    pub fn examples(&self) -> Result<Vec<f32>, TrainerError> {
        let values =
            || -> Result<Vec<f32>, Failure> { Ok(to_vec(&self.all()?.f_to_kind(tch::Kind::Float)?)?) };
        Ok(values()?)
    }

    fn all(&self) -> Result<Tensor, Failure> {
        Ok(self.rows.range(0, self.rows.len())?.0)
    }

    /// What the model puts out for the examples, shape (examples, outputs), row-major.
    ///
    /// # Errors
    /// See [`TrainerError`].
    pub fn logits(&self) -> Result<Vec<f32>, TrainerError> {
        let _no_graph = no_grad_guard();
        let flat = self.network.load(&self.weights, self.rows.device())?;
        let logits = || -> Result<Vec<f32>, Failure> {
            let weights = Weights::whole(self.network.layout(), &flat)?;
            Ok(to_vec(&self.network.forward(&weights, &self.all()?)?)?)
        };
        Ok(logits()?)
    }

    /// Trains on the examples, beginning with the initial weights, as a client does in a round; gives the weights it
    /// arrives at.
    ///
    /// # Errors
    /// See [`TrainerError`].
    pub fn train(&self, plan: &TrainPlan, seed: Option<u64>) -> Result<Vec<f32>, TrainerError> {
        let stop = Stop::default();
        let run = Run::apart(plan, &self.weights, seed, &stop);
        Ok(sgd::train(&self.network, &self.rows, run)?.weights)
    }
}

fn draw(shape: &Shape, examples: usize, seed: u64, device: Device) -> Result<Rows, TchError> {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let count = examples * shape.input.len();
    let mut numbers =
        |low: f32| Tensor::f_from_slice(&(0..count).map(|_| rng.random_range(low..=1.0)).collect::<Vec<_>>());
    let x = match shape.input {
        Input::Features { .. } | Input::Series { .. } => numbers(-1.0)?,
        Input::Image { .. } => numbers(0.0)?,
        Input::Tokens { vocabulary, .. } => {
            let tokens: Vec<i64> = (0..count).map(|_| rng.random_range(0..vocabulary as i64)).collect();
            Tensor::f_from_slice(&tokens)?
        }
    };
    let dimensions: Vec<i64> =
        [examples].into_iter().chain(shape.input.dimensions()).map(|n| n as i64).collect();
    let y = match shape.target {
        Target::Class { classes } => {
            let labels: Vec<i64> = (0..examples).map(|_| rng.random_range(0..classes as i64)).collect();
            Tensor::f_from_slice(&labels)?
        }
        Target::Number => {
            let numbers: Vec<f32> = (0..examples).map(|_| rng.random_range(-1.0..=1.0)).collect();
            Tensor::f_from_slice(&numbers)?
        }
    };
    Ok(Rows::of(x.f_reshape(&dimensions[..])?.f_to_device(device)?, y.f_to_device(device)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_learns_what_it_is_shown() {
        for (spec, shape) in crate::nn::tests::every_kind() {
            let rehearsal = Rehearsal::new(&spec, &shape, 16, 1, Device::Cpu).unwrap();
            let loss = |weights: &[f32]| {
                crate::evaluate::evaluate(&rehearsal.network, &rehearsal.rows, weights, &Stop::default())
                    .unwrap()
                    .loss
            };
            let train = |steps: u32| {
                let plan = format!("learning_rate = 0.05\nmomentum = 0.9\nlocal_steps = {steps}");
                rehearsal.train(&toml::from_str(&plan).unwrap(), Some(1)).unwrap()
            };
            let (before, after) = (loss(rehearsal.weights()), loss(&train(30)));
            assert!(after < before, "{spec} on {}: {before} {after}", shape.input);
            assert_eq!(train(3), train(3), "{spec}: the same bits again");
        }
    }
}
