//! The chain: what follows, what does not, and what a population may spend.

use super::super::population::{PopulationBudget, PopulationSpentUp};
use super::super::{ReserveError, recompute};
use super::*;
use crate::contract::{Noise, PrivacyContract, Unit};
use crate::resolve::{ResolvedContract, Schedule};
use crate::sensitivity::Adjacency;
use proptest::prelude::*;
use std::sync::LazyLock;
use undertone_core::id::{Attempt, AttemptKey, Round};

fn resolve(contract: PrivacyContract) -> ResolvedContract {
    contract.resolve(Schedule { rounds: 2, local_steps: 2 }).unwrap()
}

static RECORD: LazyLock<ResolvedContract> = LazyLock::new(|| {
    resolve(PrivacyContract::record_local(1.0, 0.25, Noise::Multiplier(2.0), 1e-3, 90.0).unwrap())
});
static CLIENT: LazyLock<ResolvedContract> = LazyLock::new(|| {
    resolve(PrivacyContract::client_central(1.0, Noise::Multiplier(5.0), 1e-5, 90.0).unwrap())
});
static NONE: LazyLock<ResolvedContract> = LazyLock::new(|| resolve(PrivacyContract::none()));

fn key(job: &str, round: u32) -> AttemptKey {
    AttemptKey { job: JobId::new(job).unwrap(), round: Round(round), attempt: Attempt(1) }
}

fn budgets(record: Option<f64>, client: Option<f64>) -> Budgets {
    let of = |epsilon: Option<f64>, delta| epsilon.map(|epsilon| PopulationBudget { epsilon, delta });
    Budgets { record: of(record, 1e-3), client: of(client, 1e-5) }
}

/// Reserves and samples the next attempt of a job.
fn attempt(chain: &mut Chain, job: &str, contract: &ResolvedContract) -> Result<Vec<Line>, ReserveError> {
    let id = JobId::new(job).unwrap();
    let ledger = chain.job(&id);
    let key = key(job, ledger.entries().len() as u32 + 1);
    let reserved = ledger.reserve(key, contract, chain.totals())?;
    let sampled = reserved.sampled(Digest::of(b"cohort")).unwrap();
    let lines = chain.lines_for(&[reserved, sampled], 7).unwrap();
    lines.iter().for_each(|line| chain.apply(line.clone()).unwrap());
    Ok(lines)
}

#[test]
fn lines_follow_each_other_and_can_be_read_back() {
    let mut chain = Chain::new(budgets(None, None));
    let mut lines = vec![];
    for (job, contract) in [("a", &RECORD), ("b", &CLIENT), ("a", &RECORD), ("c", &NONE)] {
        lines.extend(attempt(&mut chain, job, contract).unwrap());
    }
    let burnt = chain.job(&JobId::new("b").unwrap()).burn(&key("b", 1), "why").unwrap();
    let line = chain.lines_for(&[burnt], 9).unwrap().remove(0);
    chain.apply(line.clone()).unwrap();
    lines.push(line);
    assert_eq!((chain.len(), lines.len()), (9, 9));
    let json: Vec<String> = lines.iter().map(|l| serde_json::to_string(l).unwrap()).collect();
    let read = json.iter().map(|l| serde_json::from_str::<Line>(l).unwrap());
    let again = Chain::from_lines(budgets(None, None), read).unwrap();
    assert_eq!((again.head(), again.len()), (chain.head(), 9));
    assert_eq!(again.totals(), chain.totals());
    // Records are spent by both kinds, clients by one, and what has no promise is counted.
    let spent = chain.totals().spent();
    assert!(spent.record_epsilon > spent.client_epsilon && spent.client_epsilon > 0.0, "{spent:?}");
    assert_eq!((spent.unprotected, spent.clients_unprotected), (1, 3));
    // Other budgets later: the same lines.
    let stricter = Chain::from_lines(budgets(Some(1.0), Some(1.0)), lines).unwrap();
    assert_eq!(stricter.head(), chain.head());
}

#[test]
fn any_change_to_any_line_is_noticed() {
    let mut chain = Chain::new(budgets(None, None));
    let mut lines = vec![];
    for (job, contract) in [("a", &RECORD), ("b", &CLIENT)] {
        lines.extend(attempt(&mut chain, job, contract).unwrap());
    }
    let check = |lines: Vec<Line>| Chain::from_lines(budgets(None, None), lines);
    assert!(check(lines.clone()).is_ok());
    let changes: [fn(&mut Line); 9] = [
        |l| l.seq += 1,
        |l| l.unix_ms += 1,
        |l| l.entry.key.round = Round(9),
        |l| l.entry.contract = Digest::of(b"other"),
        |l| l.entry.compositions += 1,
        |l| l.entry.loss = None,
        |l| l.entry.epsilon_after = Some(0.001),
        |l| l.before = Digest::of(b"other"),
        |l| l.digest = Digest::of(b"other"),
    ];
    for (n, change) in changes.iter().enumerate() {
        for at in 0..lines.len() {
            let mut changed = lines.clone();
            change(&mut changed[at]);
            assert!(check(changed).is_err(), "change {n} at line {at}");
            // Even if the digest is made to fit: then the line after it does not follow, or the sums do not.
            let mut changed = lines.clone();
            change(&mut changed[at]);
            changed[at].digest = changed[at].digest_of();
            let last_line_may_be_rewritten = at + 1 == lines.len() && matches!(n, 1 | 8);
            assert_eq!(check(changed).is_ok(), last_line_may_be_rewritten || n == 8, "change {n} at {at}");
        }
    }
    for at in 0..lines.len() - 1 {
        let mut missing = lines.clone();
        missing.remove(at);
        assert!(check(missing).is_err());
    }
}

#[test]
fn a_forged_loss_is_found_even_in_a_chain_that_holds() {
    let mut chain = Chain::new(budgets(None, None));
    let mut lines = vec![];
    for (job, contract) in [("a", &RECORD), ("b", &CLIENT), ("c", &NONE), ("a", &RECORD)] {
        lines.extend(attempt(&mut chain, job, contract).unwrap());
    }
    recompute(&lines).unwrap();
    let forgeries: [fn(&mut Line); 5] = [
        |l| l.entry.epsilon_after = l.entry.epsilon_after.map(|e| e * 0.99),
        |l| l.entry.epsilon_after = l.entry.epsilon_after.map(|e| e * 1.01),
        |l| l.entry.compositions += 1,
        |l| l.entry.delta = Some(1e-2),
        |l| l.entry.loss = None,
    ];
    for (n, forge) in forgeries.iter().enumerate() {
        // The lines of one job, every digest made to fit again.
        let mut forged = lines.clone();
        forged.iter_mut().filter(|l| l.entry.key.job.as_str() == "b").for_each(forge);
        let mut before = Digest::of(b"");
        for line in &mut forged {
            line.before = before;
            line.digest = line.digest_of();
            before = line.digest;
        }
        if n != 4 {
            assert!(Chain::from_lines(budgets(None, None), forged.clone()).is_ok(), "forgery {n}");
        }
        assert!(recompute(&forged).is_err(), "forgery {n}");
    }
}

#[test]
fn jobs_share_the_budget_of_their_population() {
    let mut chain = Chain::new(budgets(Some(3.0), None));
    let (mut jobs, mut attempts) = (0, 0);
    let refusal = 'all: loop {
        jobs += 1;
        for _ in 0..2 {
            match attempt(&mut chain, &format!("job-{jobs}"), &RECORD) {
                Ok(_) => attempts += 1,
                Err(e) => break 'all e,
            }
        }
    };
    assert!(jobs > 2, "no single job came near: {jobs}");
    let ReserveError::PopulationSpent(PopulationSpentUp::Filter { unit: "record", left, .. }) = refusal
    else {
        panic!("{refusal}")
    };
    assert!((0.0..50.0).contains(&left), "{left}");
    let spent = chain.totals().spent();
    assert!(spent.record_epsilon > 1.0, "{spent:?}");
    assert_eq!(chain.totals().attempts_left(Unit::Record, RECORD.loss(), RECORD.charge(), None), Some(0));
    let fresh = Chain::new(budgets(Some(3.0), None));
    let fits = fresh.totals().attempts_left(Unit::Record, RECORD.loss(), RECORD.charge(), None);
    assert_eq!(fits, Some(attempts), "what was foretold");
    assert!(chain.totals().used(Unit::Record).unwrap() > 0.5);
}

#[test]
fn what_no_budget_can_cover_is_refused() {
    let mut chain = Chain::new(budgets(Some(3.0), None));
    let e = attempt(&mut chain, "a", &NONE).unwrap_err().to_string();
    assert!(
        e.contains("gives no promise at that level") && e.contains("record") && e.contains("server.toml"),
        "{e}"
    );
    let mut chain = Chain::new(budgets(None, Some(3.0)));
    let e = attempt(&mut chain, "a", &RECORD).unwrap_err().to_string();
    assert!(e.contains("unit = \"client\""), "{e}");
    // A client-level promise covers records too.
    let mut chain = Chain::new(budgets(Some(8.0), Some(8.0)));
    attempt(&mut chain, "a", &CLIENT).unwrap();
}

/// Where clients are only added or removed, a changed record is a client taken away and another put in its place.
#[test]
fn a_record_pays_for_its_clients_replacement() {
    let spent = |contract: &ResolvedContract| {
        let mut chain = Chain::new(budgets(None, None));
        attempt(&mut chain, "a", contract).unwrap();
        chain.totals().spent()
    };
    let of = |z| PrivacyContract::client_central(1.0, Noise::Multiplier(z), 1e-5, 90.0).unwrap();
    let plain = spent(&resolve(of(5.0)));
    let halved = spent(&resolve(of(2.5)));
    assert!((plain.record_epsilon / halved.client_epsilon - 1.0).abs() < 1e-9, "{plain:?} {halved:?}");
    assert!(plain.client_epsilon < plain.record_epsilon, "{plain:?}");
    // The noise of a contract that says replace-one is scaled to that already.
    let replace = spent(&resolve(of(5.0).with_adjacency(Adjacency::ReplaceOne).unwrap()));
    assert_eq!(replace.record_epsilon, replace.client_epsilon);
    assert_eq!(replace.client_epsilon, plain.client_epsilon);
}

#[test]
fn a_closed_job_keeps_its_sum_and_takes_no_line() {
    let mut chain = Chain::new(budgets(None, None));
    let id = JobId::new("a").unwrap();
    attempt(&mut chain, "a", &RECORD).unwrap();
    let burnt = chain.job(&id).burn(&key("a", 1), "x").unwrap();
    let late = chain.lines_for(&[burnt], 1).unwrap().remove(0);
    let before = chain.spent_by(&id).unwrap();
    assert_eq!((before.attempts, before.epsilon), (1, RECORD.epsilon_after(1)));
    chain.close_others(&|_| false);
    assert_eq!(chain.spent_by(&id), Some(before));
    assert!(chain.apply(late).is_err());
    attempt(&mut chain, "b", &RECORD).unwrap();
    assert_eq!(chain.jobs().count(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// However jobs interleave, the sums are those of the attempts, never shrink, and never pass a budget.
    #[test]
    fn interleaved_jobs_never_overspend(who in prop::collection::vec(0usize..4, 0..60), epsilon in 0.5f64..6.0) {
        let mut chain = Chain::new(budgets(Some(epsilon), None));
        let mut last = 0.0;
        for n in who {
            let contract = if n % 2 == 0 { &RECORD } else { &CLIENT };
            let _ = attempt(&mut chain, &format!("job-{n}"), contract);
            let spent = chain.totals().spent();
            prop_assert!(spent.record_epsilon >= last);
            prop_assert!(chain.totals().used(Unit::Record).unwrap() <= 1.0);
            last = spent.record_epsilon;
        }
        let lines: u64 = chain.jobs().map(|(_, job)| u64::from(job.attempts)).sum();
        prop_assert_eq!(chain.len(), 2 * lines);
    }
}
