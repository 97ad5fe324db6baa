//! What the coordinator says, turned into inputs.

use super::{ClientError, Driver, MAX_UNSENT, attempt_span, durably};
use crate::evaluation::{self, Request};
use crate::session::SessionEvent;
use std::sync::Arc;
use tokio::task::JoinError;
use tracing::Instrument as _;
use undertone::v1::{self, BlobRef, Welcome, client_message, server_message};
use undertone::{InvalidMessage, required};
use undertone_core::digest::Digest;
use undertone_core::id::{AttemptKey, ClientRole, JobId, Round};
use undertone_round::job::Job;
use undertone_round::participant::{
    Input, ModelRef, Offer, OfferedDelta, OfferedFrozen, OfferedModel, Refusal, UnreadableOffer,
    check_model_size,
};

/// Jobs whose documents are remembered.
const MAX_JOBS: usize = 8;

impl Driver {
    pub(super) async fn session_event(&mut self, event: SessionEvent) -> Result<(), ClientError> {
        match event {
            SessionEvent::Up(welcome, coordinator) => {
                self.check_welcome(&welcome)?;
                self.coordinator = Some(coordinator);
                self.feed(Input::SessionUp).await?;
                while let Some(outcome) = self.unsent.pop_front() {
                    self.say(client_message::Kind::Evaluation(outcome.message()));
                }
                Ok(())
            }
            SessionEvent::Lost => {
                self.coordinator = None;
                self.feed(Input::SessionLost).await
            }
            SessionEvent::Said(kind) => self.said(*kind).await,
        }
    }

    fn check_welcome(&self, welcome: &Welcome) -> Result<(), ClientError> {
        let configured = self.config.role;
        if let Ok(enrolled) = undertone::client_role(welcome.role)
            && enrolled != configured
        {
            return Err(ClientError::Role { enrolled, configured });
        }
        if welcome.client != self.config.name.as_str() {
            tracing::warn!(
                certificate = welcome.client,
                configured = %self.config.name,
                "client.toml has another name than the certificate; the certificate counts"
            );
        }
        tracing::info!(
            client = welcome.client,
            role = %configured,
            server = self.config.server,
            software = welcome.software,
            protocol = welcome.protocol,
            "connected to the coordinator"
        );
        Ok(())
    }

    async fn said(&mut self, kind: server_message::Kind) -> Result<(), ClientError> {
        match kind {
            server_message::Kind::Offer(offer) => self.offer(offer).await,
            server_message::Kind::Withdraw(withdraw) => match attempt(withdraw.attempt) {
                Ok(key) => {
                    tracing::info!(attempt = %key, reason = withdraw.reason, "the coordinator goes on without this client");
                    self.feed(Input::Withdrawn(key)).await
                }
                Err(e) => {
                    tracing::warn!(error = %e, "a withdrawal that makes no sense was ignored");
                    Ok(())
                }
            },
            server_message::Kind::Evaluate(request) => self.evaluate(request).await,
            // The session's own affair.
            server_message::Kind::Welcome(_) | server_message::Kind::Goodbye(_) => Ok(()),
        }
    }

    async fn offer(&mut self, offer: v1::Offer) -> Result<(), ClientError> {
        let key = match attempt(offer.attempt.clone()) {
            Ok(key) => key,
            Err(e) => {
                // There is no attempt that an answer could be about.
                tracing::warn!(error = %e, "an offer that makes no sense was ignored");
                return Ok(());
            }
        };
        let refusal = if self.config.role == ClientRole::Trainer {
            match self.read_offer(&key, &offer).await {
                Ok(offer) => return self.feed(Input::Offered(Box::new(offer))).await,
                Err(problem) => problem,
            }
        } else {
            "this client is an evaluator: it does not train".into()
        };
        attempt_span(&key).in_scope(|| tracing::warn!(reason = refusal, "offer declined"));
        let (log, about, reason) = (self.decisions.clone(), key.clone(), refusal.clone());
        durably("the decision log", move || log.record_unreadable(&about, &reason)).await?;
        self.answer(&key, Some(refusal));
        Ok(())
    }

    async fn read_offer(&mut self, key: &AttemptKey, offer: &v1::Offer) -> Result<Offer, String> {
        let model = offered_model(offer).map_err(|e| e.to_string())?;
        let job = self.job(&offer.job_document).await.map_err(|e| e.to_string())?;
        Offer::of_job(key.clone(), job, model, offer.clip_norm).map_err(|e| e.to_string())
    }

    /// Reads a job document, once: resolving one searches for its noise, which takes a moment.
    async fn job(&mut self, document: &[u8]) -> Result<Arc<Job>, UnreadableOffer> {
        let digest = Digest::of(document);
        if let Some((_, job)) = self.jobs.iter().find(|(d, _)| *d == digest) {
            return Ok(Arc::clone(job));
        }
        let document = document.to_vec();
        let job = tokio::task::spawn_blocking(move || Job::from_document(&document))
            .await
            .expect("reading a job does not panic")?;
        let job = Arc::new(job);
        self.jobs.truncate(MAX_JOBS - 1);
        self.jobs.push_front((digest, Arc::clone(&job)));
        Ok(job)
    }

    async fn evaluate(&mut self, message: v1::EvaluateOffer) -> Result<(), ClientError> {
        let (job_id, round) = match JobId::new(message.job) {
            Ok(job_id) if message.round > 0 => (job_id, Round(message.round)),
            _ => {
                tracing::warn!("a request to evaluate that makes no sense was ignored");
                return Ok(());
            }
        };
        let model = match model_ref(message.model) {
            Ok(model) => model,
            Err(e) => {
                tracing::warn!(error = %e, "a request to evaluate that makes no sense was ignored");
                return Ok(());
            }
        };
        let refusal = if self.config.role != ClientRole::Evaluator {
            "this client is a trainer: what it could measure would leave without noise".to_owned()
        } else if self.measuring.len() >= MAX_UNSENT {
            "too many models wait to be measured here already".to_owned()
        } else {
            match self.job(&message.job_document).await.and_then(|job| {
                check_model_size(&job, model)?;
                Ok(job)
            }) {
                Ok(job) => {
                    let span = tracing::info_span!("evaluate", job = %job_id, round = round.0);
                    let request = Request { job_id, round, job, model };
                    self.measuring.spawn(evaluation::evaluate(self.tools.clone(), request).instrument(span));
                    return Ok(());
                }
                Err(e) => e.to_string(),
            }
        };
        let result = Err(Refusal::open(refusal));
        self.report(evaluation::Outcome { job_id, round, model, result }).await
    }

    pub(super) async fn measured(
        &mut self,
        done: Result<evaluation::Outcome, JoinError>,
    ) -> Result<(), ClientError> {
        match done {
            Ok(outcome) => self.report(outcome).await,
            Err(e) => {
                // The coordinator has a deadline for evaluators.
                tracing::error!(error = %e, "measuring a model failed unexpectedly");
                Ok(())
            }
        }
    }

    /// Writes down what leaves, then sends it, or keeps it for the next session.
    async fn report(&mut self, outcome: evaluation::Outcome) -> Result<(), ClientError> {
        let span = tracing::info_span!("evaluate", job = %outcome.job_id, round = outcome.round.0);
        span.in_scope(|| match &outcome.result {
            Ok(m) => tracing::info!(
                loss = m.loss,
                accuracy = m.accuracy,
                mean_absolute_error = m.mean_absolute_error,
                rows = m.rows,
                "measured"
            ),
            Err(refusal) => {
                tracing::warn!(reason = refusal.told, "not measured");
                refusal.details.iter().for_each(|detail| tracing::warn!("{detail}"));
            }
        });
        let message = outcome.message();
        let (log, digest) = (self.decisions.clone(), outcome.model.digest);
        let (job_id, round) = (outcome.job_id.clone(), outcome.round);
        let refusal = outcome.result.as_ref().err().cloned();
        durably("the decision log", move || {
            let refusal = refusal.as_ref().map(|r| (r.told.as_str(), r.details.as_slice()));
            log.record_evaluation(&job_id, round, digest, refusal)
        })
        .await?;
        if self.coordinator.is_some() {
            self.say(client_message::Kind::Evaluation(message));
        } else {
            self.unsent.truncate(MAX_UNSENT - 1);
            self.unsent.push_back(outcome);
        }
        Ok(())
    }
}

fn attempt(message: Option<v1::AttemptRef>) -> Result<AttemptKey, InvalidMessage> {
    AttemptKey::try_from(required(message, "attempt")?)
}

fn offered_model(offer: &v1::Offer) -> Result<OfferedModel, InvalidMessage> {
    let name = |digest: &[u8]| Digest::try_from(digest);
    let delta = |delta: &v1::ModelDelta| {
        let file = model_ref(delta.file.clone())?;
        Ok::<_, InvalidMessage>(OfferedDelta { base: name(&delta.base)?, file })
    };
    let delta = offer.delta.as_ref().map(delta).transpose()?;
    let Some(part) = &offer.part else {
        let version = offer.version.as_ref().map(|version| name(&version[..])).transpose()?;
        return Ok(OfferedModel { whole: model_ref(offer.model.clone())?, version, delta, frozen: None });
    };
    let file = model_ref(part.frozen_file.clone())?;
    Ok(OfferedModel {
        whole: model_ref(part.whole.clone())?,
        version: Some(name(&part.version)?),
        delta,
        frozen: Some(OfferedFrozen { digest: name(&part.frozen)?, file }),
    })
}

fn model_ref(message: Option<BlobRef>) -> Result<ModelRef, InvalidMessage> {
    let blob = required(message, "model")?;
    Ok(ModelRef { digest: blob.parsed_digest()?, bytes: blob.bytes })
}
