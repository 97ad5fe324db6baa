//! libtorch behind the seam of [`undertone_core::trainer`].

use crate::baseline;
use crate::evaluate::{evaluate, evaluate_bounded};
use crate::failure::{Failure, Stop};
use crate::model::Network;
use crate::rows::Rows;
use crate::{dp_sgd, sgd};
use std::path::PathBuf;
use tch::Device;
use undertone_core::model::ModelSpec;
use undertone_core::schema::DataContract;
use undertone_core::trainer::{
    BoundedSums, DataReport, LocalUpdate, Metrics, TrainTask, Trainer, TrainerError,
};
use undertone_core::trainer_protocol::{Baseline, BaselineTask};

/// Trains on the rows of one CSV file.
///
/// The rows stay in memory from call to call while the data contract is the same; [`Trainer::inspect`], with which a
/// job begins, and [`Trainer::rest`] forget them, so that the next call reads the file anew.
#[derive(Debug)]
pub struct TorchTrainer {
    path: PathBuf,
    device: Device,
    stop: Stop,
    cached: Option<(DataContract, Rows)>,
}

impl TorchTrainer {
    /// A trainer on the CPU for the CSV file at `path`, which is read when it is first needed.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), device: Device::Cpu, stop: Stop::default(), cached: None }
    }

    /// Computes elsewhere; see [`DeviceChoice::pick`](crate::DeviceChoice::pick).
    #[must_use]
    pub fn on(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Lets another thread end what is running: such a call gives [`TrainerError::Broken`].
    #[must_use]
    pub fn stopped_by(mut self, stop: Stop) -> Self {
        self.stop = stop;
        self
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Trains and measures a model without privacy; the trainer's own data file plays no part.
    ///
    /// # Errors
    /// See [`TrainerError`].
    pub fn baseline(&mut self, task: &BaselineTask) -> Result<Baseline, TrainerError> {
        Ok(baseline::run(task, self.device, &self.stop)?)
    }

    /// The rows under this contract.
    fn rows(&mut self, contract: &DataContract) -> Result<&Rows, Failure> {
        let cached = match self.cached.take() {
            Some(cached) if cached.0 == *contract => cached,
            // The old rows go before the new ones come.
            other => {
                drop(other);
                (contract.clone(), Rows::load(&[&self.path], contract, self.device)?)
            }
        };
        Ok(&self.cached.insert(cached).1)
    }
}

impl Trainer for TorchTrainer {
    fn inspect(&mut self, data: &DataContract) -> Result<DataReport, TrainerError> {
        self.cached = None;
        undertone_data::encode::inspect(&self.path, data)
    }

    fn train(&mut self, task: &TrainTask, weights: &[f32]) -> Result<LocalUpdate, TrainerError> {
        let stop = self.stop.clone();
        let network = Network::new(&task.model, task.data.inputs(), task.data.outputs())?;
        let rows = self.rows(&task.data)?;
        let part = network.part(&task.plan)?;
        let first_loss = match task.first_loss {
            true => Some(evaluate(&network, rows, weights, &stop)?.loss),
            false => None,
        };
        let trained = match &task.record_privacy {
            Some(privacy) => {
                dp_sgd::train(&network, rows, &task.plan, privacy, weights, task.sampling_seed, &stop)?
            }
            None => sgd::train(&network, rows, &task.plan, weights, task.sampling_seed, &stop)?,
        };
        let before = part.gather(weights);
        let delta: Vec<f32> = trained.weights.iter().zip(&before).map(|(new, old)| new - old).collect();
        if let Some(i) = delta.iter().position(|d| !d.is_finite()) {
            let text =
                format!("training diverged: value {i} moved by {}; lower the plan's learning_rate", delta[i]);
            return Err(TrainerError::Numerical(text));
        }
        Ok(LocalUpdate { delta, steps: trained.steps, first_loss })
    }

    fn evaluate(
        &mut self,
        model: &ModelSpec,
        data: &DataContract,
        weights: &[f32],
    ) -> Result<Metrics, TrainerError> {
        let stop = self.stop.clone();
        let network = Network::new(model, data.inputs(), data.outputs())?;
        Ok(evaluate(&network, self.rows(data)?, weights, &stop)?)
    }

    fn evaluate_bounded(
        &mut self,
        model: &ModelSpec,
        data: &DataContract,
        max_loss: f64,
        weights: &[f32],
    ) -> Result<BoundedSums, TrainerError> {
        let stop = self.stop.clone();
        let network = Network::new(model, data.inputs(), data.outputs())?;
        Ok(evaluate_bounded(&network, self.rows(data)?, weights, max_loss, &stop)?)
    }

    fn rest(&mut self) {
        self.cached = None;
    }
}

#[cfg(test)]
mod tests;
