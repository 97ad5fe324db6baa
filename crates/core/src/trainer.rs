//! The seam behind which training happens.
//!
//! A client is given a [`Trainer`] and knows nothing of tensors: libtorch in a child process, another program,
//! or a function in a test all look the same from here.

use crate::model::ModelSpec;
use crate::part::Part;
use crate::plan::{Loss, TrainPlan};
use crate::schema::DataContract;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

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
    /// Where in the job this round stands, for schedules that move over rounds.
    pub round: RoundOf,
    /// Where to keep what a killed trainer goes on from. `None`: it would begin anew.
    pub checkpoint: Option<CheckpointPlace>,
    /// Where the model's TorchScript file lies, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<PathBuf>,
}

/// A round among those of its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundOf {
    /// The round, counted from 1.
    pub round: u32,
    /// How many the job plans.
    pub rounds: u32,
}

impl Default for RoundOf {
    /// The only round.
    fn default() -> Self {
        Self { round: 1, rounds: 1 }
    }
}

/// Where local training keeps its state against a kill, on the client's own disk.
///
/// The state is as private as the data. It is used by a task that is the same to the last bit, weights and `attempt`
/// included, and by no other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointPlace {
    /// The file; what lies there and belongs to another task is overwritten. Whoever names it removes it.
    pub path: PathBuf,
    /// Names the attempt that this is for: no two share their state.
    pub attempt: String,
    /// Least seconds between two writes.
    pub every_s: u32,
}

/// What to measure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationTask {
    /// The model.
    pub model: ModelSpec,
    /// What the data must look like.
    pub data: DataContract,
    /// The loss that is stated; `None`: [`Loss::usual`].
    pub loss: Option<Loss>,
    /// Where the model's TorchScript file lies, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<PathBuf>,
}

impl TrainTask {
    /// A job's only round, without a promise to records.
    pub fn new(model: ModelSpec, data: DataContract, plan: TrainPlan) -> Self {
        Self {
            model,
            data,
            plan,
            record_privacy: None,
            sampling_seed: None,
            first_loss: false,
            round: RoundOf::default(),
            checkpoint: None,
            module: None,
        }
    }

    /// Measures the models that this task trains.
    pub fn evaluation(&self) -> EvaluationTask {
        EvaluationTask {
            model: self.model.clone(),
            data: self.data.clone(),
            loss: self.plan.loss.clone(),
            module: self.module.clone(),
        }
    }

    /// The part of the model that is trained.
    ///
    /// # Errors
    /// [`TrainerError::Unsupported`] if model and plan make no sense together.
    pub fn part(&self) -> Result<Part, TrainerError> {
        let layout = self.model.layout(&self.data.shape());
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
    /// How gradients are summed and noise is drawn.
    #[serde(default, skip_serializing_if = "RecordMechanism::is_default")]
    pub mechanism: RecordMechanism,
}

/// How a client sums clipped gradients and draws the noise of DP-SGD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecordMechanism {
    /// Each gradient is clipped on an integer grid, integers are summed, and the noise is the exact discrete Gaussian.
    #[default]
    DiscreteGaussian,
    /// Sums of clipped gradients in floating point, several times faster; the noise is a floating-point Gaussian, scaled to a
    /// sensitivity that has room for rounding.
    FastGaussian,
}

impl RecordMechanism {
    /// The word in config, reports and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DiscreteGaussian => "discrete-gaussian",
            Self::FastGaussian => "fast-gaussian",
        }
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
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

/// How far training has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Steps taken.
    pub step: u64,
    /// Steps planned.
    pub steps: u64,
}

/// What a check of local data found. Stays on the machine, except for [`DataReport::is_fit`].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DataReport {
    /// Rows that can be trained on.
    pub rows: u64,
    /// Rows of each class; none if the label is a number.
    pub class_rows: Vec<u64>,
    /// The labels of those rows, if they are numbers and there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numbers: Option<NumberSummary>,
    /// What became of the rows' texts, if they are texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub texts: Option<TextSummary>,
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

/// Labels that are numbers, in their own unit and as they are in the data: not yet clamped.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NumberSummary {
    /// The smallest.
    pub lowest: f64,
    /// Their mean.
    pub mean: f64,
    /// The largest.
    pub highest: f64,
}

/// Texts as tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TextSummary {
    /// Texts that are longer than what a model sees of one.
    pub cut: u64,
    /// Tokens that a model sees, padding apart.
    pub tokens: u64,
    /// Those of them that the vocabulary does not have.
    pub unknown: u64,
}

/// A measurement of one model on one client's data.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Mean loss, as the job's plan states it; cross-entropy is in nats, and numbers are scaled to \[-1, 1\].
    pub loss: f64,
    /// Share of rows whose most likely class is the right one. `None` if what is predicted is a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Mean absolute error in the label's own unit, if what is predicted is a number. Not measured where noise is added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_absolute_error: Option<f64>,
    /// Rows measured.
    pub rows: u64,
}

impl Metrics {
    /// A measurement of a model that tells classes apart.
    pub fn of_classes(loss: f64, accuracy: f64, rows: u64) -> Self {
        Self { loss, accuracy: Some(accuracy), mean_absolute_error: None, rows }
    }

    /// Whether all of it is finite.
    pub fn is_finite(&self) -> bool {
        [Some(self.loss), self.accuracy, self.mean_absolute_error].into_iter().flatten().all(f64::is_finite)
    }

    /// How near the predictions are, for people: the share of right classes, or the mean error of numbers.
    pub fn nearness(&self) -> Option<String> {
        match (self.accuracy, self.mean_absolute_error) {
            (Some(accuracy), _) => Some(format!("accuracy {accuracy:.4}")),
            (None, Some(error)) => Some(format!("mean error {error:.4}")),
            (None, None) => None,
        }
    }
}

/// A row's largest loss in [`BoundedSums`]: losses are counted in this part of it.
pub const LOSS_UNITS: u64 = 1024;

/// A measurement as sums in which each row has a bounded part, for noise to be added to. Stays on the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoundedSums {
    /// Rows measured.
    pub rows: u64,
    /// Rows whose most likely class is the right one. `None` if what is predicted is a number.
    pub right: Option<u64>,
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
    /// The job's TorchScript file cannot be trained with: the job's author must act. Found on made-up examples; the words are the
    /// module's all the same, so they are for the data owner, and for others where no privacy is promised.
    #[error("the job's TorchScript file: {0}")]
    Module(String),
    /// The weights do not fit the model, or are not finite.
    #[error("{0}")]
    Numerical(String),
    /// Training ran away to NaN or infinity: the job's author must act.
    #[error(
        "training diverged at step {step} of {of}: {what}; lower learning_rate, warm it up ([training] schedule with warm_up), \
         or set clip_gradient_norm"
    )]
    Diverged {
        /// The step at which it was seen, counted from 1.
        step: u64,
        /// Of how many.
        of: u64,
        /// What was not finite, and its value.
        what: String,
    },
    /// The model does not fit into the trainer's memory, however small the batch.
    #[error("{0}")]
    Memory(String),
    /// The trainer itself broke (its process died, its answer made no sense).
    #[error("{0}")]
    Broken(String),
    /// The data owner's own training program failed.
    #[error("{detail}")]
    Program {
        /// What kind of failure: the coordinator is told this much.
        fault: ProgramFault,
        /// All of it, for the data owner.
        detail: String,
    },
    /// The data owner's conditions hold training back for now: the machine runs on its battery, or is in use.
    #[error("{0}")]
    Paused(String),
}

/// How a data owner's own training program failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProgramFault {
    /// It could not be started.
    NotStarted,
    /// It ran longer than its owner allows.
    Time,
    /// It took more memory than its owner allows.
    Memory,
    /// It wrote more than its owner allows.
    Disk,
    /// It started more processes than are allowed.
    Processes,
    /// It ended with an exit status other than zero.
    Exit,
    /// A signal ended it.
    Killed,
    /// It ended well and left no result.
    NoResult,
    /// Its result makes no sense, or does not fit the model.
    BadResult,
}

impl ProgramFault {
    /// The sentence for the coordinator: it says nothing of what the program saw or wrote.
    pub fn told(self) -> &'static str {
        match self {
            Self::NotStarted => "the client's training program could not be started: see the client's log",
            Self::Time => {
                "the client's training program did not finish within its owner's time limit: see the client's log"
            }
            Self::Memory => {
                "the client's training program took more memory than its owner allows: see the client's log"
            }
            Self::Disk => {
                "the client's training program wrote more than its owner allows: see the client's log"
            }
            Self::Processes => {
                "the client's training program started more processes than are allowed: see the client's log"
            }
            Self::Exit => "the client's training program ended with an error: see the client's log",
            Self::Killed => "the client's training program was killed by a signal: see the client's log",
            Self::NoResult => "the client's training program ended without a result: see the client's log",
            Self::BadResult => {
                "the client's training program gave a result that does not fit the job's model: see the client's log"
            }
        }
    }
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
    fn evaluate(&mut self, task: &EvaluationTask, weights: &[f32]) -> Result<Metrics, TrainerError>;

    /// Measures `weights` on the data in sums of which each row's part is bounded: losses are cut at `max_loss`.
    ///
    /// # Errors
    /// See [`TrainerError`].
    fn evaluate_bounded(
        &mut self,
        task: &EvaluationTask,
        max_loss: f64,
        weights: &[f32],
    ) -> Result<BoundedSums, TrainerError>;

    /// A job needs the trainer no longer (for now): give back memory and processes. The next call starts anew.
    fn rest(&mut self) {}
}
