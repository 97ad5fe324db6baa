//! Offering: wait for enough clients, then reserve the budget, draw the cohort and ask it.

use super::buffering::{Buffering, idle};
use super::{Collecting, Context, Effect, Input, JobState, Phase, Step, key};
use crate::event::{JobEvent, Outcome};
use crate::job::Job;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use undertone_core::cohort::{Buffered, CohortRule};
use undertone_core::digest::{Digest, Digester};
use undertone_core::id::{Attempt, ClientId, Round};
use undertone_privacy::ledger::{LedgerEntry, ReserveError};

/// How long to wait before the next attempt at a round that failed, times the attempt's number.
const RETRY_PAUSE_MS: u64 = 1000;

/// No cohort yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offering {
    /// The round to begin.
    pub round: Round,
    /// The attempt to begin.
    pub attempt: Attempt,
    /// Since when we wait.
    pub since_ms: u64,
    /// Not before this.
    pub not_before_ms: u64,
    /// Whether the wait for clients was put on record.
    pub announced: bool,
    /// Whether clients arrive one by one just now: in a new deployment, and after a restart.
    #[serde(default)]
    pub patient: bool,
}

impl Offering {
    pub(super) fn first(now_ms: u64) -> Self {
        Self { patient: true, ..Self::next(Round::FIRST, now_ms) }
    }

    pub(super) fn next(round: Round, now_ms: u64) -> Self {
        Self {
            round,
            attempt: Attempt::FIRST,
            since_ms: now_ms,
            not_before_ms: now_ms,
            announced: false,
            patient: false,
        }
    }

    pub(super) fn retry(round: Round, attempt: Attempt, now_ms: u64) -> Self {
        let not_before_ms = now_ms + RETRY_PAUSE_MS * u64::from(attempt.0 - 1);
        Self { round, attempt, since_ms: now_ms, not_before_ms, announced: false, patient: false }
    }

    /// How long an offer waits for the whole cohort although the least that is needed is there.
    fn patient_until_ms(&self, job: &Job) -> u64 {
        if self.patient { self.since_ms + job.spec().deadlines.reconnect_ms() } else { self.not_before_ms }
    }

    fn gives_up_at_ms(&self, job: &Job) -> u64 {
        self.since_ms + job.spec().deadlines.gather.0.as_millis() as u64
    }

    pub(super) fn wake_at_ms(&self, job: &Job) -> u64 {
        // While too few are there only a new session or the last deadline changes anything.
        let patience = self.patient_until_ms(job).max(self.not_before_ms);
        let due =
            if self.announced { self.gives_up_at_ms(job) } else { patience.min(self.gives_up_at_ms(job)) };
        due.max(self.not_before_ms)
    }

    pub(super) fn step(&self, state: &JobState, input: &Input, ctx: &mut Context<'_>) -> Option<Step> {
        if matches!(input, Input::Recovered) {
            // Time that the coordinator was away is not time that it waited for clients.
            let mut step = Step::stay(state);
            let fresh = Self { since_ms: ctx.now_ms, announced: false, patient: true, ..self.clone() };
            step.next.phase = Phase::Offering(fresh);
            return Some(step);
        }
        let rule = ctx.job.spec().cohort;
        // An update that comes in fills a buffer before its round has begun.
        let is_trigger = rule.buffered().is_some()
            || matches!(input, Input::Sessions | Input::Missed | Input::Connected { .. } | Input::Tick);
        if !is_trigger || ctx.now_ms < self.not_before_ms {
            return None;
        }
        let eligible = self.eligible(state, ctx);
        // Each of another client.
        let present = eligible.len() + state.pool.at_work.len() + state.pool.waiting.len();
        if let CohortRule::Poisson { population, .. } = rule.rule()
            && present > population as usize
        {
            // ε was computed for a smaller crowd.
            let mut step = Step::stay(state);
            step.end(Outcome::Failed {
                reason: format!(
                    "{present} trainers are connected, more than [cohort] population = {population}: submit the job with \
                     the number that there are"
                ),
            });
            return Some(step);
        }
        if present < rule.whole() as usize
            && present >= rule.min_clients() as usize
            && ctx.now_ms < self.patient_until_ms(ctx.job)
        {
            return None;
        }
        if let Some(buffered) = rule.buffered() {
            return if present >= buffered.buffer as usize {
                let idle = eligible.into_owned();
                Some(self.open(state, buffered, idle, ctx))
            } else {
                self.wait(state, present as u32, ctx)
            };
        }
        match rule.draw(&eligible, &mut ctx.rng) {
            Some(cohort) => Some(self.offer(state, cohort, ctx)),
            None => self.wait(state, present as u32, ctx),
        }
    }

    /// The connected trainers that may join this round.
    fn eligible<'a>(&self, state: &JobState, ctx: &Context<'a>) -> Cow<'a, [ClientId]> {
        if ctx.job.spec().cohort.buffered().is_some() {
            return Cow::Owned(idle(state, self.round, ctx));
        }
        if ctx.job.spec().cohort.participation().is_none() {
            return Cow::Borrowed(ctx.trainers);
        }
        ctx.trainers.iter().filter(|c| state.may_join(c, self.round, ctx.job)).cloned().collect()
    }

    fn wait(&self, state: &JobState, present: u32, ctx: &Context<'_>) -> Option<Step> {
        let mut step = Step::stay(state);
        let cohort = ctx.job.spec().cohort;
        let needed = cohort.min_clients();
        let (which, rule) = match cohort.participation() {
            None => ("", ""),
            Some(_) => (" and may take part again", " or change its participations and separation"),
        };
        let least = if cohort.buffered().is_some() { "buffer" } else { "min_clients" };
        if ctx.now_ms >= self.gives_up_at_ms(ctx.job) {
            step.end(Outcome::Failed {
                reason: format!(
                    "only {present} of the {needed} trainers that round {} needs were connected{which} for {}: start more \
                     clients, or lower [cohort] {least}{rule}",
                    self.round,
                    humantime_of(ctx.job)
                ),
            });
            return Some(step);
        }
        if self.announced || ctx.now_ms < self.patient_until_ms(ctx.job) {
            return None;
        }
        step.events.push(JobEvent::Waiting { round: self.round, present, needed });
        step.next.phase = Phase::Offering(Self { announced: true, ..self.clone() });
        Some(step)
    }

    fn offer(&self, state: &JobState, cohort: Vec<ClientId>, ctx: &Context<'_>) -> Step {
        let mut step = Step::stay(state);
        let key = key(ctx.id, self.round, self.attempt);
        let [reserved, sampled] = match self.reserve(&cohort, ctx) {
            Ok(entries) => entries,
            Err(outcome) => {
                step.end(outcome);
                return step;
            }
        };
        let deadline_ms = ctx.now_ms + ctx.job.spec().deadlines.round.0.as_millis() as u64;
        step.events.push(JobEvent::Offered {
            round: self.round,
            attempt: self.attempt,
            cohort: cohort.clone(),
            epsilon: sampled.epsilon_after,
        });
        step.ledger.extend([reserved, sampled]);
        step.effects = cohort
            .iter()
            .map(|client| Effect::Offer {
                client: client.clone(),
                key: key.clone(),
                model: state.model,
                broadcast: state.carried.broadcast,
                clip_norm: state.clip_norm(ctx.job),
                deadline_ms,
            })
            .collect();
        let nobody = cohort.is_empty();
        let collecting = Collecting::new(self.round, self.attempt, deadline_ms, cohort);
        if nobody {
            // A draw that came out empty is released as noise: to stop here would tell.
            return collecting.settle(state, step.clone(), &[], ctx).unwrap_or(step);
        }
        step.next.phase = Phase::Collecting(collecting);
        step
    }
}

impl Offering {
    /// Opens the buffer of the round: paid for, and with its free places filled.
    fn open(&self, state: &JobState, rule: Buffered, idle: Vec<ClientId>, ctx: &mut Context<'_>) -> Step {
        let mut step = Step::stay(state);
        let pool = &state.pool;
        // A buffer that is full already is released first: from a newer model there is more to learn.
        let full = pool.waiting.len() >= rule.buffer as usize;
        let places = (rule.concurrency as usize).saturating_sub(pool.at_work.len());
        let cohort = rule.refill(idle, if full { 0 } else { places }, &mut ctx.rng);
        match self.reserve(&cohort, ctx) {
            Ok([reserved, sampled]) => {
                let epsilon = sampled.epsilon_after;
                step.ledger.extend([reserved, sampled]);
                let (round, attempt, cohort) = (self.round, self.attempt, cohort.clone());
                step.events.push(JobEvent::Offered { round, attempt, cohort, epsilon });
            }
            Err(outcome) => {
                step.end(outcome);
                return step;
            }
        }
        step.next.pool.forget_gone(self.round, rule.max_staleness);
        let buffering = Buffering::new(self.round, self.attempt);
        buffering.ask(&cohort, &mut step, ctx);
        buffering.settle(&mut step, ctx);
        step
    }

    /// The attempt's entry, reserved and with its cohort drawn; or how the job ends instead.
    fn reserve(&self, cohort: &[ClientId], ctx: &Context<'_>) -> Result<[LedgerEntry; 2], Outcome> {
        let key = key(ctx.id, self.round, self.attempt);
        let reserved = ctx.ledger.reserve(key, ctx.job.contract(), ctx.population).map_err(|e| {
            let reason = e.to_string();
            match e {
                ReserveError::BudgetSpent(_) | ReserveError::PopulationSpent(_) => {
                    Outcome::BudgetSpent { reason }
                }
                ReserveError::AlreadyReserved(_) | ReserveError::OtherContract { .. } => {
                    Outcome::Failed { reason }
                }
            }
        })?;
        let sampled =
            reserved.sampled(digest_of(cohort)).map_err(|e| Outcome::Failed { reason: e.to_string() })?;
        Ok([reserved, sampled])
    }
}

/// What the ledger keeps of a cohort: enough to check names against it, none of them in it.
fn digest_of(cohort: &[ClientId]) -> Digest {
    let mut digest = Digester::new();
    cohort.iter().for_each(|client| digest.field(client.as_str().as_bytes()));
    digest.finish()
}

fn humantime_of(job: &Job) -> String {
    serde_json::to_value(job.spec().deadlines.gather)
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned))
        .unwrap_or_default()
}
