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
use undertone_privacy::ledger::LedgerEntry;
use undertone_privacy::noise::NoiseRng;
use undertone_privacy::release::Counted;
use undertone_round::coordinator::{ModelRef, Update};
use undertone_round::job::Job;
use undertone_store::BlobError;

/// Largest model file that is read into memory.
const MAX_MODEL_BYTES: u64 = 12 << 30;

/// Makes the model of an attempt. `None`: the daemon shuts down, or nobody `wanted` it any more. Everything that waiting does not mend is a sentence
/// for the job's log.
pub(crate) async fn release(
    job: Arc<Job>,
    entry: LedgerEntry,
    model: ModelRef,
    updates: Vec<Update>,
    shared: &Arc<Shared>,
    wanted: &(dyn Fn() -> bool + Send + Sync),
) -> Result<Option<ModelRef>, String> {
    let id = entry.key.job.clone();
    let mut pause = FIRST_PAUSE;
    let (sum, file) = loop {
        match blocking_read(&job, &entry, model, &updates, shared).await {
            Ok(read) => break read,
            Err(Unreadable::ForGood(reason)) => return Err(reason),
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
    let bytes = tokio::task::spawn_blocking(move || draw(&job, &entry, sum, &file))
        .await
        .map_err(|e| format!("the release broke: {e}"))??;
    // Written until it is: another draw over the same updates would be another release.
    let mut pause = FIRST_PAUSE;
    loop {
        match shared.blobs.put(&bytes).await {
            Ok((digest, bytes)) => {
                if pause != FIRST_PAUSE {
                    shared.note_fault(&id, None);
                }
                return Ok(Some(ModelRef { digest, bytes }));
            }
            Err(e) => {
                tracing::error!(error = %e, "cannot store the new model yet; trying again");
                shared.note_fault(&id, Some(format!("the new model cannot be stored: {e}")));
                if shared.wait_or_stop(&mut pause).await.is_err() || !wanted() {
                    return Ok(None);
                }
            }
        }
    }
}

/// Why the updates or the model cannot be read.
enum Unreadable {
    /// Gone, damaged or not what it should be.
    ForGood(String),
    /// The disk fails; it may be mended.
    Now(String),
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
    model: ModelRef,
    updates: &[Update],
    shared: &Arc<Shared>,
) -> Result<(IntegerSum, Vec<u8>), Unreadable> {
    let (job, entry, updates, blobs) = (job.clone(), entry.clone(), updates.to_vec(), shared.blobs.clone());
    let runtime = tokio::runtime::Handle::current();
    let read = tokio::task::spawn_blocking(move || {
        runtime.block_on(async {
            let mut sum = IntegerSum::zero(job.grid(), job.layout().len());
            for update in &updates {
                let units = spool::read(&entry.key, update, &blobs)
                    .await
                    .map_err(|e| Unreadable::blob(&format!("the spooled update of {}", update.client), &e))?;
                sum.fold(&units, update.weight)
                    .map_err(|e| Unreadable::ForGood(format!("the update of {}: {e}", update.client)))?;
            }
            let file = blobs.get(&model.digest, MAX_MODEL_BYTES).await;
            let file = file.map_err(|e| Unreadable::blob("the current model", &e))?;
            Ok((sum, file))
        })
    });
    read.await.unwrap_or_else(|e| Err(Unreadable::ForGood(format!("summing broke: {e}"))))
}

/// Noise, server optimiser, file. Runs once for an attempt.
fn draw(job: &Job, entry: &LedgerEntry, sum: IntegerSum, file: &[u8]) -> Result<Vec<u8>, String> {
    let mut weights = job.layout().from_safetensors(file).map_err(|e| e.to_string())?;
    let mut noise = NoiseRng::from_os().map_err(|e| e.to_string())?;
    let cohort = job.spec().cohort;
    let cohort = Counted { most: cohort.size(), denominator: cohort.denominator() };
    let released = undertone_privacy::release::release(sum, job.contract(), entry, cohort, &mut noise)
        .map_err(|e| e.to_string())?;
    job.spec().aggregation.server.apply(&mut weights, released.mean());
    if let Some(index) = weights.iter().position(|w| !w.is_finite()) {
        return Err(format!("value {index} of the new model is not finite: lower the learning rates"));
    }
    let facts = serde_json::json!({
        "job": entry.key.job, "job_digest": job.digest(), "round": entry.key.round, "unit": job.contract().unit().as_str(),
    });
    Ok(job.layout().to_safetensors(&weights, BTreeMap::from([("undertone".into(), facts.to_string())])))
}
