//! Carrying out what a step decided.

use super::{Command, Driver, Handle, Snapshot};
use crate::clock::unix_ms;
use crate::coordinator::Shared;
use crate::fleet::Seat;
use crate::release::{Impossible, Inputs, Wanted, discard, release};
use crate::sessions::Place;
use crate::sweep::let_go;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::watch;
use undertone::v1::{self, server_message::Kind};
use undertone_core::digest::Digest;
use undertone_core::id::{AttemptKey, ClientId};
use undertone_round::coordinator::{BlobRef, Broadcast, Effect, Input, ModelRef};
use undertone_store::Blobs;

impl Driver {
    pub(super) async fn carry_out(&self, effect: Effect) {
        match effect {
            Effect::Offer { client, key, model, broadcast, clip_norm, deadline_ms } => {
                let seconds_left = deadline_ms.saturating_sub(unix_ms()) / 1000;
                let mut offer = v1::Offer {
                    attempt: Some((&key).into()),
                    seconds_left,
                    clip_norm,
                    ..v1::Offer::default()
                };
                to_fetch(&mut offer, model, broadcast);
                self.send(&client, Kind::Offer(offer));
            }
            Effect::Withdraw { client, key, reason } => {
                let withdraw = v1::Withdraw { attempt: Some((&key).into()), reason };
                self.send(&client, Kind::Withdraw(withdraw));
            }
            Effect::Evaluate { evaluator, round, model } => {
                let offer = v1::EvaluateOffer {
                    job: self.id.to_string(),
                    round: round.0,
                    model: Some(v1::BlobRef::new(model.digest, model.bytes)),
                    ..v1::EvaluateOffer::default()
                };
                self.send(&evaluator, Kind::Evaluate(offer));
            }
            Effect::Release { key, model, updates, carried } => {
                self.spawn_release(key, Inputs { model, updates, sums: vec![], carried });
            }
            // What is durable is known to all who ask: other coordinators look at what is stored.
            Effect::Publish { key, .. } => {
                let sent_bytes = self.handle.sent.swap(0, Ordering::Relaxed);
                self.feed_self(Input::Published { key, sent_bytes });
            }
            // Beside the driver: the next round does not wait for a disk that deletes.
            Effect::Forget { key } => {
                let (shared, blobs) = (self.shared.clone(), self.blobs.clone());
                tokio::spawn(tracing::Instrument::in_current_span(async move {
                    forget(&shared, &blobs, &key).await;
                }));
            }
            Effect::Discard { blob } => {
                let_go(&*self.blobs, [blob], "what a step of the job let go").await;
            }
        }
    }

    /// Sends a message to a participant, wherever it is connected. The job's document is added there.
    fn send(&self, client: &ClientId, kind: Kind) {
        match self.shared.sessions.place(client) {
            Place::Here => self.shared.sessions.send(client, with_document(kind, &self.handle)),
            Place::At(replica) => {
                if let Some(fleet) = &self.shared.fleet {
                    fleet.post(replica, client, &self.id, self.version, kind);
                }
            }
            // It will come back and be told again.
            Place::Nowhere => {}
        }
    }

    /// Releases in a task of its own; whatever becomes of it, the machine hears of it.
    fn spawn_release(&self, key: AttemptKey, inputs: Inputs) {
        let Some(entry) = self.ledger.entry(&key).cloned() else {
            let reason = format!("{key} has no entry in the privacy ledger");
            return self.feed_self(Input::ReleaseFailed { key, reason, is_final: false });
        };
        let (job, blobs, own) = (self.job.clone(), self.blobs.clone(), self.own.clone());
        let seat = self.seat.clone();
        let wanted = Arc::new(Waiting { snapshot: self.handle.watch(), about: key.clone(), seat });
        let (shared, of_release, asks) = (self.shared.clone(), blobs.clone(), wanted.clone());
        let work = async move {
            let mut inputs = inputs;
            if let Some(fleet) = &shared.fleet {
                let sums = fleet.sums(&shared, &job, &entry.key, &inputs.updates, &*asks).await;
                let Some(sums) = sums else { return Ok(None) };
                inputs.sums = sums;
            }
            release(job, entry, inputs, &shared, &of_release, &*asks).await
        };
        let work = tokio::spawn(tracing::Instrument::in_current_span(work));
        let under_way = self.releasing.clone();
        under_way.store(true, Ordering::SeqCst);
        tokio::spawn(tracing::Instrument::in_current_span(async move {
            let input = match work.await {
                // Cancelled at the last moment: nobody takes it in.
                Ok(Ok(Some((model, carried)))) if wanted.is_over() => {
                    discard(carried.blobs().chain([model.digest]).collect(), &blobs, &*wanted).await;
                    None
                }
                Ok(Ok(Some((model, carried)))) => Some(Input::Released { key, model, carried }),
                // Shutting down, or the job was cancelled meanwhile.
                Ok(Ok(None)) => None,
                Ok(Err(Impossible { reason, is_final })) => {
                    Some(Input::ReleaseFailed { key, reason, is_final })
                }
                Err(e) => {
                    let reason = format!("the release broke: {e}");
                    Some(Input::ReleaseFailed { key, reason, is_final: false })
                }
            };
            if let (Some(input), Some(own)) = (input, own.upgrade()) {
                let _ = own.send(Command { input, reply: None }).await;
            }
            under_way.store(false, Ordering::SeqCst);
        }));
    }

    /// Feeds an input from a task of its own: the queue may be full, and this driver is its only reader.
    fn feed_self(&self, input: Input) {
        if let Some(own) = self.own.upgrade() {
            tokio::spawn(async move {
                let _ = own.send(Command { input, reply: None }).await;
            });
        }
    }
}

/// A job as its release asks about it.
struct Waiting {
    snapshot: watch::Receiver<Snapshot>,
    about: AttemptKey,
    seat: Arc<Seat>,
}

impl Wanted for Waiting {
    fn is_wanted(&self) -> bool {
        !self.seat.is_lost() && self.snapshot.borrow().state.is_releasing(&self.about)
    }

    fn is_over(&self) -> bool {
        self.snapshot.borrow().state.is_over()
    }

    fn names(&self, blob: &Digest) -> bool {
        self.snapshot.borrow().state.blobs().contains(blob)
    }
}

/// Deletes the spooled updates of a closed attempt. What cannot be deleted now is swept at the next start.
async fn forget(shared: &Shared, blobs: &Arc<dyn Blobs>, key: &AttemptKey) {
    if let Err(e) = crate::spool::abandon(key, &shared.unfinished, blobs).await {
        tracing::warn!(error = %e, "cannot delete the unfinished uploads of a closed attempt");
    }
    if let Some(fleet) = &shared.fleet {
        match fleet.forget_sums(key).await {
            Ok(sums) => let_go(&**blobs, sums, "a partial sum").await,
            Err(e) => tracing::warn!(error = %e, "cannot forget the partial sums of a closed attempt"),
        }
    }
    let updates = match shared.store.uploads(key).await {
        Ok(updates) => updates,
        Err(e) => {
            tracing::warn!(error = %e, "cannot list the spooled updates of a closed attempt");
            return;
        }
    };
    let_go(&**blobs, updates.into_iter().map(|update| update.blob), "a spooled update").await;
}

/// A message as its participant gets it: with the job that it is about.
pub(crate) fn with_document(mut kind: Kind, job: &Handle) -> Kind {
    match &mut kind {
        Kind::Offer(offer) => offer.job_document = job.document.clone(),
        Kind::Evaluate(offer) => offer.job_document = job.document.clone(),
        _ => {}
    }
    kind
}

/// Says what the model is fetched as.
fn to_fetch(offer: &mut v1::Offer, model: ModelRef, broadcast: Option<Broadcast>) {
    let blob = |blob: BlobRef| Some(v1::BlobRef::new(blob.digest, blob.bytes));
    let name = |digest: Digest| digest.as_bytes().to_vec().into();
    offer.model = blob(model);
    let Some(Broadcast { version, whole, delta, frozen }) = broadcast else { return };
    offer.delta = delta.map(|delta| v1::ModelDelta { base: name(delta.base), file: blob(delta.blob) });
    let whole = whole.unwrap_or(model);
    match frozen {
        // The file stands beside it for a client that knows of no parts.
        Some(frozen) => {
            offer.part = Some(v1::TrainedPart {
                version: name(version),
                whole: blob(whole),
                frozen: name(frozen.digest),
                frozen_file: blob(frozen.blob),
            });
        }
        None => (offer.version, offer.model) = (Some(name(version)), blob(whole)),
    }
}
