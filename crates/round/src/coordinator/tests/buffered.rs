//! Asynchronous rounds: the machine at the pace of the fast ones, under faults, and against a model of what it should count.

mod random;
mod versions;

use super::*;
use std::collections::BTreeSet;

const RULE: &str = "rule = \"buffered\"\nconcurrency = 3\nbuffer = 2\nmax_staleness = 2\n";

fn central() -> String {
    CENTRAL.replace("BUDGET", "100.0")
}

fn world(rule: &str, privacy: &str, rounds: u32, clients: &[&str]) -> World {
    let text = JOB.replace("rule = \"all\"\nsize = 3\nmin_clients = 2\n", rule).replace("PRIVACY", privacy);
    let text = text.replace("rounds = 2", &format!("rounds = {rounds}"));
    let text = text.replace("max_attempts = 2", "max_attempts = 5");
    assert!(text.contains(rule));
    let mut w = World::of(JobSpec::from_toml(&text, "t.toml").unwrap().resolve().unwrap());
    w.trainers = clients.iter().map(|c| name(c)).collect();
    w
}

fn sent(client: &str, round: u32, attempt: u32) -> Update {
    let blob = Digest::of(format!("{client} {round} {attempt}").as_bytes());
    Update { client: name(client), blob, bytes: 8, weight: 1, origin: None }
}

impl World {
    /// An update of a client under the attempt in which it was asked.
    fn send(&mut self, client: &str, round: u32, attempt: u32) -> Result<(), Refusal> {
        self.feed(arrival(self.key(round, attempt), sent(client, round, attempt)))
    }

    fn at_work(&self) -> Vec<(&str, u32, u32)> {
        self.state.pool.at_work.iter().map(|(c, w)| (c.as_str(), w.round.0, w.attempt.0)).collect()
    }

    fn offers(&self) -> Vec<(String, AttemptKey, ModelRef)> {
        let offers = self.effects.iter().filter_map(|e| match e {
            Effect::Offer { client, key, model, .. } => Some((client.to_string(), key.clone(), *model)),
            _ => None,
        });
        offers.collect()
    }

    fn withdrawn(&self) -> Vec<(String, String)> {
        let withdrawn = self.effects.iter().filter_map(|e| match e {
            Effect::Withdraw { client, reason, .. } => Some((client.to_string(), reason.clone())),
            _ => None,
        });
        withdrawn.collect()
    }

    /// What the release that was just ordered is over: client, round of the model it began from, weight.
    fn ordered(&self) -> Vec<(String, u32, u32)> {
        let updates = self.effects.iter().find_map(|e| match e {
            Effect::Release { updates, .. } => Some(updates),
            _ => None,
        });
        updates.unwrap().iter().map(|u| (u.client.to_string(), u.origin.unwrap().round.0, u.weight)).collect()
    }

    fn finish(&mut self, round: u32, attempt: u32) {
        let key = self.key(round, attempt);
        let (model, carried) = (model(round as u8), Carried::default());
        self.feed(Input::Released { key: key.clone(), model, carried }).unwrap();
        assert!(self.effects.iter().any(|e| matches!(e, Effect::Publish { .. })));
        self.feed(Input::Published { key, sent_bytes: 0 }).unwrap();
        self.feed(Input::Sessions).unwrap();
    }

    fn discarded(&self) -> BTreeSet<Digest> {
        let blobs = self.effects.iter().filter_map(|e| match e {
            Effect::Discard { blob } => Some(*blob),
            _ => None,
        });
        blobs.collect()
    }
}

#[test]
fn rounds_go_at_the_pace_of_the_fast_and_the_slow_counts_less() {
    let mut w = world(RULE, NONE, 3, &["a", "b", "slow"]);
    w.feed(Input::Sessions).unwrap();
    assert_eq!(w.offers().len(), 3);
    w.send("a", 1, 1).unwrap();
    assert_eq!(w.state.status(), "collecting");
    assert!(w.offers().is_empty(), "a counts once in a buffer, and nobody else is there");
    w.send("b", 1, 1).unwrap();
    assert_eq!(w.ordered(), [("a".into(), 1, 65_536), ("b".into(), 1, 65_536)]);
    // What comes in meanwhile counts later; what came in is acknowledged again.
    w.send("a", 1, 1).unwrap();
    w.finish(1, 1);
    assert_eq!(w.at_work(), [("a", 2, 1), ("b", 2, 1), ("slow", 1, 1)]);
    // The newest model for those who are asked now; the slow one may still fetch the old one.
    assert_eq!(w.state.readable(&name("a"), &model(1).digest), Some(9));
    assert_eq!(w.state.readable(&name("a"), &model(0).digest), None);
    assert_eq!(w.state.readable(&name("slow"), &model(0).digest), Some(9));
    assert!(w.state.blobs().contains(&model(0).digest));
    w.send("slow", 1, 1).unwrap();
    w.send("b", 2, 1).unwrap();
    assert_eq!(w.ordered(), [("slow".into(), 1, 46_341), ("b".into(), 2, 65_536)]);
    let told = w.events.iter().filter_map(|e| match e {
        JobEvent::Received { round, client, staleness, .. } => {
            Some((client.as_str(), round.0, staleness.unwrap()))
        }
        _ => None,
    });
    assert_eq!(told.collect::<Vec<_>>(), [("a", 1, 0), ("b", 1, 0), ("slow", 2, 1), ("b", 2, 0)]);
    // During the release: for the round after it, which is the last.
    w.send("a", 2, 1).unwrap();
    w.finish(2, 1);
    w.send("slow", 3, 1).unwrap();
    assert_eq!(w.ordered(), [("a".into(), 2, 46_341), ("slow".into(), 3, 65_536)]);
    assert_eq!(w.withdrawn(), [("b".into(), "the updates of the last round are in".into())]);
    w.finish(3, 1);
    assert_eq!(w.outcome(), Some(&Outcome::Completed));
    assert_eq!(w.state.pool, Pool::default());
}

#[test]
fn a_free_place_is_filled_at_once_from_the_newest_model() {
    let mut w = world(RULE, NONE, 3, &["a", "b", "c", "d", "e"]);
    w.feed(Input::Sessions).unwrap();
    let first: Vec<_> = w.offers().into_iter().map(|(c, ..)| c).collect();
    assert_eq!(first.len(), 3);
    w.send(&first[0], 1, 1).unwrap();
    let [(second, key, from)] = &w.offers()[..] else { panic!("{:?}", w.effects) };
    assert!(!first.contains(second) && *key == w.key(1, 1) && *from == model(0));
    assert!(
        w.events.iter().any(|e| matches!(e, JobEvent::Asked { client, .. } if client.as_str() == second))
    );
    // One that declines frees its place, too, and is not asked again for this attempt.
    let (client, key) = (name(&first[1]), w.key(1, 1));
    w.feed(Input::Answer { client: client.clone(), key: key.clone(), answer: Err("no".into()) }).unwrap();
    assert_eq!(w.offers().len(), 1);
    assert_eq!(w.at_work().len(), 3);
    let e = w.feed(Input::Answer { client: client.clone(), key: key.clone(), answer: Ok(()) }).unwrap_err();
    assert!(e.0.contains("goes on without") && e.0.ends_with("no"), "{e}");
    w.send(&first[2], 1, 1).unwrap();
    w.finish(1, 1);
    assert!(w.at_work().iter().any(|(_, round, _)| *round == 2), "{:?}", w.at_work());
    assert_eq!(w.at_work().len(), 3);
}

#[test]
fn who_would_come_too_late_is_told_early_and_why() {
    let mut w = world(RULE, NONE, 5, &["a", "b", "slow"]);
    w.feed(Input::Sessions).unwrap();
    for round in 1..=3 {
        w.send("a", round, 1).unwrap();
        w.send("b", round, 1).unwrap();
        if round == 3 {
            // The fourth round would be three models away: known when the third is full.
            let [(client, reason)] = &w.withdrawn()[..] else { panic!("{:?}", w.effects) };
            assert_eq!(client, "slow");
            assert!(reason.contains("3 models ago") && reason.contains("older than 2"), "{reason}");
        } else {
            assert!(w.withdrawn().is_empty());
        }
        w.finish(round, 1);
    }
    let late = w.feed(arrival(w.key(1, 1), sent("slow", 1, 1))).unwrap_err();
    assert!(late.0.contains("it is at work for") || late.0.contains("slow is at work for"), "{late}");
    // Asked anew from the newest model, at once.
    assert!(w.at_work().contains(&("slow", 4, 1)), "{:?}", w.at_work());
    assert!(w.state.expects(&w.id, &name("slow"), &w.key(1, 1)).is_err());
    assert!(w.state.expects(&w.id, &name("slow"), &w.key(4, 1)).is_ok());
}

#[test]
fn a_client_that_stalls_or_stays_away_frees_its_place_by_its_own_clock() {
    let mut w = world(RULE, NONE, 3, &["a", "b", "c", "d"]);
    w.feed(Input::Sessions).unwrap();
    let first: Vec<_> = w.offers().into_iter().map(|(c, ..)| c).collect();
    w.now_ms = 40_000;
    w.send(&first[0], 1, 1).unwrap();
    let fourth = w.offers()[0].0.clone();
    assert_eq!(w.state.wake_at_ms(&w.job), Some(100_000));
    w.now_ms = 100_000;
    w.feed(Input::Tick).unwrap();
    let late: BTreeSet<_> = w.withdrawn().into_iter().map(|(c, _)| c).collect();
    assert_eq!(late, first[1..].iter().cloned().collect());
    assert_eq!(w.at_work(), [(fourth.as_str(), 1, 1)]);
    assert_eq!(w.state.wake_at_ms(&w.job), Some(140_000), "the fourth has its own deadline");
    let e = w.send(&first[1], 1, 1).unwrap_err();
    assert!(e.0.contains("by its deadline"), "{e}");
    // Its session breaks: it has the time to reconnect, then its place is free.
    let here = w.trainers.clone();
    w.trainers.retain(|c| c.as_str() != fourth);
    w.feed(Input::Sessions).unwrap();
    assert_eq!(w.state.wake_at_ms(&w.job), Some(110_000));
    w.now_ms = 109_000;
    w.trainers = here;
    w.feed(Input::Sessions).unwrap();
    assert_eq!(w.offers().len(), 1, "asked again for the same");
    w.send(&fourth, 1, 1).unwrap();
    assert_eq!(w.state.status(), "releasing");
}

#[test]
fn a_restart_leaves_clients_at_work() {
    let mut w = world(RULE, NONE, 3, &["a", "b", "slow"]);
    w.feed(Input::Sessions).unwrap();
    w.send("a", 1, 1).unwrap();
    let everyone = std::mem::take(&mut w.trainers);
    w.now_ms = 99_000;
    w.feed(Input::Recovered).unwrap();
    assert_eq!(w.at_work(), [("b", 1, 1), ("slow", 1, 1)]);
    w.trainers = everyone;
    w.now_ms = 105_000;
    w.feed(Input::Missed).unwrap();
    let offered = w.offers();
    assert_eq!(offered, [("b".into(), w.key(1, 1), model(0)), ("slow".into(), w.key(1, 1), model(0))]);
    w.send("b", 1, 1).unwrap();
    // While it is released without noise of ours: the same sum again, and the slow one is still at work.
    let ordered = w.ordered();
    w.feed(Input::Recovered).unwrap();
    assert_eq!(w.ordered(), ordered);
    w.send("slow", 1, 1).unwrap();
    let key = w.key(1, 1);
    w.feed(Input::Released { key: key.clone(), model: model(1), carried: Carried::default() }).unwrap();
    w.feed(Input::Recovered).unwrap();
    assert!(w.effects.iter().any(|e| matches!(e, Effect::Publish { .. })));
    w.feed(Input::Published { key, sent_bytes: 0 }).unwrap();
    w.feed(Input::Sessions).unwrap();
    w.send("a", 2, 1).unwrap();
    assert_eq!(w.ordered(), [("slow".into(), 1, 46_341), ("a".into(), 2, 65_536)]);
    // An older attempt's client is asked again under that attempt, whose release is out.
    let mut w = world(RULE, NONE, 3, &["a", "b", "slow"]);
    w.feed(Input::Sessions).unwrap();
    w.send("a", 1, 1).unwrap();
    w.send("b", 1, 1).unwrap();
    w.finish(1, 1);
    w.feed(Input::Connected { client: name("slow") }).unwrap();
    assert_eq!(w.offers(), [("slow".into(), w.key(1, 1), model(0))]);
}

/// A release that failed takes its updates with it: the same would fail again, or be drawn over twice. What was not in it stays.
#[test]
fn what_a_failed_release_was_over_never_comes_back() {
    for (privacy, restart) in [(NONE.to_owned(), false), (central(), false), (central(), true)] {
        let mut w = world(RULE, &privacy, 3, &["a", "b", "c"]);
        w.feed(Input::Sessions).unwrap();
        w.send("a", 1, 1).unwrap();
        w.send("b", 1, 1).unwrap();
        w.send("c", 1, 1).unwrap();
        let burnt: BTreeSet<_> = [sent("a", 1, 1), sent("b", 1, 1)].iter().map(|u| u.blob).collect();
        w.feed(match restart {
            true => Input::Recovered,
            false => Input::ReleaseFailed { key: w.key(1, 1), reason: "disk".into(), is_final: false },
        })
        .unwrap();
        assert_eq!(w.discarded(), burnt);
        assert!(matches!(w.ledger.entries()[0].state, EntryState::Burnt { .. }));
        assert!(w.send("a", 1, 1).is_err(), "it is not taken a second time");
        w.now_ms += 20_000;
        w.feed(Input::Sessions).unwrap();
        assert_eq!(w.at_work(), [("a", 1, 2), ("b", 1, 2)]);
        w.send("b", 1, 2).unwrap();
        assert_eq!(w.ordered(), [("c".into(), 1, 65_536), ("b".into(), 1, 65_536)]);
        w.finish(1, 2);
        assert_eq!(w.state.released, 1);
    }
}

#[test]
fn nobody_left_to_ask_waits_and_a_new_attempt_asks_those_who_failed() {
    let mut w = world(RULE, NONE, 3, &["a", "b"]);
    w.feed(Input::Sessions).unwrap();
    assert_eq!(w.state.status(), "waiting", "the third place may be filled");
    w.now_ms = 10_000;
    w.feed(Input::Tick).unwrap();
    w.send("a", 1, 1).unwrap();
    w.trainers.pop();
    w.feed(Input::Sessions).unwrap();
    w.now_ms = 20_000;
    w.feed(Input::Tick).unwrap();
    assert!(w.at_work().is_empty());
    assert!(
        matches!(w.events.last(), Some(JobEvent::Waiting { present: 1, needed: 2, .. })),
        "{:?}",
        w.events
    );
    assert_eq!(w.state.wake_at_ms(&w.job), Some(70_000));
    // It comes back: it is out of this attempt, and the next one asks it. What came in stays.
    w.trainers.push(name("b"));
    w.feed(Input::Connected { client: name("b") }).unwrap();
    assert!(w.events.iter().any(|e| matches!(e, JobEvent::Aborted { .. })));
    w.now_ms += 1_000;
    w.feed(Input::Tick).unwrap();
    assert_eq!(w.at_work(), [("b", 1, 2)]);
    w.send("b", 1, 2).unwrap();
    assert_eq!(w.ordered().len(), 2);
    w.finish(1, 2);
    // Nobody comes any more.
    w.trainers.clear();
    w.feed(Input::Sessions).unwrap();
    w.now_ms += 10_000;
    w.feed(Input::Tick).unwrap();
    w.now_ms += 50_000;
    w.feed(Input::Tick).unwrap();
    let Some(Outcome::Failed { reason }) = w.outcome() else { panic!("{:?}", w.state) };
    assert!(reason.contains("0 of 2 updates") && reason.contains("[cohort] buffer"), "{reason}");
}

#[test]
fn too_few_clients_for_a_buffer_never_begin() {
    let mut w = world(RULE, NONE, 3, &["a"]);
    w.feed(Input::Sessions).unwrap();
    w.now_ms = 10_000;
    w.feed(Input::Tick).unwrap();
    assert_eq!(w.events, [JobEvent::Waiting { round: Round(1), present: 1, needed: 2 }]);
    assert!(w.ledger.entries().is_empty());
    w.now_ms = 50_000;
    w.feed(Input::Tick).unwrap();
    let Some(Outcome::Failed { reason }) = w.outcome() else { panic!("{:?}", w.state) };
    assert!(reason.contains("only 1 of the 2") && reason.contains("lower [cohort] buffer"), "{reason}");
}

#[test]
fn another_update_under_the_same_attempt_is_refused_in_any_phase() {
    let mut w = world(RULE, NONE, 3, &["a", "b", "c"]);
    w.feed(Input::Sessions).unwrap();
    w.send("a", 1, 1).unwrap();
    let other = Update { blob: Digest::of(b"other"), ..sent("a", 1, 1) };
    let heavier = Update { weight: 2, ..sent("a", 1, 1) };
    for phase in ["collecting", "releasing"] {
        assert_eq!(w.state.status(), phase);
        for wrong in [&other, &heavier] {
            let e = w.feed(arrival(w.key(1, 1), wrong.clone())).unwrap_err();
            assert!(e.0.contains("counts already"), "{e}");
        }
        w.send("a", 1, 1).unwrap();
        assert_eq!(w.state.expects(&w.id, &name("a"), &w.key(1, 1)), Ok(None));
        w.send("b", 1, 1).unwrap();
    }
    assert!(w.send("z", 1, 1).unwrap_err().0.contains("never asked"));
    assert!(w.send("c", 2, 1).unwrap_err().0.contains("c is at work for"));
}

#[test]
fn an_end_takes_everybody_from_work_and_forgets_everything() {
    let spent = CENTRAL.replace("BUDGET", "8.0");
    for (privacy, rounds) in [(NONE, 3), (&*central(), 3), (&*spent, 2)] {
        let mut w = world(RULE, privacy, rounds, &["a", "b", "slow"]);
        w.feed(Input::Sessions).unwrap();
        w.send("a", 1, 1).unwrap();
        w.send("b", 1, 1).unwrap();
        w.finish(1, 1);
        w.send("a", 2, 1).unwrap();
        w.feed(Input::Cancel { by: "op".into(), reason: "typo".into() }).unwrap();
        assert_eq!(w.outcome().unwrap().status(), "cancelled");
        let gone: Vec<_> = w.withdrawn().into_iter().map(|(c, _)| c).collect();
        assert_eq!(gone, ["b", "slow"]);
        assert_eq!(w.discarded(), [sent("a", 2, 1).blob].into());
        let forgotten = w.effects.iter().filter(|e| matches!(e, Effect::Forget { .. })).count();
        assert_eq!(forgotten, 2, "the first attempt, for the slow one, and the second: {:?}", w.effects);
        assert_eq!(w.state.pool, Pool::default());
        assert!(w.send("b", 2, 1).unwrap_err().0.contains("has ended"));
    }
    // A budget that is spent ends it between two rounds: a burnt attempt cost as much as a round.
    let mut w = world(RULE, &spent, 2, &["a", "b", "slow"]);
    w.feed(Input::Sessions).unwrap();
    w.send("a", 1, 1).unwrap();
    w.send("b", 1, 1).unwrap();
    w.feed(Input::ReleaseFailed { key: w.key(1, 1), reason: "disk".into(), is_final: false }).unwrap();
    w.now_ms += 1_000;
    w.feed(Input::Sessions).unwrap();
    w.send("a", 1, 2).unwrap();
    w.send("b", 1, 2).unwrap();
    w.finish(1, 2);
    assert!(matches!(w.outcome(), Some(Outcome::BudgetSpent { .. })), "{:?}", w.state);
    assert!(w.effects.iter().all(|e| !matches!(e, Effect::Offer { .. })));
}

#[test]
fn participation_limits_hold_for_the_rounds_in_which_clients_are_asked() {
    let limited = format!("{RULE}participations = 1\nseparation = 1\n");
    let mut w = world(&limited, NONE, 3, &["a", "b", "c", "d"]);
    w.feed(Input::Sessions).unwrap();
    let first: Vec<_> = w.offers().into_iter().map(|(c, ..)| c).collect();
    w.send(&first[0], 1, 1).unwrap();
    w.send(&first[1], 1, 1).unwrap();
    w.finish(1, 1);
    assert_eq!(w.at_work().len(), 2, "the third from round 1, the fourth from then on: {:?}", w.at_work());
    let taken: BTreeSet<_> = w.state.taken_part.keys().map(|c| c.to_string()).collect();
    assert_eq!(taken, first[..2].iter().cloned().collect());
}
