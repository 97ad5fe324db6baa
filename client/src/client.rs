//! The shell around the participant machine: it carries out effects in order, and feeds back what came of them.

use crate::answers::Answers;
use crate::checkpoints::Checkpoints;
use crate::config::ClientConfig;
use crate::connect::endpoint;
use crate::decisions::DecisionLog;
use crate::evaluation;
use crate::identity::{Identity, IdentityError};
use crate::models::Models;
use crate::outbox::Outbox;
use crate::session::{SessionError, keep_up};
use crate::trainer_thread::{Interrupt, TrainerThread};
use crate::transfer::Line;
use crate::work::{self, Tools};
use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tracing::Instrument as _;
use undertone::v1::{Answer, AttemptRef, ClientMessage, Failure, client_message};
use undertone_core::digest::Digest;
use undertone_core::id::{AttemptKey, ClientRole};
use undertone_core::limits::clip_text;
use undertone_core::trainer::Trainer;
use undertone_round::job::Job;
use undertone_round::participant::{Decision, Effect, Input, Participant, Policy, Refusal, Verdict};

mod inbox;

/// A client: a configuration and a trainer.
pub struct Client {
    config: ClientConfig,
    trainer: Box<dyn Trainer>,
    interrupt: Option<Interrupt>,
}

/// Why a client stopped.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not enrolled, or the certificate does not work.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The coordinator is another one, or refused the client for good.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Certificate and `client.toml` disagree on what this client does.
    #[error(
        "this client was enrolled as {enrolled}, client.toml says role = \"{configured}\": set role = \"{enrolled}\" \
         if that is what you want, or enrol again with a token for the other role"
    )]
    Role {
        /// The role in the certificate.
        enrolled: ClientRole,
        /// The role in `client.toml`.
        configured: ClientRole,
    },
    /// What must be durable before the client speaks cannot be saved.
    #[error("cannot save {what}: {source}")]
    Disk {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// How long a trainer may take to end when the client stops.
const TRAINER_LEAVES: Duration = Duration::from_secs(5);
/// Session events waiting for the driver.
const EVENTS: usize = 64;
/// Measurements waiting for a session.
const MAX_UNSENT: usize = 64;

impl Client {
    /// A client that trains with `trainer`.
    pub fn new(config: ClientConfig, trainer: Box<dyn Trainer>) -> Self {
        Self { config, trainer, interrupt: None }
    }

    /// Lets the client stop a trainer in the middle of its work, when the attempt is withdrawn or the client stops:
    /// `interrupt` makes the call under way return an error. Without it such work goes on to its end, unused.
    pub fn interrupt_with(self, interrupt: Interrupt) -> Self {
        Self { interrupt: Some(interrupt), ..self }
    }

    /// Takes part until `shutdown` is ready. While the coordinator is away, the client tries to reach it again and
    /// again; training goes on meanwhile.
    ///
    /// # Errors
    /// [`ClientError`]: what trying again would not mend.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ClientError> {
        let config = self.config;
        let identity = Identity::load(&config.folder)?;
        let endpoint = endpoint(&config.server, &identity.ca, Some(&identity)).map_err(SessionError::from)?;
        let outbox = Outbox::new(&config.folder);
        let accounts = outbox.load().map_err(|source| ClientError::Disk { what: "the outbox", source })?;
        let checkpoints = Checkpoints::new(&config.folder, config.trainer.checkpoint_every);
        let swept = checkpoints.sweep(SystemTime::now());
        swept.map_err(|source| ClientError::Disk { what: "the folder of checkpoints", source })?;
        let (channel, line) = watch::channel(None);
        let (events, mut inbox) = mpsc::channel(EVENTS);
        let trainer = TrainerThread::start(self.trainer, self.interrupt, config.trainer.idle);
        let policy = Policy { memory_bytes: config.trainer.memory_bound(), ..config.policy.clone() };
        let mut driver = Driver {
            machine: Participant::new(policy.clone(), accounts),
            decisions: DecisionLog::new(&config.folder),
            tools: Tools {
                line: Line::new(line),
                models: Models::new(&config.folder),
                outbox,
                answers: Answers::new(&config.folder),
                checkpoints,
                policy,
                trainer: trainer.clone(),
                measuring: Arc::default(),
            },
            config,
            coordinator: None,
            step: None,
            steps: JoinSet::new(),
            measuring: JoinSet::new(),
            unsent: VecDeque::new(),
            jobs: VecDeque::new(),
        };
        let mut shutdown = pin!(shutdown);
        let mut session = pin!(keep_up(endpoint, &identity, channel, events));
        let end = loop {
            let outcome = tokio::select! {
                biased;
                () = &mut shutdown => break Ok(()),
                refused = &mut session => break Err(refused.into()),
                Some(event) = inbox.recv() => driver.session_event(event).await,
                Some(done) = driver.steps.join_next_with_id(), if !driver.steps.is_empty() => {
                    driver.step_done(done).await
                }
                Some(done) = driver.measuring.join_next(), if !driver.measuring.is_empty() => {
                    driver.measured(done).await
                }
            };
            if let Err(e) = outcome {
                break Err(e);
            }
        };
        // What is under way is abandoned: an update that is stored is sent next time.
        driver.steps.shutdown().await;
        driver.measuring.shutdown().await;
        drop(driver);
        trainer.close(TRAINER_LEAVES).await;
        end
    }
}

/// The client at work.
struct Driver {
    config: ClientConfig,
    machine: Participant,
    decisions: DecisionLog,
    tools: Tools,
    coordinator: Option<mpsc::Sender<ClientMessage>>,
    /// The step of the attempt in hand.
    step: Option<(AttemptKey, Id)>,
    steps: JoinSet<Input>,
    measuring: JoinSet<evaluation::Outcome>,
    /// Measurements that no session has taken yet.
    unsent: VecDeque<evaluation::Outcome>,
    /// The newest jobs by the digest of their document: each offer brings the whole document again.
    jobs: VecDeque<(Digest, Arc<Job>)>,
}

impl Driver {
    async fn feed(&mut self, input: Input) -> Result<(), ClientError> {
        for effect in self.machine.step(input) {
            self.carry_out(effect).await?;
        }
        Ok(())
    }

    async fn carry_out(&mut self, effect: Effect) -> Result<(), ClientError> {
        match effect {
            Effect::Record(decision) => {
                log_decision(&decision);
                let log = self.decisions.clone();
                durably("the decision log", move || log.record(&decision)).await?;
            }
            Effect::Accept(key) => self.answer(&key, None),
            Effect::Decline(key, Refusal { told, .. }) => self.answer(&key, Some(told)),
            Effect::Inspect(key, job) => self.begin(key.clone(), work::inspect(self.tools.clone(), key, job)),
            Effect::Fetch(key, model, job) => {
                self.begin(key.clone(), work::fetch(self.tools.clone(), key, model, job));
            }
            Effect::Train(acceptance) => {
                self.begin(acceptance.key().clone(), work::train(self.tools.clone(), acceptance));
            }
            Effect::Abandon(key) => self.abandon(&key),
            Effect::Store { account, parcel, weight, job } => {
                self.begin(account.last(), work::store(self.tools.clone(), account, parcel, weight, job));
            }
            Effect::Upload { key, sealed, tries } => {
                self.begin(key.clone(), work::upload(self.tools.clone(), key, sealed, tries));
            }
            Effect::Settle { key, sealed, tries } => {
                self.begin(key.clone(), work::settle(self.tools.clone(), key, sealed, tries));
            }
            Effect::Discard { account, delivered } => {
                let outbox = self.tools.outbox.clone();
                let job = self.jobs.iter().find(|(digest, _)| *digest == account.document());
                let job = job.map(|(_, job)| Arc::clone(job));
                durably("the outbox", move || outbox.discard(&account, delivered, job.as_deref())).await?;
            }
            Effect::ReportFailure(key, reason) => {
                let reason = clip_text(&reason).to_owned();
                let attempt = Some(AttemptRef::from(&key));
                self.say(client_message::Kind::Failure(Failure { attempt, reason }));
            }
        }
        Ok(())
    }

    fn begin(&mut self, key: AttemptKey, step: impl Future<Output = Input> + Send + 'static) {
        let span = attempt_span(&key);
        let handle = self.steps.spawn(step.instrument(span));
        self.step = Some((key, handle.id()));
    }

    fn abandon(&mut self, key: &AttemptKey) {
        if self.step.take_if(|(at, _)| at == key).is_some() {
            tracing::info!(attempt = %key, "the attempt is dropped");
            self.tools.checkpoints.remove(&key.job);
            // Only one attempt is in hand; whatever else is left was dropped before.
            self.steps.abort_all();
        }
    }

    async fn step_done(&mut self, done: Result<(Id, Input), JoinError>) -> Result<(), ClientError> {
        let id = match &done {
            Ok((id, _)) => *id,
            Err(e) => e.id(),
        };
        let Some((key, _)) = self.step.take_if(|(_, at)| *at == id) else { return Ok(()) };
        let input = match done {
            Ok((_, input)) => input,
            Err(e) => {
                tracing::error!(attempt = %key, error = %e, "a step of the attempt failed unexpectedly");
                let told = "the client failed unexpectedly: see the client's log".to_owned();
                Input::Failed(key, undertone_round::participant::Failure::Final(told))
            }
        };
        self.feed(input).await
    }

    fn answer(&self, key: &AttemptKey, refusal: Option<String>) {
        self.say(client_message::Kind::Answer(Answer {
            attempt: Some(AttemptRef::from(key)),
            accepts: refusal.is_none(),
            reason: clip_text(&refusal.unwrap_or_default()).to_owned(),
        }));
    }

    /// Without a session the message is dropped: the coordinator asks again when there is one.
    fn say(&self, kind: client_message::Kind) {
        if let Some(coordinator) = &self.coordinator
            && let Err(e) = coordinator.try_send(ClientMessage { kind: Some(kind) })
        {
            tracing::warn!(error = %e, "a message to the coordinator was dropped");
        }
    }
}

fn attempt_span(key: &AttemptKey) -> tracing::Span {
    tracing::info_span!("attempt", job = %key.job, round = key.round.0, attempt = key.attempt.0)
}

fn log_decision(decision: &Decision) {
    let _in_span = attempt_span(&decision.key).entered();
    let terms = &decision.terms;
    match &decision.verdict {
        Verdict::Accept(_) => tracing::info!(
            unit = terms.unit.as_str(),
            epsilon = terms.epsilon_after,
            budget = terms.epsilon_budget,
            bytes = terms.update_bytes,
            "offer accepted"
        ),
        Verdict::Decline(refusal) => {
            tracing::warn!(reason = refusal.told, "offer declined");
            refusal.details.iter().for_each(|detail| tracing::warn!("{detail}"));
        }
    }
}

/// What cannot be saved stops the client: it would have to speak of what it cannot prove.
async fn durably(
    what: &'static str,
    work: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<(), ClientError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(io::Error::other(e))).map_err(|source| ClientError::Disk { what, source })
}
