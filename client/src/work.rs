//! The steps of an attempt, as tasks: each ends in one input for the participant machine.
//!
//! What went wrong is logged here in full, for the data owner; the input holds only what may be told.

use crate::answers::Answers;
use crate::arrival;
use crate::checkpoints::Checkpoints;
use crate::models::{ModelError, Models};
use crate::outbox::Outbox;
use crate::trainer_thread::TrainerThread;
use crate::transfer::{self, FetchError, Line};
use std::path::PathBuf;
use std::sync::Arc;
use undertone_core::id::AttemptKey;
use undertone_core::trainer::{TrainTask, Trainer, TrainerError};
use undertone_privacy::contract::Unit;
use undertone_privacy::noise::{NoRandomness, NoiseRng};
use undertone_round::job::Job;
use undertone_round::participant::{
    Acceptance, Account, EncodeError, Failure, Input, OfferedModel, Parcel, Policy, Sealed, absent, encode,
    told,
};

/// What the steps work with.
#[derive(Clone)]
pub(crate) struct Tools {
    pub(crate) line: Line,
    pub(crate) models: Models,
    pub(crate) outbox: Outbox,
    pub(crate) checkpoints: Checkpoints,
    /// What an evaluator has answered.
    pub(crate) answers: Answers,
    pub(crate) policy: Policy,
    pub(crate) trainer: TrainerThread,
    /// Whose turn it is to measure a model.
    pub(crate) measuring: Arc<tokio::sync::Mutex<()>>,
}

impl Tools {
    /// Whether a job's TorchScript file runs here: a program of the owner's trains in its own way.
    pub(crate) fn runs_modules(&self) -> bool {
        !self.policy.own_program
    }

    /// Where a job's TorchScript file lies, if its model is one and runs here.
    pub(crate) fn module(&self, job: &Job) -> Option<PathBuf> {
        job.module_file().filter(|_| self.runs_modules()).map(|file| self.models.module_path(file.digest))
    }
}

/// Why training did not lead to an update that may leave.
#[derive(Debug, thiserror::Error)]
enum TrainFailure {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Trainer(#[from] TrainerError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("no place for checkpoints: {0}")]
    Disk(#[source] std::io::Error),
}

/// How often an attempt's training may go on after its process died.
const RESTARTS: u32 = 3;

impl TrainFailure {
    fn told(&self, unit: Unit) -> String {
        match self {
            Self::Model(ModelError::Layout(e)) => {
                format!("the model file does not hold the job's model: {e}")
            }
            Self::Model(e @ ModelError::Memory(_)) => told(&TrainerError::Memory(e.to_string()), unit),
            Self::Model(_) => "the client cannot read the fetched model: see the client's log".into(),
            // Paths and states of this disk are nobody else's business.
            Self::Fetch(_) => {
                "the model was altered on the client's disk and could not be fetched again: see its log"
                    .into()
            }
            Self::Trainer(e) => told(e, unit),
            Self::Disk(_) => {
                "the client cannot store what training goes on from: see the client's log".into()
            }
            Self::Encode(e) => e.told().into(),
            Self::NoRandomness(_) => "the client's system gives no randomness: see the client's log".into(),
        }
    }
}

pub(crate) async fn inspect(tools: Tools, key: AttemptKey, job: Arc<Job>) -> Input {
    let report = tools.trainer.call(move |trainer| trainer.inspect(&job.spec().data)).await;
    Input::Inspected(key, report)
}

pub(crate) async fn fetch(mut tools: Tools, key: AttemptKey, model: OfferedModel, job: Arc<Job>) -> Input {
    let runs_modules = tools.runs_modules();
    match arrival::fetch(&mut tools.line, &tools.models, model, (&key.job, &job), runs_modules).await {
        Ok(()) => Input::ModelReady(key),
        Err(e) => {
            tracing::warn!(error = %e, "the model could not be fetched");
            Input::Failed(key, e.failure())
        }
    }
}

/// raw -> clipped -> fixed-point, on the trainer's thread: nothing else ever sees the raw update. Where the client adds the
/// noise, what comes of a failure is a message like any other: the noise alone.
pub(crate) async fn train(tools: Tools, acceptance: Box<Acceptance>) -> Input {
    let key = acceptance.key().clone();
    let models = tools.models.clone();
    let mut rng = match NoiseRng::from_os() {
        Ok(rng) => rng,
        Err(e) => {
            tracing::error!(error = %e, "no randomness: nothing is trained");
            let told = "the client's system gives no randomness: see the client's log";
            return Input::Failed(key, Failure::Final(told.into()));
        }
    };
    let job = Arc::clone(acceptance.job());
    if !acceptance.withheld().is_empty()
        && let Some(noise) = absent(&job, &mut rng)
    {
        tracing::warn!("the data is not trained on; what is sent says nothing of it");
        return Input::Trained(key, noise);
    }
    match trained(&tools, models, acceptance.into()).await {
        Ok((parcel, steps)) => {
            tracing::info!(steps, "trained");
            Input::Trained(key, parcel)
        }
        Err(e) => {
            tracing::warn!(error = %e, "training gave no update");
            // What made it fail is not gone on from: it would fail again, or noise would be drawn until it does not.
            tools.checkpoints.remove(&key.job);
            // The file is wrong whatever the data is, which its process had not seen: its author must read so, also where noise would
            // hide a failure.
            if matches!(e, TrainFailure::Trainer(TrainerError::Module(_))) {
                return Input::Failed(key, Failure::Final(e.told(job.contract().unit())));
            }
            match absent(&job, &mut rng) {
                Some(noise) => Input::Trained(key, noise),
                None => Input::Failed(key, Failure::Final(e.told(job.contract().unit()))),
            }
        }
    }
}

/// Gives a job's module a process to itself. Before it the trainer has looked at the data, and perhaps run the module on it: what a
/// hostile one left there could have its trial fail later, and that failure, which is told, would tell of the data. After it
/// nothing is left for another job.
pub(crate) fn apart<T>(
    trainer: &mut dyn Trainer,
    is_module: bool,
    work: impl FnOnce(&mut dyn Trainer) -> T,
) -> T {
    if !is_module {
        return work(trainer);
    }
    trainer.rest();
    let done = work(trainer);
    trainer.rest();
    done
}

/// Trains, and goes on from the checkpoint if the trainer's process dies on the way. A model that was altered on this disk since it came
/// is fetched once more.
async fn trained(
    tools: &Tools,
    models: Models,
    acceptance: Arc<Acceptance>,
) -> Result<(Parcel, u64), TrainFailure> {
    let place = tools.checkpoints.place(acceptance.key()).map_err(TrainFailure::Disk)?;
    let module = tools.module(acceptance.job());
    let task = TrainTask { checkpoint: Some(place), module, ..acceptance.task().clone() };
    let (mut restarts, mut fetched_again) = (0, false);
    loop {
        let (models, accepted, task) = (models.clone(), Arc::clone(&acceptance), task.clone());
        let job_id = acceptance.key().job.clone();
        let outcome = tools.trainer.call(move |trainer| {
            Ok((|| -> Result<(Parcel, u64), TrainFailure> {
                let job = accepted.job();
                let weights = models.read_offered(accepted.model(), job.layout())?;
                let raw = apart(trainer, task.module.is_some(), |trainer| trainer.train(&task, &weights))?;
                let steps = raw.steps;
                Ok((encode(job, accepted.clip_norm(), raw, &mut NoiseRng::from_os()?)?, steps))
            })())
        });
        match outcome.await.unwrap_or_else(|e| Err(e.into())) {
            Err(TrainFailure::Model(ModelError::Altered(found))) if !fetched_again => {
                fetched_again = true;
                tracing::warn!(%found, "the fetched model was altered on this disk; it is fetched again");
                let (mut line, job) = (tools.line.clone(), acceptance.job());
                let (of_job, runs) = ((&job_id, job), tools.runs_modules());
                arrival::fetch(&mut line, &tools.models, acceptance.model(), of_job, runs).await?;
            }
            Err(TrainFailure::Trainer(TrainerError::Broken(why)))
                if restarts < RESTARTS && tools.checkpoints.has(&job_id) =>
            {
                restarts += 1;
                tracing::warn!(why, restarts, "the trainer broke; training goes on from its checkpoint");
            }
            other => return other,
        }
    }
}

pub(crate) async fn store(
    tools: Tools,
    account: Account,
    parcel: Parcel,
    weight: u32,
    job: Arc<Job>,
) -> Input {
    let key = account.last();
    let Tools { outbox, checkpoints, .. } = tools;
    let stored = tokio::task::spawn_blocking(move || outbox.store(account, &parcel, weight, &job)).await;
    match stored.unwrap_or_else(|e| Err(std::io::Error::other(e))) {
        Ok(sealed) => {
            checkpoints.remove(&key.job);
            Input::Stored(key, sealed)
        }
        Err(e) => {
            tracing::error!(error = %e, "the update could not be stored; it is not sent");
            Input::Failed(
                key,
                Failure::Final("the client cannot store its update: see the client's log".into()),
            )
        }
    }
}

/// Whether an update counted whose receipt never came: asked before something newer begins.
pub(crate) async fn settle(mut tools: Tools, key: AttemptKey, sealed: Sealed, tries: u32) -> Input {
    match transfer::counted(&mut tools.line, &key, &sealed, tries).await {
        Ok(()) => {
            tracing::info!("the update counted: its receipt was lost");
            Input::Uploaded(key)
        }
        Err(failure) => {
            let (Failure::Transient(reason) | Failure::Closed(reason) | Failure::Final(reason)) = &failure;
            match &failure {
                Failure::Closed(_) => tracing::info!(reason, "the update did not count; it is dropped"),
                _ => tracing::warn!(reason, tries, "it is not known whether the update counted"),
            }
            Input::Failed(key, failure)
        }
    }
}

pub(crate) async fn upload(mut tools: Tools, key: AttemptKey, sealed: Sealed, tries: u32) -> Input {
    let path = tools.outbox.update(&key.job);
    match transfer::upload(&mut tools.line, &key, &sealed, &path, tries).await {
        Ok(()) => {
            tracing::info!(bytes = sealed.bytes, "the update is delivered");
            Input::Uploaded(key)
        }
        Err(failure) => {
            match &failure {
                Failure::Transient(reason) => tracing::info!(reason, tries, "the upload broke"),
                Failure::Closed(reason) => {
                    tracing::info!(reason, "the attempt is over; the update is dropped")
                }
                Failure::Final(reason) => tracing::warn!(reason, "the update was not taken"),
            }
            Input::Failed(key, failure)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trainer_thread::tests::Idle;
    use undertone_core::schema::DataContract;

    #[test]
    fn a_module_shares_its_process_with_nothing() {
        let data: DataContract = serde_json::from_str(
            r#"{"label": {"column": "y", "classes": [{"name": "a", "values": ["0"]}, {"name": "b", "values": ["1"]}]},
                "columns": [{"name": "x", "kind": "number", "range": [0.0, 1.0]}]}"#,
        )
        .unwrap();
        let mut trainer = Idle::default();
        for is_module in [false, true, false] {
            apart(&mut trainer, is_module, |trainer| trainer.inspect(&data)).unwrap();
        }
        assert_eq!(trainer.asked(), ["data", "rest", "data", "rest", "data"]);
    }
}
