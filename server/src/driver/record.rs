//! A job as it is stored, and back.

use crate::clock::unix_ms;
use std::sync::Arc;
use undertone_core::id::{AttemptKey, JobId};
use undertone_privacy::ledger::{Ledger, LedgerEntry};
use undertone_round::coordinator::{JobState, Step, Update};
use undertone_round::event::JobEvent;
use undertone_round::job::Job;
use undertone_store::{
    JobRecord, LedgerRow, NewEvent, ReleaseRecord, Store, StoreError, Transition, UploadRecord,
};

/// A job read back from the store.
pub(crate) struct LoadedJob {
    pub(crate) id: JobId,
    pub(crate) job: Arc<Job>,
    pub(crate) state: JobState,
    pub(crate) version: u64,
    pub(crate) ledger: Ledger,
    pub(crate) created_unix_s: u64,
}

/// Why a stored job cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobRecordError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the stored job {0} makes no sense to this version: {1}")]
    Unreadable(JobId, String),
}

/// The ledger of a job as it is stored.
pub(crate) async fn ledger_entries(
    store: &dyn Store,
    id: &JobId,
) -> Result<Vec<LedgerEntry>, JobRecordError> {
    let rows = store.ledger(id).await?;
    let entries = rows.iter().map(|row| serde_json::from_str(&row.document)).collect::<Result<_, _>>();
    entries.map_err(|e| JobRecordError::Unreadable(id.clone(), e.to_string()))
}

/// Reads a job and its ledger.
pub(crate) async fn load(store: &dyn Store, record: JobRecord) -> Result<LoadedJob, JobRecordError> {
    let id = record.id.clone();
    let unreadable = |e: String| JobRecordError::Unreadable(id.clone(), e);
    // Resolving a contract is work for a core, not for an async thread.
    let document = record.document;
    let job = tokio::task::spawn_blocking(move || Job::from_document(document.as_bytes())).await;
    let job = job.map_err(|e| unreadable(e.to_string()))?.map_err(|e| unreadable(e.to_string()))?;
    let state = serde_json::from_str(&record.state).map_err(|e| unreadable(e.to_string()))?;
    let entries = ledger_entries(store, &record.id).await?;
    let ledger = Ledger::from_entries(entries).map_err(|e| unreadable(e.to_string()))?;
    Ok(LoadedJob {
        id: record.id,
        job: Arc::new(job),
        state,
        version: record.version,
        ledger,
        created_unix_s: record.created_unix_s,
    })
}

/// What a step changes, as one transaction.
pub(super) fn transition(id: &JobId, version: u64, step: &Step) -> Transition {
    let now = unix_ms();
    Transition {
        job: id.clone(),
        expected_version: version,
        status: step.next.status().to_owned(),
        ended: step.next.is_over(),
        state: json(&step.next),
        events: step.events.iter().map(|e| NewEvent { unix_ms: now, document: json(e) }).collect(),
        ledger: step.ledger.iter().map(|e| LedgerRow { seq: e.seq, document: json(e) }).collect(),
        uploads: step.accepted.iter().map(|(key, update)| upload(key, update)).collect(),
        release: step.events.iter().find_map(|e| release(id, e, &step.next, now)),
    }
}

fn upload(key: &AttemptKey, update: &Update) -> UploadRecord {
    UploadRecord {
        key: key.clone(),
        client: update.client.clone(),
        blob: update.blob,
        bytes: update.bytes,
        weight: update.weight,
    }
}

fn release(id: &JobId, event: &JobEvent, state: &JobState, now: u64) -> Option<ReleaseRecord> {
    let JobEvent::Released { round, model, .. } = event else { return None };
    Some(ReleaseRecord {
        job: id.clone(),
        round: *round,
        model: *model,
        bytes: state.model.bytes,
        unix_ms: now,
        document: json(event),
    })
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("plain data with text keys")
}

/// One line in the daemon's log.
pub(super) fn log(event: &JobEvent) {
    let document = json(event);
    match event {
        JobEvent::Declined { .. }
        | JobEvent::Lost { .. }
        | JobEvent::Refused { .. }
        | JobEvent::Aborted { .. }
        | JobEvent::NotEvaluated { .. } => tracing::warn!(event = %document),
        _ => tracing::info!(event = %document),
    }
}
