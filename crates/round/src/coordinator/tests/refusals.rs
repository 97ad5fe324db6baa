//! Updates that count and those that do not, and rounds that go on without somebody.

use super::*;

#[test]
fn an_update_counts_once_and_another_is_refused() {
    let mut w = World::new(NONE);
    w.feed(Input::Sessions).unwrap();
    w.deliver(&["a", "a"], 1, 1);
    assert_eq!(w.events.iter().filter(|e| matches!(e, JobEvent::Received { .. })).count(), 1);
    let other = Update { client: name("a"), blob: Digest::of(b"other"), bytes: 8, weight: 1, origin: None };
    let refused = w.feed(arrival(w.key(1, 1), other)).unwrap_err();
    assert!(refused.0.contains("counts in round 1 already"), "{refused}");
    let stranger = w.update("z", 1, 1);
    assert!(w.feed(stranger).unwrap_err().0.contains("was not asked"));
    let late = w.update("b", 1, 9);
    assert!(w.feed(late).unwrap_err().0.contains("is over"));
}

#[test]
fn between_rounds_no_update_is_acknowledged() {
    let mut w = World::new(NONE);
    w.enrol_evaluator();
    let early = w.update("a", 1, 1);
    assert!(w.feed(early).unwrap_err().0.contains("never asked"));
    w.round(1);
    assert_eq!(w.state.status(), "waiting");
    let late = w.update("a", 1, 1);
    assert!(w.feed(late.clone()).unwrap_err().0.contains("is over"));
    w.round(2);
    assert_eq!(w.state.status(), "closing");
    assert!(w.feed(late).unwrap_err().0.contains("is over"));
}

#[test]
fn the_round_goes_on_without_a_client_that_declines_fails_or_leaves() {
    let mut w = World::new(NONE);
    w.feed(Input::Sessions).unwrap();
    w.deliver(&["a", "b"], 1, 1);
    w.feed(Input::Answer { client: name("c"), key: w.key(1, 1), answer: Err("no".into()) }).unwrap();
    assert_eq!(w.state.status(), "releasing");

    let mut w = World::new(NONE);
    w.feed(Input::Sessions).unwrap();
    w.deliver(&["a", "b"], 1, 1);
    w.trainers.pop();
    w.feed(Input::Sessions).unwrap();
    assert_eq!(w.state.wake_at_ms(&w.job), Some(10_000));
    w.now_ms = 9_999;
    w.feed(Input::Tick).unwrap();
    assert_eq!(w.state.status(), "collecting");
    w.now_ms = 10_000;
    w.feed(Input::Tick).unwrap();
    assert_eq!(w.state.status(), "releasing");
}

#[test]
fn who_comes_back_is_asked_again_and_in_time() {
    let mut w = World::new(NONE);
    w.feed(Input::Sessions).unwrap();
    w.trainers.retain(|c| c.as_str() != "c");
    w.feed(Input::Sessions).unwrap();
    w.now_ms = 5_000;
    w.trainers.push(name("c"));
    w.feed(Input::Connected { client: name("c") }).unwrap();
    assert!(matches!(&w.effects[..], [Effect::Offer { client, .. }] if *client == name("c")));
    // Also if nobody noticed that it had left.
    w.feed(Input::Connected { client: name("c") }).unwrap();
    assert_eq!(w.effects.len(), 1);
    w.now_ms = 16_000;
    w.feed(Input::Tick).unwrap();
    assert_eq!(w.state.status(), "collecting");
}

#[test]
fn too_few_abort_and_the_last_attempt_fails_the_job() {
    let mut w = World::new(NONE);
    w.feed(Input::Sessions).unwrap();
    for (attempt, wait) in [(1, 1_000), (2, 0)] {
        for c in ["a", "b"] {
            let (client, key) = (name(c), w.key(1, attempt));
            w.feed(Input::Failure { client, key, reason: "no torch".into() }).unwrap();
        }
        w.now_ms += wait;
        w.feed(Input::Tick).unwrap();
    }
    let Some(Outcome::Failed { reason }) = w.outcome() else { panic!("{:?}", w.state) };
    assert!(reason.contains("failed 2 times") && reason.contains("2 needed"), "{reason}");
}

#[test]
fn waiting_is_announced_once_and_ends() {
    let mut w = World::new(NONE);
    w.trainers.truncate(1);
    for now_ms in [0, 10_000, 20_000] {
        w.now_ms = now_ms;
        w.feed(Input::Tick).unwrap();
    }
    assert_eq!(w.events, [JobEvent::Waiting { round: Round(1), present: 1, needed: 2 }]);
    assert_eq!(w.state.wake_at_ms(&w.job), Some(50_000));
    w.now_ms = 50_000;
    w.feed(Input::Tick).unwrap();
    assert!(matches!(w.outcome(), Some(Outcome::Failed { .. })));
}

#[test]
fn the_first_offer_waits_a_little_for_everyone() {
    let mut w = World::new(NONE);
    let c = w.trainers.pop().unwrap();
    w.feed(Input::Sessions).unwrap();
    assert_eq!(w.state.status(), "waiting");
    assert_eq!(w.state.wake_at_ms(&w.job), Some(10_000));
    w.trainers.push(c.clone());
    w.feed(Input::Connected { client: c }).unwrap();
    assert_eq!(w.state.status(), "collecting");
}

#[test]
fn a_spent_budget_ends_the_job_before_anyone_is_asked() {
    // Two central rounds at z = 1, delta = 1e-5 cost between 6 and 8: as planned, they fit. A failed attempt costs too.
    let mut w = World::new(&CENTRAL.replace("BUDGET", "8.0"));
    w.feed(Input::Sessions).unwrap();
    for c in ["a", "b"] {
        let (client, key) = (name(c), w.key(1, 1));
        w.feed(Input::Failure { client, key, reason: "no torch".into() }).unwrap();
    }
    w.now_ms += 1_000;
    w.feed(Input::Tick).unwrap();
    w.deliver(&["a", "b", "c"], 1, 2);
    w.release(1, 2);
    let spent = w.ledger.spent(w.job.contract()).unwrap();
    assert!((6.0..=8.0).contains(&spent), "{spent}");
    w.feed(Input::Sessions).unwrap();
    assert!(matches!(w.outcome(), Some(Outcome::BudgetSpent { .. })), "{:?}", w.state);
    assert!(w.effects.is_empty());
    assert_eq!(w.ledger.spent(w.job.contract()), Some(spent));
}
