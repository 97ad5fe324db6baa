//! Who is at work and what came in, where rounds are asynchronous (`[cohort] rule = "buffered"`): it outlives a round.
//!
//! A client is asked under the attempt that is paid for then, from the model that is newest then, and stays at work through
//! the releases of others. Its update waits in the buffer and counts in the round that takes it from there: the buffer is
//! first in, first out, so that round is known when the update is accepted, and with it the staleness, which is the number of
//! that round less the one in which the client was asked. Nobody is at work whose update would come too late for its bound.
//!
//! Each step writes the whole of it, so a client at work is a line of numbers: the model that it began from is that of the round
//! in which it was asked, and is kept once for all who were asked in it ([`Version`]).

mod form;

use super::broadcast::sent;
use super::presence;
use super::{
    Accepted, BlobRef, Broadcast, Context, Effect, Input, JobState, ModelRef, Origin, Phase, Refusal, Step,
    Update, key,
};
use crate::event::JobEvent;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use undertone_core::digest::Digest;
use undertone_core::id::{Attempt, AttemptKey, ClientId, JobId, Round};

/// Clients at work, and updates that wait to count.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "form::Stored")]
pub struct Pool {
    /// What clients at work began from, by the round in which they were asked: no others. (A round has one model to begin
    /// from, whichever of its attempts they were asked in.)
    versions: BTreeMap<Round, Version>,
    /// Clients at work.
    pub at_work: BTreeMap<ClientId, AtWork>,
    /// The buffer, in the order of arrival: each client once, and none that is at work.
    pub waiting: Vec<Update>,
    /// Whose work is not waited for any more, until they are asked again or forgotten.
    pub gone: BTreeMap<ClientId, Gone>,
}

/// A model that somebody works from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Version {
    /// The model.
    pub model: ModelRef,
    /// What it was sent as, where that is not its file: kept as long as somebody works from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broadcast: Option<Broadcast>,
}

/// A client at work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AtWork {
    /// The round in which it was asked.
    pub round: Round,
    /// The attempt in which it was asked.
    pub attempt: Attempt,
    /// Its own deadline.
    pub deadline_ms: u64,
    /// Since when its session is broken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub away_since_ms: Option<u64>,
}

/// A client whose work is not waited for any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gone {
    /// The round in which it was asked.
    pub round: Round,
    /// The attempt in which it was asked.
    pub attempt: Attempt,
    /// The attempt whose buffer was filling when it left, if one was: it is not asked again for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<(Round, Attempt)>,
    /// Why.
    pub reason: String,
}

impl Pool {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether an update of `client` for `about` is waited for, and until when.
    pub(super) fn expects(&self, id: &JobId, client: &ClientId, about: &AttemptKey) -> Result<u64, Refusal> {
        match self.at_work.get(client) {
            Some(work) if *about == key(id, work.round, work.attempt) => Ok(work.deadline_ms),
            _ => Err(self.refusal(id, client, about)),
        }
    }

    /// Until when a client at work has to deliver.
    pub(super) fn deadline_of(&self, client: &ClientId) -> Option<u64> {
        self.at_work.get(client).map(|work| work.deadline_ms)
    }

    /// What a client at work needs: the model that it began from, or what that was sent as.
    pub(super) fn files(&self, client: &ClientId) -> impl Iterator<Item = BlobRef> {
        let version = self.at_work.get(client).and_then(|work| self.versions.get(&work.round));
        version.into_iter().flat_map(|version| sent(version.model, version.broadcast))
    }

    /// The models that somebody at work began from.
    pub(super) fn models(&self) -> impl Iterator<Item = ModelRef> {
        self.versions.values().map(|version| version.model)
    }

    /// What somebody at work may still fetch.
    pub(super) fn broadcasts(&self) -> impl Iterator<Item = Broadcast> {
        self.versions.values().filter_map(|version| version.broadcast)
    }

    /// Whether `client` works for `about`: asking it again is a repetition.
    pub(super) fn is_at_work(&self, id: &JobId, client: &ClientId, about: &AttemptKey) -> bool {
        self.expects(id, client, about).is_ok()
    }

    pub(super) fn wake_at_ms(&self, grace: u64) -> Option<u64> {
        let due =
            |w: &AtWork| w.away_since_ms.map_or(w.deadline_ms, |since| w.deadline_ms.min(since + grace));
        self.at_work.values().map(due).min()
    }

    /// Puts clients to work from a model.
    pub(super) fn ask(&mut self, clients: &[ClientId], work: &AtWork, version: Version) {
        if clients.is_empty() {
            return;
        }
        self.versions.insert(work.round, version);
        for client in clients {
            self.gone.remove(client);
            self.at_work.insert(client.clone(), work.clone());
        }
    }

    /// The offer to a client at work, for the first time or again.
    pub(super) fn offer(&self, client: &ClientId, id: &JobId) -> Option<Effect> {
        let work = self.at_work.get(client)?;
        let version = self.versions.get(&work.round)?;
        Some(Effect::Offer {
            client: client.clone(),
            key: key(id, work.round, work.attempt),
            model: version.model,
            broadcast: version.broadcast,
            clip_norm: None,
            deadline_ms: work.deadline_ms,
        })
    }

    /// Whether whoever was at work `before` and still is works from the same model.
    pub(super) fn keeps_versions(&self, before: &Self) -> bool {
        self.at_work.values().all(|work| self.versions.contains_key(&work.round))
            && before.versions.iter().all(|(round, was)| self.versions.get(round).is_none_or(|is| is == was))
    }

    /// Forgets the models that nobody works from any more.
    fn forget_versions(&mut self) {
        let rounds: BTreeSet<Round> = self.at_work.values().map(|work| work.round).collect();
        self.versions.retain(|round, _| rounds.contains(round));
    }

    /// Forgets who left so long ago that its update would be too old in any case.
    pub(super) fn forget_gone(&mut self, round: Round, max_staleness: u32) {
        self.gone.retain(|_, gone| round.0.saturating_sub(gone.round.0) <= max_staleness.saturating_add(1));
    }

    fn refusal(&self, id: &JobId, client: &ClientId, about: &AttemptKey) -> Refusal {
        if let Some(work) = self.at_work.get(client) {
            let current = key(id, work.round, work.attempt);
            return Refusal(format!("{about} is over; {client} is at work for {current}"));
        }
        match self.gone.get(client) {
            Some(gone) if *about == key(id, gone.round, gone.attempt) => {
                Refusal(format!("round {} goes on without {client}: {}", gone.round, gone.reason))
            }
            _ => Refusal(format!("{about} is over, or {client} was never asked in it")),
        }
    }

    fn leave(&mut self, client: &ClientId, left: Option<(Round, Attempt)>, reason: &str) -> Option<AtWork> {
        let work = self.at_work.remove(client)?;
        let (round, attempt, reason) = (work.round, work.attempt, reason.to_owned());
        self.gone.insert(client.clone(), Gone { round, attempt, left, reason });
        Some(work)
    }

    /// Who left gets time to come back. Returns who came back.
    fn note_sessions(&mut self, ctx: &Context<'_>) -> Vec<ClientId> {
        let at_work = self.at_work.iter_mut();
        presence::note(at_work.map(|(client, work)| (client, &mut work.away_since_ms)), ctx)
    }
}

impl JobState {
    /// Updates that are durable here and not yet part of a model: those that wait and those that are being released.
    pub(super) fn held(&self) -> impl Iterator<Item = &Update> {
        let released: &[Update] = match &self.phase {
            Phase::Releasing(p) => &p.updates,
            _ => &[],
        };
        self.pool.waiting.iter().chain(released)
    }

    /// The round in which the next update that comes in would count.
    pub(super) fn counts_in(&self, buffer: u32) -> Round {
        let next = match &self.phase {
            Phase::Offering(p) => p.round,
            Phase::Buffering(p) => p.round,
            Phase::Releasing(p) => p.round.next(),
            Phase::Publishing(p) => p.round.next(),
            Phase::Collecting(_) | Phase::Closing(_) | Phase::Ended { .. } => Round(self.released).next(),
        };
        Round(next.0 + self.pool.waiting.len() as u32 / buffer)
    }

    /// The attempt whose buffer is filling.
    fn filling(&self) -> Option<(Round, Attempt)> {
        match &self.phase {
            Phase::Buffering(p) => Some((p.round, p.attempt)),
            _ => None,
        }
    }

    /// The attempts that somebody may still speak of.
    fn open_attempts(&self) -> BTreeSet<(Round, Attempt)> {
        let mut open: BTreeSet<_> = self.pool.at_work.values().map(|w| (w.round, w.attempt)).collect();
        open.extend(self.held().filter_map(|u| u.origin.map(|o| (o.round, o.attempt))));
        let current = match &self.phase {
            Phase::Buffering(p) => Some((p.round, p.attempt)),
            Phase::Releasing(p) => Some((p.round, p.attempt)),
            Phase::Publishing(p) => Some((p.round, p.attempt)),
            _ => None,
        };
        open.extend(current);
        open
    }
}

/// What an input means for those at work, whatever the phase; the phase has its say after it.
pub(super) fn attend(step: &mut Step, input: &Input, ctx: &Context<'_>) -> Result<(), Refusal> {
    let pool = &mut step.next.pool;
    let mut back = vec![];
    match input {
        Input::Recovered => {
            // Who was not there to be heard gets time to come back; who is connected is asked again.
            let until = ctx.now_ms + ctx.job.spec().deadlines.reconnect_ms();
            for work in pool.at_work.values_mut() {
                work.deadline_ms = work.deadline_ms.max(until);
                work.away_since_ms = Some(ctx.now_ms);
            }
        }
        Input::Sessions => back = pool.note_sessions(ctx),
        Input::Missed => {
            // Everybody may have come and gone: who is here now is asked again.
            for work in pool.at_work.values_mut() {
                work.away_since_ms.get_or_insert(ctx.now_ms);
            }
            back = pool.note_sessions(ctx);
        }
        Input::Connected { client } => {
            // Marks it as back, whether its leaving was noticed or not.
            if let Some(work) = pool.at_work.get_mut(client) {
                work.away_since_ms.get_or_insert(ctx.now_ms);
            }
            back = pool.note_sessions(ctx);
        }
        Input::Answer { client, key, answer } => {
            pool.expects(ctx.id, client, key)?;
            if let Err(reason) = answer {
                leave(step, client, reason);
                let (round, client, reason) = (key.round, client.clone(), reason.clone());
                step.events.push(JobEvent::Declined { round, client, reason });
            }
        }
        Input::Failure { client, key, reason } => {
            pool.expects(ctx.id, client, key)?;
            leave(step, client, reason);
            let (round, client, reason) = (key.round, client.clone(), reason.clone());
            step.events.push(JobEvent::Lost { round, client, reason });
        }
        Input::BadUpdate { client, key, reason } => {
            pool.expects(ctx.id, client, key)?;
            leave(step, client, &format!("its update was refused: {reason}"));
            let (round, client, reason) = (key.round, client.clone(), reason.clone());
            step.events.push(JobEvent::Refused { round, client, reason });
        }
        Input::Update { key, update, claim } => accept(step, key, update, *claim, ctx)?,
        _ => {}
    }
    time_out(step, ctx);
    step.effects.extend(back.iter().filter_map(|client| step.next.pool.offer(client, ctx.id)));
    Ok(())
}

/// Takes an update into the buffer.
fn accept(
    step: &mut Step,
    about: &AttemptKey,
    update: &Update,
    claim: Digest,
    ctx: &Context<'_>,
) -> Result<(), Refusal> {
    let client = &update.client;
    let origin = Origin { round: about.round, attempt: about.attempt, weight: update.weight };
    let kept = Update { origin: Some(origin), ..update.clone() };
    if about.job == *ctx.id
        && let Some(first) =
            step.next.held().find(|u| u.client == *client && u.origin.is_some_and(|o| o.is_of(about)))
    {
        // Its receipt may have been lost: the same bytes are acknowledged again.
        return if first.as_sent() == *update {
            Ok(())
        } else {
            Err(Refusal(format!("another update of {client} for {about} counts already")))
        };
    }
    step.next.pool.expects(ctx.id, client, about)?;
    // From here on the client's data may be in a release. Both sides count it for the round in which it was asked.
    if let Some(rule) = ctx.job.spec().cohort.participation() {
        let history = step.next.taken_part.get(client).copied().unwrap_or_default();
        let joined = rule.join(&history, about.round.0).map_err(|e| Refusal(format!("{client}: {e}")))?;
        step.next.taken_part.insert(client.clone(), joined);
    }
    let round = step.next.counts_in(ctx.job.spec().cohort.size());
    step.next.pool.at_work.remove(client);
    step.next.pool.waiting.push(kept);
    step.accepted.push(Accepted { key: about.clone(), update: update.clone(), claim });
    step.events.push(JobEvent::Received {
        round,
        client: client.clone(),
        bytes: update.bytes,
        staleness: Some(round.0.saturating_sub(about.round.0)),
    });
    Ok(())
}

fn leave(step: &mut Step, client: &ClientId, reason: &str) -> Option<AtWork> {
    let left = step.next.filling();
    step.next.pool.leave(client, left, reason)
}

/// A client goes whether it wants or not, and is told.
fn withdraw(step: &mut Step, client: &ClientId, reason: &str, ctx: &Context<'_>) {
    let Some(work) = leave(step, client, reason) else { return };
    let (round, reason) = (work.round, reason.to_owned());
    step.events.push(JobEvent::Lost { round, client: client.clone(), reason: reason.clone() });
    let key = key(ctx.id, work.round, work.attempt);
    step.effects.push(Effect::Withdraw { client: client.clone(), key, reason });
}

/// Takes out whoever was away for too long or has not delivered by its own deadline: its place is free.
fn time_out(step: &mut Step, ctx: &Context<'_>) {
    let late = |work: &AtWork| {
        if ctx.now_ms >= work.deadline_ms {
            Some("it had not delivered by its deadline, [deadlines] round after it was asked")
        } else if presence::gone(work.away_since_ms, ctx) {
            Some(presence::GONE)
        } else {
            None
        }
    };
    let at_work = &step.next.pool.at_work;
    let late: Vec<_> = at_work.iter().filter_map(|(c, w)| Some((c.clone(), late(w)?))).collect();
    for (client, reason) in late {
        withdraw(step, &client, reason, ctx);
    }
}

/// Whatever a step decided: nobody works in vain, and what is needed no longer is let go.
pub(super) fn tidy(before: &JobState, step: &mut Step, ctx: &Context<'_>) {
    let Some(staleness) = ctx.job.staleness() else { return };
    let in_vain: Vec<(ClientId, String)> = match &step.next.phase {
        Phase::Ended { outcome } => {
            everyone(&step.next.pool, &format!("the job has ended ({})", outcome.status()))
        }
        Phase::Closing(_) => everyone(&step.next.pool, "the last round of the job is released"),
        _ => {
            let round = step.next.counts_in(ctx.job.spec().cohort.size());
            if round.0 > ctx.job.spec().rounds {
                everyone(&step.next.pool, "the updates of the last round are in")
            } else {
                let at_work = step.next.pool.at_work.iter();
                let stale = at_work.filter_map(|(client, work)| {
                    let old = staleness.check(round.0.saturating_sub(work.round.0)).err()?;
                    Some((client.clone(), format!("it would come too late: {old}")))
                });
                stale.collect()
            }
        }
    };
    for (client, reason) in in_vain {
        withdraw(step, &client, &reason, ctx);
    }
    if matches!(step.next.phase, Phase::Ended { .. } | Phase::Closing(_)) {
        step.next.pool = Pool::default();
    }
    step.next.pool.forget_versions();
    let kept: BTreeSet<_> = step.next.held().map(|u| u.blob).collect();
    let held = before.held().map(|u| u.blob).chain(step.accepted.iter().map(|a| a.update.blob));
    let gone: BTreeSet<_> = held.filter(|blob| !kept.contains(blob)).collect();
    step.effects.extend(gone.into_iter().map(|blob| Effect::Discard { blob }));
    // Versions that nobody works from any more.
    let blobs = |broadcasts: &mut dyn Iterator<Item = Broadcast>| -> BTreeSet<Digest> {
        broadcasts.flat_map(|b| b.blobs().collect::<Vec<_>>()).collect()
    };
    let was = blobs(&mut before.pool.broadcasts());
    let is = blobs(&mut step.next.pool.broadcasts().chain(step.next.carried.broadcast));
    step.effects.extend(was.difference(&is).map(|&blob| Effect::Discard { blob }));
    // An attempt is forgotten as a whole, once nobody can speak of it any more.
    let open = step.next.open_attempts();
    let mut closed = before.open_attempts();
    closed.extend(step.effects.iter().filter_map(|effect| match effect {
        Effect::Forget { key } => Some((key.round, key.attempt)),
        _ => None,
    }));
    step.effects.retain(|effect| !matches!(effect, Effect::Forget { .. }));
    let closed = closed.difference(&open).map(|&(round, attempt)| key(ctx.id, round, attempt));
    step.effects.extend(closed.map(|key| Effect::Forget { key }));
}

fn everyone(pool: &Pool, reason: &str) -> Vec<(ClientId, String)> {
    pool.at_work.keys().map(|client| (client.clone(), reason.to_owned())).collect()
}
