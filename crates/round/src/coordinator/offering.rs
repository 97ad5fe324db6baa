//! Offering: wait for enough clients, then reserve the budget, draw the cohort and ask it.

use super::{Collecting, Context, Effect, Input, JobState, Phase, Step, key};
use crate::event::{JobEvent, Outcome};
use crate::job::Job;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use undertone_core::cohort::CohortRule;
use undertone_core::digest::{Digest, Digester};
use undertone_core::id::{Attempt, ClientId, Round};
use undertone_privacy::ledger::ReserveError;

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
        if self.patient {
            self.since_ms + job.spec().deadlines.reconnect.0.as_millis() as u64
        } else {
            self.not_before_ms
        }
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
        let is_trigger =
            matches!(input, Input::Sessions | Input::Missed | Input::Connected { .. } | Input::Tick);
        if !is_trigger || ctx.now_ms < self.not_before_ms {
            return None;
        }
        let rule = ctx.job.spec().cohort;
        let eligible = self.eligible(state, ctx);
        let present = eligible.len();
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
        match rule.draw(&eligible, &mut ctx.rng) {
            Some(cohort) => Some(self.offer(state, cohort, ctx)),
            None => self.wait(state, present as u32, ctx),
        }
    }

    /// The connected trainers that may join this round.
    fn eligible<'a>(&self, state: &JobState, ctx: &Context<'a>) -> Cow<'a, [ClientId]> {
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
        if ctx.now_ms >= self.gives_up_at_ms(ctx.job) {
            step.end(Outcome::Failed {
                reason: format!(
                    "only {present} of the {needed} trainers that round {} needs were connected{which} for {}: start more \
                     clients, or lower [cohort] min_clients{rule}",
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
        let reserved = match ctx.ledger.reserve(key.clone(), ctx.job.contract(), ctx.population) {
            Ok(entry) => entry,
            Err(e) => {
                let reason = e.to_string();
                step.end(match e {
                    ReserveError::BudgetSpent(_) | ReserveError::PopulationSpent(_) => {
                        Outcome::BudgetSpent { reason }
                    }
                    ReserveError::AlreadyReserved(_) | ReserveError::OtherContract { .. } => {
                        Outcome::Failed { reason }
                    }
                });
                return step;
            }
        };
        let sampled = match reserved.sampled(digest_of(&cohort)) {
            Ok(entry) => entry,
            Err(e) => {
                step.end(Outcome::Failed { reason: e.to_string() });
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
