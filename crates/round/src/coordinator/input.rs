//! What a step is given, and what it decides.

use super::{Broadcast, Carried, JobState, Measuring, ModelRef, Phase, Update};
use crate::event::{JobEvent, Outcome};
use crate::job::Job;
use undertone_core::digest::Digest;
use undertone_core::id::{AttemptKey, ClientId, JobId, Round};
use undertone_core::trainer::Metrics;
use undertone_privacy::ledger::population::Totals;
use undertone_privacy::ledger::{Ledger, LedgerEntry};

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
    pub(super) fn is_connected(&self, trainer: &ClientId) -> bool {
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

impl Step {
    pub(super) fn stay(state: &JobState) -> Self {
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

    pub(super) fn end(&mut self, outcome: Outcome) {
        self.events.push(JobEvent::Ended { outcome: outcome.clone() });
        self.next.measuring = Measuring::default();
        // Nobody may take the noise off any more, and nobody needs the rest.
        let carried = std::mem::take(&mut self.next.carried);
        self.effects.extend(carried.blobs().map(|blob| Effect::Discard { blob }));
        self.next.carried.clip = carried.clip;
        self.next.phase = Phase::Ended { outcome };
    }
}
