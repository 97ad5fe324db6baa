//! The job's model without privacy and without federation: what the price of both is measured against.

use crate::evaluate::evaluate;
use crate::failure::{Failure, Stop};
use crate::model::Network;
use crate::rows::Rows;
use crate::sgd::{self, Trained};
use tch::Device;
use undertone_core::limits::MAX_ROUNDS;
use undertone_core::trainer::TrainerError;
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
    let (inputs, outputs) = (task.data.inputs(), task.data.outputs());
    let network = Network::new(&task.model, inputs, outputs)?;
    // The test file first: it is a pity to train and then find that it cannot be read.
    let test = Rows::load(&[&task.test], &task.data, device)?;
    let train = Rows::load(&task.train, &task.data, device)?;

    let part = network.part(&task.plan)?;
    let mut model = Trained { weights: task.model.initial_values(inputs, outputs), steps: 0 };
    for _ in 0..task.rounds {
        let round = sgd::train(&network, &train, &task.plan, &model.weights, task.seed, stop)?;
        part.scatter(&round.weights, &mut model.weights);
        model.steps += round.steps;
    }
    let metrics = evaluate(&network, &test, &model.weights, stop)?;
    Ok(Baseline { metrics, rows: train.len() as u64, steps: model.steps, weights: model.weights })
}
