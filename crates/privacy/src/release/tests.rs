//! Each way to a release, and what bars it.

use super::*;
use crate::contract::{Noise, PrivacyContract};
use crate::ledger::Ledger;
use crate::ledger::population::{Budgets, Totals};
use crate::resolve::Schedule;
use crate::sensitivity::Adjacency;
use undertone_core::digest::Digest;
use undertone_core::id::{Attempt, JobId, Round};

fn resolve(contract: PrivacyContract) -> ResolvedContract {
    contract.resolve(Schedule { rounds: 3, local_steps: 2 }).unwrap()
}

fn client() -> ResolvedContract {
    resolve(PrivacyContract::client_central(1.0, Noise::Multiplier(1.0), 1e-5, 50.0).unwrap())
}

fn record() -> ResolvedContract {
    resolve(PrivacyContract::record_local(1.0, 0.5, Noise::Multiplier(1.0), 1e-5, 50.0).unwrap())
}

fn entry(contract: &ResolvedContract) -> LedgerEntry {
    let key = AttemptKey { job: JobId::new("j").unwrap(), round: Round(1), attempt: Attempt(1) };
    let population = Totals::new(Budgets::default());
    let reserved = Ledger::default().reserve(key, contract, &population).unwrap();
    reserved.sampled(Digest::of(b"the cohort")).unwrap()
}

/// `updates` updates of `len` values of 0.5 each on a grid of 2^-16, all of weight `weight`.
fn sum(len: usize, updates: u32, weight: u32) -> IntegerSum {
    let mut sum = IntegerSum::zero(Grid::new(16).unwrap(), len);
    for _ in 0..updates {
        sum.fold(&vec![1 << 15; len], weight).unwrap();
    }
    sum
}

fn mean_and_deviation(released: &Releasable) -> (f64, f64) {
    let n = released.mean().len() as f64;
    let mean = released.mean().sum::<f64>() / n;
    (mean, (released.mean().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt())
}

#[test]
fn client_level_noise_does_not_shrink_when_clients_drop_out() {
    let contract = client();
    let mut rng = NoiseRng::seeded_for_tests(1);
    for reported in [0, 3, 10] {
        let released = release(sum(50_000, reported, 1), &contract, &entry(&contract), 10, &mut rng).unwrap();
        let (mean, deviation) = mean_and_deviation(&released);
        // The divisor is 10 for all: a mean of 0.05 a client, noise of 1·clip_norm/10.
        assert!((mean - 0.05 * f64::from(reported)).abs() < 0.003, "{reported}: {mean}");
        assert!((deviation / 0.1 - 1.0).abs() < 0.02, "{reported}: {deviation}");
    }
}

#[test]
fn a_replaced_client_costs_twice_the_noise_and_the_same_epsilon() {
    let plain = PrivacyContract::client_central(1.0, Noise::Multiplier(1.0), 1e-5, 50.0).unwrap();
    let [plain, replace] = [plain, plain.with_adjacency(Adjacency::ReplaceOne).unwrap()].map(resolve);
    assert_eq!(plain.epsilon_after(3), replace.epsilon_after(3));
    assert_ne!(plain.digest(), replace.digest());
    let mut rng = NoiseRng::seeded_for_tests(5);
    for (contract, factor) in [(plain, 1.0), (replace, 2.0)] {
        let released = release(sum(50_000, 1, 1), &contract, &entry(&contract), 10, &mut rng).unwrap();
        let (_, deviation) = mean_and_deviation(&released);
        assert!((deviation / (0.1 * factor) - 1.0).abs() < 0.02, "{factor}: {deviation}");
    }
}

/// A draw may come out empty: then noise alone is released, over the same denominator, and nobody can tell.
#[test]
fn an_empty_cohort_releases_noise() {
    let contract = client();
    let mut rng = NoiseRng::seeded_for_tests(7);
    let cohort = Counted { most: 3, denominator: 2.5 };
    for updates in [0, 3] {
        let released =
            release(sum(50_000, updates, 1), &contract, &entry(&contract), cohort, &mut rng).unwrap();
        let (mean, deviation) = mean_and_deviation(&released);
        assert!((mean - 0.2 * f64::from(updates)).abs() < 0.01, "{updates}: {mean}");
        assert!((deviation / 0.4 - 1.0).abs() < 0.02, "{updates}: {deviation}");
    }
    let e = release(sum(2, 4, 1), &contract, &entry(&contract), cohort, &mut rng).unwrap_err();
    assert_eq!(e, ReleaseError::Cohort { updates: 4, cohort_size: 3 });
    for denominator in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let cohort = Counted { most: 3, denominator };
        assert!(release(sum(2, 1, 1), &contract, &entry(&contract), cohort, &mut rng).is_err());
    }
}

#[test]
fn two_releases_have_different_noise() {
    let contract = client();
    let mut rng = NoiseRng::from_os().unwrap();
    let mut once = || release(sum(8, 1, 1), &contract, &entry(&contract), 1, &mut rng).unwrap();
    assert_ne!(once(), once());
}

#[test]
fn record_level_and_no_promise_divide_by_the_weight_received() {
    let mut rng = NoiseRng::seeded_for_tests(2);
    for contract in [record(), resolve(PrivacyContract::none())] {
        let released = release(sum(4, 3, 7), &contract, &entry(&contract), 100, &mut rng).unwrap();
        assert_eq!(released.mean().collect::<Vec<_>>(), [0.5; 4]);
        let nothing = release(sum(4, 0, 1), &contract, &entry(&contract), 100, &mut rng);
        assert_eq!(nothing, Err(ReleaseError::NothingReceived));
    }
}

#[test]
fn local_messages_are_averaged_without_more_noise_and_without_weights() {
    let mut rng = NoiseRng::seeded_for_tests(6);
    let contract = resolve(PrivacyContract::client_local(1.0, Noise::Multiplier(1.0), 1e-5, 50.0).unwrap());
    let released = release(sum(4, 3, 1), &contract, &entry(&contract), 100, &mut rng).unwrap();
    assert_eq!(released.mean().collect::<Vec<_>>(), [0.5; 4]);
    let e = release(sum(4, 3, 7), &contract, &entry(&contract), 100, &mut rng).unwrap_err();
    assert!(matches!(e, ReleaseError::NotUniform { updates: 3, total_weight: 21 }), "{e}");
    let e = release(sum(4, 0, 1), &contract, &entry(&contract), 100, &mut rng).unwrap_err();
    assert_eq!(e, ReleaseError::NothingReceived);
}

#[test]
fn weights_and_cohorts_that_break_the_sensitivity_are_refused() {
    let contract = client();
    let mut rng = NoiseRng::seeded_for_tests(3);
    let mut of =
        |sum, cohort_size| release(sum, &contract, &entry(&contract), cohort_size, &mut rng).unwrap_err();
    assert!(matches!(of(sum(2, 2, 5), 10), ReleaseError::NotUniform { updates: 2, total_weight: 10 }));
    assert!(matches!(of(sum(2, 3, 1), 2), ReleaseError::Cohort { updates: 3, cohort_size: 2 }));
    assert!(matches!(of(sum(2, 0, 1), 0), ReleaseError::Cohort { .. }));
    assert!(matches!(of(IntegerSum::zero(Grid::new(4).unwrap(), 2), 2), ReleaseError::Noise(_)));
}

#[test]
fn only_a_sampled_entry_of_the_same_contract_opens_the_way() {
    let mut rng = NoiseRng::seeded_for_tests(4);
    for contract in [client(), record(), resolve(PrivacyContract::none())] {
        let mut used = entry(&contract);
        for state in [
            EntryState::Reserved,
            EntryState::Committed { output: Digest::of(b"x") },
            EntryState::Published { output: Digest::of(b"x") },
            EntryState::Burnt { reason: "r".into() },
        ] {
            used.state = state;
            let e = release(sum(2, 1, 1), &contract, &used, 1, &mut rng).unwrap_err();
            assert!(matches!(e, ReleaseError::NotReserved { .. }), "{e}");
        }
        let mut foreign = entry(&contract);
        foreign.contract = Digest::of(b"other");
        let e = release(sum(2, 1, 1), &contract, &foreign, 1, &mut rng).unwrap_err();
        assert!(matches!(e, ReleaseError::OtherContract(_)), "{e}");
    }
}
