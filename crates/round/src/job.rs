//! The job: model, data contract, plan, cohort, aggregation, privacy contract, rounds.
//!
//! Operators write it as TOML; it travels and is stored as canonical JSON, and every side reads it through the
//! same constructor. Its digest is the digest of that JSON.

mod check;
mod external;
mod module;
mod rescale;
mod tables;
#[cfg(test)]
mod training_tests;

pub use tables::{Aggregation, Deadlines, Evaluation, Transport, Weights};

use serde::{Deserialize, Serialize};
use undertone_core::cohort::Cohort;
use undertone_core::config::{ConfigError, parse_toml, with_suggestion};
use undertone_core::digest::Digest;
use undertone_core::encoding::EncodedLen;
use undertone_core::fixed::Grid;
use undertone_core::initial::{FileRef, Initial};
use undertone_core::layout::ModelLayout;
use undertone_core::limits::MAX_JOB_DOCUMENT_BYTES;
use undertone_core::model::ModelSpec;
use undertone_core::part::Part;
use undertone_core::plan::TrainPlan;
use undertone_core::rules::rescale::Rescaling;
use undertone_core::rules::staleness::Staleness;
use undertone_core::schema::DataContract;
use undertone_core::trainer::{EvaluationTask, RecordPrivacy, TrainTask};
use undertone_privacy::adaptive_clip::ClipState;
use undertone_privacy::clip::bound_in_units;
use undertone_privacy::contract::PrivacyContract;
use undertone_privacy::release::clip_norm_of;
use undertone_privacy::resolve::ResolvedContract;

/// A job as it is written down. [`JobSpec::resolve`] turns it into a [`Job`], or says why not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// A name for people; the job's id is this and a random suffix.
    pub name: String,
    /// Number of rounds.
    pub rounds: u32,
    /// What is trained.
    pub model: ModelSpec,
    /// The values that it begins with; `None`: they are drawn from the model's seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial: Option<Initial>,
    /// What a client does in a round.
    pub training: TrainPlan,
    /// Who is asked in a round.
    pub cohort: Cohort,
    /// How updates become a new model.
    #[serde(default)]
    pub aggregation: Aggregation,
    /// How updates and models travel.
    #[serde(default, skip_serializing_if = "Transport::is_default")]
    pub transport: Transport,
    /// What is promised to whom.
    pub privacy: PrivacyContract,
    /// Measuring released models on evaluators' data.
    #[serde(default)]
    pub evaluation: Evaluation,
    /// How long things may take.
    #[serde(default)]
    pub deadlines: Deadlines,
    /// What the data must look like.
    pub data: DataContract,
}

/// Why a job cannot be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum JobError {
    /// The file or document does not parse.
    #[error("{0}")]
    Malformed(#[from] ConfigError),
    /// A number or a combination that makes no sense.
    #[error("[{section}] {problem}")]
    Invalid {
        /// The table of the job file.
        section: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
}

impl JobSpec {
    /// Reads a job file; `file` is named in errors.
    ///
    /// # Errors
    /// [`JobError::Malformed`] with line and nearest key.
    pub fn from_toml(text: &str, file: &str) -> Result<Self, JobError> {
        check_size(text.len())?;
        Ok(parse_toml(text, file)?)
    }

    /// Reads the canonical JSON.
    ///
    /// # Errors
    /// [`JobError::Malformed`].
    pub fn from_document(document: &[u8]) -> Result<Self, JobError> {
        check_size(document.len())?;
        serde_json::from_slice(document).map_err(|e| malformed(with_suggestion(&e.to_string())))
    }

    /// The canonical JSON: fields in the order of the types, no white space.
    pub fn to_document(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a job is plain data")
    }

    /// The digest of the canonical JSON.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.to_document())
    }
}

fn check_size(bytes: usize) -> Result<(), JobError> {
    if bytes > MAX_JOB_DOCUMENT_BYTES {
        return Err(malformed(format!("{bytes} bytes, at most {MAX_JOB_DOCUMENT_BYTES}")));
    }
    Ok(())
}

fn malformed(problem: String) -> JobError {
    JobError::Malformed(ConfigError { place: "job".into(), problem })
}

/// A job that holds together.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    spec: JobSpec,
    digest: Digest,
    layout: ModelLayout,
    part: Part,
    contract: ResolvedContract,
    update_norm_bound: f64,
    update_norm_units: u64,
    rescaling: Option<Rescaling>,
}

impl Job {
    /// Reads and resolves the canonical JSON.
    ///
    /// # Errors
    /// [`JobError`].
    pub fn from_document(document: &[u8]) -> Result<Self, JobError> {
        JobSpec::from_document(document)?.resolve()
    }

    /// What was written down.
    pub fn spec(&self) -> &JobSpec {
        &self.spec
    }

    /// The digest of the job's canonical JSON.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The model's tensors.
    pub fn layout(&self) -> &ModelLayout {
        &self.layout
    }

    /// The part of the model that is trained: updates, noise and the server optimiser's state are as long as it is.
    pub fn part(&self) -> &Part {
        &self.part
    }

    /// How clients rescale their updates; `None`: not at all.
    pub fn rescaling(&self) -> Option<&Rescaling> {
        self.rescaling.as_ref()
    }

    /// The privacy contract with its noise and its price.
    pub fn contract(&self) -> &ResolvedContract {
        &self.contract
    }

    /// The grid that updates travel on.
    pub fn grid(&self) -> Grid {
        self.spec.aggregation.fraction_bits
    }

    /// The size of an update on the wire.
    pub fn encoded_len(&self) -> EncodedLen {
        self.spec.transport.updates.encoded_len(self.part.len())
    }

    /// The largest size of an update on the wire, in bytes.
    pub fn update_bytes(&self) -> u64 {
        self.encoded_len().max()
    }

    /// The file that the first model is, where it is not drawn from the model's seed.
    pub fn initial_file(&self) -> Option<FileRef> {
        match self.spec.initial {
            Some(Initial::File(file)) => Some(file),
            _ => None,
        }
    }

    /// The TorchScript file that the model is.
    pub fn module_file(&self) -> Option<FileRef> {
        self.spec.model.exported().map(|exported| exported.file)
    }

    /// The initial values that the model's seed gives.
    pub fn initial_values(&self) -> Vec<f32> {
        self.spec.model.initial_values(&self.spec.data.shape())
    }

    /// The initial values that the model's seed gives, one by one.
    pub fn initial_stream(&self) -> Box<dyn Iterator<Item = f32> + Send> {
        self.spec.model.initial_stream(&self.spec.data.shape())
    }

    /// The largest L2 norm of an update on the wire: the contract's clip norm where the coordinator's noise rests on it,
    /// what a clipped update with its noise reaches where clients add it, else the job's sanity bound. In round 1, where
    /// the clip norm moves.
    pub fn update_norm_bound(&self) -> f64 {
        self.update_norm_bound
    }

    /// The largest bound that a round may have.
    pub fn largest_norm(&self) -> f64 {
        self.spec.privacy.adaptive_clip().map_or(self.update_norm_bound, |rule| rule.max())
    }

    /// The bound in a round, as a norm and in units of the grid: another one than in round 1 where the clip norm moves.
    pub fn norm_bound(&self, state: Option<&ClipState>) -> (f64, u64) {
        let moved =
            self.clip_norm(state).and_then(|norm| Some((norm, bound_in_units(norm, self.grid()).ok()?)));
        // The clamps suit the grid: the job would not have resolved.
        moved.unwrap_or((self.update_norm_bound, self.update_norm_units))
    }

    /// A round's `bound` for an update with this number beside it, where updates are rescaled.
    pub fn bound_beside(&self, number: Option<u64>, bound: (f64, u64)) -> (f64, u64) {
        let Some((rescaling, number)) = self.rescaling.as_ref().zip(number) else { return bound };
        let units = rescaling.bound(number, bound.1);
        if units == bound.1 { bound } else { (units as f64 / self.grid().units_per_one(), units) }
    }

    /// The clip norm of a round, where it moves; then each client also says whether its update was within it.
    pub fn clip_norm(&self, state: Option<&ClipState>) -> Option<f64> {
        self.spec.privacy.adaptive_clip()?;
        clip_norm_of(&self.contract, state)
    }

    /// The weight of a client that declares this many rows.
    pub fn weight(&self, declared_rows: u64) -> u32 {
        match self.spec.aggregation.weights {
            Weights::Uniform => 1,
            Weights::DeclaredRows => {
                u32::try_from(declared_rows).unwrap_or(u32::MAX).clamp(1, self.spec.aggregation.max_weight)
            }
        }
    }

    /// What updates count by their staleness, where rounds are asynchronous.
    pub fn staleness(&self) -> Option<Staleness> {
        let buffered = self.spec.cohort.buffered()?;
        Some(buffered.staleness(self.max_weight()).expect("checked when the job was resolved"))
    }

    /// What updates that were sent with these weights would weigh together if all were fresh, where stale ones weigh less.
    pub fn fresh_weight(&self, sent: impl IntoIterator<Item = u32>) -> Option<u64> {
        let one = u64::from(self.staleness()?.one());
        Some(sent.into_iter().map(|weight| u64::from(weight) * one).sum())
    }

    /// The largest weight that the job accepts.
    pub fn max_weight(&self) -> u32 {
        self.spec.max_weight()
    }

    /// How the job's models are measured.
    pub fn evaluation_task(&self) -> EvaluationTask {
        EvaluationTask {
            model: self.spec.model.clone(),
            data: self.spec.data.clone(),
            loss: self.spec.training.loss.clone(),
            module: None,
        }
    }

    /// The work of a round for a client that declares this many rows.
    pub fn train_task(&self, declared_rows: u64, sampling_seed: Option<u64>) -> TrainTask {
        let record_privacy: Option<RecordPrivacy> = self.contract.record_privacy(declared_rows);
        let Self { spec, .. } = self;
        TrainTask {
            record_privacy,
            sampling_seed,
            first_loss: self.rescaling.is_some_and(|r| r.wants_loss()),
            ..TrainTask::new(spec.model.clone(), spec.data.clone(), spec.training.clone())
        }
    }
}
