//! A job as it is stored, and back.

use crate::clock::unix_ms;
use std::sync::Arc;
use undertone_core::id::JobId;
use undertone_privacy::ledger::Ledger;
use undertone_privacy::ledger::chain::Line;
use undertone_round::coordinator::{Accepted, JobState, Step};
use undertone_round::event::{JobEvent, Outcome};
use undertone_round::job::Job;
use undertone_store::{JobRecord, NewEvent, ReleaseRecord, Transition, UploadRecord};

/// A job read back from the store.
pub(crate) struct LoadedJob {
    pub(crate) id: JobId,
    pub(crate) job: Arc<Job>,
    pub(crate) state: JobState,
    pub(crate) version: u64,
    pub(crate) ledger: Ledger,
    pub(crate) created_unix_s: u64,
}

/// A stored job that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the stored job {0} makes no sense to this version: {1}")]
pub(crate) struct UnreadableJob(JobId, String);

/// Reads a job back; its part of the ledger comes from the population's chain.
pub(crate) async fn load(ledger: Ledger, record: JobRecord) -> Result<LoadedJob, UnreadableJob> {
    let id = record.id.clone();
    let unreadable = |e: String| UnreadableJob(id.clone(), e);
    // Resolving a contract is work for a core, not for an async thread.
    let document = record.document;
    let job = tokio::task::spawn_blocking(move || Job::from_document(document.as_bytes())).await;
    let job = job.map_err(|e| unreadable(e.to_string()))?.map_err(|e| unreadable(e.to_string()))?;
    let state = serde_json::from_str(&record.state).map_err(|e| unreadable(e.to_string()))?;
    Ok(LoadedJob {
        id: record.id,
        job: Arc::new(job),
        state,
        version: record.version,
        ledger,
        created_unix_s: record.created_unix_s,
    })
}

/// Ends a job whose machine cannot go on, by an operator's word: the state stays as it is, for whoever looks into it.
pub(crate) fn ending(record: &JobRecord, by: String, reason: String) -> Transition {
    let outcome = Outcome::Cancelled { by, reason };
    Transition {
        ended: true,
        events: vec![NewEvent {
            unix_ms: unix_ms(),
            document: json(&JobEvent::Ended { outcome: outcome.clone() }),
        }],
        ..Transition::new(record.id.clone(), record.version, outcome.status(), record.state.clone())
    }
}

/// What a step changes, as one transaction.
pub(super) fn transition(id: &JobId, version: u64, step: &Step, lines: &[Line]) -> Transition {
    let now = unix_ms();
    Transition {
        job: id.clone(),
        lease: None,
        expected_version: version,
        status: step.next.status().to_owned(),
        ended: step.next.is_over(),
        state: json(&step.next),
        events: step.events.iter().map(|e| NewEvent { unix_ms: now, document: json(e) }).collect(),
        ledger: lines.iter().map(crate::ledger::row).collect(),
        uploads: step.accepted.iter().map(upload).collect(),
        release: step.events.iter().find_map(|e| release(id, e, &step.next, now)),
    }
}

fn upload(Accepted { key, update, claim }: &Accepted) -> UploadRecord {
    UploadRecord {
        key: key.clone(),
        client: update.client.clone(),
        blob: update.blob,
        bytes: update.bytes,
        weight: update.weight,
        claim: Some(*claim),
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
