//! Jobs as operators see them: those that go on from their drivers, ended ones from the store.

use crate::coordinator::Coordinator;
use crate::driver::Handle;
use undertone::v1;
use undertone::{ApiError, Fault};
use undertone_core::id::JobId;
use undertone_privacy::resolve::ResolvedContract;
use undertone_round::coordinator::JobState;
use undertone_round::job::{Job, JobSpec};
use undertone_store::JobRecord;

/// All jobs, the oldest first.
pub(crate) async fn summaries(coordinator: &Coordinator) -> Result<Vec<v1::JobSummary>, ApiError> {
    let store = &*coordinator.shared.store;
    let records = store.jobs().await.map_err(|e| unavailable(&e))?;
    let mut summaries = Vec::with_capacity(records.len());
    for record in records {
        let summary = match coordinator.job(&record.id).await {
            Some(handle) => Ok(running(coordinator, &record.id, &handle)),
            // It ended while we looked.
            None if !record.ended => match store.job(&record.id).await {
                Ok(again) => stored(coordinator, again.as_ref().unwrap_or(&record)).await,
                Err(e) => return Err(unavailable(&e)),
            },
            None => stored(coordinator, &record).await,
        };
        summaries.push(summary.unwrap_or_else(|e| {
            tracing::warn!(job = %record.id, error = %e, "a job in the store cannot be read");
            v1::JobSummary {
                job: record.id.to_string(),
                status: "unreadable".into(),
                created_unix_s: record.created_unix_s,
                problem: e,
                ..v1::JobSummary::default()
            }
        }));
    }
    Ok(summaries)
}

/// Everything about one job.
pub(crate) async fn detail(coordinator: &Coordinator, id: &JobId) -> Result<v1::JobDetail, ApiError> {
    if let Some(handle) = coordinator.job(id).await {
        let snapshot = handle.snapshot();
        return Ok(v1::JobDetail {
            summary: Some(running(coordinator, id, &handle)),
            job_document: handle.document.clone(),
            privacy: statement(handle.job.contract(), snapshot.epsilon, snapshot.attempts).to_string(),
            state: without_blobs(serde_json::to_value(&*snapshot.state).expect("plain data")).to_string(),
        });
    }
    let record = coordinator.record(id).await?;
    if let Some(reason) = coordinator.unreadable().get(id) {
        return Err(ApiError::new(Fault::NotNow, reason));
    }
    let unreadable = |e: &dyn std::fmt::Display| {
        ApiError::new(Fault::NotNow, format!("the stored job {id} makes no sense to this version: {e}"))
    };
    let summary = stored(coordinator, &record).await.map_err(|e| unreadable(&e))?;
    let spent = coordinator.shared.ledger.spent_by(id);
    let attempts = spent.map_or(0, |s| s.attempts);
    let document = record.document.clone();
    let job = tokio::task::spawn_blocking(move || Job::from_document(document.as_bytes())).await;
    let job = job.map_err(|e| unreadable(&e))?.map_err(|e| unreadable(&e))?;
    Ok(v1::JobDetail {
        privacy: statement(job.contract(), summary.epsilon_spent, attempts).to_string(),
        summary: Some(summary),
        job_document: record.document.into(),
        state: serde_json::from_str(&record.state)
            .map_or(String::new(), |state| without_blobs(state).to_string()),
    })
}

/// The state as operators may see it: the digest of a spooled update would let whoever guesses an update know that it is
/// the right one.
fn without_blobs(mut value: serde_json::Value) -> serde_json::Value {
    match &mut value {
        serde_json::Value::Object(keys) => {
            keys.remove("blob");
            keys.values_mut().for_each(|v| *v = without_blobs(v.take()));
        }
        serde_json::Value::Array(list) => list.iter_mut().for_each(|v| *v = without_blobs(v.take())),
        _ => {}
    }
    value
}

fn running(coordinator: &Coordinator, id: &JobId, handle: &Handle) -> v1::JobSummary {
    let fault = coordinator.shared.fault(id);
    let snapshot = handle.snapshot();
    let contract = handle.job.contract();
    v1::JobSummary {
        job: id.to_string(),
        status: snapshot.status().into(),
        rounds_released: snapshot.state.released,
        rounds_planned: handle.job.spec().rounds,
        created_unix_s: handle.created_unix_s,
        epsilon_spent: snapshot.epsilon,
        epsilon_budget: contract.budget_epsilon(),
        delta: contract.delta(),
        problem: snapshot.halted.or(fault).unwrap_or_default(),
    }
}

/// From what is stored alone, without resolving the contract again: a listing must be quick.
async fn stored(coordinator: &Coordinator, record: &JobRecord) -> Result<v1::JobSummary, String> {
    if let Some(reason) = coordinator.unreadable().remove(&record.id) {
        return Err(reason);
    }
    let spec = JobSpec::from_document(record.document.as_bytes()).map_err(|e| e.to_string())?;
    let state: JobState = serde_json::from_str(&record.state).map_err(|e| e.to_string())?;
    let spent = coordinator.shared.ledger.spent_by(&record.id);
    let nothing_spent = spec.privacy.delta().map(|_| 0.0);
    Ok(v1::JobSummary {
        job: record.id.to_string(),
        status: record.status.clone(),
        rounds_released: state.released,
        rounds_planned: spec.rounds,
        created_unix_s: record.created_unix_s,
        epsilon_spent: spent.map_or(nothing_spent, |s| s.epsilon),
        epsilon_budget: spec.privacy.budget_epsilon(),
        delta: spec.privacy.delta(),
        problem: String::new(),
    })
}

/// The privacy statement of a job so far.
fn statement(contract: &ResolvedContract, epsilon: Option<f64>, attempts: u32) -> serde_json::Value {
    serde_json::json!({
        "promise": contract.trust().is_some(),
        "unit": contract.unit().as_str(),
        "trust": contract.trust().map(|t| t.as_str()),
        "epsilon": epsilon,
        "epsilon_lower": contract.epsilon_interval_after(attempts).map(|i| i.lower),
        "delta": contract.delta(),
        "accountant": contract.accountant(),
        "noise_multiplier": contract.noise_multiplier(),
        "clip_norm": contract.contract().clip_norm(),
        "mechanism": contract.mechanism_name(),
        "adaptive_clip": contract.contract().adaptive_clip(),
        "adjacency": contract.adjacency(),
        "budget_epsilon": contract.budget_epsilon(),
        "attempts": attempts,
        "contract": contract.digest(),
    })
}

fn unavailable(e: &dyn std::fmt::Display) -> ApiError {
    tracing::error!(error = %e, "cannot list jobs");
    ApiError::new(Fault::Unavailable, format!("the coordinator cannot list its jobs now: {e}"))
}
