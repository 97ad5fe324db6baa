//! Collecting: the cohort was asked; updates come in until everyone is in or out, or the deadline.

use super::presence;
use super::{
    Accepted, Context, Effect, Input, JobState, Phase, Refusal, Releasing, Running, Step, Update, key,
};
use crate::event::JobEvent;
use crate::job::Job;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use undertone_core::id::{Attempt, AttemptKey, ClientId, Round};

/// A cohort was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collecting {
    /// The round.
    pub round: Round,
    /// The attempt.
    pub attempt: Attempt,
    /// When it ends.
    pub deadline_ms: u64,
    /// The cohort.
    pub members: BTreeMap<ClientId, Member>,
}

/// A client of the cohort.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// How far it is.
    pub standing: Standing,
    /// Since when its session is broken.
    pub away_since_ms: Option<u64>,
}

/// How far a client of the cohort is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It was asked.
    Asked,
    /// It takes part.
    Accepted,
    /// Its update counts.
    Received(Update),
    /// It takes no part, or no longer.
    Out(String),
}

impl Standing {
    fn is_open(&self) -> bool {
        matches!(self, Self::Asked | Self::Accepted)
    }
}

impl Collecting {
    pub(super) fn new(round: Round, attempt: Attempt, deadline_ms: u64, cohort: Vec<ClientId>) -> Self {
        let member = Member { standing: Standing::Asked, away_since_ms: None };
        Self {
            round,
            attempt,
            deadline_ms,
            members: cohort.into_iter().map(|c| (c, member.clone())).collect(),
        }
    }

    pub(super) fn wake_at_ms(&self, job: &Job) -> u64 {
        let grace = job.spec().deadlines.reconnect_ms();
        self.members
            .values()
            .filter(|m| m.standing.is_open())
            .filter_map(|m| m.away_since_ms)
            .map(|since| since + grace)
            .fold(self.deadline_ms, u64::min)
    }

    pub(super) fn step(
        &self,
        state: &JobState,
        input: Input,
        ctx: &mut Context<'_>,
    ) -> Result<Option<Step>, Refusal> {
        let mut next = self.clone();
        let mut step = Step::stay(state);
        let round = self.round;
        let mut back = vec![];
        match input {
            Input::Recovered => {
                // Who was not there to be heard gets time to come back; who is connected is asked again.
                next.deadline_ms = next.deadline_ms.max(ctx.now_ms + ctx.job.spec().deadlines.reconnect_ms());
                next.members.values_mut().for_each(|m| m.away_since_ms = Some(ctx.now_ms));
            }
            Input::Sessions => back = next.note_sessions(ctx),
            Input::Missed => {
                // Everybody may have come and gone: who is here now is asked again.
                for member in next.members.values_mut() {
                    member.away_since_ms.get_or_insert(ctx.now_ms);
                }
                back = next.note_sessions(ctx);
            }
            Input::Connected { client } => {
                if let Some(member) = next.members.get_mut(&client) {
                    // Marks it as back, whether its leaving was noticed or not.
                    member.away_since_ms.get_or_insert(ctx.now_ms);
                }
                back = next.note_sessions(ctx);
            }
            Input::Tick => {}
            Input::Answer { client, key, answer } => {
                let standing = next.standing_mut(&client, &key, ctx)?;
                match answer {
                    Ok(()) if *standing == Standing::Asked => *standing = Standing::Accepted,
                    Err(reason) if standing.is_open() => {
                        *standing = Standing::Out(reason.clone());
                        step.events.push(JobEvent::Declined { round, client, reason });
                    }
                    _ => return Ok(None),
                }
            }
            Input::Failure { client, key, reason } => {
                let standing = next.standing_mut(&client, &key, ctx)?;
                if !standing.is_open() {
                    return Ok(None);
                }
                *standing = Standing::Out(reason.clone());
                step.events.push(JobEvent::Lost { round, client, reason });
            }
            Input::Update { key, update, claim } => {
                let client = update.client.clone();
                match next.standing_mut(&client, &key, ctx)? {
                    Standing::Received(first) if *first == update => return Ok(None),
                    Standing::Received(_) => {
                        return Err(Refusal(format!(
                            "another update of {client} counts in round {round} already"
                        )));
                    }
                    Standing::Out(reason) => {
                        return Err(Refusal(format!("round {round} goes on without {client}: {reason}")));
                    }
                    open => {
                        let bytes = update.bytes;
                        *open = Standing::Received(update.clone());
                        // From here on the client's data may be in a release, whatever becomes of this attempt.
                        if let Some(rule) = ctx.job.spec().cohort.participation() {
                            let history = state.taken_part.get(&client).copied().unwrap_or_default();
                            let joined = rule
                                .join(&history, round.0)
                                .map_err(|e| Refusal(format!("{client}: {e}")))?;
                            step.next.taken_part.insert(client.clone(), joined);
                        }
                        step.accepted.push(Accepted { key, update, claim });
                        step.events.push(JobEvent::Received { round, client, bytes, staleness: None });
                    }
                }
            }
            Input::BadUpdate { client, key, reason } => {
                let standing = next.standing_mut(&client, &key, ctx)?;
                if !standing.is_open() {
                    return Ok(None);
                }
                *standing = Standing::Out(format!("its update was refused: {reason}"));
                step.events.push(JobEvent::Refused { round, client, reason });
            }
            _ => return Ok(None),
        }
        next.time_out(&mut step, ctx);
        Ok(next.settle(state, step, &back, ctx))
    }

    /// The member's standing, if the input is about this attempt and this cohort.
    fn standing_mut(
        &mut self,
        client: &ClientId,
        about: &AttemptKey,
        ctx: &Context<'_>,
    ) -> Result<&mut Standing, Refusal> {
        let current = key(ctx.id, self.round, self.attempt);
        if *about != current {
            return Err(Refusal(format!("{about} is over; the job is at {current}")));
        }
        match self.members.get_mut(client) {
            Some(member) => Ok(&mut member.standing),
            None => Err(Refusal(format!("{client} was not asked in {current}"))),
        }
    }

    /// Who left gets time to come back. Returns who came back.
    fn note_sessions(&mut self, ctx: &Context<'_>) -> Vec<ClientId> {
        let members = self.members.iter_mut();
        presence::note(members.map(|(client, member)| (client, &mut member.away_since_ms)), ctx)
    }

    /// Takes out whoever was away for too long, and at the deadline everyone who has not delivered.
    fn time_out(&mut self, step: &mut Step, ctx: &Context<'_>) {
        let key = key(ctx.id, self.round, self.attempt);
        for (client, member) in &mut self.members {
            if !member.standing.is_open() {
                continue;
            }
            let reason = if ctx.now_ms >= self.deadline_ms {
                "it had not delivered by the round's deadline"
            } else if presence::gone(member.away_since_ms, ctx) {
                presence::GONE
            } else {
                continue;
            };
            member.standing = Standing::Out(reason.into());
            step.events.push(JobEvent::Lost {
                round: self.round,
                client: client.clone(),
                reason: reason.into(),
            });
            step.effects.push(Effect::Withdraw {
                client: client.clone(),
                key: key.clone(),
                reason: reason.into(),
            });
        }
    }

    /// Goes on if everyone is in or out, or if enough can no longer be reached. Else those who came back are asked
    /// again (the same attempt: nothing is done twice).
    pub(super) fn settle(
        self,
        state: &JobState,
        mut step: Step,
        back: &[ClientId],
        ctx: &Context<'_>,
    ) -> Option<Step> {
        let received = self.received().count();
        let open = self.members.values().filter(|m| m.standing.is_open()).count();
        let needed = ctx.job.spec().cohort.min_updates() as usize;
        if received + open < needed {
            let reason =
                format!("{received} usable updates of {} clients asked, {needed} needed", self.members.len());
            let aborted = self.attempt().abort(&step.next, &reason, ctx);
            step.absorb(aborted);
            return Some(step);
        }
        if open == 0 {
            let key = key(ctx.id, self.round, self.attempt);
            let received: Vec<Update> = self.received().cloned().collect();
            step.effects.push(Effect::Release {
                key,
                model: state.model,
                updates: received.clone(),
                carried: state.carried,
            });
            step.next.phase = Phase::Releasing(Releasing {
                round: self.round,
                attempt: self.attempt,
                asked: self.members.len() as u32,
                updates: received,
            });
            return Some(step);
        }
        for client in back.iter().filter(|c| self.members[*c].standing.is_open()) {
            step.effects.push(Effect::Offer {
                client: client.clone(),
                key: key(ctx.id, self.round, self.attempt),
                model: state.model,
                broadcast: state.carried.broadcast,
                clip_norm: state.clip_norm(ctx.job),
                deadline_ms: self.deadline_ms,
            });
        }
        step.next.phase = Phase::Collecting(self);
        let changed = step.next != *state || !step.effects.is_empty() || !step.events.is_empty();
        changed.then_some(step)
    }

    pub(super) fn received(&self) -> impl Iterator<Item = &Update> {
        self.members.values().filter_map(|m| match &m.standing {
            Standing::Received(update) => Some(update),
            _ => None,
        })
    }

    pub(super) fn attempt(&self) -> Running {
        let open = self.members.iter().filter(|(_, m)| m.standing.is_open());
        Running { round: self.round, attempt: self.attempt, open: open.map(|(c, _)| c.clone()).collect() }
    }
}
