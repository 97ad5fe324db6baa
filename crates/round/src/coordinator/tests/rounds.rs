//! Whole rounds: who is asked, what ends one, what is measured.

use super::*;

#[test]
fn two_rounds_and_the_end() {
    let mut w = World::new(NONE);
    w.feed(Input::Sessions).unwrap();
    assert_eq!(w.effects.iter().filter(|e| matches!(e, Effect::Offer { .. })).count(), 3);
    w.deliver(&["a", "b"], 1, 1);
    assert_eq!(w.state.status(), "collecting");
    w.deliver(&["c"], 1, 1);
    assert!(matches!(&w.effects[..], [Effect::Release { updates, .. }] if updates.len() == 3));
    w.release(1, 1);
    assert_eq!((w.state.released, w.state.model), (1, model(1)));
    w.feed(Input::Sessions).unwrap();
    w.deliver(&["a", "b", "c"], 2, 1);
    w.release(2, 1);
    assert_eq!(w.outcome(), Some(&Outcome::Completed));
    let bytes = w.events.iter().filter_map(|e| match e {
        JobEvent::Released { received_bytes, sent_bytes, .. } => Some((*received_bytes, *sent_bytes)),
        _ => None,
    });
    assert_eq!(bytes.collect::<Vec<_>>(), [(Some(24), Some(640)); 2], "three updates of 8 bytes");
}

#[test]
fn nobody_is_asked_more_often_than_the_rule_allows() {
    let limited = "rule = \"all\"\nsize = 3\nmin_clients = 2\nparticipations = 1\nseparation = 1\n";
    let mut w = World::with_cohort(limited, NONE);
    w.feed(Input::Sessions).unwrap();
    w.deliver(&["a", "b"], 1, 1);
    let (client, key) = (name("c"), w.key(1, 1));
    w.feed(Input::Failure { client, key, reason: "no torch".into() }).unwrap();
    // The attempt is lost with all that was sent; in the same round the same clients may try again.
    w.feed(Input::ReleaseFailed { key: w.key(1, 1), reason: "disk".into(), is_final: false }).unwrap();
    w.now_ms += 1_000;
    w.feed(Input::Sessions).unwrap();
    let asked = |w: &World| -> Vec<String> {
        let offers = w.effects.iter().filter_map(|e| match e {
            Effect::Offer { client, .. } => Some(client.to_string()),
            _ => None,
        });
        offers.collect()
    };
    assert_eq!(asked(&w), ["a", "b", "c"]);
    w.deliver(&["a", "b"], 1, 2);
    let (client, key) = (name("c"), w.key(1, 2));
    w.feed(Input::Failure { client, key, reason: "no torch".into() }).unwrap();
    w.release(1, 2);
    // Only c, whose update never came, may take part in round 2.
    w.feed(Input::Sessions).unwrap();
    assert_eq!(w.state.status(), "waiting");
    w.trainers.push(name("d"));
    w.feed(Input::Connected { client: name("d") }).unwrap();
    assert_eq!(asked(&w), ["c", "d"]);
    let taken: Vec<_> = w.state.taken_part.iter().map(|(c, h)| (c.as_str(), h.joined())).collect();
    assert_eq!(taken, [("a", 1), ("b", 1)]);
    // A step that asks one of the others all the same is not made.
    let ctx = Context {
        id: &w.id,
        job: &w.job,
        ledger: &w.ledger,
        population: &w.population,
        trainers: &w.trainers,
        evaluators: &[],
        enrolled_evaluators: &[],
        now_ms: w.now_ms,
        rng: &mut w.rng,
    };
    let mut wrong = Step::stay(&w.state);
    let key = AttemptKey { job: w.id.clone(), round: Round(2), attempt: Attempt(1) };
    for (client, holds) in [("c", true), ("a", false)] {
        wrong.effects = vec![Effect::Offer {
            client: name(client),
            key: key.clone(),
            model: model(1),
            broadcast: None,
            clip_norm: None,
            deadline_ms: 1,
        }];
        assert_eq!(invariants::check(&w.state, &wrong, &ctx).is_ok(), holds, "{client}");
    }
}

const POISSON: &str = "rule = \"poisson\"\nrate = RATE\npopulation = 3\ncap = 3\nmin_clients = 2\n";

#[test]
fn a_draw_that_comes_out_empty_is_released_all_the_same() {
    let central = CENTRAL.replace("BUDGET", "10.0");
    let mut w = World::with_cohort(&POISSON.replace("RATE", "0.000001"), &central);
    for round in 1..=2 {
        w.feed(Input::Sessions).unwrap();
        assert!(
            matches!(&w.effects[..], [Effect::Release { updates, .. }] if updates.is_empty()),
            "{:?}",
            w.effects
        );
        assert!(matches!(w.ledger.entries().last().unwrap().state, EntryState::Sampled { .. }));
        w.release(round, 1);
    }
    assert_eq!(w.outcome(), Some(&Outcome::Completed));
    let spent = w.ledger.spent(w.job.contract()).unwrap();
    assert!(spent < 1.0, "a millionth of a chance is not the price of everyone: {spent}");
}

#[test]
fn the_number_that_was_drawn_or_came_in_ends_no_round() {
    let central = CENTRAL.replace("BUDGET", "10.0");
    let mut w = World::with_cohort(&POISSON.replace("RATE", "1.0"), &central);
    w.trainers.truncate(1);
    w.feed(Input::Sessions).unwrap();
    assert_eq!(w.state.status(), "waiting", "min_clients counts who is there before the draw");
    w.trainers = ["a", "b", "c"].map(name).to_vec();
    w.feed(Input::Sessions).unwrap();
    for c in ["a", "b", "c"] {
        let (client, key) = (name(c), w.key(1, 1));
        w.feed(Input::Failure { client, key, reason: "no torch".into() }).unwrap();
    }
    assert!(
        matches!(&w.effects[..], [Effect::Release { updates, .. }] if updates.is_empty()),
        "{:?}",
        w.effects
    );
    w.release(1, 1);
    // More people than ε was computed for.
    w.trainers.push(name("d"));
    w.feed(Input::Sessions).unwrap();
    let Some(Outcome::Failed { reason }) = w.outcome() else { panic!("{:?}", w.state) };
    assert!(reason.contains("4 trainers") && reason.contains("population = 3"), "{reason}");
}

#[test]
fn a_job_that_used_up_its_participations_says_so() {
    let limited = "rule = \"all\"\nsize = 3\nmin_clients = 2\nparticipations = 1\nseparation = 1\n";
    let mut w = World::with_cohort(limited, NONE);
    w.round(1);
    w.feed(Input::Sessions).unwrap();
    w.now_ms += 50_000;
    w.feed(Input::Tick).unwrap();
    let Some(Outcome::Failed { reason }) = w.outcome() else { panic!("{:?}", w.state) };
    assert!(reason.contains("only 0 of the 2") && reason.contains("take part again"), "{reason}");
    assert!(reason.contains("participations and separation"), "{reason}");
}

#[test]
fn the_last_model_waits_for_its_evaluators_but_not_for_ever() {
    for answers in [true, false] {
        let mut w = World::new(NONE);
        w.enrol_evaluator();
        for round in 1..=2 {
            w.round(round);
            assert!(w.effects.iter().any(|e| matches!(e, Effect::Evaluate { .. })));
        }
        assert_eq!(w.state.status(), "closing");
        if answers {
            w.measured(2);
        } else {
            w.now_ms += 5_000;
            w.feed(Input::Tick).unwrap();
            assert!(w.events.iter().any(|e| matches!(e, JobEvent::NotEvaluated { .. })));
        }
        assert_eq!(w.outcome(), Some(&Outcome::Completed));
    }
}

#[test]
fn the_last_model_is_measured_by_an_evaluator_that_comes_back() {
    let mut w = World::new(NONE);
    w.enrol_evaluator();
    w.evaluators.clear();
    w.round(1);
    assert!(w.state.measuring == Measuring::default(), "nobody was there to be asked");
    w.round(2);
    assert_eq!(w.state.status(), "closing", "it may come back in time");
    w.feed(Input::Connected { client: name("e") }).unwrap();
    assert!(matches!(&w.effects[..], [Effect::Evaluate { round: Round(2), .. }]), "{:?}", w.effects);
    assert_eq!(w.state.readable(&name("e"), &model(2).digest), Some(9));
    assert_eq!(w.state.readable(&name("a"), &model(2).digest), None, "nothing to train from any more");
    w.measured(2);
    assert_eq!(w.outcome(), Some(&Outcome::Completed));
    assert_eq!(w.state.readable(&name("e"), &model(2).digest), None);
}

#[test]
fn a_measurement_nobody_asked_for_or_a_second_one_is_not_listened_to() {
    let mut w = World::new(NONE);
    w.enrol_evaluator();
    w.feed(Input::Sessions).unwrap();
    w.measured(1);
    w.deliver(&["a", "b", "c"], 1, 1);
    w.release(1, 1);
    for _ in 0..3 {
        w.measured(1);
        w.measured(2);
    }
    let strange = Input::Evaluation { evaluator: name("a"), round: Round(1), outcome: Err("x".into()) };
    w.feed(strange).unwrap();
    let told =
        w.events.iter().filter(|e| matches!(e, JobEvent::Evaluated { .. } | JobEvent::NotEvaluated { .. }));
    assert_eq!(told.count(), 1);
}

#[test]
fn a_model_is_for_those_who_need_it() {
    let mut w = World::new(NONE);
    assert_eq!(w.state.readable(&name("a"), &model(0).digest), None, "nobody is asked yet");
    w.feed(Input::Sessions).unwrap();
    assert_eq!(w.state.readable(&name("a"), &model(0).digest), Some(9));
    assert_eq!(w.state.readable(&name("z"), &model(0).digest), None, "it was not asked");
    assert_eq!(w.state.readable(&name("a"), &model(1).digest), None);
    w.feed(Input::Answer { client: name("a"), key: w.key(1, 1), answer: Err("no".into()) }).unwrap();
    assert_eq!(w.state.readable(&name("a"), &model(0).digest), None, "it takes no part");
}

#[test]
fn a_release_that_the_ledger_contradicts_ends_the_job() {
    let mut w = World::new(NONE);
    w.feed(Input::Sessions).unwrap();
    w.deliver(&["a", "b", "c"], 1, 1);
    let burnt = w.ledger.burn(&w.key(1, 1), "by a restored backup").unwrap();
    w.ledger.apply(burnt).unwrap();
    w.feed(Input::Released { key: w.key(1, 1), model: model(1), carried: Carried::default() }).unwrap();
    let Some(Outcome::Failed { reason }) = w.outcome() else { panic!("{:?}", w.state) };
    assert!(reason.contains("burnt"), "{reason}");
    assert_eq!(w.state.model, model(0));
}

/// The checks themselves: a step that breaks a promise is caught under its name.
#[test]
fn broken_steps_are_named() {
    use invariants::{Broken, Invariant, check};
    let mut w = World::new(&CENTRAL.replace("BUDGET", "8.0"));
    w.feed(Input::Sessions).unwrap();
    w.deliver(&["a", "b", "c"], 1, 1);
    let key = w.key(1, 1);
    let updates = match &w.effects[..] {
        [Effect::Release { updates, .. }] => updates.clone(),
        other => panic!("{other:?}"),
    };
    let entry = w.ledger.entries()[0].clone();
    assert!(matches!(entry.state, EntryState::Sampled { .. }), "{entry:?}");
    let breaks = |change: &dyn Fn(&mut Step)| {
        let mut rng = w.rng.clone();
        let ctx = Context {
            id: &w.id,
            job: &w.job,
            ledger: &w.ledger,
            population: &w.population,
            trainers: &w.trainers,
            evaluators: &[],
            enrolled_evaluators: &[],
            now_ms: 0,
            rng: &mut rng,
        };
        let mut step = Step::stay(&w.state);
        change(&mut step);
        check(&w.state, &step, &ctx).err().map(|Broken(name)| name)
    };
    let offer = |attempt| Effect::Offer {
        client: name("a"),
        key: w.key(1, attempt),
        model: model(0),
        broadcast: None,
        clip_norm: None,
        deadline_ms: 0,
    };
    let release = |updates: Vec<Update>| Effect::Release {
        key: key.clone(),
        model: model(0),
        updates,
        carried: Carried::default(),
    };
    assert_eq!(breaks(&|_| ()), None);
    assert_eq!(breaks(&|s| s.effects.push(offer(1))), None);
    assert_eq!(breaks(&|s| s.effects.push(offer(2))), Some(Invariant::BudgetBeforeOffers));
    let dear = LedgerEntry { seq: 2, key: w.key(1, 2), epsilon_after: Some(8.1), ..entry.clone() };
    assert_eq!(breaks(&|s| s.ledger.push(dear.clone())), Some(Invariant::WithinBudget));
    let missing = updates[1..].to_vec();
    assert_eq!(breaks(&|s| s.effects.push(release(missing.clone()))), Some(Invariant::CountsOnce));
    let twice = [updates.clone(), updates[..1].to_vec()].concat();
    assert_eq!(breaks(&|s| s.effects.push(release(twice.clone()))), Some(Invariant::CountsOnce));
    let foreign = Update { blob: Digest::of(b"other"), ..updates[0].clone() };
    assert_eq!(breaks(&|s| s.effects.push(release(vec![foreign.clone()]))), Some(Invariant::CountsOnce));
    assert_eq!(breaks(&|s| s.effects.push(release(updates.clone()))), Some(Invariant::OneDraw));
    let publish = Effect::Publish { key: key.clone(), model: model(1) };
    assert_eq!(breaks(&|s| s.effects.push(publish.clone())), Some(Invariant::CommittedBeforePublished));
    let cheaper = LedgerEntry { compositions: 0, ..entry.clone() };
    assert_eq!(breaks(&|s| s.ledger.push(cheaper.clone())), Some(Invariant::LedgerOnlyGrows));
    assert_eq!(breaks(&|s| s.next.model = model(1)), Some(Invariant::RoundsInOrder));
    assert_eq!(breaks(&|s| s.next.released = 1), Some(Invariant::RoundsInOrder));
    let (ended, mut rng) =
        (JobState { phase: Phase::Ended { outcome: Outcome::Completed }, ..w.state.clone() }, w.rng.clone());
    let ctx = Context {
        id: &w.id,
        job: &w.job,
        ledger: &w.ledger,
        population: &w.population,
        trainers: &[],
        evaluators: &[],
        enrolled_evaluators: &[],
        now_ms: 0,
        rng: &mut rng,
    };
    let revived = Step { next: w.state.clone(), ..Step::stay(&ended) };
    assert_eq!(check(&ended, &revived, &ctx), Err(Broken(Invariant::EndIsFinal)));
}
