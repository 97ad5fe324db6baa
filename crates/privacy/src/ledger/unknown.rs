//! Attempts that a ledger does not know of, because it was set back to an older copy of itself.
//!
//! What the coordinator spent after the copy was made must count, and nobody knows it. But it was bound by what the copy does know:
//! a job has so many rounds with so many attempts each, and a coordinator reserves nothing beyond the job's budget. The largest of
//! what these bounds allow is charged.

use super::{EntryState, Ledger, LedgerEntry};
use crate::resolve::ResolvedContract;
use std::ops::RangeInclusive;
use undertone_core::id::{Attempt, AttemptKey, JobId, Round};

impl Ledger {
    /// One entry for all that a job may have reserved beyond this ledger at these `rounds`, with `attempts` at each: at least as much
    /// as any coordinator could have, whatever became of its attempts. `None` if that is nothing: no privacy is promised, or all of it
    /// is charged already.
    ///
    /// It is the entry of one attempt that was never made, to be burnt at once.
    pub fn unknown(
        &self,
        job: &JobId,
        contract: &ResolvedContract,
        rounds: RangeInclusive<u32>,
        attempts: u32,
    ) -> Option<LedgerEntry> {
        let budget = contract.budget_epsilon()?;
        let first = *rounds.start();
        let made = |round: u32| self.entries.iter().filter(move |e| e.key.round.0 == round);
        let known = self.entries.iter().filter(|e| rounds.contains(&e.key.round.0)).count() as u64;
        let possible = rounds.clone().count() as u64 * u64::from(attempts);

        let before = self.compositions(contract);
        let charge = u64::from(contract.charge());
        let compositions = |attempts: u64| match attempts {
            0 => 0,
            // One mechanism, whatever becomes of its attempts.
            _ if contract.is_correlated() => u64::from(contract.charge_after(self.entries.len())),
            _ => attempts * charge,
        };
        // No accountant speaks about more compositions than that: a coordinator would not have reserved them.
        let possible = possible.saturating_sub(known).min(u64::from(u32::MAX) / charge.max(1));
        let fits = |attempts: u64| {
            contract.epsilon_of(before + compositions(attempts)).is_some_and(|epsilon| epsilon <= budget)
        };
        let (mut least, mut most) = (0, possible);
        while least < most {
            let middle = most - (most - least) / 2;
            if fits(middle) {
                least = middle;
            } else {
                most = middle - 1;
            }
        }
        let compositions = compositions(least);

        // Measurements and training share the budget. Which attempts were measured is unknown: each gets as much as it could have had
        // without the other.
        let measured: f64 = self.entries.iter().filter_map(|e| e.metrics).sum();
        let metrics = contract.planned_measurements().map(|(_, epsilon)| {
            let planned = rounds.clone().filter(|round| contract.measured_epsilon(*round).is_some()).count();
            let planned = planned as f64 * f64::from(attempts);
            planned.min(((budget - measured).max(0.0) / epsilon).ceil()) * epsilon
        });
        let metrics = metrics.filter(|epsilon| *epsilon > 0.0);
        if compositions == 0 && metrics.is_none() {
            return None;
        }
        let told = self.entries.last().and_then(|e| e.epsilon_after).unwrap_or(0.0);
        let trained = contract.epsilon_of(before + compositions)?;
        let attempt = made(first).map(|e| e.key.attempt.0).max().unwrap_or(0).saturating_add(1);
        Some(LedgerEntry {
            seq: self.entries.len() as u64 + 1,
            key: AttemptKey { job: job.clone(), round: Round(first), attempt: Attempt(attempt) },
            contract: contract.digest(),
            unit: contract.unit(),
            loss: contract.loss(),
            delta: contract.delta(),
            compositions: u32::try_from(compositions).unwrap_or(u32::MAX),
            metrics,
            state: EntryState::Reserved,
            epsilon_after: Some((trained + measured + metrics.unwrap_or(0.0)).max(told)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{CentralMechanism, Noise, PrivacyContract};
    use crate::ledger::chain::Chain;
    use crate::ledger::population::{Budgets, PopulationBudget};
    use crate::ledger::recompute;
    use crate::metrics::MetricsPrivacy;
    use crate::resolve::Schedule;
    use proptest::prelude::*;
    use std::sync::LazyLock;
    use undertone_core::cohort::{Cohort, CohortRule};

    const ROUNDS: u32 = 5;
    const ATTEMPTS: u32 = 3;

    fn job() -> JobId {
        JobId::new("j").unwrap()
    }

    fn plan() -> Schedule {
        Schedule { rounds: ROUNDS, local_steps: 2 }
    }

    fn record(budget: f64) -> PrivacyContract {
        PrivacyContract::record_local(1.0, 0.25, Noise::TargetEpsilon(3.0), 1e-3, budget).unwrap()
    }

    /// Tight and roomy budgets, with measurements, and correlated noise.
    static CONTRACTS: LazyLock<Vec<ResolvedContract>> = LazyLock::new(|| {
        let all = Cohort::new(CohortRule::All { size: 2, min_clients: 1 });
        let metrics = MetricsPrivacy::new(0.25, 4.0).unwrap();
        let correlated = PrivacyContract::client_central(1.0, Noise::Multiplier(2.0), 1e-5, 5.0).unwrap();
        let correlated = correlated.with_mechanism(CentralMechanism::Blt).unwrap();
        let takes_part_twice: Cohort = serde_json::from_value(serde_json::json!({
            "rule": "uniform", "size": 10, "min_clients": 1, "participations": 2, "separation": 2,
        }))
        .unwrap();
        vec![
            record(4.0).resolve(plan()).unwrap(),
            record(50.0).resolve(plan()).unwrap(),
            record(5.0).with_metrics(metrics).unwrap().resolve_measured(plan(), &all, 2).unwrap(),
            correlated.resolve_for(plan(), &takes_part_twice).unwrap(),
        ]
    });

    fn budgets() -> Budgets {
        let budget = PopulationBudget { epsilon: 1000.0, delta: 1e-3 };
        Budgets { record: Some(budget), client: None }
    }

    /// Reserves attempts one after another, as far as the budget goes; `failures` says after which of them the round goes on.
    fn reserve(
        chain: &mut Chain,
        contract: &ResolvedContract,
        from: (u32, u32),
        failures: &[bool],
    ) -> (u32, u32) {
        let (mut round, mut attempt) = from;
        for fails in failures {
            if round > ROUNDS || attempt > ATTEMPTS {
                break;
            }
            let key = AttemptKey { job: job(), round: Round(round), attempt: Attempt(attempt) };
            let Ok(entry) = chain.job(&job()).reserve(key, contract, chain.totals()) else { break };
            for line in chain.lines_for(&[entry], 1).unwrap() {
                chain.apply(line).unwrap();
            }
            (round, attempt) = if *fails { (round, attempt + 1) } else { (round + 1, 1) };
        }
        (round, attempt)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn no_coordinator_could_have_spent_more(
            which in 0..4_usize,
            before in proptest::collection::vec(any::<bool>(), 0..8),
            after in proptest::collection::vec(any::<bool>(), 0..20),
        ) {
            let contract = &CONTRACTS[which];
            let mut copy = Chain::new(budgets());
            let (round, attempt) = reserve(&mut copy, contract, (1, 1), &before);
            let mut real = copy.clone();
            reserve(&mut real, contract, (round, attempt), &after);

            if round <= ROUNDS && let Some(entry) = copy.job(&job()).unknown(&job(), contract, round..=ROUNDS, ATTEMPTS) {
                let lines = copy.lines_for(std::slice::from_ref(&entry), 1).unwrap();
                lines.into_iter().for_each(|l| copy.apply(l).unwrap());
                let burnt = copy.job(&job()).burn(&entry.key, "restored").unwrap();
                let lines = copy.lines_for(&[burnt], 2).unwrap();
                lines.into_iter().for_each(|l| copy.apply(l).unwrap());
            }
            let (counted, spent) = (copy.spent_by(&job()), real.spent_by(&job()));
            prop_assert!(
                counted.and_then(|c| c.epsilon).unwrap_or(0.0) >= spent.and_then(|s| s.epsilon).unwrap_or(0.0),
                "{counted:?} {spent:?}"
            );
            let used = |chain: &Chain| chain.totals().spent();
            prop_assert!(used(&copy).record_epsilon >= used(&real).record_epsilon * (1.0 - 1e-12));
            prop_assert!(used(&copy).client_epsilon >= used(&real).client_epsilon * (1.0 - 1e-12));
        }
    }

    #[test]
    fn what_is_charged_can_be_recomputed_by_anyone() {
        for contract in CONTRACTS.iter() {
            let mut chain = Chain::new(budgets());
            let mut lines = vec![];
            let first = AttemptKey { job: job(), round: Round(1), attempt: Attempt(1) };
            let entry = chain.job(&job()).reserve(first, contract, chain.totals()).unwrap();
            for line in chain.lines_for(&[entry], 1).unwrap() {
                lines.push(line.clone());
                chain.apply(line).unwrap();
            }
            if let Some(entry) = chain.job(&job()).unknown(&job(), contract, 1..=ROUNDS, ATTEMPTS) {
                assert_eq!(entry.key.attempt, Attempt(2), "an attempt that was made is charged already");
                lines.extend(chain.lines_for(&[entry], 1).unwrap());
            }
            recompute(&lines).unwrap();
        }
    }

    #[test]
    fn nothing_is_charged_where_nothing_can_have_been_spent() {
        let none = PrivacyContract::none().resolve(plan()).unwrap();
        assert_eq!(Ledger::default().unknown(&job(), &none, 1..=ROUNDS, ATTEMPTS), None);
        let correlated = &CONTRACTS[3];
        let whole = Ledger::default().unknown(&job(), correlated, 1..=ROUNDS, ATTEMPTS).unwrap();
        assert_eq!(
            whole.epsilon_after,
            correlated.epsilon_after(1),
            "the whole run, whatever was made of it"
        );
        let mut ledger = Ledger::default();
        ledger.apply(whole).unwrap();
        assert_eq!(ledger.unknown(&job(), correlated, 1..=ROUNDS, ATTEMPTS), None);
    }

    #[test]
    fn a_budget_bounds_what_is_charged() {
        let (tight, roomy) = (&CONTRACTS[0], &CONTRACTS[1]);
        let of = |contract: &ResolvedContract| {
            Ledger::default().unknown(&job(), contract, 1..=ROUNDS, ATTEMPTS).unwrap()
        };
        assert_eq!(
            of(roomy).compositions,
            ROUNDS * ATTEMPTS * roomy.charge(),
            "every attempt of every round"
        );
        let some = of(tight);
        assert!(some.compositions < of(roomy).compositions);
        assert!(some.epsilon_after.unwrap() <= 4.0);
        assert!(
            tight.epsilon_after(some.compositions / tight.charge() + 1).unwrap() > 4.0,
            "one more does not fit"
        );
    }
}
