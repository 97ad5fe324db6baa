//! The seam of [`crate::trainer`] as two pipes: how a client talks to a trainer process.
//!
//! The client writes [`Request`]s to the process's standard input and reads one [`Response`] to each from its
//! standard output; before it there may be any number of [`Response::Progress`]. A message is one frame:
//!
//! ```text
//! u32   length of the header in bytes            (little-endian, at most MAX_HEADER_BYTES)
//! ...   header: one Request or Response as JSON
//! u64   length of the payload in bytes           (little-endian, a multiple of 4)
//! ...   payload: f32 values, little-endian       (weights, or a delta over the part that is trained; else empty)
//! ```
//!
//! The first request is [`Request::Hello`]. The process ends after [`Request::Quit`] and when its input ends; so it
//! never outlives its client. Both ends come from the same build, hence [`PROTOCOL_VERSION`] is matched exactly.
//! A trainer in another language needs no more than this page.

mod frame;
mod pipe;
#[cfg(test)]
mod tests;

pub use frame::{ProtocolError, read_frame, write_frame};
pub use pipe::{OnProgress, PipeTrainer, TrainerInfo};

use crate::data_files::DataFiles;
use crate::model::ModelSpec;
use crate::plan::TrainPlan;
use crate::schema::DataContract;
use crate::trainer::{BoundedSums, DataReport, EvaluationTask, Metrics, Progress, TrainTask, TrainerError};
use serde::{Deserialize, Serialize};

/// The version of this protocol.
pub const PROTOCOL_VERSION: u32 = 4;
/// Longest header: a job document as JSON, with room.
pub const MAX_HEADER_BYTES: u32 = 32 << 20;
/// Most files that a baseline may pool.
pub const MAX_BASELINE_FILES: usize = 1024;

/// What the client asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Who are you? Answered by [`Response::Hello`].
    Hello {
        /// The client's [`PROTOCOL_VERSION`].
        version: u32,
    },
    /// [`Trainer::inspect`](crate::trainer::Trainer::inspect). Answered by [`Response::Report`].
    Inspect {
        /// What the data must look like.
        data: DataContract,
    },
    /// [`Trainer::evaluate_bounded`](crate::trainer::Trainer::evaluate_bounded); the payload is the weights to measure.
    /// Answered by [`Response::BoundedSums`].
    EvaluateBounded {
        /// What to measure.
        task: EvaluationTask,
        /// Where losses are cut.
        max_loss: f64,
    },
    /// [`Trainer::train`](crate::trainer::Trainer::train); the payload is the weights to start from. Answered by
    /// [`Response::Trained`].
    Train {
        /// The task.
        task: TrainTask,
    },
    /// [`Trainer::evaluate`](crate::trainer::Trainer::evaluate); the payload is the weights to measure. Answered by
    /// [`Response::Metrics`].
    Evaluate {
        /// What to measure.
        task: EvaluationTask,
    },
    /// Train the job's model without privacy, for comparison. Answered by [`Response::Baseline`].
    Baseline {
        /// What to train and measure.
        task: BaselineTask,
    },
    /// Leave. Not answered.
    Quit,
}

/// What the trainer answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Response {
    /// To [`Request::Hello`].
    Hello {
        /// The trainer's [`PROTOCOL_VERSION`].
        version: u32,
        /// Where it computes, for example `cpu` or `cuda:0`.
        device: String,
        /// The version of its libtorch.
        libtorch: String,
        /// Why it does not compute with CUDA, where it was left to choose.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why_no_cuda: Option<String>,
    },
    /// To [`Request::Inspect`].
    Report(DataReport),
    /// How far training has come; the answer to the request is still to follow.
    Progress(Progress),
    /// To [`Request::Train`]; the payload is the delta.
    Trained {
        /// Optimiser steps taken.
        steps: u64,
        /// Mean loss before the first of them, where the task asks.
        first_loss: Option<f64>,
    },
    /// To [`Request::Evaluate`].
    Metrics(Metrics),
    /// The measurement in bounded sums.
    BoundedSums(BoundedSums),
    /// To [`Request::Baseline`]; the payload is the trained weights.
    Baseline {
        /// Measured on the test file.
        metrics: Metrics,
        /// Rows trained on.
        rows: u64,
        /// Optimiser steps taken.
        steps: u64,
    },
    /// The request failed; the trainer goes on unless the request itself made no sense.
    Failed(TrainerError),
}

/// The job's model trained in one place and without privacy: on one client's data, or on data pooled from several
/// as no federation would have it. From the model's initial values, `rounds` times the plan's local work, the whole
/// change kept each time.
///
/// A plan without `batch_size` takes all rows in each step. So does the plan of a job with record-level privacy: its
/// Poisson batches are there to amplify privacy, which is not at stake here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaselineTask {
    /// The model.
    pub model: ModelSpec,
    /// What all files must look like; `min_rows` holds for each.
    pub data: DataContract,
    /// The work of one round.
    pub plan: TrainPlan,
    /// How many rounds.
    pub rounds: u32,
    /// Seed of the order of rows. `None`: drawn from the operating system.
    pub seed: Option<u64>,
    /// Data to train on, its rows pooled; relative paths start at the trainer's working directory. At most
    /// [`MAX_BASELINE_FILES`].
    pub train: Vec<DataFiles>,
    /// Data to measure on.
    pub test: DataFiles,
}

/// What [`BaselineTask`] gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Baseline {
    /// Measured on the test file.
    pub metrics: Metrics,
    /// Rows trained on.
    pub rows: u64,
    /// Optimiser steps taken.
    pub steps: u64,
    /// The trained values over the model's layout.
    pub weights: Vec<f32>,
}
