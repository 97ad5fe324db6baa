//! Restarts, cancelling, and time that went by without the coordinator.

use super::*;

#[test]
fn a_restart_while_noise_is_drawn_is_a_spent_attempt() {
    let mut w = World::new(&CENTRAL.replace("BUDGET", "100.0"));
    w.feed(Input::Sessions).unwrap();
    w.deliver(&["a", "b", "c"], 1, 1);
    w.feed(Input::Recovered).unwrap();
    assert!(w.events.iter().any(|e| matches!(e, JobEvent::Aborted { .. })));
    let burnt = w.ledger.entries().iter().any(|e| matches!(e.state, EntryState::Burnt { .. }));
    assert!(burnt);
    let after_one = w.ledger.spent(w.job.contract()).unwrap();
    w.now_ms += 1_000;
    w.feed(Input::Sessions).unwrap();
    assert!(w.ledger.spent(w.job.contract()).unwrap() > after_one);
}

#[test]
fn a_restart_elsewhere_goes_on() {
    // While collecting: everyone is away until it comes back.
    let mut w = World::new(NONE);
    w.feed(Input::Sessions).unwrap();
    w.deliver(&["a"], 1, 1);
    let everyone = std::mem::take(&mut w.trainers);
    w.feed(Input::Recovered).unwrap();
    w.trainers = everyone;
    for c in ["a", "b", "c"] {
        w.feed(Input::Connected { client: name(c) }).unwrap();
    }
    // So much happened at once that nobody knows who came and left: all are asked again.
    w.feed(Input::Missed).unwrap();
    assert_eq!(w.effects.len(), 2, "{:?}", w.effects);
    w.deliver(&["b", "c"], 1, 1);
    // While releasing without noise of ours: the same sum again.
    w.feed(Input::Recovered).unwrap();
    assert!(matches!(w.effects[..], [Effect::Release { .. }]));
    w.feed(Input::Released { key: w.key(1, 1), model: model(1), carried: Carried::default() }).unwrap();
    // While publishing: the same bytes again.
    w.feed(Input::Recovered).unwrap();
    assert!(matches!(w.effects[..], [Effect::Publish { model: m, .. }] if m == model(1)));
}

#[test]
fn cancelling_ends_in_any_phase_and_burns_what_was_reserved() {
    let mut w = World::new(&CENTRAL.replace("BUDGET", "100.0"));
    w.feed(Input::Sessions).unwrap();
    w.feed(Input::Cancel { by: "op".into(), reason: "typo".into() }).unwrap();
    assert_eq!(w.outcome().unwrap().status(), "cancelled");
    assert_eq!(w.effects.iter().filter(|e| matches!(e, Effect::Withdraw { .. })).count(), 3);
    assert!(matches!(w.ledger.entries()[0].state, EntryState::Burnt { .. }));
    assert!(w.feed(Input::Cancel { by: "op".into(), reason: "again".into() }).is_err());
}

#[test]
fn cancelling_the_last_attempt_ends_the_job_once() {
    let mut w = World::new(NONE);
    w.feed(Input::Sessions).unwrap();
    for c in ["a", "b"] {
        let (client, key) = (name(c), w.key(1, 1));
        w.feed(Input::Failure { client, key, reason: "x".into() }).unwrap();
    }
    w.now_ms += 1_000;
    w.feed(Input::Tick).unwrap();
    assert_eq!(w.state.status(), "collecting");
    w.feed(Input::Cancel { by: "op".into(), reason: "enough".into() }).unwrap();
    assert_eq!(w.events.iter().filter(|e| matches!(e, JobEvent::Ended { .. })).count(), 1);
    assert_eq!(w.outcome().unwrap().status(), "cancelled");
}

#[test]
fn time_that_the_coordinator_was_away_is_held_against_nobody() {
    let mut w = World::new(NONE);
    let everyone = std::mem::take(&mut w.trainers);
    w.now_ms = 1_000_000;
    w.feed(Input::Recovered).unwrap();
    w.feed(Input::Sessions).unwrap();
    assert_eq!(w.state.status(), "waiting");
    w.trainers = everyone.clone();
    w.feed(Input::Sessions).unwrap();
    assert_eq!(w.state.status(), "collecting");
    w.trainers.clear();
    w.now_ms = 2_000_000;
    w.feed(Input::Recovered).unwrap();
    w.trainers = everyone;
    for c in ["a", "b", "c"] {
        w.feed(Input::Connected { client: name(c) }).unwrap();
    }
    w.deliver(&["a", "b", "c"], 1, 1);
    assert_eq!(w.state.status(), "releasing");

    // The evaluators' time for the last model, and the whole cohort's time to come back in any round.
    let mut w = World::new(NONE);
    w.enrol_evaluator();
    w.round(1);
    let everyone = std::mem::take(&mut w.trainers);
    w.feed(Input::Recovered).unwrap();
    w.trainers = everyone[..2].to_vec();
    w.feed(Input::Sessions).unwrap();
    assert_eq!(w.state.status(), "waiting", "the third may come back too");
    w.trainers = everyone;
    w.round(2);
    w.now_ms += 1_000_000;
    w.feed(Input::Recovered).unwrap();
    w.feed(Input::Tick).unwrap();
    assert_eq!(w.state.status(), "closing");
    w.measured(2);
    assert_eq!(w.outcome(), Some(&Outcome::Completed));
}
