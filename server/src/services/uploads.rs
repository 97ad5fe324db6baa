//! Updates on their way in: who may send now, what is expected of whom, and what becomes of it.

use crate::clock::left_until;
use crate::coordinator::{Coordinator, Shared};
use crate::driver::Handle;
use crate::fleet;
use crate::pace::Pace;
use crate::spool::{self, Claim, Rejected};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use undertone::v1::{self, UploadHeader, upload_message, upload_reply};
use undertone::{ApiError, Fault, required};
use undertone_core::id::ClientId;
use undertone_round::coordinator::{Input, JobState, Update};

/// How long a new upload may take to send its header.
const HEADER: Duration = Duration::from_secs(10);

/// What the coordinator answers to an upload: that it may go, and its receipt.
pub(crate) type Replies = ReceiverStream<Result<v1::UploadReply, Status>>;

/// Where the answers of an upload are put.
type Answers = mpsc::Sender<Result<v1::UploadReply, Status>>;

/// Takes an upload in. By a task of its own: a client that reads no answers does not keep a deadline from passing, and one that
/// hangs up when all is sent has its update judged all the same.
pub(super) fn begin(
    coordinator: Arc<Coordinator>,
    client: ClientId,
    messages: Streaming<v1::UploadMessage>,
) -> Replies {
    // Both of them: nothing here waits for the client.
    let (answers, replies) = mpsc::channel(2);
    tokio::spawn(async move {
        let outcome = upload(&coordinator, client.clone(), messages, &answers).await;
        if let Err(e) = &outcome
            && !matches!(e.fault, Fault::Unavailable | Fault::Internal)
        {
            coordinator.shared.refusals.note(&client, &e.message);
        }
        let receipt = outcome.map(|receipt| reply(upload_reply::Kind::Receipt(receipt)));
        let _ = answers.try_send(receipt.map_err(Status::from));
    });
    ReceiverStream::new(replies)
}

fn reply(kind: upload_reply::Kind) -> v1::UploadReply {
    v1::UploadReply { kind: Some(kind) }
}

#[tracing::instrument(name = "upload", skip_all, fields(client = %client))]
async fn upload(
    coordinator: &Coordinator,
    client: ClientId,
    mut messages: Streaming<v1::UploadMessage>,
    answers: &Answers,
) -> Result<v1::UploadReceipt, ApiError> {
    let bad = |text: String| ApiError::new(Fault::BadRequest, text);
    let first = tokio::time::timeout(HEADER, messages.next())
        .await
        .map_err(|_| bad("the upload did not begin in time".into()))?;
    let header = match first {
        Some(Ok(v1::UploadMessage { kind: Some(upload_message::Kind::Header(header)) })) => header,
        Some(Err(status)) => return Err(status.into()),
        _ => return Err(bad("the first message of an upload is its header".into())),
    };
    let (claim, shared) = (claim(client, &header)?, &coordinator.shared);
    let counted = |header: UploadHeader| v1::UploadReceipt { update: header.update, counted_already: true };
    // Before all else, also while the attempt is open: a receipt that was lost costs no second transfer.
    if shared.counts_already(&claim).await? {
        return Ok(counted(header));
    }
    let _turn = shared.upload_turn(&claim.client)?;
    // It may have been taken in meanwhile; from here on nobody else does.
    let Some(_of_update) = shared.turn_unless_counted(&claim).await? else { return Ok(counted(header)) };
    let handle = match coordinator.running_job(&claim.key.job).await {
        Ok(handle) => handle,
        Err(over) => return shared.receipt_of_before(&claim, &header, over).await,
    };
    let (job, idle) = (handle.job.clone(), handle.job.spec().deadlines.transfer_idle.0);
    if let Err(reason) = plausible(&claim, &job) {
        return refuse(&handle, &claim, reason).await;
    }
    let deadline_ms = match expected_now(&handle, shared, &claim).await {
        Ok(deadline_ms) => deadline_ms,
        Err(over) => return shared.receipt_of_before(&claim, &header, over).await,
    };
    // The clip norm moves between rounds: this one's stands as long as the upload is of use.
    let bound = job.bound_beside(claim.number, handle.snapshot().state.norm_bound(&job));
    // A client that trickles holds its slot until the attempt's deadline at most.
    let left = deadline_ms.map_or(idle, left_until);
    let pace = Pace::new(Instant::now(), idle, left);
    let received = tokio::time::timeout(left, async {
        // A bounded pool: the others wait here, and have sent no more than a header.
        // Who hangs up here leaves the line. Later its messages end: what is here of them is kept, or judged if it is all.
        let _slot = tokio::select! {
            slot = shared.upload_slots.acquire() => slot.expect("the pool is never closed"),
            () = answers.closed() => return Err(Rejected::Transfer(hung_up())),
        };
        let go = |offset| {
            let idle_ms = idle.as_millis().try_into().unwrap_or(u64::MAX);
            let _ = answers.try_send(Ok(reply(upload_reply::Kind::Go(v1::Go { offset, idle_ms }))));
        };
        spool::receive(messages, &claim, &job, &shared.blobs, &shared.unfinished, &pace, go).await
    });
    let arrived = tokio::select! {
        received = received => received.map_err(|_| {
            let text = format!("the upload was not complete by the deadline of {}", claim.key);
            ApiError::new(Fault::NotNow, text)
        })?,
        over = over(&handle, &claim) => {
            // Nobody takes it up again: the attempt's own may have been deleted before this one began.
            if let Err(e) = shared.unfinished.end(&claim, &shared.blobs).await {
                tracing::warn!(error = %e, "cannot delete an upload that nobody waits for");
            }
            return shared.receipt_of_before(&claim, &header, over).await;
        }
    };
    // To the end, whatever becomes of the call: but for a daemon that stops, no blob is left that nobody knows.
    let kept = match arrived {
        Ok(arrived) => arrived.keep(&claim, &job, bound, &shared.blobs).await,
        Err(rejected) => Err(rejected),
    };
    match kept {
        Ok(update) => {
            let counted_already = take_in(&handle, shared, &claim, update).await?;
            Ok(v1::UploadReceipt { update: header.update, counted_already })
        }
        // The attempt may have ended while this was spooled, and what was spooled have been deleted with it.
        Err(Rejected::Transfer(e)) => match expected_now(&handle, shared, &claim).await {
            Ok(_) => Err(e),
            Err(over) => shared.receipt_of_before(&claim, &header, over).await,
        },
        Err(Rejected::Improper(e)) => {
            // Others are counted where all refusals pass.
            if e.is_transient() {
                shared.refusals.note(&claim.client, &e.message);
            }
            Err(e)
        }
        Err(Rejected::Invalid(reason)) => refuse(&handle, &claim, reason).await,
    }
}

fn hung_up() -> ApiError {
    ApiError::new(Fault::Unavailable, "the client hung up, or its line broke")
}

/// What an upload claims to be.
pub(super) fn claim(client: ClientId, header: &v1::UploadHeader) -> Result<Claim, ApiError> {
    let reference = required(header.update.as_ref(), "update")?;
    Ok(Claim {
        key: required(header.attempt.clone(), "attempt")?.try_into()?,
        client,
        digest: reference.parsed_digest()?,
        bytes: reference.bytes,
        weight: header.weight,
        within: header.within_clip_norm,
        number: header.number,
    })
}

/// Until when the job takes the upload in, or why it does not.
fn expected(state: &JobState, claim: &Claim) -> Result<Option<u64>, ApiError> {
    let deadline_ms = state.expects(&claim.key.job, &claim.client, &claim.key);
    deadline_ms.map_err(|refusal| ApiError::new(Fault::NotNow, refusal.to_string()))
}

/// As [`expected`], of the job as it is now: a "no" may rest on what another coordinator has changed since.
pub(super) async fn expected_now(
    handle: &Handle,
    shared: &Arc<Shared>,
    claim: &Claim,
) -> Result<Option<u64>, ApiError> {
    match expected(&handle.snapshot().state, claim) {
        Err(_) if shared.fleet.is_some() => {
            let unavailable = |e: &dyn std::fmt::Display| {
                tracing::warn!(error = %e, "cannot look at a job");
                ApiError::new(Fault::Unavailable, "the coordinator cannot look at the job now: try again")
            };
            let id = &claim.key.job;
            fleet::refresh(shared, id).await.map_err(|e| unavailable(&e))?;
            let stored = shared.store.job(id).await.map_err(|e| unavailable(&e))?;
            let shown = handle.snapshot();
            if stored.is_some_and(|job| job.version > shown.version) {
                return Err(unavailable(&"another coordinator may drive it by now"));
            }
            expected(&shown.state, claim)
        }
        known => known,
    }
}

/// Resolves when nobody waits for the upload any more, with the reason.
async fn over(handle: &Handle, claim: &Claim) -> ApiError {
    loop {
        // Looked at now and then, and not at each change: a round's uploads are many, and so are its changes.
        tokio::time::sleep(Duration::from_secs(1)).await;
        if let Err(over) = expected(&handle.snapshot().state, claim) {
            return over;
        }
    }
}

/// Offers a spooled update to the round; what it refuses for good is deleted, unless the round counts it already. Says whether
/// it was taken in before, by an upload whose attempt closed while this one was under way.
async fn take_in(handle: &Handle, shared: &Shared, claim: &Claim, update: Update) -> Result<bool, ApiError> {
    let (blob, client, key) = (update.blob, &claim.client, &claim.key);
    let input = Input::Update { key: key.clone(), update, claim: claim.fingerprint() };
    let Err(refusal) = handle.feed(input).await else {
        return Ok(false);
    };
    if refusal.fault != Fault::NotNow {
        return Err(refusal);
    }
    let before = shared.taken_in(key, client).await;
    handle.discard_refused(blob).await;
    if before?.is_some_and(|record| record.blob == blob) { Ok(true) } else { Err(refusal) }
}

/// What can be said of an upload before its first byte.
fn plausible(claim: &Claim, job: &undertone_round::job::Job) -> Result<(), String> {
    let bytes = claim.bytes;
    if !job.encoded_len().admits(bytes) {
        return Err(format!(
            "an update of {bytes} bytes does not fit the model: {} values are {} bytes in the encoding {}",
            job.part().len(),
            job.update_bytes(),
            job.spec().transport.updates
        ));
    }
    if claim.weight == 0 || claim.weight > job.max_weight() {
        return Err(format!("weight {} is not 1 to the job's max_weight {}", claim.weight, job.max_weight()));
    }
    // A client that has nothing to say says nothing here either.
    if claim.within.is_some() && job.spec().privacy.adaptive_clip().is_none() {
        return Err("within_clip_norm goes with a clip norm that moves, and with no other".into());
    }
    match (job.rescaling(), claim.number) {
        (None, None) => Ok(()),
        (Some(rescaling), Some(number)) if (1..=rescaling.limit()).contains(&number) => Ok(()),
        (Some(rescaling), found) => Err(format!(
            "beside an update of this job goes a number of 1 to {} ([aggregation] rescale = {}), not {}",
            rescaling.limit(),
            job.spec().aggregation.rescale.name(),
            found.map_or("none".into(), |number| number.to_string())
        )),
        (None, Some(_)) => {
            Err("a number beside the update goes with [aggregation] rescale, and with nothing else".into())
        }
    }
}

/// A whole but invalid update: the client is out of the attempt, and both sides read why.
async fn refuse(handle: &Handle, claim: &Claim, reason: String) -> Result<v1::UploadReceipt, ApiError> {
    let (client, key) = (claim.client.clone(), claim.key.clone());
    handle.feed(Input::BadUpdate { client, key, reason: reason.clone() }).await?;
    Err(ApiError::new(Fault::BadRequest, reason))
}
