//! Sessions, model downloads and uploads of participants.

use super::model_body::{ModelBody, Raw};
use super::pieces::pieces;
use crate::clock::{unix_ms, unix_s};
use crate::coordinator::{Coordinator, Shared};
use crate::driver::Handle;
use crate::identity::{Peer, peer_of};
use crate::pace::Pace;
use crate::spool::{self, Arrived, Claim, Rejected};
use crate::sweep::let_go;
use crate::turns::Turn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use undertone::v1::{
    self, client_message, participation_server::Participation, server_message, upload_message,
};
use undertone::{ApiError, Fault, evaluation_metrics, required, role_message, version};
use undertone_core::digest::Digest;
use undertone_core::id::{AttemptKey, ClientId, ClientRole, JobId, Round};
use undertone_core::limits::clip_text;
use undertone_round::coordinator::{Input, JobState, Update};

/// How long a new session may take to say hello.
const HELLO: Duration = Duration::from_secs(10);

pub(crate) struct ParticipationService(pub(crate) Arc<Coordinator>);

type Pushed = Pin<Box<dyn Stream<Item = Result<v1::ServerMessage, Status>> + Send>>;

#[tonic::async_trait]
impl Participation for ParticipationService {
    type SessionStream = Pushed;
    /// Nothing: the chunks are a [`ModelBody`].
    type DownloadModelStream = tokio_stream::Empty<Result<v1::Chunk, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::ClientMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (client, role) = self.participant(&request).await?;
        Ok(Response::new(self.open(client, role, request.into_inner()).await?))
    }

    async fn download_model(
        &self,
        request: Request<v1::DownloadRequest>,
    ) -> Result<Response<Self::DownloadModelStream>, Status> {
        let (client, _) = self.participant(&request).await?;
        let m = request.into_inner();
        let digest =
            Digest::try_from(&m.digest[..]).map_err(|e| ApiError::new(Fault::BadRequest, e.to_string()))?;
        let shared = &self.0.shared;
        let (bytes, sent, idle) = shared.readable(&client, &digest).ok_or_else(|| {
            let text =
                format!("{} is not a model that {client} is asked to train or measure now", digest.short());
            ApiError::new(Fault::NotFound, text)
        })?;
        if m.offset > bytes {
            return Err(ApiError::new(
                Fault::BadRequest,
                format!("offset {} is beyond the model's {bytes} bytes", m.offset),
            )
            .into());
        }
        let turn = shared.download_turn(&client)?;
        let pieces = pieces(&shared.shelf, &shared.blobs, &digest, m.offset, idle).await?;
        let mut answer = Response::new(tokio_stream::empty());
        answer.extensions_mut().insert(Raw::new(ModelBody::new(pieces, sent, turn)));
        Ok(answer)
    }

    async fn resume_upload(
        &self,
        request: Request<v1::UploadHeader>,
    ) -> Result<Response<v1::UploadProgress>, Status> {
        let (client, role) = self.participant(&request).await?;
        if role != ClientRole::Trainer {
            return Err(ApiError::new(Fault::NotAllowed, "an evaluator sends no updates").into());
        }
        let claim = claim(client, request.get_ref())?;
        // Before all else, also while the attempt is open: a receipt that was lost costs no second transfer.
        if self.0.shared.counts_already(&claim).await? {
            return Ok(Response::new(v1::UploadProgress { offset: claim.bytes, counted_already: true }));
        }
        let state = self.0.running_job(&claim.key.job).await?.snapshot().state;
        expected(&state, &claim)?;
        let offset = spool::progress(&claim, &self.0.shared.blobs).await.map_err(|e| {
            tracing::error!(error = %e, "cannot look for an unfinished upload");
            ApiError::new(Fault::Unavailable, "the coordinator cannot read its storage now")
        })?;
        Ok(Response::new(v1::UploadProgress { offset, counted_already: false }))
    }

    async fn upload_update(
        &self,
        request: Request<Streaming<v1::UploadMessage>>,
    ) -> Result<Response<v1::UploadReceipt>, Status> {
        let (client, role) = self.participant(&request).await?;
        if role != ClientRole::Trainer {
            return Err(ApiError::new(Fault::NotAllowed, "an evaluator sends no updates").into());
        }
        let outcome = self.upload(client.clone(), request.into_inner()).await;
        if let Err(e) = &outcome
            && !matches!(e.fault, Fault::Unavailable | Fault::Internal)
        {
            self.0.shared.refusals.note(&client, &e.message);
        }
        Ok(Response::new(outcome?))
    }
}

impl ParticipationService {
    /// The enrolled participant behind a request.
    async fn participant<T>(&self, request: &Request<T>) -> Result<(ClientId, ClientRole), ApiError> {
        let Peer::Client(name, role) = peer_of(request)? else {
            return Err(ApiError::new(Fault::NotAllowed, "this call is for participants, not for operators"));
        };
        let record = self.0.shared.store.client(&name).await.map_err(|e| {
            tracing::error!(error = %e, "cannot look up a participant");
            ApiError::new(Fault::Unavailable, "the coordinator cannot look up participants now")
        })?;
        match record {
            Some(record) if record.role == role => Ok((name, role)),
            _ => Err(ApiError::new(
                Fault::Unauthenticated,
                format!("{name} is not enrolled at this coordinator: enrol again with a new join token"),
            )),
        }
    }

    #[tracing::instrument(name = "session", skip_all, fields(client = %client))]
    async fn open(
        &self,
        client: ClientId,
        role: ClientRole,
        mut messages: Streaming<v1::ClientMessage>,
    ) -> Result<Pushed, ApiError> {
        let first = tokio::time::timeout(HELLO, messages.next()).await.map_err(|_| {
            ApiError::new(Fault::BadRequest, "the session did not begin with a hello in time")
        })?;
        let hello = match first {
            Some(Ok(v1::ClientMessage { kind: Some(client_message::Kind::Hello(hello)) })) => hello,
            Some(Err(status)) => return Err(status.into()),
            _ => return Err(ApiError::new(Fault::BadRequest, "the first message of a session is hello")),
        };
        let software = clip_text(&hello.software);
        let protocol = version::negotiate(hello.protocol_min, hello.protocol_max, software)
            .map_err(|e| ApiError::new(Fault::NotNow, e))?;
        let shared = self.0.shared.clone();
        if let Err(e) = shared.store.touch_client(&client, unix_s()).await {
            tracing::warn!(error = %e, "cannot note that a participant was seen");
        }
        let welcome = v1::Welcome {
            protocol,
            client: client.to_string(),
            role: role_message(role).into(),
            software: version::SOFTWARE.into(),
        };
        let welcome = v1::ServerMessage { kind: Some(server_message::Kind::Welcome(welcome)) };
        let opened = shared.sessions.open(&client, role, welcome)?;
        tracing::info!(software, protocol, "session opened");
        let coordinator = self.0.clone();
        let span = tracing::Span::current();
        tokio::spawn(tracing::Instrument::instrument(
            async move {
                while let Some(Ok(message)) = messages.next().await {
                    if let Err(e) = handle(&coordinator, &client, role, message).await {
                        tracing::info!(error = %e, "a message was refused");
                    }
                }
                coordinator.shared.sessions.close(&client, opened.number);
                tracing::info!("session ended");
            },
            span,
        ));
        Ok(Box::pin(ReceiverStream::new(opened.outbox).map(|message| Ok(*message))))
    }

    #[tracing::instrument(name = "upload", skip_all, fields(client = %client))]
    async fn upload(
        &self,
        client: ClientId,
        mut messages: Streaming<v1::UploadMessage>,
    ) -> Result<v1::UploadReceipt, ApiError> {
        let bad = |text: String| ApiError::new(Fault::BadRequest, text);
        let first = tokio::time::timeout(HELLO, messages.next())
            .await
            .map_err(|_| bad("the upload did not begin in time".into()))?;
        let header = match first {
            Some(Ok(v1::UploadMessage { kind: Some(upload_message::Kind::Header(header)) })) => header,
            Some(Err(status)) => return Err(status.into()),
            _ => return Err(bad("the first message of an upload is its header".into())),
        };
        let claim = claim(client, &header)?;
        // Where a client goes on that was told that it counts already, and does not know what that means.
        if claim.offset == claim.bytes && self.0.shared.counts_already(&claim).await? {
            return Ok(v1::UploadReceipt { update: header.update, counted_already: true });
        }
        let handle = match self.0.running_job(&claim.key.job).await {
            Ok(handle) => handle,
            Err(over) => return self.0.shared.receipt_of_before(&claim, &header, over).await,
        };
        let (job, idle) = (handle.job.clone(), handle.job.spec().deadlines.transfer_idle.0);
        if let Err(reason) = plausible(&claim, &job) {
            return refuse(&handle, &claim, reason).await;
        }
        let state = handle.snapshot().state;
        let deadline_ms = match expected(&state, &claim) {
            Ok(deadline_ms) => deadline_ms,
            Err(over) => return self.0.shared.receipt_of_before(&claim, &header, over).await,
        };
        // The clip norm moves between rounds: this one's stands as long as the upload is of use.
        let bound = job.bound_beside(claim.number, state.norm_bound(&job));
        let shared = &self.0.shared;
        let turn = shared.upload_turn(&claim.client)?;
        // A client that trickles holds its slot until the attempt's deadline at most.
        let left = deadline_ms.map_or(idle, |at| Duration::from_millis(at.saturating_sub(unix_ms())));
        let pace = Pace::new(Instant::now(), idle, left);
        let received = tokio::time::timeout(left, async {
            // A bounded pool: the others wait here, with what HTTP/2 lets them send before it is read.
            let _slot = shared.upload_slots.acquire().await.expect("the pool is never closed");
            spool::receive(messages, &claim, &job, &shared.blobs, &shared.unfinished, &pace).await
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
        let kept = match arrived {
            // A task of its own from the last byte on: a client that hangs up now leaves no blob that nobody knows, and need
            // not send again. Nor does it begin another upload before this one is through.
            Ok(arrived) => {
                let parts = (handle.clone(), shared.clone(), claim.clone(), turn);
                tokio::spawn(keep(parts, arrived, bound)).await.map_err(|e| {
                    ApiError::new(Fault::Unavailable, format!("taking the update in broke: {e}"))
                })?
            }
            Err(rejected) => Err(rejected),
        };
        match kept {
            Ok(taken) => Ok(v1::UploadReceipt { update: header.update, counted_already: taken? }),
            // The attempt may have ended while this was spooled, and what was spooled have been deleted with it.
            Err(Rejected::Transfer(e)) => match expected(&handle.snapshot().state, &claim) {
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
}

/// What an upload claims to be.
fn claim(client: ClientId, header: &v1::UploadHeader) -> Result<Claim, ApiError> {
    let reference = required(header.update.as_ref(), "update")?;
    Ok(Claim {
        key: required(header.attempt.clone(), "attempt")?.try_into()?,
        client,
        digest: reference.parsed_digest()?,
        bytes: reference.bytes,
        weight: header.weight,
        within: header.within_clip_norm,
        number: header.number,
        offset: header.offset,
    })
}

/// Until when the job takes the upload in, or why it does not.
fn expected(state: &JobState, claim: &Claim) -> Result<Option<u64>, ApiError> {
    let deadline_ms = state.expects(&claim.key.job, &claim.client, &claim.key);
    deadline_ms.map_err(|refusal| ApiError::new(Fault::NotNow, refusal.to_string()))
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

/// Validates an upload that is here, makes it durable and takes it in.
async fn keep(
    (handle, shared, claim, _turn): (Handle, Arc<Shared>, Claim, Turn),
    arrived: Arrived,
    bound: (f64, u64),
) -> Result<Result<bool, ApiError>, Rejected> {
    let update = arrived.keep(&claim, &handle.job, bound, &shared.blobs).await?;
    Ok(take_in(handle, shared, claim, update).await)
}

/// Offers a spooled update to the round; what it refuses for good is deleted, unless the round counts it already. Says whether
/// it was taken in before, by an upload whose attempt closed while this one was under way.
async fn take_in(
    handle: Handle,
    shared: Arc<Shared>,
    claim: Claim,
    update: Update,
) -> Result<bool, ApiError> {
    let (blob, client, key) = (update.blob, &claim.client, &claim.key);
    let input = Input::Update { key: key.clone(), update, claim: claim.fingerprint() };
    let Err(refusal) = handle.feed(input).await else {
        return Ok(false);
    };
    if refusal.fault != Fault::NotNow {
        return Err(refusal);
    }
    let before = shared.taken_in(key, client).await;
    if !handle.snapshot().state.blobs().contains(&blob) {
        let_go(&*shared.blobs, [blob], "a refused update").await;
    }
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
async fn refuse(
    handle: &crate::driver::Handle,
    claim: &Claim,
    reason: String,
) -> Result<v1::UploadReceipt, ApiError> {
    let (client, key) = (claim.client.clone(), claim.key.clone());
    handle.feed(Input::BadUpdate { client, key, reason: reason.clone() }).await?;
    Err(ApiError::new(Fault::BadRequest, reason))
}

async fn handle(
    coordinator: &Coordinator,
    client: &ClientId,
    role: ClientRole,
    message: v1::ClientMessage,
) -> Result<(), ApiError> {
    let client = client.clone();
    match required(message.kind, "kind")? {
        client_message::Kind::Hello(_) => Err(ApiError::new(Fault::BadRequest, "hello was said already")),
        client_message::Kind::Answer(m) => {
            let key: AttemptKey = required(m.attempt, "attempt")?.try_into()?;
            let answer = if m.accepts { Ok(()) } else { Err(clip_text(&m.reason).to_owned()) };
            coordinator.running_job(&key.job).await?.feed(Input::Answer { client, key, answer }).await
        }
        client_message::Kind::Failure(m) => {
            let key: AttemptKey = required(m.attempt, "attempt")?.try_into()?;
            let reason = clip_text(&m.reason).to_owned();
            coordinator.running_job(&key.job).await?.feed(Input::Failure { client, key, reason }).await
        }
        client_message::Kind::Evaluation(m) => {
            if role != ClientRole::Evaluator {
                return Err(ApiError::new(Fault::NotAllowed, "only evaluators report measurements"));
            }
            let job = JobId::new(m.job).map_err(undertone::InvalidMessage::from)?;
            let handle = coordinator.running_job(&job).await?;
            let noised = handle.job.spec().privacy.metrics().is_some();
            let outcome = match required(m.outcome, "outcome")? {
                v1::evaluation::Outcome::Metrics(metrics) => Ok(evaluation_metrics(metrics, noised)?),
                v1::evaluation::Outcome::Failure(reason) => Err(clip_text(&reason).to_owned()),
            };
            let round = Round(m.round);
            handle.feed(Input::Evaluation { evaluator: client, round, outcome }).await
        }
    }
}
