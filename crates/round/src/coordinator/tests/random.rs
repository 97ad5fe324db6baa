//! What decides nothing, and random input sequences against the promises.

use super::*;

/// Neighbour replay: what a client sends decides nothing but the sum. The same history with other bytes from one client
/// (or from each) has the same events, charges, effects and times.
#[test]
fn what_an_update_holds_decides_nothing_but_the_sum() {
    for privacy in [NONE.to_owned(), CENTRAL.replace("BUDGET", "30.0")] {
        let history = |bytes: &dyn Fn(&str, u32) -> Vec<u8>| {
            let mut w = World::new(&privacy);
            w.enrol_evaluator();
            let mut told = vec![];
            w.feed(Input::Sessions).unwrap();
            for (round, attempt) in [(1, 1), (1, 2), (2, 1)] {
                w.now_ms += 2_000;
                w.feed(Input::Tick).unwrap();
                for c in ["a", "b", "c"] {
                    let update = Update {
                        client: name(c),
                        blob: Digest::of(&bytes(c, round)),
                        bytes: 8,
                        weight: 1,
                        origin: None,
                    };
                    w.feed(arrival(w.key(round, attempt), update)).unwrap();
                    // Which bytes are summed is the one thing that may differ.
                    let hidden = w.effects.iter().map(|e| match e {
                        Effect::Release { key, updates, .. } => format!("release {key} of {}", updates.len()),
                        other => format!("{other:?}"),
                    });
                    told.extend(hidden);
                    told.push(format!("{:?}", w.state.wake_at_ms(&w.job)));
                }
                let key = w.key(round, attempt);
                if (round, attempt) == (1, 1) {
                    w.feed(Input::ReleaseFailed { key, reason: "disk".into(), is_final: false }).unwrap();
                } else {
                    w.release(round, attempt);
                }
            }
            let blobs = w.state.blobs();
            (told, w.events, w.ledger, w.state.status(), blobs)
        };
        let one = history(&|c, round| format!("{c} {round}").into_bytes());
        for changed in ["a", "b", "c"] {
            let other = history(&|c, round| {
                let suffix = if c == changed { " of a neighbour" } else { "" };
                format!("{c} {round}{suffix}").into_bytes()
            });
            assert_eq!(one, other, "{changed}");
        }
    }
}

fn any_input() -> impl Strategy<Value = (u8, u8, u32, u32, u64)> {
    (0u8..16, 0u8..4, 1u32..3, 1u32..3, 0u64..30_000)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens in whatever order: an update counts at most once, only reserved attempts are released,
    /// rounds are released in order, the budget holds, and an ended job stays ended.
    #[test]
    fn any_sequence_keeps_the_promises(
        inputs in prop::collection::vec(any_input(), 0..80),
        budget in 8.0f64..20.0,
        central in any::<bool>(),
    ) {
        let mut w = World::new(&if central { CENTRAL.replace("BUDGET", &format!("{budget:.3}")) } else { NONE.into() });
        w.enrol_evaluator();
        let clients = ["a", "b", "c", "z"];
        for (kind, who, round, attempt, wait) in inputs {
            let client = name(clients[usize::from(who)]);
            let key = w.key(round, attempt);
            w.now_ms += wait;
            let ended = w.outcome().cloned();
            let input = match kind {
                0 => Input::Recovered,
                1 => Input::Sessions,
                2 => Input::Tick,
                3 => Input::Answer { client, key, answer: Ok(()) },
                4 => Input::Answer { client, key, answer: Err("no".into()) },
                5 => Input::Failure { client, key, reason: "x".into() },
                6 => w.update(clients[usize::from(who)], round, attempt),
                7 => Input::BadUpdate { client, key, reason: "x".into() },
                8 => Input::Released { key, model: model(round as u8), carried: Carried::default() },
                9 => Input::Published { key, sent_bytes: 0 },
                10 => Input::Connected { client },
                13 => Input::Missed,
                14 => Input::ReleaseFailed { key, reason: "x".into(), is_final: false },
                // Seldom, or no sequence would come far.
                15 if wait > 28_000 => Input::Cancel { by: "op".into(), reason: "x".into() },
                11 => Input::Evaluation { evaluator: name("e"), round: Round(round), outcome: Err("x".into()) },
                _ => {
                    let back = w.trainers.iter().position(|c| *c == client);
                    match back {
                        Some(place) => drop(w.trainers.remove(place)),
                        None => w.trainers.push(client),
                    }
                    Input::Sessions
                }
            };
            let _ = w.feed(input);
            if let Some(spent) = w.ledger.spent(w.job.contract()) {
                prop_assert!(spent <= budget);
            }
            if let Some(before) = ended {
                prop_assert_eq!(w.outcome(), Some(&before));
            }
        }
        let mut released = 0;
        for event in &w.events {
            match event {
                JobEvent::Released { round, .. } => { prop_assert_eq!(round.0, released + 1); released += 1; }
                JobEvent::Offered { cohort, .. } => { prop_assert!(cohort.len() <= 3); }
                _ => {}
            }
        }
        prop_assert_eq!(released, w.state.released);
        // Every release has a ledger entry that was committed and published.
        let published = w.ledger.entries().iter().filter(|e| matches!(e.state, EntryState::Published { .. })).count();
        prop_assert_eq!(published as u32, released);
    }
}
