//! Buffering: Collecting's counterpart where rounds are asynchronous. Free places are filled at once; the round is released
//! over the first updates that fill the buffer.

use super::pool::{AtWork, Version};
use super::{Context, Effect, Input, JobState, Phase, Refusal, Releasing, Running, Step, Update, key};
use crate::event::{JobEvent, Outcome};
use crate::job::Job;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use undertone_core::cohort::Buffered;
use undertone_core::id::{Attempt, ClientId, Round};

/// An attempt is paid for, and its buffer fills. Who is at work for it, or still for an older one, is in the state's
/// [`Pool`](super::Pool).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffering {
    /// The round.
    pub round: Round,
    /// The attempt.
    pub attempt: Attempt,
    /// Since when nobody is at work and nobody can be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starved_since_ms: Option<u64>,
}

/// A step of a job with asynchronous rounds: those at work first, then the phase.
pub(super) fn phase_step(
    state: &JobState,
    input: Input,
    ctx: &mut Context<'_>,
) -> Result<Option<Step>, Refusal> {
    let mut step = Step::stay(state);
    super::pool::attend(&mut step, &input, ctx)?;
    let now = step.next.clone();
    // What participants say was heard above.
    let is_said = matches!(
        input,
        Input::Answer { .. } | Input::Failure { .. } | Input::Update { .. } | Input::BadUpdate { .. }
    );
    let later = match &now.phase {
        Phase::Offering(p) => p.step(&now, &input, ctx),
        Phase::Buffering(p) => Some(p.step(&now, &input, ctx)),
        Phase::Closing(p) => p.step(&now, &input, ctx),
        Phase::Releasing(p) if !is_said => p.step(&now, input, ctx)?,
        Phase::Publishing(p) if !is_said => p.step(&now, input, ctx)?,
        Phase::Releasing(_) | Phase::Publishing(_) | Phase::Collecting(_) | Phase::Ended { .. } => None,
    };
    if let Some(later) = later {
        step.absorb(later);
    }
    let changed = step.next != *state || !step.effects.is_empty() || !step.events.is_empty();
    Ok(changed.then_some(step))
}

/// The connected trainers that could be put to work for an attempt.
pub(super) fn idle(state: &JobState, round: Round, ctx: &Context<'_>) -> Vec<ClientId> {
    let waiting: BTreeSet<_> = state.pool.waiting.iter().map(|u| &u.client).collect();
    let is_idle = |client: &&ClientId| {
        !state.pool.at_work.contains_key(*client)
            && !waiting.contains(*client)
            && state.may_join(client, round, ctx.job)
    };
    ctx.trainers.iter().filter(is_idle).cloned().collect()
}

impl Buffering {
    pub(super) fn new(round: Round, attempt: Attempt) -> Self {
        Self { round, attempt, starved_since_ms: None }
    }

    pub(super) fn wake_at_ms(&self, job: &Job) -> Option<u64> {
        self.starved_since_ms.map(|since| since + job.spec().deadlines.gather.0.as_millis() as u64)
    }

    fn step(&self, state: &JobState, input: &Input, ctx: &mut Context<'_>) -> Step {
        let mut next = self.clone();
        if matches!(input, Input::Recovered) {
            // Time that the coordinator was away is not time that it waited for clients.
            next.starved_since_ms = next.starved_since_ms.map(|_| ctx.now_ms);
        }
        let mut step = Step::stay(state);
        next.settle(&mut step, ctx);
        step
    }

    /// Puts `clients` to work from the newest model.
    pub(super) fn ask(&self, clients: &[ClientId], step: &mut Step, ctx: &Context<'_>) {
        let work = AtWork {
            round: self.round,
            attempt: self.attempt,
            deadline_ms: ctx.now_ms + ctx.job.spec().deadlines.round.0.as_millis() as u64,
            away_since_ms: None,
        };
        let version = Version { model: step.next.model, broadcast: step.next.carried.broadcast };
        step.next.pool.ask(clients, &work, version);
        step.effects.extend(clients.iter().filter_map(|client| step.next.pool.offer(client, ctx.id)));
    }

    /// Goes on to the release once the buffer is full; else fills free places, or waits for somebody to fill them with.
    pub(super) fn settle(mut self, step: &mut Step, ctx: &mut Context<'_>) {
        let Some(rule) = ctx.job.spec().cohort.buffered() else { return };
        if step.next.pool.waiting.len() >= rule.buffer as usize {
            return self.release(rule, step, ctx);
        }
        let places = (rule.concurrency as usize).saturating_sub(step.next.pool.at_work.len());
        if places == 0 {
            // All are at work: there is nobody to look for.
            step.next.phase = Phase::Buffering(Self { starved_since_ms: None, ..self });
            return;
        }
        let current = Some((self.round, self.attempt));
        let (out, idle): (Vec<_>, Vec<_>) = idle(&step.next, self.round, ctx)
            .into_iter()
            .partition(|client| step.next.pool.gone.get(client).is_some_and(|gone| gone.left == current));
        let asked = rule.refill(idle, places, &mut ctx.rng);
        self.ask(&asked, step, ctx);
        let (round, attempt) = (self.round, self.attempt);
        step.events.extend(asked.into_iter().map(|client| JobEvent::Asked { round, attempt, client }));
        if !step.next.pool.at_work.is_empty() {
            self.starved_since_ms = None;
            step.next.phase = Phase::Buffering(self);
            return;
        }
        let (received, needed) = (step.next.pool.waiting.len(), rule.buffer as usize);
        let due = self.wake_at_ms(ctx.job).is_some_and(|at| ctx.now_ms >= at);
        if !out.is_empty() && received + out.len() >= needed {
            // Another attempt may ask them again. What came in stays: nothing was drawn over it.
            let reason = format!(
                "{received} usable updates, {needed} needed, and nobody is left to ask in this attempt"
            );
            let aborted = self.running().abort(&step.next, &reason, ctx);
            step.absorb(aborted);
        } else if due {
            let reason = format!(
                "the buffer of round {round} holds {received} of {needed} updates, each of another client, and nobody was there to \
                 send more: start more clients, or lower [cohort] buffer"
            );
            let mut given_up = self.running().give_up(&step.next, &reason, ctx);
            given_up.end(Outcome::Failed { reason });
            step.absorb(given_up);
        } else {
            if self.starved_since_ms.is_none() {
                self.starved_since_ms = Some(ctx.now_ms);
                let (present, needed) = (received as u32, rule.buffer);
                step.events.push(JobEvent::Waiting { round, present, needed });
            }
            step.next.phase = Phase::Buffering(self);
        }
    }

    /// Takes the updates that came in first, weighed by how old they are by now.
    fn release(self, rule: Buffered, step: &mut Step, ctx: &Context<'_>) {
        let staleness = ctx.job.staleness();
        let weighed = |update: Update| {
            let (asked, sent) = update.origin.map_or((self.round, update.weight), |o| (o.round, o.weight));
            let age = self.round.0.saturating_sub(asked.0);
            // None is too old: the invariants hold every step against that. No sum takes a weight of zero.
            let weight = staleness.and_then(|s| s.weight(sent, age).ok()).unwrap_or(0);
            Update { weight, ..update }
        };
        let updates: Vec<Update> =
            step.next.pool.waiting.drain(..rule.buffer as usize).map(weighed).collect();
        step.effects.push(Effect::Release {
            key: key(ctx.id, self.round, self.attempt),
            model: step.next.model,
            updates: updates.clone(),
            carried: step.next.carried,
        });
        let asked = rule.buffer + step.next.pool.at_work.len() as u32;
        let (round, attempt) = (self.round, self.attempt);
        step.next.phase = Phase::Releasing(Releasing { round, attempt, asked, updates });
    }

    /// Giving the attempt up takes nobody from work: updates count in the next one.
    pub(super) fn running(&self) -> Running {
        Running { round: self.round, attempt: self.attempt, open: vec![] }
    }
}
