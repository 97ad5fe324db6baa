//! libtorch behind the seam of [`undertone_core::trainer`].

use crate::baseline;
use crate::checkpoint::Keeper;
use crate::device::{AbsentDevice, pick};
use crate::evaluate::{evaluate, evaluate_bounded};
use crate::failure::{Failure, Stop};
use crate::nn::Network;
use crate::rows::Rows;
use crate::run::Run;
use crate::{dp_sgd, sgd};
use tch::Device;
use undertone_core::data_files::DataFiles;
use undertone_core::device::DeviceChoice;
use undertone_core::schema::DataContract;
use undertone_core::trainer::{
    BoundedSums, DataReport, EvaluationTask, LocalUpdate, Metrics, TrainTask, Trainer, TrainerError,
};
use undertone_core::trainer_protocol::{Baseline, BaselineTask};

/// Trains on the records of one data set.
///
/// The rows stay in memory from call to call while the data contract is the same; [`Trainer::inspect`], with which a
/// job begins, and [`Trainer::rest`] forget them, so that the next call reads the files anew.
#[derive(Debug)]
pub struct TorchTrainer {
    files: DataFiles,
    device: Device,
    chose_device: bool,
    stop: Stop,
    say: fn(&str),
    cached: Option<(DataContract, Rows)>,
}

impl TorchTrainer {
    /// A trainer on the CPU for these files (a path: one CSV file), which are read when they are first needed.
    pub fn new(files: impl Into<DataFiles>) -> Self {
        Self {
            files: files.into(),
            device: Device::Cpu,
            chose_device: false,
            stop: Stop::default(),
            say: |_| {},
            cached: None,
        }
    }

    /// Computes elsewhere; see [`pick`].
    #[must_use]
    pub fn on(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Says what a log should have, in lines: which way of summing gradients was chosen, for example.
    #[must_use]
    pub fn saying(mut self, say: fn(&str)) -> Self {
        self.say = say;
        self
    }

    /// Computes where libtorch can: with CUDA if it is there.
    ///
    /// # Errors
    /// See [`pick`].
    pub fn choosing(mut self, choice: DeviceChoice) -> Result<Self, AbsentDevice> {
        self.device = pick(choice)?;
        self.chose_device = choice == DeviceChoice::Auto;
        Ok(self)
    }

    /// Whether the device was left to be chosen.
    pub(crate) fn chose_device(&self) -> bool {
        self.chose_device
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
                (contract.clone(), Rows::load(std::slice::from_ref(&self.files), contract, self.device)?)
            }
        };
        Ok(&self.cached.insert(cached).1)
    }
}

impl Trainer for TorchTrainer {
    fn inspect(&mut self, data: &DataContract) -> Result<DataReport, TrainerError> {
        self.cached = None;
        undertone_data::inspect(self.files.clone(), data)
    }

    fn train(&mut self, task: &TrainTask, weights: &[f32]) -> Result<LocalUpdate, TrainerError> {
        let (stop, say) = (self.stop.clone(), self.say);
        let network = Network::of_task(&task.model, &task.data.shape(), task.module.as_deref(), self.device)?
            .with_loss(task.plan.loss.as_ref())?;
        let rows = self.rows(&task.data)?;
        let part = network.part(&task.plan)?;
        let first_loss = match task.first_loss {
            true if task.record_privacy.is_some() => {
                let text =
                    "first_loss does not go with record_privacy: it is a sum over the rows without noise";
                return Err(TrainerError::Unsupported(text.into()));
            }
            true => Some(evaluate(&network, rows, weights, &stop)?.loss),
            false => None,
        };
        let run = Run {
            plan: &task.plan,
            round: task.round,
            weights,
            seed: task.sampling_seed,
            stop: &stop,
            keeper: Keeper::new(task, weights),
        };
        let trained = match &task.record_privacy {
            Some(privacy) => dp_sgd::train(&network, rows, privacy, run, &say)?,
            None => sgd::train(&network, rows, run)?,
        };
        let before = part.ranges().iter().flat_map(|range| &weights[range.clone()]);
        let mut delta = trained.weights;
        delta.iter_mut().zip(before).for_each(|(new, old)| *new -= old);
        if let Some(i) = delta.iter().position(|d| !d.is_finite()) {
            let (step, what) = (trained.steps, format!("value {i} of the weights moved by {}", delta[i]));
            return Err(TrainerError::Diverged { step, of: step, what });
        }
        Ok(LocalUpdate { delta, steps: trained.steps, first_loss })
    }

    fn evaluate(&mut self, task: &EvaluationTask, weights: &[f32]) -> Result<Metrics, TrainerError> {
        let stop = self.stop.clone();
        let network = Network::of_task(&task.model, &task.data.shape(), task.module.as_deref(), self.device)?
            .with_loss(task.loss.as_ref())?;
        Ok(evaluate(&network, self.rows(&task.data)?, weights, &stop)?)
    }

    fn evaluate_bounded(
        &mut self,
        task: &EvaluationTask,
        max_loss: f64,
        weights: &[f32],
    ) -> Result<BoundedSums, TrainerError> {
        let stop = self.stop.clone();
        let network = Network::of_task(&task.model, &task.data.shape(), task.module.as_deref(), self.device)?
            .with_loss(task.loss.as_ref())?;
        Ok(evaluate_bounded(&network, self.rows(&task.data)?, weights, max_loss, &stop)?)
    }

    fn rest(&mut self) {
        self.cached = None;
    }
}

#[cfg(test)]
mod tests;
