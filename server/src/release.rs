//! Releasing: spooled updates -> exact sum -> what the contract allows out -> new model, durable.

use crate::spool;
use std::collections::BTreeMap;
use std::sync::Arc;
use undertone_core::aggregate::IntegerSum;
use undertone_privacy::ledger::LedgerEntry;
use undertone_privacy::noise::NoiseRng;
use undertone_round::coordinator::{ModelRef, Update};
use undertone_round::job::Job;
use undertone_store::Blobs;

/// Largest model file that is read into memory.
const MAX_MODEL_BYTES: u64 = 12 << 30;

/// Makes the model of an attempt. Everything that fails is a sentence for the job's log.
pub(crate) async fn release(
    job: &Arc<Job>,
    entry: &LedgerEntry,
    model: ModelRef,
    updates: &[Update],
    blobs: &Arc<dyn Blobs>,
) -> Result<ModelRef, String> {
    let mut sum = IntegerSum::zero(job.grid(), job.layout().len());
    for update in updates {
        let units = spool::read(&entry.key, update, blobs)
            .await
            .map_err(|e| format!("the spooled update of {} cannot be read: {e}", update.client))?;
        sum.fold(&units, update.weight).map_err(|e| format!("the update of {}: {e}", update.client))?;
    }
    let file = blobs
        .get(&model.digest, MAX_MODEL_BYTES)
        .await
        .map_err(|e| format!("the current model cannot be read: {e}"))?;
    let (job, entry) = (job.clone(), entry.clone());
    let bytes = tokio::task::spawn_blocking(move || -> Result<Vec<u8>, String> {
        let mut weights = job.layout().from_safetensors(&file).map_err(|e| e.to_string())?;
        let mut noise = NoiseRng::from_os().map_err(|e| e.to_string())?;
        let cohort = job.spec().cohort.size();
        let released = undertone_privacy::release::release(sum, job.contract(), &entry, cohort, &mut noise)
            .map_err(|e| e.to_string())?;
        job.spec().aggregation.server.apply(&mut weights, released.mean());
        if let Some(index) = weights.iter().position(|w| !w.is_finite()) {
            return Err(format!("value {index} of the new model is not finite: lower the learning rates"));
        }
        let facts = serde_json::json!({
            "job": entry.key.job, "job_digest": job.digest(), "round": entry.key.round, "unit": job.contract().unit().as_str(),
        });
        Ok(job.layout().to_safetensors(&weights, BTreeMap::from([("undertone".into(), facts.to_string())])))
    })
    .await
    .map_err(|e| format!("the release broke: {e}"))??;
    let (digest, bytes) =
        blobs.put(&bytes).await.map_err(|e| format!("the new model cannot be stored: {e}"))?;
    Ok(ModelRef { digest, bytes })
}
