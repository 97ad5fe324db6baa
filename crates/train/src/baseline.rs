//! The job's model without privacy and without federation: what the price of both is measured against.

use crate::checkpoint::Keeper;
use crate::evaluate::evaluate;
use crate::failure::{Failure, Stop};
use crate::nn::Network;
use crate::rows::Rows;
use crate::run::{Run, Trained};
use crate::sgd;
use tch::Device;
use undertone_core::limits::MAX_ROUNDS;
use undertone_core::trainer::{RoundOf, TrainerError};
use undertone_core::trainer_protocol::{Baseline, BaselineTask, MAX_BASELINE_FILES};

/// See [`BaselineTask`].
pub(crate) fn run(task: &BaselineTask, device: Device, stop: &Stop) -> Result<Baseline, Failure> {
    if !(1..=MAX_ROUNDS).contains(&task.rounds) {
        let text = format!("a baseline trains for 1 to {MAX_ROUNDS} rounds, not {}", task.rounds);
        return Err(TrainerError::Unsupported(text).into());
    }
    if task.train.len() > MAX_BASELINE_FILES {
        let text = format!("a baseline pools at most {MAX_BASELINE_FILES} files, not {}", task.train.len());
        return Err(TrainerError::Unsupported(text).into());
    }
    let shape = task.data.shape();
    let network = Network::new(&task.model, &shape)?.with_loss(task.plan.loss.as_ref())?;
    // The test file first: it is a pity to train and then find that it cannot be read.
    let test = Rows::load(std::slice::from_ref(&task.test), &task.data, device)?;
    let train = Rows::load(&task.train, &task.data, device)?;

    let part = network.part(&task.plan)?;
    let mut model = Trained { weights: task.model.initial_values(&shape), steps: 0 };
    for round in 1..=task.rounds {
        let run = Run {
            plan: &task.plan,
            round: RoundOf { round, rounds: task.rounds },
            weights: &model.weights,
            seed: task.seed,
            stop,
            keeper: Keeper::none(),
        };
        let round = sgd::train(&network, &train, run)?;
        part.scatter(&round.weights, &mut model.weights);
        model.steps += round.steps;
    }
    let metrics = evaluate(&network, &test, &model.weights, stop)?;
    Ok(Baseline { metrics, rows: train.len() as u64, steps: model.steps, weights: model.weights })
}
