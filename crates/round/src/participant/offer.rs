//! An invitation, as the coordinator sends it and as the client reads it.

use crate::job::{Job, JobError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use undertone_core::digest::Digest;
use undertone_core::encoding::frozen::frozen_len;
use undertone_core::id::AttemptKey;

/// A model file by digest and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRef {
    /// SHA-256 of the file.
    pub digest: Digest,
    /// Its length.
    pub bytes: u64,
}

/// What an offer's model is fetched as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OfferedModel {
    /// The whole: the model's file, or its version as the job encodes it.
    pub whole: ModelRef,
    /// The name of the version that the client trains from, whichever way it comes; `None`: the file is the model.
    pub version: Option<Digest>,
    /// The difference from another version.
    pub delta: Option<OfferedDelta>,
    /// What the whole needs beside it, where that is of the trained part alone.
    pub frozen: Option<OfferedFrozen>,
}

/// The values that a job does not train: they are fetched once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OfferedFrozen {
    /// The digest of the values: a client may have them.
    pub digest: Digest,
    /// The file that holds them.
    pub file: ModelRef,
}

/// A difference from a version that the client may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OfferedDelta {
    /// The name of that version.
    pub base: Digest,
    /// The difference.
    pub file: ModelRef,
}

impl From<ModelRef> for OfferedModel {
    fn from(whole: ModelRef) -> Self {
        Self { whole, version: None, delta: None, frozen: None }
    }
}

impl OfferedModel {
    /// What the model is known by: its version, or its file.
    pub fn digest(&self) -> Digest {
        self.version.unwrap_or(self.whole.digest)
    }
}

/// An offer whose job document holds together. Everything the client decides on comes from the document.
#[derive(Debug, Clone)]
pub struct Offer {
    key: AttemptKey,
    job: Arc<Job>,
    model: OfferedModel,
    clip_norm: Option<f64>,
}

/// Why an offer cannot be read. The sentence holds nothing of the client's own: it may be sent.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum UnreadableOffer {
    /// The job document does not parse or does not hold together.
    #[error("the job document makes no sense here: {0}")]
    Job(#[from] JobError),
    /// A round that the job does not have.
    #[error("round {round} of a job with {rounds} rounds")]
    NoSuchRound {
        /// The round offered.
        round: u32,
        /// The job's rounds.
        rounds: u32,
    },
    /// A clip norm that the contract does not have, or none where it has one that moves.
    #[error("the offer has a clip norm of {offered:?}, which the job's privacy contract does not allow")]
    ClipNorm {
        /// The norm.
        offered: Option<f64>,
    },
    /// A model that does not come as the job says.
    #[error("the offered model does not come as the job's [transport] says: {0}")]
    Transport(&'static str),
    /// A model file that cannot be this job's model.
    #[error("a model file of {bytes} bytes cannot hold this job's {values} values")]
    ModelSize {
        /// The length announced.
        bytes: u64,
        /// The number of values of the job's model.
        values: usize,
    },
}

/// Most bytes that names, shapes and metadata may take in a model file.
const MAX_HEADER_BYTES: u64 = 64 << 20;

impl Offer {
    /// Reads an offer.
    ///
    /// # Errors
    /// [`UnreadableOffer`].
    pub fn read(
        key: AttemptKey,
        document: &[u8],
        model: impl Into<OfferedModel>,
        clip_norm: Option<f64>,
    ) -> Result<Self, UnreadableOffer> {
        Self::of_job(key, Arc::new(Job::from_document(document)?), model, clip_norm)
    }

    /// The offer of a job that was read before.
    ///
    /// # Errors
    /// [`UnreadableOffer`], but for the document.
    pub fn of_job(
        key: AttemptKey,
        job: Arc<Job>,
        model: impl Into<OfferedModel>,
        clip_norm: Option<f64>,
    ) -> Result<Self, UnreadableOffer> {
        let model = model.into();
        if key.round.0 > job.spec().rounds {
            return Err(UnreadableOffer::NoSuchRound { round: key.round.0, rounds: job.spec().rounds });
        }
        check_offered(&job, &model)?;
        let allowed = match (job.spec().privacy.adaptive_clip(), clip_norm) {
            (Some(rule), Some(norm)) => rule.allows(norm),
            (None, None) => true,
            _ => false,
        };
        if !allowed {
            return Err(UnreadableOffer::ClipNorm { offered: clip_norm });
        }
        Ok(Self { key, job, model, clip_norm })
    }

    /// The attempt.
    pub fn key(&self) -> &AttemptKey {
        &self.key
    }

    /// The job.
    pub fn job(&self) -> &Arc<Job> {
        &self.job
    }

    /// The clip norm of the round, where it moves.
    pub fn clip_norm(&self) -> Option<f64> {
        self.clip_norm
    }

    /// The model to start from.
    pub fn model(&self) -> OfferedModel {
        self.model
    }
}

/// Refuses a model that cannot come as it is announced, before a byte is fetched.
fn check_offered(job: &Job, model: &OfferedModel) -> Result<(), UnreadableOffer> {
    let (down, part) = (job.spec().transport.down(), job.part());
    let wrong = |text| Err(UnreadableOffer::Transport(text));
    if model.version.is_none() {
        // Also of a part, by a coordinator that sends it as the file.
        return match model {
            _ if !down.asks_nothing() => wrong("it has no version"),
            OfferedModel { delta: None, frozen: None, .. } => check_model_size(job, model.whole),
            _ => wrong("what goes with a version comes without one"),
        };
    }
    if down.is_plain(part) {
        return wrong("there is a version, and the job has none");
    }
    if let Some(delta) = model.delta
        && !down.delta_len(part).is_some_and(|len| len.admits(delta.file.bytes))
    {
        return wrong("the difference has another size");
    }
    match (model.frozen, frozen_len(part)) {
        (None, Some(_)) => return wrong("the tensors that are not trained are missing"),
        (Some(frozen), len) if len != Some(frozen.file.bytes) => {
            return wrong("the tensors that are not trained have another size");
        }
        _ => {}
    }
    match down.whole_len(part) {
        None => check_model_size(job, model.whole),
        Some(len) if len.admits(model.whole.bytes) => Ok(()),
        Some(_) => wrong("the whole version has another size"),
    }
}

/// Refuses a model file whose announced length cannot be that of the job's model, before a byte is fetched.
///
/// # Errors
/// [`UnreadableOffer::ModelSize`].
pub fn check_model_size(job: &Job, model: ModelRef) -> Result<(), UnreadableOffer> {
    let least = 4 * job.layout().len() as u64;
    if model.bytes <= least || model.bytes > least + MAX_HEADER_BYTES {
        return Err(UnreadableOffer::ModelSize { bytes: model.bytes, values: job.layout().len() });
    }
    Ok(())
}
