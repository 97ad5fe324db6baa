//! The coordinator's side of a job, as one step function.
//!
//! ```text
//! Offering ──reserve, draw, offer──▶ Collecting ──all in or out──▶ Releasing ──noised, durable──▶ Publishing
//!    ▲                                   │ too few                     │ cannot                       │
//!    └────────── next attempt ◀── burn ──┴─────────────────────────────┘                              │
//!    ▲                                                                                                │
//!    └────────────────────────────── next round ◀─────────────────────────────────────────────────────┤
//!                                                             Closing ◀── last round ─────────────────┘
//!                                                                │ evaluated, or their deadline
//!                                                                ▼
//!                                                              Ended
//! ```
//!
//! Where rounds are asynchronous, Buffering stands in the place of Collecting, and who is at work stays so from round to round
//! ([`Pool`]).
//!
//! Evaluators measure released models beside it ([`Measuring`]); only the last measurement is waited for.
//!
//! The shell around it (the server's driver) keeps three rules: it persists [`Step::next`] with the step's ledger
//! entries and events in one compare-and-swap transaction *before* it carries out an effect; it feeds inputs one
//! at a time; and after a restart it feeds [`Input::Recovered`] first.

mod broadcast;
mod buffering;
mod closing;
mod collecting;
pub mod invariants;
mod measuring;
mod offering;
mod pool;
mod publishing;
mod releasing;

pub use broadcast::{Broadcast, Delta, Frozen};
pub use buffering::Buffering;
pub use closing::Closing;
pub use collecting::{Collecting, Member, Standing};
pub use measuring::{Measuring, Progress};
pub use offering::Offering;
pub use pool::{AtWork, Gone, Pool, Version};
pub use publishing::Publishing;
pub use releasing::Releasing;

use crate::event::{JobEvent, Outcome};
use crate::job::Job;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use undertone_core::digest::Digest;
use undertone_core::id::{Attempt, AttemptKey, ClientId, JobId, Round};
use undertone_core::participation::History;
use undertone_core::trainer::Metrics;
use undertone_privacy::adaptive_clip::ClipState;
use undertone_privacy::ledger::population::Totals;
use undertone_privacy::ledger::{EntryState, Ledger, LedgerEntry};

/// A model file in the blob store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRef {
    /// Digest of the safetensors file.
    pub digest: Digest,
    /// Its length.
    pub bytes: u64,
}

/// A blob by digest and length.
pub type BlobRef = ModelRef;

/// What one release leaves to the next.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Carried {
    /// The clip norm of the round to come, where it moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<ClipState>,
    /// Where the state of correlated noise lies. Secret: it takes the noise off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<BlobRef>,
    /// Where the server optimiser's state lies, if it keeps one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizer: Option<BlobRef>,
    /// Where the centre of a rule that has one lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub centre: Option<BlobRef>,
    /// What clients are sent the newest model as, where it is not its file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broadcast: Option<Broadcast>,
}

impl Carried {
    /// The blobs that it names.
    pub fn blobs(&self) -> impl Iterator<Item = Digest> {
        let states = [self.noise, self.optimizer, self.centre].into_iter().flatten().map(|blob| blob.digest);
        states.chain(self.broadcast.into_iter().flat_map(|broadcast| broadcast.blobs().collect::<Vec<_>>()))
    }

    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// A client's update that is durable and was validated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// Whose.
    pub client: ClientId,
    /// Digest of its bytes in the blob store.
    pub blob: Digest,
    /// Its length.
    pub bytes: u64,
    /// How much it counts.
    pub weight: u32,
    /// Where it was asked and how it was sent, where it counts in whichever round it arrives in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// What an update was sent as, where it counts elsewhere and otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The round in which it was asked.
    pub round: Round,
    /// The attempt in which it was asked.
    pub attempt: Attempt,
    /// The weight that it was sent with.
    pub weight: u32,
}

impl Origin {
    fn is_of(&self, about: &AttemptKey) -> bool {
        (self.round, self.attempt) == (about.round, about.attempt)
    }
}

impl Update {
    /// As it was sent: what was spooled under [`Self::asked_in`].
    pub fn as_sent(&self) -> Self {
        Self { weight: self.sent_weight(), origin: None, ..self.clone() }
    }

    /// The weight that it was sent with.
    pub fn sent_weight(&self) -> u32 {
        self.origin.map_or(self.weight, |origin| origin.weight)
    }

    /// The attempt in which it was asked, if it counts in `counted`.
    pub fn asked_in(&self, counted: &AttemptKey) -> AttemptKey {
        match self.origin {
            Some(origin) => key(&counted.job, origin.round, origin.attempt),
            None => counted.clone(),
        }
    }
}

/// The durable state of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobState {
    /// The newest model: the initial one, then each release.
    pub model: ModelRef,
    /// Rounds released so far.
    pub released: u32,
    /// What evaluators were asked and have not answered.
    #[serde(default)]
    pub measuring: Measuring,
    /// Who took part in which rounds, as far as the cohort's rule on participation asks for it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub taken_part: BTreeMap<ClientId, History>,
    /// How measurements went, where the job stops early.
    #[serde(default, skip_serializing_if = "Progress::is_unknown")]
    pub progress: Progress,
    /// What the last release left to the next one.
    #[serde(default, skip_serializing_if = "Carried::is_nothing")]
    pub carried: Carried,
    /// Who is at work and what came in, where rounds are asynchronous.
    #[serde(default, skip_serializing_if = "Pool::is_empty")]
    pub pool: Pool,
    /// What is going on.
    pub phase: Phase,
}

/// What is going on in a job; each phase owns exactly what exists then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// No cohort yet.
    Offering(Offering),
    /// A cohort was asked; updates come in.
    Collecting(Collecting),
    /// An attempt is paid for; its buffer fills.
    Buffering(Buffering),
    /// The sum is being released.
    Releasing(Releasing),
    /// The new model is durable; it is being made known.
    Publishing(Publishing),
    /// All rounds are done; evaluators have their say on the last model.
    Closing(Closing),
    /// Over.
    Ended {
        /// How it ended.
        outcome: Outcome,
    },
}

/// What may happen to a job.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "few are alive at a time, and most that come are answers")]
pub enum Input {
    /// The coordinator (or this job's driver) restarted: nothing that was under way goes on, and what was told to
    /// anybody may be lost.
    Recovered,
    /// Somebody connected or left; who is there is in the context.
    Sessions,
    /// So much happened that who came and left in between is not known: what anybody was told before may be lost.
    Missed,
    /// This participant opened a session, maybe in place of one whose end nobody noticed: what it was told before
    /// may be lost.
    Connected {
        /// Who.
        client: ClientId,
    },
    /// Time passed.
    Tick,
    /// A client's answer to an offer.
    Answer {
        /// Who.
        client: ClientId,
        /// To what.
        key: AttemptKey,
        /// `Err` holds the reason of a refusal.
        answer: Result<(), String>,
    },
    /// A client that had accepted cannot deliver.
    Failure {
        /// Who.
        client: ClientId,
        /// What.
        key: AttemptKey,
        /// Why.
        reason: String,
    },
    /// An update is durable and valid.
    Update {
        /// For what.
        key: AttemptKey,
        /// The update.
        update: Update,
        /// Digest of all that the client claims of it, kept with the record of what was accepted.
        claim: Digest,
    },
    /// An update was complete but not valid.
    BadUpdate {
        /// Who.
        client: ClientId,
        /// For what.
        key: AttemptKey,
        /// Why.
        reason: String,
    },
    /// The release that was ordered is durable.
    Released {
        /// Of what.
        key: AttemptKey,
        /// The new model.
        model: ModelRef,
        /// What goes on from it.
        carried: Carried,
    },
    /// The release that was ordered cannot be made.
    ReleaseFailed {
        /// Of what.
        key: AttemptKey,
        /// Why.
        reason: String,
        /// Whether no other attempt can do better: the noise that must go on is lost.
        is_final: bool,
    },
    /// The model that was to be published is known.
    Published {
        /// Of what.
        key: AttemptKey,
        /// Bytes of models that were sent to this job's clients since this was fed before.
        sent_bytes: u64,
    },
    /// An evaluator is done with a model.
    Evaluation {
        /// Who.
        evaluator: ClientId,
        /// Which round's model.
        round: Round,
        /// `Err` holds why it could not.
        outcome: Result<Metrics, String>,
    },
    /// An operator ends the job.
    Cancel {
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
}

/// What a step may look at.
pub struct Context<'a> {
    /// The job's id.
    pub id: &'a JobId,
    /// The job.
    pub job: &'a Job,
    /// The job's part of the privacy ledger as it is durable now.
    pub ledger: &'a Ledger,
    /// What all jobs over the population have spent, and may.
    pub population: &'a Totals,
    /// Trainers connected now, sorted.
    pub trainers: &'a [ClientId],
    /// Evaluators connected now, sorted.
    pub evaluators: &'a [ClientId],
    /// Evaluators of the deployment, connected or not.
    pub enrolled_evaluators: &'a [ClientId],
    /// The time.
    pub now_ms: u64,
    /// Randomness for drawing cohorts.
    pub rng: &'a mut dyn rand::CryptoRng,
}

impl Context<'_> {
    fn is_connected(&self, trainer: &ClientId) -> bool {
        self.trainers.binary_search(trainer).is_ok()
    }
}

/// An update that counts from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// In which attempt it was asked.
    pub key: AttemptKey,
    /// The update, as it was sent.
    pub update: Update,
    /// Digest of all that the client claimed of it.
    pub claim: Digest,
}

/// What a step decided: to be made durable, then carried out.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The state after it.
    pub next: JobState,
    /// Ledger entries that are new or changed, in order; one that changes twice is there twice.
    pub ledger: Vec<LedgerEntry>,
    /// The updates that count from now on: none or one, and as many as there were where steps are taken together.
    pub accepted: Vec<Accepted>,
    /// What happened, in order.
    pub events: Vec<JobEvent>,
    /// What to do once all of the above is durable.
    pub effects: Vec<Effect>,
}

/// What the shell is to do. Each may be carried out twice without harm.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Ask a client.
    Offer {
        /// Whom.
        client: ClientId,
        /// For what.
        key: AttemptKey,
        /// From which model.
        model: ModelRef,
        /// What it is sent as, where that is not its file.
        broadcast: Option<Broadcast>,
        /// To which norm updates are clipped, where it moves.
        clip_norm: Option<f64>,
        /// Until when.
        deadline_ms: u64,
    },
    /// Tell a client that the attempt goes on (or ended) without it.
    Withdraw {
        /// Whom.
        client: ClientId,
        /// What.
        key: AttemptKey,
        /// Why.
        reason: String,
    },
    /// Sum, noise, apply, write the new model; then feed [`Input::Released`] or [`Input::ReleaseFailed`].
    Release {
        /// What.
        key: AttemptKey,
        /// The model to start from.
        model: ModelRef,
        /// What to sum.
        updates: Vec<Update>,
        /// What the release before left.
        carried: Carried,
    },
    /// Make a model known; then feed [`Input::Published`].
    Publish {
        /// What.
        key: AttemptKey,
        /// The model.
        model: ModelRef,
    },
    /// Ask an evaluator to measure a model.
    Evaluate {
        /// Whom.
        evaluator: ClientId,
        /// Which round's model.
        round: Round,
        /// The model.
        model: ModelRef,
    },
    /// The spooled updates of an attempt are needed no longer.
    Forget {
        /// What.
        key: AttemptKey,
    },
    /// A blob is needed no longer.
    Discard {
        /// Which.
        blob: Digest,
    },
}

/// An input that does not fit the state; the state stays, the sender is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

impl JobState {
    /// A job that was just accepted.
    pub fn new(model: ModelRef, now_ms: u64) -> Self {
        let phase = Phase::Offering(Offering::first(now_ms));
        let (measuring, taken_part, carried) = (Measuring::default(), BTreeMap::new(), Carried::default());
        let (progress, pool) = (Progress::default(), Pool::default());
        Self { model, released: 0, measuring, taken_part, progress, carried, pool, phase }
    }

    /// The clip norm of the round under way, where it moves.
    pub fn clip_norm(&self, job: &Job) -> Option<f64> {
        job.clip_norm(self.carried.clip.as_ref())
    }

    /// The bound on the norm of the round's updates, as a norm and in units of the job's grid.
    pub fn norm_bound(&self, job: &Job) -> (f64, u64) {
        job.norm_bound(self.carried.clip.as_ref())
    }

    /// Whether a client may join a round by the rule on participation, if the job has one.
    fn may_join(&self, client: &ClientId, round: Round, job: &Job) -> bool {
        job.spec().cohort.participation().is_none_or(|rule| {
            let history = self.taken_part.get(client).copied().unwrap_or_default();
            rule.may_join(&history, round.0).is_ok()
        })
    }

    /// The word used in listings.
    pub fn status(&self) -> &'static str {
        match &self.phase {
            Phase::Offering(_) => "waiting",
            Phase::Collecting(_) | Phase::Buffering(_) => "collecting",
            Phase::Releasing(_) | Phase::Publishing(_) => "releasing",
            Phase::Closing(_) => "closing",
            Phase::Ended { outcome } => outcome.status(),
        }
    }

    /// Whether an update of `client` for `about` may be taken in now, and until when: what can be said before its
    /// first byte. The machine has the last word when it is complete.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn expects(&self, id: &JobId, client: &ClientId, about: &AttemptKey) -> Result<Option<u64>, Refusal> {
        let asked = |round, attempt| *about == key(id, round, attempt);
        match &self.phase {
            Phase::Collecting(p) if asked(p.round, p.attempt) => match p.members.get(client) {
                None => Err(Refusal(format!("{client} was not asked in {about}"))),
                Some(Member { standing: Standing::Out(reason), .. }) => {
                    Err(Refusal(format!("round {} goes on without {client}: {reason}", p.round)))
                }
                Some(_) => Ok(Some(p.deadline_ms)),
            },
            // An update of asynchronous rounds is as good in one phase as in another.
            _ if self.held().any(|u| u.client == *client && u.origin.is_some_and(|o| o.is_of(about))) => {
                Ok(None)
            }
            _ if !self.pool.is_empty() => self.pool.expects(id, client, about).map(Some),
            // Its receipt may have been lost: the same bytes are acknowledged again.
            Phase::Releasing(p)
                if asked(p.round, p.attempt) && p.updates.iter().any(|u| u.client == *client) =>
            {
                Ok(None)
            }
            Phase::Ended { outcome } => Err(Refusal(format!("the job has ended ({})", outcome.status()))),
            _ => Err(Refusal(format!("{about} is over, or was never asked"))),
        }
    }

    /// Whether the release of this attempt is what the job waits for.
    pub fn is_releasing(&self, about: &AttemptKey) -> bool {
        matches!(&self.phase, Phase::Releasing(p) if *about == key(&about.job, p.round, p.attempt))
    }

    /// The length in bytes of the model with this digest, if `client` needs it now: to train from, or to measure.
    /// Other models are not for it.
    pub fn readable(&self, client: &ClientId, digest: &Digest) -> Option<u64> {
        let mut models = self.measuring.models(client);
        if let Phase::Collecting(p) = &self.phase
            && p.members.get(client).is_some_and(|m| !matches!(m.standing, Standing::Out(_)))
            && let Some(file) =
                broadcast::sent(self.model, self.carried.broadcast).find(|file| file.digest == *digest)
        {
            return Some(file.bytes);
        }
        if let Some(file) = self.pool.files(client).find(|file| file.digest == *digest) {
            return Some(file.bytes);
        }
        models.find(|m| m.digest == *digest).map(|m| m.bytes)
    }

    /// The blobs that a job which goes on like this needs.
    pub fn blobs(&self) -> Vec<Digest> {
        let mut blobs = vec![self.model.digest];
        blobs.extend(self.measuring.all_models().map(|m| m.digest));
        blobs.extend(self.carried.blobs());
        blobs.extend(self.pool.broadcasts().flat_map(|b| b.blobs().collect::<Vec<_>>()));
        blobs.extend(self.pool.models().map(|model| model.digest));
        blobs.extend(self.pool.waiting.iter().map(|u| u.blob));
        match &self.phase {
            Phase::Collecting(p) => blobs.extend(p.received().map(|u| u.blob)),
            Phase::Releasing(p) => blobs.extend(p.updates.iter().map(|u| u.blob)),
            Phase::Publishing(p) => blobs.push(p.model.digest),
            Phase::Offering(_) | Phase::Buffering(_) | Phase::Closing(_) | Phase::Ended { .. } => {}
        }
        blobs
    }

    /// Whether nothing will happen any more.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Ended { .. })
    }

    /// When [`Input::Tick`] is due next, if ever.
    pub fn wake_at_ms(&self, job: &Job) -> Option<u64> {
        let phase = match &self.phase {
            Phase::Offering(p) => Some(p.wake_at_ms(job)),
            Phase::Collecting(p) => Some(p.wake_at_ms(job)),
            Phase::Buffering(p) => p.wake_at_ms(job),
            Phase::Closing(p) => Some(p.deadline_ms),
            Phase::Releasing(_) | Phase::Publishing(_) | Phase::Ended { .. } => None,
        };
        let pool = self.pool.wake_at_ms(job.spec().deadlines.reconnect.0.as_millis() as u64);
        phase.into_iter().chain(pool).min()
    }
}

/// One step. `Ok(None)`: nothing changes (a repeated or irrelevant input).
///
/// # Errors
/// [`Refusal`]: the input does not fit; nothing changes and its sender should know why.
pub fn step(state: &JobState, input: Input, ctx: &mut Context<'_>) -> Result<Option<Step>, Refusal> {
    // An evaluator that came back, and everybody after a restart, is asked again; measuring twice does no harm.
    let again: Vec<Effect> = match &input {
        Input::Connected { client } => state.measuring.offers(client).collect(),
        Input::Recovered | Input::Missed => {
            ctx.evaluators.iter().flat_map(|e| state.measuring.offers(e)).collect()
        }
        _ => vec![],
    };
    let mut step = phase_step(state, input, ctx)?;
    if let Some(step) = &mut step {
        pool::tidy(state, step, ctx);
    }
    if again.is_empty() {
        return Ok(step);
    }
    let mut step = step.unwrap_or_else(|| Step::stay(state));
    step.effects.extend(again);
    Ok(Some(step))
}

fn phase_step(state: &JobState, input: Input, ctx: &mut Context<'_>) -> Result<Option<Step>, Refusal> {
    if let Input::Evaluation { evaluator, round, outcome } = input {
        return Ok(measuring::evaluation(state, evaluator, round, outcome, ctx));
    }
    if let Input::Cancel { by, reason } = input {
        return cancel(state, by, reason, ctx);
    }
    if let Input::Released { key: about, model, carried } = &input
        && !state.is_releasing(about)
    {
        return Ok(discard_late(state, about, *model, carried, ctx));
    }
    if ctx.job.staleness().is_some() && !state.is_over() {
        return buffering::phase_step(state, input, ctx);
    }
    // Nobody is asked in these phases: whatever speaks of an attempt speaks of one that is over.
    if let Phase::Offering(_) | Phase::Closing(_) = &state.phase
        && let Input::Answer { key, .. }
        | Input::Failure { key, .. }
        | Input::Update { key, .. }
        | Input::BadUpdate { key, .. } = &input
    {
        return Err(Refusal(format!("{key} is over, or was never asked")));
    }
    match &state.phase {
        Phase::Offering(p) => Ok(p.step(state, &input, ctx)),
        Phase::Collecting(p) => p.step(state, input, ctx),
        // Of asynchronous rounds alone, which were dealt with.
        Phase::Buffering(_) => Ok(None),
        Phase::Releasing(p) => p.step(state, input, ctx),
        Phase::Publishing(p) => p.step(state, input, ctx),
        Phase::Closing(p) => Ok(p.step(state, &input, ctx)),
        Phase::Ended { outcome } => match input {
            Input::Answer { .. } | Input::Failure { .. } | Input::Update { .. } | Input::BadUpdate { .. } => {
                Err(Refusal(format!("the job has ended ({})", outcome.status())))
            }
            _ => Ok(None),
        },
    }
}

/// A release that nobody waits for any more (it was cancelled, or its attempt burnt) leaves nothing behind: neither noise that
/// could be taken off, nor a second draw over inputs that were drawn over.
fn discard_late(
    state: &JobState,
    about: &AttemptKey,
    model: ModelRef,
    carried: &Carried,
    ctx: &Context<'_>,
) -> Option<Step> {
    let counts = ctx.ledger.entry(about).is_some_and(|entry| match entry.state {
        EntryState::Committed { output } | EntryState::Published { output } => output == model.digest,
        _ => false,
    });
    if counts {
        return None;
    }
    let needed = state.blobs();
    let mut step = Step::stay(state);
    let late = std::iter::once(model.digest).chain(carried.blobs());
    step.effects = late.filter(|b| !needed.contains(b)).map(|blob| Effect::Discard { blob }).collect();
    (!step.effects.is_empty()).then_some(step)
}

fn cancel(
    state: &JobState,
    by: String,
    reason: String,
    ctx: &mut Context<'_>,
) -> Result<Option<Step>, Refusal> {
    let outcome = Outcome::Cancelled { by, reason: reason.clone() };
    let mut step = match &state.phase {
        Phase::Ended { outcome } => {
            return Err(Refusal(format!("the job has ended already ({})", outcome.status())));
        }
        Phase::Collecting(p) => p.attempt().give_up(state, &format!("cancelled: {reason}"), ctx),
        Phase::Buffering(p) => p.running().give_up(state, &format!("cancelled: {reason}"), ctx),
        Phase::Releasing(p) => p.attempt().give_up(state, &format!("cancelled: {reason}"), ctx),
        // The model is noised and durable: its release is a fact. Let it be published, then cancel again.
        Phase::Publishing(_) => return Err(Refusal("a model is being published: try again".into())),
        Phase::Offering(_) | Phase::Closing(_) => Step::stay(state),
    };
    step.end(outcome);
    Ok(Some(step))
}

impl Step {
    fn stay(state: &JobState) -> Self {
        Self { next: state.clone(), ledger: vec![], accepted: vec![], events: vec![], effects: vec![] }
    }

    /// Goes on with what `later` decided from [`Step::next`]: to be made durable together, then carried out in order.
    pub fn absorb(&mut self, later: Step) {
        self.next = later.next;
        self.ledger.extend(later.ledger);
        self.accepted.extend(later.accepted);
        self.events.extend(later.events);
        self.effects.extend(later.effects);
    }

    fn end(&mut self, outcome: Outcome) {
        self.events.push(JobEvent::Ended { outcome: outcome.clone() });
        self.next.measuring = Measuring::default();
        // Nobody may take the noise off any more, and nobody needs the rest.
        let carried = std::mem::take(&mut self.next.carried);
        self.effects.extend(carried.blobs().map(|blob| Effect::Discard { blob }));
        self.next.carried.clip = carried.clip;
        self.next.phase = Phase::Ended { outcome };
    }
}

fn key(id: &JobId, round: Round, attempt: Attempt) -> AttemptKey {
    AttemptKey { job: id.clone(), round, attempt }
}

/// An attempt under way, as far as giving it up goes.
struct Running {
    round: Round,
    attempt: Attempt,
    /// Clients that may still work for it.
    open: Vec<ClientId>,
}

impl Running {
    /// Burns the attempt; what comes after it is the caller's.
    fn give_up(&self, state: &JobState, reason: &str, ctx: &Context<'_>) -> Step {
        let mut step = Step::stay(state);
        let (round, attempt) = (self.round, self.attempt);
        let key = key(ctx.id, round, attempt);
        // An attempt that never reserved has nothing to burn.
        step.ledger.extend(ctx.ledger.burn(&key, reason).ok());
        step.effects.extend(self.open.iter().map(|client| Effect::Withdraw {
            client: client.clone(),
            key: key.clone(),
            reason: reason.to_owned(),
        }));
        step.effects.push(Effect::Forget { key });
        step.events.push(JobEvent::Aborted { round, attempt, reason: reason.to_owned() });
        step
    }

    /// Burns the attempt and goes on with the next one, or ends the job.
    fn abort(&self, state: &JobState, reason: &str, ctx: &Context<'_>) -> Step {
        let mut step = self.give_up(state, reason, ctx);
        let (round, attempt) = (self.round, self.attempt);
        if attempt.0 >= ctx.job.spec().deadlines.max_attempts {
            step.end(Outcome::Failed {
                reason: format!("round {round} failed {attempt} times; last: {reason}"),
            });
        } else {
            step.next.phase = Phase::Offering(Offering::retry(round, attempt.next(), ctx.now_ms));
        }
        step
    }
}

#[cfg(test)]
mod tests;
