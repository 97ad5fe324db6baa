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
mod input;
pub mod invariants;
mod measuring;
mod offering;
mod pool;
mod presence;
mod publishing;
mod releasing;
mod state;

pub use broadcast::{Broadcast, Delta, Frozen};
pub use buffering::Buffering;
pub use closing::Closing;
pub use collecting::{Collecting, Member, Standing};
pub use input::{Accepted, Context, Effect, Input, Refusal, Step};
pub use measuring::{Measuring, Progress};
pub use offering::Offering;
pub use pool::{AtWork, Gone, Pool, Version};
pub use publishing::Publishing;
pub use releasing::Releasing;
pub use state::{BlobRef, Carried, JobState, ModelRef, Origin, Phase, Update};

use crate::event::{JobEvent, Outcome};
use undertone_core::id::{Attempt, AttemptKey, ClientId, JobId, Round};
use undertone_privacy::ledger::EntryState;

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
