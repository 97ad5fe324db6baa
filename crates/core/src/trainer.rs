//! The seam behind which training happens.
//!
//! A client is given a [`Trainer`] and knows nothing of tensors: libtorch in a child process, another program,
//! or a function in a test all look the same from here.

use crate::model::ModelSpec;
use crate::part::Part;
use crate::plan::TrainPlan;
use crate::schema::DataContract;
use serde::{Deserialize, Serialize};

/// All that local training of one round needs, besides the data and the model's current values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainTask {
    /// The model.
    pub model: ModelSpec,
    /// What the data must look like.
    pub data: DataContract,
    /// What to do with it.
    pub plan: TrainPlan,
    /// Set if the contract promises privacy to each record: train with DP-SGD.
    pub record_privacy: Option<RecordPrivacy>,
    /// Makes local sampling reproducible (for studies). `None`: drawn from the operating system. Noise is never
    /// seeded. Amplification by sampling holds only against those who do not know this seed.
    pub sampling_seed: Option<u64>,
    /// Whether the loss of the weights that training starts from is wanted, on the rows that are trained on.
    pub first_loss: bool,
}

impl TrainTask {
    /// The part of the model that is trained.
    ///
    /// # Errors
    /// [`TrainerError::Unsupported`] if model and plan make no sense together.
    pub fn part(&self) -> Result<Part, TrainerError> {
        let layout = self.model.layout(self.data.inputs(), self.data.outputs());
        let unsupported = |e: &dyn std::fmt::Display| TrainerError::Unsupported(e.to_string());
        self.plan.part(&layout.map_err(|e| unsupported(&e))?).map_err(|e| unsupported(&e))
    }
}

/// The numbers of DP-SGD (Abadi et al. 2016) for one client.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordPrivacy {
    /// Each example's gradient is scaled down to at most this L2 norm.
    pub clip_norm: f64,
    /// Standard deviation of the noise on the *sum* of clipped gradients, in multiples of `clip_norm`.
    pub noise_multiplier: f64,
    /// Each row is in a batch independently with this probability.
    pub sampling_rate: f64,
    /// The public constant that noised sums are divided by, in rows: `sampling_rate` times the number of rows that
    /// the data owner *declares*. Never the private number of rows.
    pub expected_batch: f64,
}

/// What local training gives: raw, not clipped, not to leave the machine.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalUpdate {
    /// Trained values minus the values it started from, over the part of the model that is trained.
    pub delta: Vec<f32>,
    /// Optimiser steps taken.
    pub steps: u64,
    /// Mean loss of the weights that it started from, where [`TrainTask::first_loss`] asks.
    pub first_loss: Option<f64>,
}

/// What a check of local data found. Stays on the machine, except for [`DataReport::is_fit`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataReport {
    /// Rows that can be trained on.
    pub rows: u64,
    /// Rows of each class.
    pub class_rows: Vec<u64>,
    /// For each optional column, the number of missing values.
    pub missing: Vec<(String, u64)>,
    /// What keeps the data from meeting the contract; each a sentence with the place and the way out.
    pub problems: Vec<String>,
}

impl DataReport {
    /// Whether the data meets the contract.
    pub fn is_fit(&self) -> bool {
        self.problems.is_empty()
    }
}

/// A measurement of one model on one client's data.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Mean cross-entropy in nats.
    pub loss: f64,
    /// Share of rows whose most likely class is the right one.
    pub accuracy: f64,
    /// Rows measured.
    pub rows: u64,
}

/// A row's largest loss in [`BoundedSums`]: losses are counted in this part of it.
pub const LOSS_UNITS: u64 = 1024;

/// A measurement as sums in which each row has a bounded part, for noise to be added to. Stays on the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoundedSums {
    /// Rows measured.
    pub rows: u64,
    /// Rows whose most likely class is the right one.
    pub right: u64,
    /// Each row's loss, cut at the largest one that was asked for (also where it is no number), in [`LOSS_UNITS`]ths of
    /// it, rounded; then summed: a row gives 0 to [`LOSS_UNITS`].
    pub loss_units: u64,
}

/// Why training or evaluation did not happen. Whose turn it is to act is part of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "error", content = "message", rename_all = "snake_case")]
pub enum TrainerError {
    /// The local data does not meet the contract: the data owner must act.
    #[error("{0}")]
    Data(String),
    /// The task asks for something that this trainer cannot do: the job's author must act.
    #[error("{0}")]
    Unsupported(String),
    /// The weights do not fit the model, or training diverged to NaN or infinity.
    #[error("{0}")]
    Numerical(String),
    /// The trainer itself broke (its process died, its answer made no sense).
    #[error("{0}")]
    Broken(String),
}

/// Trains and evaluates on one client's data. Calls block; the caller gives them a thread.
pub trait Trainer: Send {
    /// Checks the data against a contract without training.
    ///
    /// # Errors
    /// Only if the data could not be read at all; what is wrong *in* it is in the report.
    fn inspect(&mut self, data: &DataContract) -> Result<DataReport, TrainerError>;

    /// Trains from `weights` (over the model's layout) for one round. What is not in [`TrainTask::part`] stays as it is.
    ///
    /// # Errors
    /// See [`TrainerError`].
    fn train(&mut self, task: &TrainTask, weights: &[f32]) -> Result<LocalUpdate, TrainerError>;

    /// Measures `weights` on the data.
    ///
    /// # Errors
    /// See [`TrainerError`].
    fn evaluate(
        &mut self,
        model: &ModelSpec,
        data: &DataContract,
        weights: &[f32],
    ) -> Result<Metrics, TrainerError>;

    /// Measures `weights` on the data in sums of which each row's part is bounded: losses are cut at `max_loss` nats.
    ///
    /// # Errors
    /// See [`TrainerError`].
    fn evaluate_bounded(
        &mut self,
        model: &ModelSpec,
        data: &DataContract,
        max_loss: f64,
        weights: &[f32],
    ) -> Result<BoundedSums, TrainerError>;

    /// A job needs the trainer no longer (for now): give back memory and processes. The next call starts anew.
    fn rest(&mut self) {}
}
