//! Each step of an entry, and any sequence of steps against the laws.

use super::*;
use crate::contract::{Noise, PrivacyContract};
use crate::resolve::Schedule;
use proptest::prelude::*;
use std::sync::LazyLock;
use undertone_core::id::{Attempt, JobId, Round};

fn key(round: u32, attempt: u32) -> AttemptKey {
    AttemptKey { job: JobId::new("j").unwrap(), round: Round(round), attempt: Attempt(attempt) }
}

fn resolve(contract: Result<PrivacyContract, crate::contract::InvalidContract>) -> ResolvedContract {
    contract.unwrap().resolve(Schedule { rounds: 5, local_steps: 2 }).unwrap()
}

/// Five rounds reach ε = 3, the budget of 4 leaves room for some retries.
static CONTRACT: LazyLock<ResolvedContract> =
    LazyLock::new(|| resolve(PrivacyContract::record_local(1.0, 0.25, Noise::TargetEpsilon(3.0), 1e-3, 4.0)));

fn unlimited() -> Totals {
    Totals::new(population::Budgets::default())
}

fn cohort() -> Digest {
    Digest::of(b"the cohort")
}

fn reserved() -> Ledger {
    let mut ledger = Ledger::default();
    ledger.apply(ledger.reserve(key(1, 1), &CONTRACT, &unlimited()).unwrap()).unwrap();
    ledger
}

#[test]
fn an_attempt_is_reserved_committed_and_published_once() {
    let (mine, other) = (Digest::of(b"mine"), Digest::of(b"other"));
    let mut ledger = reserved();
    let k = key(1, 1);
    assert!(matches!(ledger.commit(&k, mine), Err(TransitionError::Illegal { from: "reserved", .. })));
    let drawn = ledger.entries()[0].sampled(cohort()).unwrap();
    ledger.apply(drawn.clone()).unwrap();
    assert_eq!(ledger.entries()[0].sampled(cohort()).unwrap(), drawn);
    assert!(ledger.entries()[0].sampled(other).is_err(), "a second cohort would be a second sample");
    assert!(matches!(ledger.publish(&k, mine), Err(TransitionError::Illegal { from: "sampled", .. })));
    assert!(matches!(ledger.commit(&key(2, 1), mine), Err(TransitionError::Unknown(_))));
    assert_eq!(
        ledger.reserve(k.clone(), &CONTRACT, &unlimited()),
        Err(ReserveError::AlreadyReserved(k.clone()))
    );
    ledger.apply(ledger.commit(&k, mine).unwrap()).unwrap();
    assert!(matches!(ledger.commit(&k, other), Err(TransitionError::OtherOutput { .. })));
    assert!(matches!(ledger.publish(&k, other), Err(TransitionError::OtherOutput { .. })));
    for _ in 0..2 {
        ledger.apply(ledger.publish(&k, mine).unwrap()).unwrap();
        assert_eq!(ledger.entries()[0].state, EntryState::Published { output: mine });
        assert_eq!(ledger.commit(&k, mine).unwrap(), ledger.entries()[0], "a late retry changes nothing");
    }
    assert!(matches!(ledger.burn(&k, "late"), Err(TransitionError::Illegal { to: "burnt", .. })));
}

#[test]
fn a_burnt_attempt_stays_spent_and_cannot_come_back() {
    let mut ledger = reserved();
    let spent = ledger.spent(&CONTRACT).unwrap();
    assert!(spent > 0.0);
    ledger.apply(ledger.burn(&key(1, 1), "too few clients").unwrap()).unwrap();
    assert_eq!(ledger.spent(&CONTRACT), Some(spent));
    assert!(matches!(ledger.commit(&key(1, 1), Digest::of(b"x")), Err(TransitionError::Illegal { .. })));
    assert_eq!(ledger.burn(&key(1, 1), "again").unwrap(), ledger.entries()[0]);
}

#[test]
fn the_budget_ends_the_job_with_numbers() {
    let mut ledger = Ledger::default();
    let refusal = loop {
        match ledger.reserve(key(ledger.entries().len() as u32 + 1, 1), &CONTRACT, &unlimited()) {
            Ok(entry) => ledger.apply(entry).unwrap(),
            Err(e) => break e,
        }
    };
    let ReserveError::BudgetSpent(b) = refusal else { panic!("{refusal}") };
    assert!(ledger.entries().len() > 5, "the planned rounds fit");
    assert!(b.epsilon_spent <= 4.0 && b.epsilon_would_be > 4.0 && b.budget == 4.0, "{b}");
    assert_eq!(Some(b.epsilon_spent), ledger.spent(&CONTRACT));
    assert_eq!(CONTRACT.epsilon_after(ledger.entries().len() as u32), Some(b.epsilon_spent));
}

#[test]
fn other_terms_do_not_mix() {
    let ledger = reserved();
    let other = resolve(PrivacyContract::client_central(1.0, Noise::Multiplier(1.0), 1e-5, 90.0));
    assert!(matches!(
        ledger.reserve(key(2, 1), &other, &unlimited()),
        Err(ReserveError::OtherContract { .. })
    ));
}

#[test]
fn no_promise_is_recorded_without_a_number() {
    let none = resolve(Ok(PrivacyContract::none()));
    let mut ledger = Ledger::default();
    for round in 1..100 {
        ledger.apply(ledger.reserve(key(round, 1), &none, &unlimited()).unwrap()).unwrap();
    }
    assert_eq!(ledger.spent(&none), None);
    let json = serde_json::to_string(&ledger.entries()[98]).unwrap();
    assert!(!json.contains("epsilon"), "{json}");
}

#[test]
fn damage_is_noticed() {
    let mut ledger = reserved();
    ledger.apply(ledger.reserve(key(2, 1), &CONTRACT, &unlimited()).unwrap()).unwrap();
    let good = ledger.entries().to_vec();
    assert_eq!(Ledger::from_entries(good.clone()).unwrap(), ledger);
    let damages: [fn(&mut Vec<LedgerEntry>); 7] = [
        |e| drop(e.remove(0)),
        |e| e.swap(0, 1),
        |e| e[1].key = e[0].key.clone(),
        |e| e[1].contract = Digest::of(b"other"),
        |e| e[1].epsilon_after = Some(0.01),
        |e| e[1].epsilon_after = Some(f64::NAN),
        |e| e[1].epsilon_after = None,
    ];
    for (i, damage) in damages.iter().enumerate() {
        let mut entries = good.clone();
        damage(&mut entries);
        assert!(Ledger::from_entries(entries).is_err(), "damage {i}");
    }
    let rewritten = LedgerEntry { compositions: 0, ..good[1].clone() };
    assert!(ledger.apply(rewritten).is_err());
    ledger.apply(ledger.entries()[0].sampled(cohort()).unwrap()).unwrap();
    ledger.apply(ledger.commit(&key(1, 1), Digest::of(b"a")).unwrap()).unwrap();
    assert!(ledger.apply(good[0].clone()).is_err(), "back to reserved");
    assert!(ledger.apply(LedgerEntry { seq: 0, ..good[0].clone() }).is_err());
}

#[derive(Debug, Clone)]
enum Op {
    Reserve { round: u32, attempt: u32 },
    Commit { round: u32, attempt: u32, bytes: u8 },
    Publish { round: u32, attempt: u32, bytes: u8 },
    Burn { round: u32, attempt: u32 },
    Sample { round: u32, attempt: u32 },
    Reload,
}

fn any_op() -> impl Strategy<Value = Op> {
    let at = || (1u32..8, 1u32..4);
    prop_oneof![
        4 => at().prop_map(|(round, attempt)| Op::Reserve { round, attempt }),
        3 => at().prop_map(|(round, attempt)| Op::Sample { round, attempt }),
        2 => (at(), 0u8..2).prop_map(|((round, attempt), bytes)| Op::Commit { round, attempt, bytes }),
        2 => (at(), 0u8..2).prop_map(|((round, attempt), bytes)| Op::Publish { round, attempt, bytes }),
        1 => at().prop_map(|(round, attempt)| Op::Burn { round, attempt }),
        1 => Just(Op::Reload),
    ]
}

proptest! {
    #[test]
    fn no_sequence_overspends_or_unspends(ops in prop::collection::vec(any_op(), 0..80)) {
        let mut ledger = Ledger::default();
        for op in ops {
            let before = ledger.clone();
            let next = match op {
                Op::Reserve { round, attempt } => ledger.reserve(key(round, attempt), &CONTRACT, &unlimited()).ok(),
                Op::Commit { round, attempt, bytes } => ledger.commit(&key(round, attempt), Digest::of(&[bytes])).ok(),
                Op::Publish { round, attempt, bytes } => ledger.publish(&key(round, attempt), Digest::of(&[bytes])).ok(),
                Op::Sample { round, attempt } => {
                    let entry = ledger.entry(&key(round, attempt));
                    entry.and_then(|e| e.sampled(cohort()).ok())
                }
                Op::Burn { round, attempt } => ledger.burn(&key(round, attempt), "no").ok(),
                Op::Reload => {
                    let json = serde_json::to_string(ledger.entries()).unwrap();
                    ledger = Ledger::from_entries(serde_json::from_str(&json).unwrap()).unwrap();
                    prop_assert_eq!(&ledger, &before);
                    None
                }
            };
            if let Some(entry) = next {
                ledger.apply(entry).unwrap();
            }
            let (was, is) = (before.spent(&CONTRACT).unwrap(), ledger.spent(&CONTRACT).unwrap());
            prop_assert!(is >= was && is <= CONTRACT.budget_epsilon().unwrap());
            prop_assert_eq!(is, CONTRACT.epsilon_after(ledger.entries().len() as u32).unwrap());
            prop_assert_eq!(ledger.entries().last().and_then(|e| e.epsilon_after).unwrap_or(0.0), is);
            // What had a result keeps it, and what was out stays out.
            for (old, new) in before.entries().iter().zip(ledger.entries()) {
                match &old.state {
                    EntryState::Published { .. } | EntryState::Burnt { .. } => prop_assert_eq!(old, new),
                    EntryState::Committed { output } => match &new.state {
                        EntryState::Committed { output: o } | EntryState::Published { output: o } => prop_assert_eq!(o, output),
                        EntryState::Burnt { .. } => {}
                        EntryState::Reserved | EntryState::Sampled { .. } => prop_assert!(false, "went back"),
                    },
                    EntryState::Sampled { .. } => prop_assert!(new.state != EntryState::Reserved),
                    EntryState::Reserved => {}
                }
            }
        }
    }
}

#[test]
fn correlated_noise_is_charged_once_and_its_ledger_recomputes() {
    let contract = PrivacyContract::client_central(1.0, Noise::Multiplier(2.0), 1e-5, 5.0).unwrap();
    let contract = contract.with_mechanism(crate::contract::CentralMechanism::Blt).unwrap();
    let cohort: undertone_core::cohort::Cohort = serde_json::from_value(serde_json::json!({
        "rule": "uniform", "size": 10, "min_clients": 1, "participations": 2, "separation": 2,
    }))
    .unwrap();
    let contract = contract.resolve_for(Schedule { rounds: 5, local_steps: 1 }, &cohort).unwrap();
    let mut chain = chain::Chain::new(population::Budgets::default());
    let mut lines = vec![];
    let mut told = vec![];
    for attempt in 1..=4 {
        let ledger = chain.job(&key(1, 1).job);
        let entry = ledger.reserve(key(1, attempt), &contract, &unlimited()).unwrap();
        assert_eq!(entry.compositions, u32::from(attempt == 1));
        told.push(entry.epsilon_after);
        let line = chain.lines_for(&[entry], 1).unwrap();
        lines.extend(line.clone());
        line.into_iter().for_each(|l| chain.apply(l).unwrap());
    }
    assert!(told.iter().all(|e| *e == told[0] && e.is_some()), "{told:?}");
    recompute(&lines).unwrap();
    // A run that is charged by less than it costs does not follow.
    let mut cheap = lines;
    cheap.iter_mut().for_each(|l| l.entry.epsilon_after = Some(told[0].unwrap() / 2.0));
    assert!(recompute(&cheap).is_err());
}

#[test]
fn measurements_stand_in_the_ledger_and_in_the_populations_sum() {
    let plain = PrivacyContract::record_local(1.0, 0.25, Noise::Multiplier(2.0), 1e-3, 9.0).unwrap();
    let metrics = crate::metrics::MetricsPrivacy::new(0.25, 4.0).unwrap();
    let cohort = undertone_core::cohort::Cohort::new(undertone_core::cohort::CohortRule::All {
        size: 2,
        min_clients: 1,
    });
    let plan = Schedule { rounds: 5, local_steps: 2 };
    let contract = plain.with_metrics(metrics).unwrap().resolve_measured(plan, &cohort, 2).unwrap();
    let trained = plain.resolve(plan).unwrap();
    let budget = population::PopulationBudget { epsilon: 8.0, delta: 1e-5 };
    let mut chain = chain::Chain::new(population::Budgets { record: Some(budget), client: None });
    let mut bare = chain.clone();
    let mut lines = vec![];
    // Round 1, round 2 twice (the first attempt failed), round 3: two attempts paid for a measurement.
    for (round, attempt, measured) in [(1, 1, 0), (2, 1, 1), (2, 2, 2), (3, 1, 2)] {
        let entry =
            chain.job(&key(1, 1).job).reserve(key(round, attempt), &contract, chain.totals()).unwrap();
        assert_eq!(entry.metrics, (round == 2).then_some(0.25));
        let expected = trained.epsilon_after(lines.len() as u32 + 1).unwrap() + 0.25 * f64::from(measured);
        assert!((entry.epsilon_after.unwrap() - expected).abs() < 1e-12);
        let plain = bare.job(&key(1, 1).job).reserve(key(round, attempt), &trained, bare.totals()).unwrap();
        bare.lines_for(&[plain], 1).unwrap().into_iter().for_each(|l| bare.apply(l).unwrap());
        let line = chain.lines_for(&[entry], 1).unwrap();
        lines.extend(line.clone());
        line.into_iter().for_each(|l| chain.apply(l).unwrap());
    }
    recompute(&lines).unwrap();
    let mut forgotten = lines.clone();
    forgotten[1].entry.metrics = None;
    assert!(recompute(&forgotten).is_err(), "a measurement that is left out is missed");
    assert!(chain.totals().used(Unit::Record) > bare.totals().used(Unit::Record));
    let left = |metrics| chain.totals().attempts_left(Unit::Record, contract.loss(), 2, metrics).unwrap();
    assert!(left(None) > left(Some((10, 0.25))));
    assert_eq!(left(Some((10_000, 0.25))), 0);
}

#[test]
fn a_capped_draw_counts_for_clients_and_not_for_records() {
    let capped = Loss::CappedPoissonGaussian {
        noise_multiplier: 1.0,
        sampling_rate: 0.01,
        population: 10_000,
        cap: 160,
    };
    let epsilon = |level: Unit| {
        let (curve, times) = capped.at_level(level, Unit::Client).unwrap();
        curve.epsilon(100 * times, 1e-6)
    };
    let sampled = RdpCurve::new(1.0, 0.01).unwrap().epsilon(100, 1e-6);
    assert!((sampled..2.5 * sampled).contains(&epsilon(Unit::Client)), "{} {sampled}", epsilon(Unit::Client));
    assert!(epsilon(Unit::Client) < 0.02 * epsilon(Unit::Record), "{}", epsilon(Unit::Record));
    // A client's changed contribution is a replacement, seen through no sample.
    assert_eq!(epsilon(Unit::Record), RdpCurve::new(1.0, 1.0).unwrap().epsilon(400, 1e-6));
    assert!(capped.at_level(Unit::Client, Unit::Record).is_none());
    // With less noise than the accountant speaks about, nothing is promised.
    let quiet = Loss::CappedPoissonGaussian {
        noise_multiplier: 0.5,
        sampling_rate: 0.01,
        population: 10_000,
        cap: 160,
    };
    assert_eq!(quiet.curve().epsilon(1, 1e-6), f64::INFINITY);
}
