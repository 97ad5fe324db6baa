//! What every [`Store`] and every [`Blobs`] must do, as tests that any implementation can run.
//!
//! ```ignore
//! #[tokio::test(flavor = "multi_thread")]
//! async fn keeps_the_contract() {
//!     store_contract(async || Arc::new(MyStore::empty().await) as Arc<dyn Store>).await;
//! }
//! ```
//! Each part gets a store of its own. A part that fails panics with what it saw.

mod blobs;
mod identity;
mod jobs;
mod leases;

use crate::records::{
    EnrolRequest, JobRecord, LedgerRow, NewEvent, ReleaseRecord, TokenRecord, Transition, UploadRecord,
};
use crate::{Blobs, Store, StoreError};
use std::sync::Arc;
use undertone_core::digest::Digest;
use undertone_core::id::{Attempt, AttemptKey, ClientId, ClientRole, JobId, Round};

/// Checks a store. `make` gives a new, empty one at each call.
///
/// # Panics
/// If the store breaks the contract.
pub async fn store_contract(make: impl AsyncFn() -> Arc<dyn Store>) {
    identity::tokens_come_and_go(&*make().await).await;
    identity::a_token_lets_in_whom_it_should(&*make().await).await;
    identity::a_lost_answer_strands_nobody(&*make().await).await;
    identity::one_use_is_one_client(make().await).await;
    identity::clients_are_found_and_touched(&*make().await).await;
    jobs::a_step_takes_all_its_effects_along(&*make().await).await;
    jobs::a_refused_step_leaves_nothing(&*make().await).await;
    jobs::a_row_that_comes_twice_counts_once(&*make().await).await;
    jobs::jobs_do_not_mix(&*make().await).await;
    jobs::one_step_wins_each_version(make().await).await;
    jobs::a_job_begins_with_its_events(&*make().await).await;
    jobs::ended_jobs_are_told_from_open_ones(&*make().await).await;
    jobs::a_line_of_the_ledger_is_written_once(&*make().await).await;
    jobs::released_models_are_of_all_jobs(&*make().await).await;
    jobs::texts_come_back_as_they_were(&*make().await).await;
    leases::one_at_a_time_has_a_lease(&*make().await).await;
    leases::of_many_who_ask_one_gets_it(make().await).await;
    leases::a_step_by_a_lost_lease_is_refused(&*make().await).await;
    let store = make().await;
    store.close().await;
    assert!(matches!(store.jobs().await, Err(StoreError::Closed { .. })), "a closed store reads");
    assert!(matches!(store.delete_token("t").await, Err(StoreError::Closed { .. })), "a closed store writes");
}

/// Checks blobs. `make` gives a new, empty place at each call.
///
/// # Panics
/// If the blobs break the contract.
pub async fn blobs_contract(make: impl AsyncFn() -> Arc<dyn Blobs>) {
    blobs::what_is_put_comes_back(&*make().await).await;
    blobs::a_local_blob_is_read_anywhere_and_by_many(&*make().await).await;
    blobs::reads_begin_anywhere(&*make().await).await;
    blobs::only_what_was_announced_is_kept(&*make().await).await;
    blobs::unfinished_blobs_are_not_seen(&*make().await).await;
    blobs::deleting_is_for_good_and_for_once(&*make().await).await;
    blobs::equal_bytes_at_once_are_one_blob(make().await).await;
    blobs::a_list_names_what_is_there(&*make().await).await;
    blobs::what_is_unfinished_can_be_gone_on_with(&*make().await).await;
}

/// A trainer's token without a fixed name.
pub(crate) fn token(id: &str, uses: u32) -> TokenRecord {
    TokenRecord {
        id: id.into(),
        secret_digest: secret(id),
        role: ClientRole::Trainer,
        name: None,
        uses_left: uses,
        max_uses: uses,
        expires_unix_s: 2_000,
        created_unix_s: 1_000,
    }
}

/// The digest of the secret of the token `id`.
pub(crate) fn secret(id: &str) -> Digest {
    Digest::of(format!("the secret of {id}").as_bytes())
}

pub(crate) fn client_id(name: &str) -> ClientId {
    ClientId::new(name).expect("a valid name")
}

/// A client that joins under its name with the key `key`.
pub(crate) fn joins(name: &str, key: &str) -> EnrolRequest {
    EnrolRequest {
        name: Some(client_id(name)),
        key_digest: Digest::of(key.as_bytes()),
        certificate_serial: format!("serial of {key}"),
        software: "undertone-client 0.1.0".into(),
    }
}

/// A job that has made no step.
pub(crate) fn job(name: &str) -> JobRecord {
    let document = format!("{{\"name\":\"{name}\"}}");
    JobRecord {
        id: JobId::new(name).expect("a valid name"),
        document_digest: Digest::of(document.as_bytes()),
        document,
        version: JobRecord::FIRST_VERSION,
        status: "waiting".into(),
        ended: false,
        state: "{\"round\":0}".into(),
        created_unix_s: 1_000,
    }
}

/// The first attempt at a round.
pub(crate) fn attempt(job: &JobId, round: u32) -> AttemptKey {
    AttemptKey { job: job.clone(), round: Round(round), attempt: Attempt::FIRST }
}

pub(crate) fn upload(key: &AttemptKey, client: &str, blob: &str) -> UploadRecord {
    UploadRecord {
        key: key.clone(),
        client: client_id(client),
        blob: Digest::of(blob.as_bytes()),
        bytes: blob.len() as u64,
        weight: 3,
        claim: Some(Digest::of(format!("{client} claims {blob}").as_bytes())),
    }
}

pub(crate) fn release(key: &AttemptKey, model: &str) -> ReleaseRecord {
    ReleaseRecord {
        job: key.job.clone(),
        round: key.round,
        model: Digest::of(model.as_bytes()),
        bytes: model.len() as u64,
        unix_ms: 5_000,
        document: "{\"epsilon\":1.5}".into(),
    }
}

/// A step with an event, a ledger row (by the version), an upload and a release (of the round of the version).
pub(crate) fn full_step(job: &JobId, expected_version: u64) -> Transition {
    let key = attempt(job, expected_version as u32);
    Transition {
        events: vec![event(&format!("step {expected_version}"))],
        ledger: vec![LedgerRow { seq: expected_version, document: format!("{{\"at\":{expected_version}}}") }],
        uploads: vec![upload(&key, "cleveland", &format!("update {expected_version}"))],
        release: Some(release(&key, &format!("model {expected_version}"))),
        ..Transition::new(
            job.clone(),
            expected_version,
            "running",
            format!("{{\"round\":{expected_version}}}"),
        )
    }
}

pub(crate) fn event(what: &str) -> NewEvent {
    NewEvent { unix_ms: 4_000, document: format!("{{\"what\":\"{what}\"}}") }
}
