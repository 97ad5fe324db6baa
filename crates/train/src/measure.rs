//! Training on made-up rows, for benches: the same code as in a round, without a data file.

use crate::failure::{Failure, Stop};
use crate::nn::Network;
use crate::rows::Rows;
use crate::run::Run;
use crate::{dp_sgd, sgd};
use rand::RngExt as _;
use tch::{Device, Kind, TchError, Tensor};
use undertone_core::model::ModelSpec;
use undertone_core::plan::{LocalWork, TrainPlan};
use undertone_core::shape::{Input, Shape, Target};
use undertone_core::trainer::{RecordMechanism, RecordPrivacy, TrainerError};

/// A model with one batch of rows that look like its data: numbers in [0, 1), tokens, classes.
#[derive(Debug)]
pub struct Workload {
    network: Network,
    rows: Rows,
    start: Vec<f32>,
}

impl Workload {
    /// `batch` rows for the model that a spec describes, on the CPU.
    ///
    /// # Errors
    /// [`TrainerError`] if spec and shape do not go together.
    pub fn new(spec: &ModelSpec, shape: &Shape, batch: usize) -> Result<Self, TrainerError> {
        let network = Network::new(spec, shape)?;
        let start = spec.initial_values(shape);
        let rows = rows(shape, batch).map_err(Failure::from)?;
        Ok(Self { network, rows, start })
    }

    /// Any network.
    #[cfg(test)]
    pub(crate) fn of(network: Network, target: Target, batch: usize) -> Self {
        let shape = Shape { input: network.input().clone(), target };
        let rng = &mut crate::sampling::sampling_rng(Some(1), &[]).expect("a seed is given");
        let start = (0..network.len()).map(|_| rng.random_range(-0.05..0.05)).collect();
        Self { rows: rows(&shape, batch).expect("rows of a network's own shape"), network, start }
    }

    /// So many steps without privacy, each over all rows.
    ///
    /// # Errors
    /// [`TrainerError`] of training.
    pub fn plain(&self, steps: u32) -> Result<(), TrainerError> {
        let (plan, stop) = (plan(steps), Stop::default());
        sgd::train(&self.network, &self.rows, Run::apart(&plan, &self.start, Some(1), &stop))?;
        Ok(())
    }

    /// So many steps of DP-SGD, each over all rows: they are drawn at rate 1.
    ///
    /// # Errors
    /// [`TrainerError`] of training.
    pub fn private(&self, steps: u32, mechanism: RecordMechanism) -> Result<(), TrainerError> {
        let privacy = RecordPrivacy {
            clip_norm: 1.0,
            noise_multiplier: 1.0,
            sampling_rate: 1.0,
            expected_batch: self.rows.len() as f64,
            mechanism,
        };
        let (plan, stop) = (plan(steps), Stop::default());
        let run = Run::apart(&plan, &self.start, Some(1), &stop);
        dp_sgd::train(&self.network, &self.rows, &privacy, run, &|_| {})?;
        Ok(())
    }
}

/// Has libtorch compute on the thread that asks alone, before it has computed anything.
pub fn one_thread() {
    tch::set_num_threads(1);
    tch::set_num_interop_threads(1);
}

fn plan(steps: u32) -> TrainPlan {
    TrainPlan { momentum: 0.9, ..TrainPlan::sgd(1e-3, LocalWork::Steps(steps)) }
}

fn rows(shape: &Shape, batch: usize) -> Result<Rows, TchError> {
    let mut rng = crate::sampling::sampling_rng(Some(2), &[]).expect("a seed is given");
    let dimensions: Vec<i64> =
        std::iter::once(batch).chain(shape.input.dimensions()).map(|n| n as i64).collect();
    let count = batch * shape.input.len();
    let features = match &shape.input {
        Input::Tokens { vocabulary, .. } => {
            let tokens: Vec<i64> = (0..count).map(|_| rng.random_range(0..*vocabulary as i64)).collect();
            Tensor::f_from_slice(&tokens)?
        }
        _ => {
            let values: Vec<f32> = (0..count).map(|_| rng.random()).collect();
            Tensor::f_from_slice(&values)?
        }
    };
    let features = features.f_reshape(&dimensions[..])?;
    let labels = match shape.target {
        Target::Class { classes } => {
            let labels: Vec<i64> = (0..batch).map(|_| rng.random_range(0..classes as i64)).collect();
            Tensor::f_from_slice(&labels)?
        }
        Target::Number => Tensor::f_rand([batch as i64], (Kind::Float, Device::Cpu))?,
    };
    Ok(Rows::of(features, labels))
}

#[cfg(test)]
mod tests;
