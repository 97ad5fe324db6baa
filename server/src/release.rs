//! Releasing: spooled updates -> exact sum -> what the contract allows out -> new model, durable.
//!
//! A disk that fails for a while costs time, not privacy: reading is tried again before noise is drawn, and the noised
//! bytes, drawn once, are kept in memory until they can be written.

use crate::coordinator::Shared;
use crate::driver::FIRST_PAUSE;
use crate::spool;
use std::collections::BTreeMap;
use std::sync::Arc;
use undertone_core::aggregate::IntegerSum;
use undertone_core::id::JobId;
use undertone_privacy::adaptive_clip::{ClipState, CountSum};
use undertone_privacy::ledger::LedgerEntry;
use undertone_privacy::noise::NoiseRng;
use undertone_privacy::release::{self, Collected, Counted};
use undertone_round::coordinator::{Carried, ModelRef, Update};
use undertone_round::job::Job;
use undertone_store::BlobError;

/// Largest model file that is read into memory.
const MAX_MODEL_BYTES: u64 = 12 << 30;

/// What a release is made from.
#[derive(Debug)]
pub(crate) struct Inputs {
    /// The model that it moves.
    pub(crate) model: ModelRef,
    /// What is summed.
    pub(crate) updates: Vec<Update>,
    /// What the release before left.
    pub(crate) carried: Carried,
}

/// Why there is no release: a sentence for the job's log.
#[derive(Debug)]
pub(crate) struct Impossible {
    pub(crate) reason: String,
    /// Whether no other attempt can do better.
    pub(crate) is_final: bool,
}

impl From<String> for Impossible {
    fn from(reason: String) -> Self {
        Self { reason, is_final: false }
    }
}

/// Makes the model of an attempt. `None`: the daemon shuts down, or nobody `wanted` it any more. Everything that waiting does not mend is a sentence
/// for the job's log.
pub(crate) async fn release(
    job: Arc<Job>,
    entry: LedgerEntry,
    inputs: Inputs,
    shared: &Arc<Shared>,
    wanted: &(dyn Fn() -> bool + Send + Sync),
) -> Result<Option<(ModelRef, Carried)>, Impossible> {
    let id = entry.key.job.clone();
    let mut pause = FIRST_PAUSE;
    let clip = inputs.carried.clip;
    let read = loop {
        match blocking_read(&job, &entry, &inputs, shared).await {
            Ok(read) => break read,
            Err(Unreadable::ForGood(reason)) => return Err(reason.into()),
            Err(Unreadable::Lost(reason)) => return Err(Impossible { reason, is_final: true }),
            Err(Unreadable::Now(reason)) => {
                tracing::error!(reason, "cannot release yet; trying again");
                shared.note_fault(&id, Some(reason));
                if shared.wait_or_stop(&mut pause).await.is_err() || !wanted() {
                    return Ok(None);
                }
            }
        }
    };
    if pause != FIRST_PAUSE {
        shared.note_fault(&id, None);
    }
    let drawn = tokio::task::spawn_blocking(move || draw(&job, &entry, read, clip))
        .await
        .map_err(|e| format!("the release broke: {e}"))??;
    let Some(noise) = keep("noise that goes on", drawn.noise.as_deref(), &id, shared, wanted).await else {
        return Ok(None);
    };
    let Some(model) = keep("new model", Some(&drawn.model), &id, shared, wanted).await else {
        return Ok(None);
    };
    Ok(model.map(|model| (model, Carried { clip: drawn.clip, noise })))
}

/// Writes bytes until they are written: another draw over the same updates would be another release. The outer `None`:
/// nobody waits for them any more.
async fn keep(
    what: &str,
    bytes: Option<&[u8]>,
    id: &JobId,
    shared: &Arc<Shared>,
    wanted: &(dyn Fn() -> bool + Send + Sync),
) -> Option<Option<ModelRef>> {
    let Some(bytes) = bytes else { return Some(None) };
    let mut pause = FIRST_PAUSE;
    loop {
        match shared.blobs.put(bytes).await {
            Ok((digest, bytes)) => {
                if pause != FIRST_PAUSE {
                    shared.note_fault(id, None);
                }
                return Some(Some(ModelRef { digest, bytes }));
            }
            Err(e) => {
                tracing::error!(error = %e, what, "cannot be stored yet; trying again");
                shared.note_fault(id, Some(format!("the {what} cannot be stored: {e}")));
                if shared.wait_or_stop(&mut pause).await.is_err() || !wanted() {
                    return None;
                }
            }
        }
    }
}

/// Why the updates or the model cannot be read.
enum Unreadable {
    /// Gone, damaged or not what it should be.
    ForGood(String),
    /// The noise that must go on is gone or damaged: no other attempt can do better.
    Lost(String),
    /// The disk fails; it may be mended.
    Now(String),
}

/// What a release is made from, in memory.
struct Read {
    collected: Collected,
    file: Vec<u8>,
    noise: Option<Vec<u8>>,
}

impl Unreadable {
    fn blob(what: &str, e: &BlobError) -> Self {
        let text = format!("{what} cannot be read: {e}");
        if e.may_pass() { Self::Now(text) } else { Self::ForGood(text) }
    }
}

/// Reads and sums off the async threads: it is work for a core.
async fn blocking_read(
    job: &Arc<Job>,
    entry: &LedgerEntry,
    inputs: &Inputs,
    shared: &Arc<Shared>,
) -> Result<Read, Unreadable> {
    let (job, entry, blobs) = (job.clone(), entry.clone(), shared.blobs.clone());
    let (model, updates, noise) = (inputs.model, inputs.updates.clone(), inputs.carried.noise);
    let runtime = tokio::runtime::Handle::current();
    let read = tokio::task::spawn_blocking(move || {
        runtime.block_on(async {
            let mut sum = IntegerSum::zero(job.grid(), job.layout().len());
            let mut within = CountSum::default();
            for update in &updates {
                let (units, bit) = spool::read(&entry.key, update, &blobs)
                    .await
                    .map_err(|e| Unreadable::blob(&format!("the spooled update of {}", update.client), &e))?;
                sum.fold(&units, update.weight)
                    .map_err(|e| Unreadable::ForGood(format!("the update of {}: {e}", update.client)))?;
                bit.into_iter().for_each(|bit| within.fold(bit));
            }
            let file = blobs.get(&model.digest, MAX_MODEL_BYTES).await;
            let file = file.map_err(|e| Unreadable::blob("the current model", &e))?;
            let noise = match noise {
                None => None,
                Some(noise) => {
                    let read = blobs.get(&noise.digest, noise.bytes).await;
                    Some(read.map_err(|e| match Unreadable::blob("the noise of the rounds before", &e) {
                        Unreadable::ForGood(reason) => Unreadable::Lost(reason),
                        other => other,
                    })?)
                }
            };
            Ok(Read { collected: Collected { sum, within }, file, noise })
        })
    });
    read.await.unwrap_or_else(|e| Err(Unreadable::ForGood(format!("summing broke: {e}"))))
}

/// What a release comes to, in memory.
struct Drawn {
    model: Vec<u8>,
    clip: Option<ClipState>,
    noise: Option<Vec<u8>>,
}

/// Noise, server optimiser, file. Runs once for an attempt.
fn draw(job: &Job, entry: &LedgerEntry, read: Read, clip: Option<ClipState>) -> Result<Drawn, Impossible> {
    let mut weights = job.layout().from_safetensors(&read.file).map_err(|e| e.to_string())?;
    let mut rng = NoiseRng::from_os().map_err(|e| e.to_string())?;
    let cohort = job.spec().cohort;
    let cohort = Counted { most: cohort.size(), denominator: cohort.denominator() };
    let carried = release::Carried { clip, noise: read.noise };
    let (released, next) = release::release(read.collected, job.contract(), entry, cohort, carried, &mut rng)
        .map_err(|e| Impossible { reason: e.to_string(), is_final: e.is_final() })?;
    job.spec().aggregation.server.apply(&mut weights, released.mean());
    if let Some(index) = weights.iter().position(|w| !w.is_finite()) {
        return Err(format!("value {index} of the new model is not finite: lower the learning rates").into());
    }
    let facts = serde_json::json!({
        "job": entry.key.job, "job_digest": job.digest(), "round": entry.key.round, "unit": job.contract().unit().as_str(),
        // What the ledger commits to is this file: the clip norm that goes on from it, too.
        "next_clip_norm": next.clip.map(|c| c.clip_norm()),
    });
    let model =
        job.layout().to_safetensors(&weights, BTreeMap::from([("undertone".into(), facts.to_string())]));
    Ok(Drawn { model, clip: next.clip, noise: next.noise })
}
