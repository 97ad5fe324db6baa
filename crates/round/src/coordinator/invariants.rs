//! What no step may break, as predicates with names. Tests check every step they make; the daemon checks every step
//! before it is saved, and stops a job rather than break one.
//!
//! | name | design |
//! |---|---|
//! | [`BudgetBeforeOffers`](Invariant::BudgetBeforeOffers), [`WithinBudget`](Invariant::WithinBudget) | budget before noise |
//! | [`MayTakePart`](Invariant::MayTakePart) | participation limits |
//! | [`CountsOnce`](Invariant::CountsOnce) | every accepted update counts exactly once |
//! | [`NoneTooStale`](Invariant::NoneTooStale), [`OneTaskEach`](Invariant::OneTaskEach) | asynchronous rounds: bounded staleness, one update of a client in a release |
//! | [`OneDraw`](Invariant::OneDraw), [`CommittedBeforePublished`](Invariant::CommittedBeforePublished) | noise before release; never two draws |
//! | [`LedgerOnlyGrows`](Invariant::LedgerOnlyGrows) | what is reserved stays spent |
//! | [`RoundsInOrder`](Invariant::RoundsInOrder), [`EndIsFinal`](Invariant::EndIsFinal) | one release a round, none after the end |

use super::{Context, Effect, JobState, Phase, Standing, Step, Update};
use std::collections::BTreeSet;
use undertone_core::id::{AttemptKey, ClientId};
use undertone_privacy::ledger::{EntryState, LedgerEntry};

/// The names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Invariant {
    /// No client is asked in an attempt whose charge and cohort are not in the ledger.
    BudgetBeforeOffers,
    /// No client is asked in a round that the rule on participation keeps it out of.
    MayTakePart,
    /// No ledger entry brings ε above the budget.
    WithinBudget,
    /// What is summed are the updates that count, all of them, one of each client.
    CountsOnce,
    /// Where rounds are asynchronous, no update is older than the job's bound when it counts, none at work could only be, and each
    /// counts what its staleness says.
    NoneTooStale,
    /// Where rounds are asynchronous, no more clients are at work than there are places, and none whose update is held here:
    /// so a release holds one update of a client at most. And no client works twice for one attempt, or changes its model.
    OneTaskEach,
    /// Where the coordinator draws noise, it does so once over the updates of an attempt.
    OneDraw,
    /// What is published is what the ledger committed to.
    CommittedBeforePublished,
    /// Ledger entries are added or move forward; none is rewritten.
    LedgerOnlyGrows,
    /// The model changes with the release of the next round and at no other time.
    RoundsInOrder,
    /// An ended job stays as it is.
    EndIsFinal,
}

/// A step that must not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a step of the job would break the invariant {0:?}: this is a bug; the job stands still so that nothing is lost"
)]
pub struct Broken(pub Invariant);

/// Checks a step before it is made durable.
///
/// # Errors
/// [`Broken`] with the first invariant that does not hold.
pub fn check(before: &JobState, step: &Step, ctx: &Context<'_>) -> Result<(), Broken> {
    let checks: [(Invariant, bool); 11] = [
        (Invariant::BudgetBeforeOffers, budget_before_offers(before, step, ctx)),
        (Invariant::MayTakePart, may_take_part(before, step, ctx)),
        (Invariant::WithinBudget, within_budget(step, ctx)),
        (Invariant::CountsOnce, counts_once(before, step, ctx) && nothing_is_lost(before, step, ctx)),
        (Invariant::NoneTooStale, none_too_stale(step, ctx)),
        (Invariant::OneTaskEach, one_task_each(before, step, ctx)),
        (Invariant::OneDraw, one_draw(before, step, ctx)),
        (Invariant::CommittedBeforePublished, committed_before_published(step, ctx)),
        (Invariant::LedgerOnlyGrows, ledger_only_grows(step, ctx)),
        (Invariant::RoundsInOrder, rounds_in_order(before, step)),
        (Invariant::EndIsFinal, !before.is_over() || step.next == *before),
    ];
    checks.into_iter().find(|(_, holds)| !holds).map_or(Ok(()), |(name, _)| Err(Broken(name)))
}

/// The entry of an attempt as it will be after the step.
fn entry<'a>(step: &'a Step, ctx: &'a Context<'_>, key: &AttemptKey) -> Option<&'a LedgerEntry> {
    step.ledger.iter().rev().find(|e| e.key == *key).or_else(|| ctx.ledger.entry(key))
}

fn budget_before_offers(before: &JobState, step: &Step, ctx: &Context<'_>) -> bool {
    // A cohort is asked in one attempt: one look is enough for all its offers.
    let mut asked: Option<&AttemptKey> = None;
    step.effects.iter().all(|effect| match effect {
        Effect::Offer { key, .. } if asked == Some(key) => true,
        // The same work once more, paid for when it was begun: that attempt may have been released since, without it.
        Effect::Offer { client, key, .. } if before.pool.is_at_work(ctx.id, client, key) => {
            entry(step, ctx, key).is_some_and(|e| !matches!(e.state, EntryState::Reserved))
        }
        Effect::Offer { key, .. } => {
            asked = Some(key);
            entry(step, ctx, key).is_some_and(|e| matches!(e.state, EntryState::Sampled { .. }))
        }
        _ => true,
    })
}

fn may_take_part(before: &JobState, step: &Step, ctx: &Context<'_>) -> bool {
    step.effects.iter().all(|effect| match effect {
        Effect::Offer { client, key, .. } => before.may_join(client, key.round, ctx.job),
        _ => true,
    })
}

fn within_budget(step: &Step, ctx: &Context<'_>) -> bool {
    let Some(budget) = ctx.job.contract().budget_epsilon() else { return true };
    step.ledger.iter().all(|e| e.epsilon_after.is_some_and(|epsilon| epsilon <= budget))
}

fn counts_once(before: &JobState, step: &Step, ctx: &Context<'_>) -> bool {
    let released = step.effects.iter().find_map(|e| match e {
        Effect::Release { updates, .. } => Some(updates),
        _ => None,
    });
    let Some(updates) = released else { return true };
    let counted = |update: &Update| match &before.phase {
        Phase::Collecting(p) => {
            let kept = p.members.get(&update.client).map(|m| &m.standing);
            kept.is_some_and(|s| matches!(s, Standing::Received(u) if u == update))
                || step.accepted.iter().any(|a| a.update == *update)
        }
        Phase::Releasing(p) => p.updates.contains(update),
        // What fills a buffer came in before, or just now.
        Phase::Buffering(_) | Phase::Offering(_) => {
            let sent = update.as_sent();
            before.pool.waiting.iter().any(|u| u.as_sent() == sent && u.origin == update.origin)
                || step
                    .accepted
                    .iter()
                    .any(|a| a.update == sent && update.origin.is_some_and(|o| o.is_of(&a.key)))
        }
        _ => false,
    };
    // None is there twice, none that does not count, and none that counts is missing.
    let counting = match &before.phase {
        Phase::Collecting(p) => {
            let accepted: BTreeSet<_> = step.accepted.iter().map(|a| &a.update.client).collect();
            p.received().filter(|u| !accepted.contains(&u.client)).count() + accepted.len()
        }
        Phase::Releasing(p) => p.updates.len(),
        // A buffer, no more and no less. What is left of it is looked at below.
        Phase::Buffering(_) | Phase::Offering(_) => {
            ctx.job.spec().cohort.buffered().map_or(0, |b| b.buffer as usize)
        }
        _ => 0,
    };
    let clients: BTreeSet<_> = updates.iter().map(|u| &u.client).collect();
    clients.len() == updates.len() && counting == updates.len() && updates.iter().all(counted)
}

/// An update by the attempt in which it was asked: what tells it from all others.
fn named(update: &Update) -> Option<(u32, u32, &ClientId)> {
    update.origin.map(|o| (o.round.0, o.attempt.0, &update.client))
}

/// Where rounds are asynchronous: what is held after a step was held before it or came in with it, once; and what is held no
/// longer is all of a release, made or given up, or belongs to a job that is over.
fn nothing_is_lost(before: &JobState, step: &Step, ctx: &Context<'_>) -> bool {
    if ctx.job.staleness().is_none() {
        return true;
    }
    let mut sources: BTreeSet<_> = before.held().filter_map(named).collect();
    let mut came = step.accepted.iter().map(|a| (a.key.round.0, a.key.attempt.0, &a.update.client));
    if !came.all(|name| sources.insert(name)) {
        return false;
    }
    let mut kept = BTreeSet::new();
    let is_sound =
        step.next.held().all(|u| named(u).is_some_and(|name| sources.contains(&name) && kept.insert(name)));
    let gone: BTreeSet<_> = sources.difference(&kept).copied().collect();
    let over = matches!(step.next.phase, Phase::Ended { .. } | Phase::Closing(_));
    let may_go: BTreeSet<_> = match (&before.phase, &step.next.phase) {
        (Phase::Releasing(before), Phase::Releasing(next)) if before == next => BTreeSet::new(),
        (Phase::Releasing(before), _) => before.updates.iter().filter_map(named).collect(),
        _ => BTreeSet::new(),
    };
    is_sound && (over || gone == may_go)
}

fn none_too_stale(step: &Step, ctx: &Context<'_>) -> bool {
    let Some(staleness) = ctx.job.staleness() else { return true };
    let releases = step.effects.iter().all(|effect| match effect {
        Effect::Release { key, updates, .. } => updates.iter().all(|update| {
            update.origin.is_some_and(|origin| {
                let age = key.round.0.checked_sub(origin.round.0);
                age.and_then(|age| staleness.weight(origin.weight, age).ok()) == Some(update.weight)
            })
        }),
        _ => true,
    });
    // The earliest round in which a client that is at work now can count.
    let round = step.next.counts_in(ctx.job.spec().cohort.size());
    let at_work = step.next.pool.at_work.values();
    releases && at_work.into_iter().all(|w| staleness.check(round.0.saturating_sub(w.round.0)).is_ok())
}

fn one_task_each(before: &JobState, step: &Step, ctx: &Context<'_>) -> bool {
    let Some(rule) = ctx.job.spec().cohort.buffered() else { return step.next.pool.is_empty() };
    let pool = &step.next.pool;
    let mut busy: BTreeSet<_> = pool.at_work.keys().collect();
    // Asked anew under an attempt that it has worked for already: two updates for one charge.
    let is_second = |client: &ClientId, about: &AttemptKey| {
        let gone = before
            .pool
            .gone
            .get(client)
            .is_some_and(|g| (g.round, g.attempt) == (about.round, about.attempt));
        let sent = before.held().any(|u| u.client == *client && u.origin.is_some_and(|o| o.is_of(about)));
        gone || sent
    };
    let once = step.effects.iter().all(|effect| match effect {
        Effect::Offer { client, key, .. } => !is_second(client, key),
        _ => true,
    });
    once && pool.keeps_versions(&before.pool)
        && busy.len() <= rule.concurrency as usize
        && step.next.held().all(|update| busy.insert(&update.client))
        // What waits is bounded: everybody who was at work when a release began, and a buffer.
        && pool.waiting.len() <= (rule.concurrency + rule.buffer) as usize
}

fn one_draw(before: &JobState, step: &Step, ctx: &Context<'_>) -> bool {
    let draws = step.effects.iter().any(|e| matches!(e, Effect::Release { .. }));
    !(draws
        && ctx.job.contract().is_noised_by_the_coordinator()
        && matches!(before.phase, Phase::Releasing(_)))
}

fn committed_before_published(step: &Step, ctx: &Context<'_>) -> bool {
    step.effects.iter().all(|effect| match effect {
        Effect::Publish { key, model } => entry(step, ctx, key).is_some_and(|e| match e.state {
            EntryState::Committed { output } | EntryState::Published { output } => output == model.digest,
            _ => false,
        }),
        _ => true,
    })
}

fn ledger_only_grows(step: &Step, ctx: &Context<'_>) -> bool {
    step.ledger.is_empty() || {
        let mut ledger = ctx.ledger.clone();
        step.ledger.iter().all(|e| ledger.apply(e.clone()).is_ok())
    }
}

fn rounds_in_order(before: &JobState, step: &Step) -> bool {
    if step.next.released == before.released {
        return step.next.model == before.model;
    }
    let published = step.ledger.iter().any(|e| {
        e.key.round.0 == step.next.released
            && e.state == EntryState::Published { output: step.next.model.digest }
    });
    step.next.released == before.released + 1 && published
}
