//! What operators ask and order.

use super::files;
use super::pieces::{Piece, pieces};
use crate::clock::unix_s;
use crate::coordinator::Coordinator;
use crate::driver::Snapshot;
use crate::identity::require_operator;
use crate::jobs;
use crate::ledger::View;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use undertone::join_token::JoinToken;
use undertone::limits::TOKEN_SECRET_BYTES;
use undertone::v1::{self, operator_server::Operator, release_message};
use undertone::{ApiError, Fault, InvalidMessage, client_role, role_message};
use undertone_core::digest::Digest;
use undertone_core::id::{ClientId, JobId};
use undertone_core::limits::{MAX_JOB_DOCUMENT_BYTES, clip_text};
use undertone_privacy::contract::Unit;
use undertone_privacy::ledger::chain::ClosedJob;
use undertone_round::coordinator::Input;
use undertone_store::{StoreError, TokenRecord};

/// Longest life of a join token.
const MAX_TOKEN_LIFETIME_S: u64 = 90 * 86_400;
/// Most uses of a join token.
const MAX_TOKEN_USES: u32 = 100_000;
/// Events read from the store at once.
const EVENT_PAGE: u32 = 256;
/// How long an operator's transfer may stand still; a participant's is the job's `transfer_idle`.
pub(super) const OPERATOR_IDLE: Duration = Duration::from_secs(120);

pub(crate) struct OperatorService(pub(crate) Arc<Coordinator>);

type Reply<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Operator for OperatorService {
    type WatchJobStream = ReceiverStream<Result<v1::JobEvent, Status>>;
    type ReadLedgerStream = ReceiverStream<Result<v1::LedgerLine, Status>>;
    type DownloadReleaseStream = Pin<Box<dyn Stream<Item = Result<v1::ReleaseMessage, Status>> + Send>>;

    async fn submit_job(&self, request: Request<v1::SubmitJobRequest>) -> Reply<v1::SubmitJobResponse> {
        let by = require_operator(&request)?;
        let document = request.into_inner().job_document;
        if document.len() > MAX_JOB_DOCUMENT_BYTES {
            return Err(ApiError::new(
                Fault::TooMuch,
                format!("the job has {} bytes, at most {MAX_JOB_DOCUMENT_BYTES}", document.len()),
            )
            .into());
        }
        // A task of its own: an operator who hangs up leaves no half-submitted job.
        let coordinator = self.0.clone();
        let submitted = tokio::spawn(async move { coordinator.submit(document.to_vec(), &by).await });
        let (job, digest) = submitted
            .await
            .map_err(|e| ApiError::new(Fault::Internal, format!("submitting broke: {e}")))??;
        Ok(Response::new(v1::SubmitJobResponse {
            job: job.to_string(),
            job_digest: digest.as_bytes().to_vec().into(),
        }))
    }

    async fn resume_file(&self, request: Request<v1::BlobRef>) -> Reply<v1::FileProgress> {
        require_operator(&request)?;
        let file = files::parsed(Some(request.get_ref()))?;
        Ok(Response::new(files::progress(file, &self.0.shared.blobs).await?))
    }

    async fn upload_file(&self, request: Request<Streaming<v1::FileMessage>>) -> Reply<v1::FileProgress> {
        require_operator(&request)?;
        Ok(Response::new(files::take(request.into_inner(), &self.0.shared.blobs).await?))
    }

    async fn list_jobs(&self, request: Request<v1::ListJobsRequest>) -> Reply<v1::ListJobsResponse> {
        require_operator(&request)?;
        Ok(Response::new(v1::ListJobsResponse { jobs: jobs::summaries(&self.0).await? }))
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Reply<v1::JobDetail> {
        require_operator(&request)?;
        let id = parsed(&request.get_ref().job)?;
        Ok(Response::new(jobs::detail(&self.0, &id).await?))
    }

    async fn watch_job(&self, request: Request<v1::WatchJobRequest>) -> Reply<Self::WatchJobStream> {
        require_operator(&request)?;
        let m = request.into_inner();
        let id = parsed(&m.job)?;
        let watch = self.0.job(&id).await.map(|handle| handle.watch());
        if watch.is_none() {
            // It has ended, or there is none.
            self.0.record(&id).await?;
        }
        let (tx, rx) = mpsc::channel(EVENT_PAGE as usize);
        tokio::spawn(follow(self.0.clone(), id, watch, m.after, tx));
        Ok(Response::new(ReceiverStream::new(rx)))
    }

    async fn cancel_job(&self, request: Request<v1::CancelJobRequest>) -> Reply<v1::CancelJobResponse> {
        let by = require_operator(&request)?.to_string();
        let m = request.into_inner();
        let (id, reason) = (parsed(&m.job)?, clip_text(&m.reason).to_owned());
        if self.0.unreadable().contains_key(&id) {
            self.0.bury(&id, by, reason).await?;
        } else {
            self.0.running_job(&id).await?.feed(Input::Cancel { by, reason }).await?;
        }
        Ok(Response::new(v1::CancelJobResponse {}))
    }

    async fn download_release(
        &self,
        request: Request<v1::DownloadReleaseRequest>,
    ) -> Reply<Self::DownloadReleaseStream> {
        require_operator(&request)?;
        let m = request.into_inner();
        let id = parsed(&m.job)?;
        if self.0.job(&id).await.is_none() {
            self.0.record(&id).await?;
        }
        let shared = &self.0.shared;
        let releases = shared.store.releases(&id).await.map_err(internal)?;
        let wanted = match m.round {
            0 => releases.iter().max_by_key(|r| r.round),
            round => releases.iter().find(|r| r.round.0 == round),
        };
        let release = wanted.ok_or_else(|| {
            let what = if m.round == 0 { "a model".into() } else { format!("round {}", m.round) };
            ApiError::new(Fault::NotFound, format!("{id} has not released {what} yet"))
        })?;
        let header = v1::ReleaseHeader {
            round: release.round.0,
            model: Some(v1::BlobRef::new(release.model, release.bytes)),
        };
        let message = |kind| v1::ReleaseMessage { kind: Some(kind) };
        let pieces = pieces(&shared.shelf, &shared.blobs, &release.model, 0, OPERATOR_IDLE, ()).await?;
        let chunks = ReceiverStream::new(pieces).map(move |piece| {
            let Piece { offset, data } = piece?;
            Ok(message(release_message::Kind::Chunk(v1::Chunk { offset, data })))
        });
        let header = tokio_stream::once(Ok(message(release_message::Kind::Header(header))));
        Ok(Response::new(Box::pin(header.chain(chunks))))
    }

    async fn list_clients(&self, request: Request<v1::ListClientsRequest>) -> Reply<v1::ListClientsResponse> {
        require_operator(&request)?;
        let shared = &self.0.shared;
        let clients = shared.store.clients().await.map_err(internal)?;
        let clients = clients
            .into_iter()
            .map(|c| (shared.refusals.of(&c.id), c))
            .map(|(refused, c)| v1::ClientSummary {
                connected: shared.sessions.is_connected(&c.id),
                uploads_refused: refused.uploads,
                downloads_refused: refused.downloads,
                last_refusal: refused.last,
                client: c.id.to_string(),
                role: role_message(c.role).into(),
                enrolled_unix_s: c.enrolled_unix_s,
                last_seen_unix_s: c.last_seen_unix_s,
                software: c.software,
            })
            .collect();
        Ok(Response::new(v1::ListClientsResponse { clients }))
    }

    async fn create_token(&self, request: Request<v1::CreateTokenRequest>) -> Reply<v1::CreateTokenResponse> {
        let by = require_operator(&request)?;
        Ok(Response::new(self.new_token(request.into_inner(), by.as_str()).await?))
    }

    async fn list_tokens(&self, request: Request<v1::ListTokensRequest>) -> Reply<v1::ListTokensResponse> {
        require_operator(&request)?;
        let tokens = self.0.shared.store.list_tokens().await.map_err(internal)?;
        let tokens = tokens
            .into_iter()
            .map(|t| v1::TokenSummary {
                id: t.id,
                role: role_message(t.role).into(),
                name: t.name.map(String::from).unwrap_or_default(),
                uses_left: t.uses_left,
                expires_unix_s: t.expires_unix_s,
            })
            .collect();
        Ok(Response::new(v1::ListTokensResponse { tokens }))
    }

    async fn revoke_token(&self, request: Request<v1::RevokeTokenRequest>) -> Reply<v1::RevokeTokenResponse> {
        let by = require_operator(&request)?;
        let id = request.into_inner().id;
        if !self.0.shared.store.delete_token(&id).await.map_err(internal)? {
            return Err(ApiError::new(Fault::NotFound, format!("there is no token {:.64}", id)).into());
        }
        tracing::info!(token = %id, %by, "join token revoked");
        Ok(Response::new(v1::RevokeTokenResponse {}))
    }

    async fn get_ledger(&self, request: Request<v1::GetLedgerRequest>) -> Reply<v1::LedgerSummary> {
        require_operator(&request)?;
        let shared = &self.0.shared;
        if shared.fleet.is_some() {
            let mut chain = shared.ledger.lock().await;
            let caught_up = shared.ledger.catch_up(&mut chain, &*shared.store).await;
            caught_up
                .map_err(|e| ApiError::new(Fault::Internal, format!("the ledger cannot be read: {e}")))?;
        }
        let View { lines, head, totals, jobs } = shared.ledger.view();
        let json = |value: serde_json::Result<String>| value.expect("plain data");
        let job = |(id, job): (JobId, ClosedJob)| v1::LedgerJob {
            job: id.into(),
            attempts: job.attempts,
            epsilon: job.epsilon,
        };
        Ok(Response::new(v1::LedgerSummary {
            lines,
            head: head.as_bytes().to_vec().into(),
            spent: json(serde_json::to_string(&totals.spent())),
            budgets: json(serde_json::to_string(&totals.budgets())),
            record_used: totals.used(Unit::Record),
            client_used: totals.used(Unit::Client),
            jobs: jobs.into_iter().map(job).collect(),
        }))
    }

    async fn read_ledger(&self, request: Request<v1::ReadLedgerRequest>) -> Reply<Self::ReadLedgerStream> {
        require_operator(&request)?;
        let mut after = request.into_inner().after;
        let (tx, rx) = mpsc::channel(EVENT_PAGE as usize);
        let store = self.0.shared.store.clone();
        tokio::spawn(async move {
            loop {
                let page = match store.ledger(after, EVENT_PAGE).await {
                    Ok(page) => page,
                    Err(e) => {
                        let _ = tx.send(Err(internal(e).into())).await;
                        return;
                    }
                };
                let whole = page.len() == EVENT_PAGE as usize;
                for row in page {
                    after = row.seq;
                    let line = v1::LedgerLine { sequence: row.seq, document: row.document };
                    if tx.send(Ok(line)).await.is_err() {
                        return;
                    }
                }
                if !whole {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(rx)))
    }
}

impl OperatorService {
    async fn new_token(
        &self,
        m: v1::CreateTokenRequest,
        by: &str,
    ) -> Result<v1::CreateTokenResponse, ApiError> {
        let shared = &self.0.shared;
        let bad = |text: String| Err(ApiError::new(Fault::BadRequest, text));
        let role = client_role(m.role)?;
        let name = match m.name.as_str() {
            "" => None,
            name => Some(ClientId::new(name).map_err(InvalidMessage::from)?),
        };
        if m.uses == 0 || m.uses > MAX_TOKEN_USES {
            return bad(format!("a token has 1 to {MAX_TOKEN_USES} uses, not {}", m.uses));
        }
        if name.is_some() && m.uses != 1 {
            return bad("a token for a fixed name has one use".into());
        }
        if m.lifetime_s == 0 || m.lifetime_s > MAX_TOKEN_LIFETIME_S {
            return bad(format!("a token lives 1 s to {MAX_TOKEN_LIFETIME_S} s, not {} s", m.lifetime_s));
        }
        let mut random = [0u8; TOKEN_SECRET_BYTES + 4];
        getrandom::fill(&mut random).map_err(|e| ApiError::new(Fault::Internal, e.to_string()))?;
        let (secret, id) = random.split_first_chunk::<TOKEN_SECRET_BYTES>().expect("it is longer");
        let now = unix_s();
        let record = TokenRecord {
            id: data_encoding::HEXLOWER.encode(id),
            secret_digest: Digest::of(secret),
            role,
            name,
            uses_left: m.uses,
            max_uses: m.uses,
            expires_unix_s: now + m.lifetime_s,
            created_unix_s: now,
        };
        shared.store.create_token(record.clone()).await.map_err(internal)?;
        tracing::info!(token = %record.id, %role, %by, "join token made");
        let token = JoinToken {
            server: shared.config.public_url.clone(),
            ca_der: shared.authority.ca_der().to_vec(),
            secret: *secret,
        };
        Ok(v1::CreateTokenResponse {
            id: record.id,
            token: token.encode(),
            expires_unix_s: record.expires_unix_s,
        })
    }
}

/// Sends a job's events, old ones first, until the job has ended or the watcher has left.
async fn follow(
    coordinator: Arc<Coordinator>,
    id: JobId,
    mut watch: Option<watch::Receiver<Snapshot>>,
    mut after: u64,
    tx: mpsc::Sender<Result<v1::JobEvent, Status>>,
) {
    loop {
        // Looked at before reading: events of a later step cannot be missed.
        let over = watch.as_mut().is_none_or(|w| w.borrow_and_update().state.is_over());
        loop {
            let page = match coordinator.shared.store.events(&id, after, EVENT_PAGE).await {
                Ok(page) => page,
                Err(e) => {
                    let _ = tx.send(Err(internal(e).into())).await;
                    return;
                }
            };
            let whole = page.len() == EVENT_PAGE as usize;
            for event in page {
                after = event.seq;
                let message =
                    v1::JobEvent { sequence: event.seq, unix_ms: event.unix_ms, document: event.document };
                if tx.send(Ok(message)).await.is_err() {
                    return;
                }
            }
            if !whole {
                break;
            }
        }
        let Some(watch) = watch.as_mut().filter(|_| !over) else { return };
        if let Some(reason) = watch.borrow().halted.clone() {
            let _ = tx.try_send(Err(
                ApiError::new(Fault::NotNow, format!("the job stands still: {reason}")).into()
            ));
            return;
        }
        tokio::select! {
            changed = watch.changed() => if changed.is_err() && !watch.borrow().state.is_over() { return },
            () = tx.closed() => return,
        }
    }
}

fn parsed(id: &str) -> Result<JobId, ApiError> {
    Ok(JobId::new(id).map_err(InvalidMessage::from)?)
}

fn internal(e: StoreError) -> ApiError {
    tracing::error!(error = %e, "the store failed");
    ApiError::new(Fault::Internal, format!("the coordinator's store failed: {e}"))
}
