//! Asynchronous rounds: the machine at the pace of the fast ones, under faults, and against a model of what it should count.

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

/// Neighbour replay, as for other cohorts: what a client sends decides nothing but the sum.
#[test]
fn what_an_update_holds_decides_nothing_but_the_sum() {
    let history = |changed: &str| {
        let mut w = world(RULE, &central(), 3, &["a", "b", "c"]);
        let mut told = vec![];
        w.feed(Input::Sessions).unwrap();
        for (client, round, released) in
            [("a", 1, 0), ("b", 1, 1), ("c", 1, 0), ("b", 2, 2), ("a", 2, 0), ("c", 3, 3)]
        {
            w.now_ms += 500;
            let suffix = if client == changed { " of a neighbour" } else { "" };
            let blob = Digest::of(format!("{client} {round}{suffix}").as_bytes());
            let update = Update { blob, ..sent(client, round, 1) };
            w.feed(arrival(w.key(round, 1), update)).unwrap();
            told.extend(w.effects.iter().map(|e| match e {
                Effect::Release { key, updates, .. } => {
                    let counted: Vec<_> = updates.iter().map(|u| (u.client.to_string(), u.weight)).collect();
                    format!("release {key} of {counted:?}")
                }
                Effect::Discard { .. } => "discard".into(),
                other => format!("{other:?}"),
            }));
            told.push(format!("{:?}", w.state.wake_at_ms(&w.job)));
            if released > 0 {
                w.finish(released, 1);
            }
        }
        assert_eq!(w.outcome(), Some(&Outcome::Completed));
        (told, w.events, w.ledger)
    };
    let one = history("");
    for changed in ["a", "b", "c"] {
        assert_eq!(one, history(changed), "{changed}");
    }
}

/// What a test knows of a run by itself: from what was offered, acknowledged and released, not from the machine's books.
#[derive(Default)]
struct Books {
    /// By client: the attempt it was asked in, and how many models were out by then.
    asked: BTreeMap<String, (AttemptKey, u32)>,
    accepted: BTreeMap<(String, AttemptKey), u32>,
    counted: BTreeSet<(String, AttemptKey)>,
    /// Of the release under way.
    ordered: Vec<(String, AttemptKey)>,
    /// Whose work for an attempt is over.
    left: BTreeSet<(String, AttemptKey)>,
    /// Lost with releases that failed.
    burnt: BTreeSet<(String, AttemptKey)>,
}

impl Books {
    fn note(&mut self, w: &World, max_staleness: u32) -> Result<(), TestCaseError> {
        for (client, key, from) in w.offers() {
            prop_assert!(!self.left.contains(&(client.clone(), key.clone())), "{} twice for {}", client, key);
            let again = self.asked.get(&client).is_some_and(|(before, _)| *before == key);
            if !again {
                prop_assert_eq!(from, w.state.model, "the newest model");
                self.asked.insert(client, (key, w.state.released));
            }
        }
        for effect in &w.effects {
            if let Effect::Withdraw { client, key, .. } = effect {
                self.left.insert((client.to_string(), key.clone()));
            }
            if let Effect::Release { key, updates, .. } = effect {
                self.ordered.clear();
                prop_assert_eq!(updates.len(), 2);
                let clients: BTreeSet<_> = updates.iter().map(|u| &u.client).collect();
                prop_assert_eq!(clients.len(), 2, "one update of a client");
                for update in updates {
                    let name = (update.client.to_string(), update.asked_in(key));
                    let out = self.accepted.get(&name).copied();
                    prop_assert!(out.is_some(), "{:?} was never acknowledged", name);
                    let age = w.state.released - out.unwrap();
                    prop_assert!(age <= max_staleness);
                    let wanted = (65_536.0 / f64::from(1 + age).sqrt()).round() as u32;
                    prop_assert_eq!(update.weight, wanted);
                    prop_assert!(!self.counted.contains(&name) && !self.burnt.contains(&name));
                    self.ordered.push(name);
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever happens in whatever order, with restarts and drops at any time: each step keeps the invariants (`feed` looks),
    /// every update that was acknowledged is counted once, burnt with its release, or still waits, and a job whose clients
    /// come back comes to its end.
    #[test]
    fn every_accepted_update_counts_once(
        inputs in prop::collection::vec((0u8..20, 0usize..6, 0u64..9_000), 0..160),
        is_central in any::<bool>(),
        concurrency in 1u32..6,
        max_staleness in 0u32..3,
    ) {
        let names = ["a", "b", "c", "d", "e", "f"];
        let rule = RULE.replace("concurrency = 3", &format!("concurrency = {concurrency}"));
        let rule = rule.replace("max_staleness = 2", &format!("max_staleness = {max_staleness}"));
        let privacy = if is_central { CENTRAL.replace("BUDGET", "1000.0") } else { NONE.into() };
        let mut w = world(&rule, &privacy, 6, &names);
        let mut books = Books::default();
        let mut ended = None;
        let finishing = (0..600).map(|n| (if n % 4 == 0 { 21 } else { 20 }, n % 6, 1_500));
        for (kind, who, wait) in inputs.into_iter().chain(finishing) {
            w.now_ms += wait;
            let client = name(names[who]);
            let asked = books.asked.get(names[who]).cloned();
            let current = match &w.state.phase {
                Phase::Releasing(p) => w.key(p.round.0, p.attempt.0),
                Phase::Publishing(p) => w.key(p.round.0, p.attempt.0),
                _ => w.key(1, 1),
            };
            let is_releasing = w.state.is_releasing(&current);
            let key = asked.as_ref().map_or(w.key(1, 1), |(key, _)| key.clone());
            let fresh = sent(names[who], key.round.0, key.attempt.0);
            let input = match kind {
                0 => Input::Recovered,
                1 => Input::Tick,
                2 => Input::Missed,
                3 => Input::Connected { client },
                4 => Input::Answer { client, key: key.clone(), answer: Err("no".into()) },
                5 => Input::Failure { client, key: key.clone(), reason: "x".into() },
                6 => Input::BadUpdate { client, key: key.clone(), reason: "x".into() },
                7 => arrival(key.clone(), Update { blob: Digest::of(b"other"), ..fresh }),
                8 => Input::ReleaseFailed { key: current.clone(), reason: "x".into(), is_final: false },
                9 | 10 => {
                    match w.trainers.iter().position(|c| *c == client) {
                        Some(place) => drop(w.trainers.remove(place)),
                        None => w.trainers.push(client),
                    }
                    Input::Sessions
                }
                11 | 12 => Input::Released { key: current.clone(), model: model(current.round.0 as u8), carried: Carried::default() },
                13 => Input::Published { key: current.clone(), sent_bytes: 0 },
                // Everybody comes back, and what can go on does.
                21 if is_releasing => Input::Released { key: current.clone(), model: model(current.round.0 as u8), carried: Carried::default() },
                21 if matches!(w.state.phase, Phase::Publishing(_)) => Input::Published { key: current.clone(), sent_bytes: 0 },
                21 => {
                    w.trainers = names.map(name).to_vec();
                    Input::Sessions
                }
                _ => arrival(key.clone(), fresh),
            };
            let was_over = w.outcome().is_some();
            let fed = w.feed(input.clone());
            if let Input::Update { update, .. } = &input
                && fed.is_ok()
                && !was_over
                && update.blob != Digest::of(b"other")
            {
                let (_, out) = asked.clone().unwrap();
                let first = books.accepted.insert((names[who].into(), key.clone()), out);
                prop_assert!(first.is_none_or(|before| before == out));
            }
            // A conflicting one that came first is as good as any.
            if let Input::Update { update, .. } = &input
                && fed.is_ok()
                && update.blob == Digest::of(b"other")
            {
                books.accepted.insert((names[who].into(), key.clone()), asked.clone().unwrap().1);
            }
            if fed.is_ok()
                && asked.is_some()
                && let Input::Answer { .. } | Input::Failure { .. } | Input::BadUpdate { .. } | Input::Update { .. } = &input
            {
                books.left.insert((names[who].into(), key.clone()));
            }
            books.note(&w, max_staleness)?;
            if is_releasing && !w.state.is_releasing(&current) {
                let done = std::mem::take(&mut books.ordered);
                if matches!(w.state.phase, Phase::Publishing(_)) {
                    books.counted.extend(done);
                } else {
                    books.burnt.extend(done);
                }
            }
            // Nothing that was acknowledged is missing.
            if w.outcome().is_none() && !matches!(w.state.phase, Phase::Closing(_)) {
                let held: BTreeSet<_> = w.state.held().map(|u| (u.client.to_string(), u.asked_in(&current))).collect();
                let known = &books.counted | &books.burnt;
                prop_assert!(held.is_disjoint(&known));
                let all: BTreeSet<_> = books.accepted.keys().cloned().collect();
                prop_assert_eq!(&(&held | &known), &all);
            } else {
                ended = ended.or(w.outcome().cloned());
            }
        }
        let outcome = w.outcome();
        prop_assert!(outcome.is_some(), "{:?}", w.state);
        prop_assert_eq!(outcome, ended.as_ref());
        if let Some(Outcome::Completed) = outcome {
            prop_assert_eq!(books.counted.len(), 12, "six releases of two");
        }
        let published = w.ledger.entries().iter().filter(|e| matches!(e.state, EntryState::Published { .. })).count();
        prop_assert_eq!(published as u32, w.state.released);
        prop_assert_eq!(books.counted.len() as u32, 2 * w.state.released);
    }
}

/// What a client at work was offered stays readable and durable until nobody works from it, and no longer.
#[test]
fn a_version_is_kept_as_long_as_somebody_works_from_it() {
    let blob = |n: u8| BlobRef { digest: Digest::of(&[100, n]), bytes: 5 };
    let carried = |n: u8| Carried {
        broadcast: Some(Broadcast {
            version: Digest::of(&[200, n]),
            whole: Some(blob(n)),
            delta: Some(Delta { base: Digest::of(&[201, n]), blob: blob(n + 50) }),
            frozen: Some(Frozen { digest: Digest::of(b"values"), blob: blob(99) }),
        }),
        ..Carried::default()
    };
    let mut w = world(RULE, NONE, 3, &["a", "b", "slow"]);
    w.state.carried = carried(0);
    w.feed(Input::Sessions).unwrap();
    for round in 1..=2 {
        w.send("a", round, 1).unwrap();
        w.send("b", round, 1).unwrap();
        let key = w.key(round, 1);
        let model = model(round as u8);
        w.feed(Input::Released { key: key.clone(), model, carried: carried(round as u8) }).unwrap();
        // Of the first version the slow one is still at work; of the second nobody is.
        let gone: &[u8] = if round == 1 { &[] } else { &[1, 51] };
        let gone: BTreeSet<_> = gone.iter().map(|n| blob(*n).digest).collect();
        let versions = (0..=2).flat_map(|n| [blob(n).digest, blob(n + 50).digest]);
        // What is frozen is of all of them.
        let versions = versions.chain([blob(99).digest]).collect();
        let discarded: BTreeSet<_> = w.discarded().intersection(&versions).copied().collect();
        assert_eq!(discarded, gone, "round {round}");
        w.feed(Input::Published { key, sent_bytes: 0 }).unwrap();
        w.feed(Input::Sessions).unwrap();
    }
    let readable = |client: &str, n: u8| w.state.readable(&name(client), &blob(n).digest);
    assert_eq!((readable("slow", 0), readable("slow", 50), readable("slow", 2)), (Some(5), Some(5), None));
    assert_eq!((readable("a", 2), readable("a", 52), readable("a", 0)), (Some(5), Some(5), None));
    assert_eq!((readable("slow", 99), readable("a", 99)), (Some(5), Some(5)));
    for n in [0, 50, 2, 52, 99] {
        assert!(w.state.blobs().contains(&blob(n).digest));
    }
    w.feed(Input::Connected { client: name("slow") }).unwrap();
    let again = w.effects.iter().find_map(|e| match e {
        Effect::Offer { broadcast, .. } => *broadcast,
        _ => None,
    });
    assert_eq!(again, carried(0).broadcast, "asked again from the same bytes");
    w.send("slow", 1, 1).unwrap();
    assert!(w.discarded().is_superset(&BTreeSet::from([blob(0).digest, blob(50).digest])));
    assert!(!w.discarded().contains(&blob(99).digest));
}

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

/// A version with all that it can have beside it.
fn broadcast(round: u8) -> Broadcast {
    let blob = |what: &str| BlobRef { digest: digest(&format!("{what} {round}")), bytes: 40_000_000_000 };
    Broadcast {
        version: digest(&format!("version {round}")),
        whole: Some(blob("whole")),
        delta: Some(Delta { base: digest("base"), blob: blob("delta") }),
        frozen: Some(Frozen { digest: digest("frozen"), blob: blob("frozen") }),
    }
}

fn state_bytes(w: &World) -> usize {
    serde_json::to_vec(&w.state).unwrap().len()
}

/// Every step writes the whole state: a client at work is a line of numbers, whatever the model is sent as.
#[test]
fn the_state_has_a_bound_for_each_client_at_work() {
    // Of which the name, in quotes, is 12.
    const MOST: usize = 80;
    let rule = |places: u32| RULE.replace("concurrency = 3", &format!("concurrency = {places}"));
    let clients: Vec<String> = (0..300).map(|i| format!("client-{i:03}")).collect();
    let clients: Vec<&str> = clients.iter().map(String::as_str).collect();
    let begun = |places: u32| {
        let mut w = world(&rule(places), NONE, 3, &clients);
        w.now_ms = 1_700_000_000_000;
        w.state = JobState::new(w.state.model, w.now_ms);
        w.state.carried.broadcast = Some(broadcast(0));
        w.feed(Input::Sessions).unwrap();
        assert_eq!(w.at_work().len(), places as usize);
        w
    };
    let (few, many) = (state_bytes(&begun(50)), state_bytes(&begun(250)));
    let each = (many - few) / 200;
    assert!(each <= MOST, "{each} bytes for each client at work");
    // Away, with times of today: the longest that a record gets.
    let mut w = begun(250);
    let here = std::mem::take(&mut w.trainers);
    w.feed(Input::Sessions).unwrap();
    let away = (state_bytes(&w) - many) / 250;
    assert!(away <= 36, "{away} bytes more for each client that is away");
    w.trainers = here;
    w.feed(Input::Sessions).unwrap();
    // Each round that somebody was asked in adds one version, and one that nobody works from any more goes.
    let before = state_bytes(&w);
    let first: Vec<_> = w.at_work().iter().map(|(c, ..)| c.to_string()).collect();
    w.send(&first[0], 1, 1).unwrap();
    w.send(&first[1], 1, 1).unwrap();
    let carried = Carried { broadcast: Some(broadcast(1)), ..Carried::default() };
    let key = w.key(1, 1);
    w.feed(Input::Released { key: key.clone(), model: model(1), carried }).unwrap();
    w.feed(Input::Published { key, sent_bytes: 0 }).unwrap();
    w.feed(Input::Sessions).unwrap();
    let rounds: BTreeSet<_> = w.at_work().iter().map(|(_, round, _)| *round).collect();
    assert_eq!(rounds, [1, 2].into());
    let version = serde_json::to_vec(&broadcast(0)).unwrap().len() + 200;
    assert!(state_bytes(&w) < before + version + 2 * MOST, "{} after {before}", state_bytes(&w));
    assert_eq!(w.state.pool.broadcasts().count(), 2);
    let read: JobState = serde_json::from_slice(&serde_json::to_vec(&w.state).unwrap()).unwrap();
    assert_eq!(read, w.state);
}

/// A state that was written before versions had a table of their own.
#[test]
fn an_older_state_is_read_and_goes_on() {
    let mut w = world(RULE, NONE, 3, &["a", "b", "slow"]);
    w.state.carried.broadcast = Some(broadcast(0));
    w.feed(Input::Sessions).unwrap();
    let mut old = serde_json::to_value(&w.state).unwrap();
    let version = old["pool"].as_object_mut().unwrap().remove("versions").unwrap()["1"].clone();
    for work in old["pool"]["at_work"].as_object_mut().unwrap().values_mut() {
        let work = work.as_object_mut().unwrap();
        work.insert("model".into(), version["model"].clone());
        work.insert("broadcast".into(), version["broadcast"].clone());
    }
    assert_eq!(serde_json::from_value::<JobState>(old.clone()).unwrap(), w.state);
    w.state = serde_json::from_value(old.clone()).unwrap();
    let offered = |w: &World| w.state.readable(&name("slow"), &broadcast(0).delta.unwrap().blob.digest);
    assert_eq!(offered(&w), Some(40_000_000_000));
    w.send("a", 1, 1).unwrap();
    w.send("b", 1, 1).unwrap();
    w.finish(1, 1);
    assert!(offered(&w).is_some(), "the slow one still works from it");
    w.send("slow", 1, 1).unwrap();
    assert!(
        w.discarded().is_superset(&broadcast(0).blobs().collect()),
        "nobody does any more: {:?}",
        w.effects
    );
    // What no version of the program can have written is not guessed at.
    let mut lost = serde_json::to_value(&w.state).unwrap();
    lost["pool"]["versions"] = serde_json::json!({});
    let e = serde_json::from_value::<JobState>(lost).unwrap_err().to_string();
    assert!(e.contains("is not there"), "{e}");
    old["pool"]["at_work"]["a"]["model"]["bytes"] = 1.into();
    let e = serde_json::from_value::<JobState>(old).unwrap_err().to_string();
    assert!(e.contains("another model"), "{e}");
}
