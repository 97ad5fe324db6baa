//! What decides nothing, and random input sequences against books of the test's own.

use super::*;

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
