//! Sessions and model downloads of participants; uploads are a file of their own.

use super::model_body::{ModelBody, Raw};
use super::pieces::{Overseer, pieces};
use super::uploads::{self, Replies, claim, expected_now};
use crate::clock::{left_until, unix_s};
use crate::coordinator::{Coordinator, Shared};
use crate::identity::{Peer, peer_of};
use crate::pace::Pace;
use crate::sessions::Opened;
use crate::spool;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use undertone::v1::{self, client_message, participation_server::Participation, server_message};
use undertone::{ApiError, Fault, evaluation_metrics, required, role_message, version};
use undertone_core::digest::Digest;
use undertone_core::id::{AttemptKey, ClientId, ClientRole, JobId, Round};
use undertone_core::limits::clip_text;
use undertone_round::coordinator::Input;

/// How long a new session may take to say hello.
const HELLO: Duration = Duration::from_secs(10);

pub(crate) struct ParticipationService(pub(crate) Arc<Coordinator>);

type Pushed = Pin<Box<dyn Stream<Item = Result<v1::ServerMessage, Status>> + Send>>;

#[tonic::async_trait]
impl Participation for ParticipationService {
    type SessionStream = Pushed;
    type UploadUpdateStream = Replies;
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
        let turn = shared.download_turn(&client)?;
        let asked = match shared.readable(&client, &digest) {
            // A driver elsewhere may have asked it a moment ago.
            Err(_) if shared.fleet.is_some() => {
                self.refresh_jobs().await?;
                shared.readable(&client, &digest)?
            }
            asked => asked?,
        };
        if m.offset > asked.bytes {
            let text = format!("offset {} is beyond the model's {} bytes", m.offset, asked.bytes);
            shared.refusals.note_download(&client, &text);
            return Err(ApiError::new(Fault::BadRequest, text).into());
        }
        let overseer = Overseen { shared: shared.clone(), client, digest, begun: Instant::now() };
        let pieces = pieces(&shared.shelf, &shared.blobs, &digest, m.offset, asked.idle, overseer).await?;
        let mut answer = Response::new(tokio_stream::empty());
        answer.extensions_mut().insert(Raw::new(ModelBody::new(pieces, asked.sent, turn)));
        Ok(answer)
    }

    async fn resume_upload(
        &self,
        request: Request<v1::UploadHeader>,
    ) -> Result<Response<v1::UploadProgress>, Status> {
        let client = self.trainer(&request).await?;
        let claim = claim(client, request.get_ref())?;
        let shared = &self.0.shared;
        // Before all else, also while the attempt is open: a receipt that was lost costs no second transfer. What is just being taken
        // in, though, neither counts nor does it not.
        let turn = match shared.counts_already(&claim).await? {
            true => None,
            false => shared.turn_unless_counted(&claim).await?,
        };
        let Some(_turn) = turn else {
            return Ok(Response::new(v1::UploadProgress { offset: claim.bytes, counted_already: true }));
        };
        expected_now(&self.0.running_job(&claim.key.job).await?, shared, &claim).await?;
        let offset = spool::progress(&claim, &shared.blobs).await.map_err(|e| {
            tracing::error!(error = %e, "cannot look for an unfinished upload");
            ApiError::new(Fault::Unavailable, "the coordinator cannot read its storage now")
        })?;
        Ok(Response::new(v1::UploadProgress { offset, counted_already: false }))
    }

    async fn upload_update(
        &self,
        request: Request<Streaming<v1::UploadMessage>>,
    ) -> Result<Response<Self::UploadUpdateStream>, Status> {
        let client = self.trainer(&request).await?;
        Ok(Response::new(uploads::begin(self.0.clone(), client, request.into_inner())))
    }
}

/// A download while it lasts.
struct Overseen {
    shared: Arc<Shared>,
    client: ClientId,
    digest: Digest,
    begun: Instant,
}

impl Overseer for Overseen {
    fn check(&self, taken: u64, missing: u64) -> Result<(), ApiError> {
        let asked = self.shared.readable(&self.client, &self.digest)?;
        // A model to be measured may take as long as somebody waits for the figures.
        let Some(deadline_ms) = asked.deadline_ms else { return Ok(()) };
        // That of now: an attempt may have ended meanwhile, and another one have asked for the same model.
        let now = Instant::now();
        let pace = Pace::new(now, asked.idle, left_until(deadline_ms)).begin(self.begun);
        pace.check("download", now, taken, missing).map_err(|text| ApiError::new(Fault::Unavailable, text))
    }

    fn ended(&self, why: &ApiError) {
        // An attempt that ends meanwhile, or a disk that fails, is not what this client did.
        if why.fault == Fault::Unavailable {
            self.shared.refusals.note_download(&self.client, &why.message);
        }
    }
}

impl ParticipationService {
    /// Looks at all jobs that are driven elsewhere.
    async fn refresh_jobs(&self) -> Result<(), ApiError> {
        for id in self.0.shared.jobs().into_keys() {
            crate::fleet::refresh(&self.0.shared, &id).await.map_err(|e| {
                tracing::warn!(error = %e, "cannot look at a job");
                ApiError::new(Fault::Unavailable, "the coordinator cannot look at its jobs now: try again")
            })?;
        }
        Ok(())
    }

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

    /// The enrolled trainer behind a request.
    async fn trainer<T>(&self, request: &Request<T>) -> Result<ClientId, ApiError> {
        match self.participant(request).await? {
            (client, ClientRole::Trainer) => Ok(client),
            _ => Err(ApiError::new(Fault::NotAllowed, "an evaluator sends no updates")),
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
        let number = shared.sessions.number();
        let alive = Arc::new(());
        let caller = Arc::downgrade(&alive);
        let session = Session { coordinator: self.0.clone(), client, role, number, caller };
        // A task of its own: whoever hangs up meanwhile leaves no session behind that is noted and not open.
        let opening = tokio::spawn(tracing::Instrument::in_current_span(session.open(welcome, messages)));
        let outbox = opening.await.map_err(|e| {
            tracing::error!(error = %e, "opening a session broke");
            ApiError::new(Fault::Internal, "the coordinator cannot open sessions; its log says why")
        })??;
        drop(alive);
        tracing::info!(software, protocol, "session opened");
        Ok(Box::pin(ReceiverStream::new(outbox).map(|message| Ok(*message))))
    }
}

/// A session of a participant, for as long as it lasts.
struct Session {
    coordinator: Arc<Coordinator>,
    client: ClientId,
    role: ClientRole,
    number: u64,
    /// Whether whoever called is there still.
    caller: Weak<()>,
}

impl Session {
    /// Opens it, and takes what comes in it until its end.
    async fn open(
        self,
        welcome: v1::ServerMessage,
        mut messages: Streaming<v1::ClientMessage>,
    ) -> Result<Opened, ApiError> {
        let Self { coordinator, client, role, number, caller } = self;
        let shared = coordinator.shared.clone();
        // Noted before it is opened: whoever finds it knows where it is.
        if let Some(fleet) = &shared.fleet {
            fleet.note_session(&client, role, number).await?;
        }
        // One that has hung up may have come again already: its newer session must not end by this one.
        let opened = match caller.upgrade() {
            Some(_) => shared.sessions.open(&client, role, number, welcome),
            None => Err(ApiError::new(Fault::Unavailable, "the client hung up, or its line broke")),
        };
        if let Some(fleet) = &shared.fleet {
            fleet.opened(number);
            if opened.is_err() {
                fleet.ended(&client, number).await;
                // The row may have been a newer session's.
                fleet.look_everywhere();
            }
        }
        let taking = async move {
            while let Some(Ok(message)) = messages.next().await {
                if let Err(e) = handle(&coordinator, &client, role, message).await {
                    tracing::info!(error = %e, "a message was refused");
                }
            }
            shared.sessions.close(&client, number);
            if let Some(fleet) = &shared.fleet {
                fleet.ended(&client, number).await;
            }
            tracing::info!("session ended");
        };
        let outbox = opened?;
        tokio::spawn(tracing::Instrument::in_current_span(taking));
        Ok(outbox)
    }
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
