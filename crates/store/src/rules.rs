//! What every store decides alike, as functions of what it read: no store has an opinion of its own.

use crate::error::{CommitError, EnrolError, StoreError};
use crate::records::{
    ClientRecord, EnrolRequest, JobRecord, LedgerRow, NewEvent, ReleaseRecord, TokenRecord, Transition,
    UploadRecord,
};
use std::time::Duration;

/// What to do with a client that wants to join.
pub(crate) enum Admission {
    /// It joined before with this token and this key, and the answer was lost: give it again, change nothing.
    Again(ClientRecord),
    /// Insert it, unless its name is taken, and count down the token.
    New(ClientRecord),
}

/// Decides on an enrolment. `earlier` is the client that joined with the same token and the same key.
pub(crate) fn admit(
    token: &TokenRecord,
    earlier: Option<ClientRecord>,
    now_unix_s: u64,
    request: EnrolRequest,
) -> Result<Admission, EnrolError> {
    StoreError::check_number("the time", now_unix_s)?;
    let fixed = earlier.as_ref().map(|c| &c.id).or(token.name.as_ref());
    if let (Some(fixed), Some(asked)) = (fixed, &request.name)
        && fixed != asked
    {
        return Err(EnrolError::NameMismatch { fixed: fixed.clone(), asked: asked.clone() });
    }
    // Before the token's age and uses: a lost answer must not strand a client.
    if let Some(earlier) = earlier {
        return Ok(Admission::Again(earlier));
    }
    if now_unix_s >= token.expires_unix_s {
        return Err(EnrolError::Expired { expired_unix_s: token.expires_unix_s });
    }
    if token.uses_left == 0 {
        return Err(EnrolError::UsedUp { max_uses: token.max_uses });
    }
    Ok(Admission::New(ClientRecord {
        id: token.name.clone().or(request.name).ok_or(EnrolError::NameMissing)?,
        role: token.role,
        key_digest: request.key_digest,
        certificate_serial: request.certificate_serial,
        enrolled_unix_s: now_unix_s,
        last_seen_unix_s: None,
        software: request.software,
        token_id: token.id.clone(),
    }))
}

/// Whether somebody may hold a lease: nobody has no name.
pub(crate) fn check_holder(holder: &str) -> Result<(), StoreError> {
    StoreError::check_range("the length of the name of who takes a lease", holder.len() as u64, 1, 256)
}

/// How long a lease is asked for, in milliseconds.
pub(crate) fn lease_ms(ttl: Duration) -> Result<u64, StoreError> {
    let ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    StoreError::check_range("the time of a lease in milliseconds", ms, 1, MAX_LEASE_MS).map(|()| ms)
}

/// A day: whoever needs something for longer renews it.
const MAX_LEASE_MS: u64 = 86_400_000;

/// Whether a token may be stored.
pub(crate) fn check_token(token: &TokenRecord) -> Result<(), StoreError> {
    StoreError::check_range("the uses left of a token", token.uses_left.into(), 0, token.max_uses.into())?;
    StoreError::check_number("the expiry of a token", token.expires_unix_s)?;
    StoreError::check_number("the time", token.created_unix_s)
}

/// Whether a job may be inserted.
pub(crate) fn check_job(job: &JobRecord, events: &[NewEvent]) -> Result<(), StoreError> {
    let first = JobRecord::FIRST_VERSION;
    StoreError::check_range("the version of a new job", job.version, first, first)?;
    for event in events {
        StoreError::check_number("the time of an event", event.unix_ms)?;
    }
    StoreError::check_number("the time", job.created_unix_s)
}

/// Whether a transition may be tried: all of it is of one job, and its numbers can be kept.
pub(crate) fn check_transition(step: &Transition) -> Result<(), CommitError> {
    let others = step.uploads.iter().map(|u| &u.key.job).chain(step.release.iter().map(|r| &r.job));
    if let Some(other) = others.into_iter().find(|other| **other != step.job) {
        return Err(CommitError::OtherJob { job: step.job.clone(), other: other.clone() });
    }
    let times = step.events.iter().map(|e| ("the time of an event", e.unix_ms));
    let seqs = step.ledger.iter().map(|l| ("the number of a ledger row", l.seq));
    let sizes = step.uploads.iter().map(|u| ("the size of an upload", u.bytes));
    let release = step.release.iter();
    let release = release.flat_map(|r| [("the time of a release", r.unix_ms), ("its size", r.bytes)]);
    for (what, value) in times.chain(seqs).chain(sizes).chain(release) {
        StoreError::check_number(what, value)?;
    }
    Ok(())
}

/// Whether new ledger rows follow the last one that is there.
pub(crate) fn check_ledger(rows: &[LedgerRow], last: u64) -> Result<(), CommitError> {
    match rows.iter().zip(last + 1..).find(|(row, expected)| row.seq != *expected) {
        Some((row, expected)) => Err(CommitError::LedgerMoved { offered: row.seq, expected }),
        None => Ok(()),
    }
}

/// The version after a step, if the job still is where the step was decided.
pub(crate) fn next_version(step: &Transition, found: Option<u64>) -> Result<u64, CommitError> {
    match found {
        None => Err(CommitError::UnknownJob(step.job.clone())),
        Some(found) if found != step.expected_version => {
            Err(CommitError::Conflict { job: step.job.clone(), expected: step.expected_version, found })
        }
        Some(found) => Ok(found + 1),
    }
}

/// The same client's row for the same attempt may come twice, but only as the same row.
pub(crate) fn check_upload(stored: &UploadRecord, offered: &UploadRecord) -> Result<(), CommitError> {
    if stored == offered {
        return Ok(());
    }
    Err(CommitError::UploadDiffers { attempt: offered.key.to_string(), client: offered.client.clone() })
}

/// A round publishes one model. The same model may come again, at a later time: the first row stays.
pub(crate) fn check_release(stored: &ReleaseRecord, offered: &ReleaseRecord) -> Result<(), CommitError> {
    if (stored.model, stored.bytes) == (offered.model, offered.bytes) {
        return Ok(());
    }
    Err(CommitError::ReleaseDiffers { job: offered.job.clone(), round: offered.round })
}
