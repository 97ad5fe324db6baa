//! Releasing: spooled updates -> exact sum -> what the contract allows out -> new model, durable.
//!
//! A disk that fails for a while costs time, not privacy: reading is tried again before noise is drawn, and the noised
//! bytes, drawn once, are kept in memory until they can be written.

mod gather;

use crate::coordinator::Shared;
use crate::driver::FIRST_PAUSE;
use crate::spool::Spooled;
use gather::{Gathered, gather};
use std::collections::BTreeMap;
use std::sync::Arc;
use undertone_core::encoding::Encoding;
use undertone_core::id::JobId;
use undertone_core::optimizer::{OptimizerState, StateError};
use undertone_privacy::adaptive_clip::ClipState;
use undertone_privacy::ledger::LedgerEntry;
use undertone_privacy::noise::NoiseRng;
use undertone_privacy::release::{self, Counted};
use undertone_round::coordinator::{Carried, ModelRef, Update};
use undertone_round::job::Job;
use undertone_store::{BlobError, Blobs};

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
        match read(&job, &entry, &inputs, shared).await {
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
    let mut kept: [Option<ModelRef>; 3] = [None; 3];
    let carried = [
        ("noise that goes on", &drawn.noise),
        ("state of the server optimiser", &drawn.optimizer),
        ("centre of the aggregation rule", &drawn.centre),
    ];
    for (place, (what, bytes)) in kept.iter_mut().zip(carried) {
        let Some(bytes) = bytes else { continue };
        *place = keep(what, bytes, &id, shared, wanted).await;
        if place.is_none() {
            forget(&kept, shared).await;
            return Ok(None);
        }
    }
    let Some(model) = keep("new model", &drawn.model, &id, shared, wanted).await else {
        forget(&kept, shared).await;
        return Ok(None);
    };
    let [noise, optimizer, centre] = kept;
    Ok(Some((model, Carried { clip: drawn.clip, noise, optimizer, centre })))
}

/// Deletes what no state will name.
async fn forget(kept: &[Option<ModelRef>], shared: &Arc<Shared>) {
    for blob in kept.iter().flatten() {
        if let Err(e) = shared.blobs.delete(&blob.digest).await {
            tracing::warn!(error = %e, "cannot delete the state of a release that nobody waits for; the next start will");
        }
    }
}

/// Writes bytes until they are written: another draw over the same updates would be another release. `None`:
/// nobody waits for them any more.
async fn keep(
    what: &str,
    bytes: &[u8],
    id: &JobId,
    shared: &Arc<Shared>,
    wanted: &(dyn Fn() -> bool + Send + Sync),
) -> Option<ModelRef> {
    let mut pause = FIRST_PAUSE;
    loop {
        match shared.blobs.put(bytes).await {
            Ok((digest, bytes)) => {
                if pause != FIRST_PAUSE {
                    shared.note_fault(id, None);
                }
                return Some(ModelRef { digest, bytes });
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
pub(crate) enum Unreadable {
    /// Gone, damaged or not what it should be.
    ForGood(String),
    /// What must go on from the release before is gone or damaged: no other attempt can do better.
    Lost(String),
    /// The disk fails; it may be mended.
    Now(String),
}

impl Unreadable {
    pub(crate) fn blob(what: &str, e: &BlobError) -> Self {
        let text = format!("{what} cannot be read: {e}");
        if e.may_pass() { Self::Now(text) } else { Self::ForGood(text) }
    }
}

/// What a release is made from, in memory.
struct Read {
    gathered: Gathered,
    file: Vec<u8>,
    noise: Option<Vec<u8>>,
    optimizer: Option<Vec<u8>>,
}

async fn read(
    job: &Arc<Job>,
    entry: &LedgerEntry,
    inputs: &Inputs,
    shared: &Arc<Shared>,
) -> Result<Read, Unreadable> {
    let blobs = &shared.blobs;
    let mut updates = Vec::with_capacity(inputs.updates.len());
    for update in &inputs.updates {
        let what = format!("the spooled update of {}", update.client);
        let found = Spooled::find(&entry.key, update.clone(), blobs).await;
        updates.push(found.map_err(|e| Unreadable::blob(&what, &e))?);
    }
    let carried = &inputs.carried;
    // A rule reads updates again and again, at any place: they must lie plainly.
    let rule_reads = job.spec().aggregation.rule.needs_all_rows();
    let decoded = rule_reads && job.spec().transport.updates != Encoding::Fixed32;
    if decoded {
        for update in &mut updates {
            *update = update.plain(job, blobs).await?;
        }
    }
    let plain: Vec<_> = updates.iter().filter(|_| decoded).map(|u| u.update.blob).collect();
    let centre = state("the centre of the aggregation rule", carried.centre, blobs).await?;
    let noise = state("the noise of the rounds before", carried.noise, blobs).await?;
    let optimizer = state("the state of the server optimiser", carried.optimizer, blobs).await?;
    let (of_job, skip) = (Arc::clone(job), name(entry).len());
    // Off the async threads: it is work for all cores.
    let gathered = tokio::task::spawn_blocking(move || {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let centre = centre.as_deref().map(|bytes| values(bytes.get(skip..).unwrap_or_default()));
        gather(&of_job, &updates, threads, centre.as_deref())
    });
    let gathered = gathered.await;
    for blob in plain {
        if let Err(e) = blobs.delete(&blob).await {
            tracing::warn!(error = %e, "cannot delete a decoded update; the next start will");
        }
    }
    let gathered = gathered.unwrap_or_else(|e| Err(Unreadable::ForGood(format!("summing broke: {e}"))))?;
    // Last, so that the model and an update are not in memory at once.
    let file = blobs.get(&inputs.model.digest, MAX_MODEL_BYTES).await;
    let file = file.map_err(|e| Unreadable::blob("the current model", &e))?;
    Ok(Read { gathered, file, noise, optimizer })
}

/// What the release before left.
async fn state(
    what: &str,
    blob: Option<ModelRef>,
    blobs: &Arc<dyn Blobs>,
) -> Result<Option<Vec<u8>>, Unreadable> {
    let Some(blob) = blob else { return Ok(None) };
    let read = blobs.get(&blob.digest, blob.bytes).await;
    read.map(Some).map_err(|e| match Unreadable::blob(what, &e) {
        Unreadable::ForGood(reason) => Unreadable::Lost(reason),
        other => other,
    })
}

/// Whose state it is: two jobs that come to equal states must not share a blob that one of them deletes.
fn name(entry: &LedgerEntry) -> Vec<u8> {
    format!("{}\n", entry.key.job).into_bytes()
}

fn values(bytes: &[u8]) -> Vec<f64> {
    bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("eight bytes"))).collect()
}

/// What a release comes to, in memory.
struct Drawn {
    model: Vec<u8>,
    clip: Option<ClipState>,
    noise: Option<Vec<u8>>,
    optimizer: Option<Vec<u8>>,
    centre: Option<Vec<u8>>,
}

/// Noise, server optimiser, file. Runs once for an attempt.
fn draw(job: &Job, entry: &LedgerEntry, read: Read, clip: Option<ClipState>) -> Result<Drawn, Impossible> {
    let Read { gathered, file, noise, optimizer } = read;
    let mut weights = job.layout().from_safetensors(&file).map_err(|e| e.to_string())?;
    drop(file);
    let aggregation = &job.spec().aggregation;
    let (released, next, centre) = match gathered {
        Gathered::Sum(collected) => {
            let mut rng = NoiseRng::from_os().map_err(|e| e.to_string())?;
            let cohort = job.spec().cohort;
            let cohort = Counted { most: cohort.size(), denominator: cohort.denominator() };
            let carried = release::Carried { clip, noise };
            let (released, next) =
                release::release(collected, job.contract(), entry, cohort, carried, &mut rng)
                    .map_err(|e| Impossible { reason: e.to_string(), is_final: e.is_final() })?;
            (released, next, None)
        }
        Gathered::Robust(aggregate) => {
            let centre = aggregation.rule.needs_centre().then(|| {
                let centre = aggregate.mean(job.grid());
                name(entry)
                    .into_iter()
                    .chain(centre.iter().flat_map(|v| v.to_le_bytes()))
                    .collect::<Vec<u8>>()
            });
            let released = release::release_robust(aggregate, job.grid(), job.contract(), entry);
            (released.map_err(|e| e.to_string())?, release::Carried::default(), centre)
        }
    };
    // The state of another optimiser or model, or a damaged one, cannot be begun again half-way.
    let lost = |e: StateError| Impossible { reason: format!("the server optimiser: {e}"), is_final: true };
    let server = &aggregation.server;
    let mut state = match optimizer {
        Some(bytes) => {
            let own = bytes.get(name(entry).len()..).unwrap_or_default();
            OptimizerState::from_bytes(server, weights.len(), own).map_err(lost)?
        }
        None => server.start(weights.len()),
    };
    server.apply(&mut state, &mut weights, released.mean()).map_err(lost)?;
    drop(released);
    if weights.iter().any(|w| !w.is_finite()) {
        return Err(Impossible {
            reason: "the new model is not finite: lower the learning rates".into(),
            // Correlated noise pays for one draw a round.
            is_final: job.contract().is_correlated(),
        });
    }
    let facts = serde_json::json!({
        "job": entry.key.job, "job_digest": job.digest(), "round": entry.key.round, "unit": job.contract().unit().as_str(),
        // What the ledger commits to is this file: the clip norm that goes on from it, too.
        "next_clip_norm": next.clip.map(|c| c.clip_norm()),
    });
    let model =
        job.layout().to_safetensors(&weights, BTreeMap::from([("undertone".into(), facts.to_string())]));
    let optimizer = server.keeps_state().then(|| [name(entry), state.to_bytes()].concat());
    Ok(Drawn { model, clip: next.clip, noise: next.noise, optimizer, centre })
}
