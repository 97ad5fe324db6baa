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
        let (released, _) =
            release(sum(50_000, reported, 1), &contract, &entry(&contract), 10, Carried::default(), &mut rng)
                .unwrap();
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
        let (released, _) =
            release(sum(50_000, 1, 1), &contract, &entry(&contract), 10, Carried::default(), &mut rng)
                .unwrap();
        let (_, deviation) = mean_and_deviation(&released);
        assert!((deviation / (0.1 * factor) - 1.0).abs() < 0.02, "{factor}: {deviation}");
    }
}

/// A draw may come out empty: then noise alone is released, over the same denominator, and nobody can tell.
#[test]
fn an_empty_cohort_releases_noise() {
    let contract = client();
    let mut rng = NoiseRng::seeded_for_tests(7);
    let cohort = Counted { most: 3, denominator: 2.5, fresh_weight: None };
    for updates in [0, 3] {
        let (released, _) = release(
            sum(50_000, updates, 1),
            &contract,
            &entry(&contract),
            cohort,
            Carried::default(),
            &mut rng,
        )
        .unwrap();
        let (mean, deviation) = mean_and_deviation(&released);
        assert!((mean - 0.2 * f64::from(updates)).abs() < 0.01, "{updates}: {mean}");
        assert!((deviation / 0.4 - 1.0).abs() < 0.02, "{updates}: {deviation}");
    }
    let e = release(sum(2, 4, 1), &contract, &entry(&contract), cohort, Carried::default(), &mut rng)
        .unwrap_err();
    assert_eq!(e, ReleaseError::Cohort { updates: 4, cohort_size: 3 });
    for denominator in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let cohort = Counted { most: 3, denominator, fresh_weight: None };
        assert!(
            release(sum(2, 1, 1), &contract, &entry(&contract), cohort, Carried::default(), &mut rng)
                .is_err()
        );
    }
}

#[test]
fn two_releases_have_different_noise() {
    let contract = client();
    let mut rng = NoiseRng::from_os().unwrap();
    let mut once =
        || release(sum(8, 1, 1), &contract, &entry(&contract), 1, Carried::default(), &mut rng).unwrap();
    assert_ne!(once(), once());
}

#[test]
fn record_level_and_no_promise_divide_by_the_weight_received() {
    let mut rng = NoiseRng::seeded_for_tests(2);
    for contract in [record(), resolve(PrivacyContract::none())] {
        let (released, _) =
            release(sum(4, 3, 7), &contract, &entry(&contract), 100, Carried::default(), &mut rng).unwrap();
        assert_eq!(released.mean().collect::<Vec<_>>(), [0.5; 4]);
        let nothing = release(sum(4, 0, 1), &contract, &entry(&contract), 100, Carried::default(), &mut rng);
        assert_eq!(nothing, Err(ReleaseError::NothingReceived));
    }
}

#[test]
fn local_messages_are_averaged_without_more_noise_and_without_weights() {
    let mut rng = NoiseRng::seeded_for_tests(6);
    let contract = resolve(PrivacyContract::client_local(1.0, Noise::Multiplier(1.0), 1e-5, 50.0).unwrap());
    let (released, _) =
        release(sum(4, 3, 1), &contract, &entry(&contract), 100, Carried::default(), &mut rng).unwrap();
    assert_eq!(released.mean().collect::<Vec<_>>(), [0.5; 4]);
    let e =
        release(sum(4, 3, 7), &contract, &entry(&contract), 100, Carried::default(), &mut rng).unwrap_err();
    assert!(matches!(e, ReleaseError::TooHeavy { updates: 3, total_weight: 21, max_weight: 1 }), "{e}");
    let e =
        release(sum(4, 0, 1), &contract, &entry(&contract), 100, Carried::default(), &mut rng).unwrap_err();
    assert_eq!(e, ReleaseError::NothingReceived);
}

#[test]
fn weights_and_cohorts_that_break_the_sensitivity_are_refused() {
    let contract = client();
    let mut rng = NoiseRng::seeded_for_tests(3);
    let mut of = |sum, cohort_size| {
        release(sum, &contract, &entry(&contract), cohort_size, Carried::default(), &mut rng).unwrap_err()
    };
    assert!(matches!(
        of(sum(2, 2, 5), 10),
        ReleaseError::TooHeavy { updates: 2, total_weight: 10, max_weight: 1 }
    ));
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
            let e = release(sum(2, 1, 1), &contract, &used, 1, Carried::default(), &mut rng).unwrap_err();
            assert!(matches!(e, ReleaseError::NotReserved { .. }), "{e}");
        }
        let mut foreign = entry(&contract);
        foreign.contract = Digest::of(b"other");
        let e = release(sum(2, 1, 1), &contract, &foreign, 1, Carried::default(), &mut rng).unwrap_err();
        assert!(matches!(e, ReleaseError::OtherContract(_)), "{e}");
    }
}

fn adaptive() -> ResolvedContract {
    let rule = crate::adaptive_clip::Rule {
        initial: 1.0,
        min: 0.25,
        max: 2.0,
        target_quantile: 0.5,
        learning_rate: 0.5,
        count_noise: 0.6,
    };
    let contract = PrivacyContract::client_central(1.0, Noise::Multiplier(1.0), 1e-5, 50.0).unwrap();
    resolve(contract.with_adaptive_clip(rule.try_into().unwrap()).unwrap())
}

fn at_round(round: u32, contract: &ResolvedContract) -> LedgerEntry {
    let mut entry = entry(contract);
    entry.key.round = Round(round);
    entry
}

#[test]
fn a_clip_norm_that_moves_takes_its_share_and_the_noise_follows_it() {
    use crate::adaptive_clip::WithinBit;
    let contract = adaptive();
    let mut rng = NoiseRng::seeded_for_tests(11);
    let mut carried = Carried::default();
    let mut norms = vec![];
    for round in 1..=3 {
        let mut within = CountSum::default();
        (0..10).for_each(|_| within.fold(WithinBit::from_wire(false)));
        let collected = Collected { sum: sum(50_000, 10, 1), within };
        let norm = clip_norm_of(&contract, carried.clip.as_ref()).unwrap();
        let (released, next) =
            release(collected, &contract, &at_round(round, &contract), 10, carried, &mut rng).unwrap();
        // z_Δ = (1 - 1/1.2²)^(-½) of the clip norm of this round.
        let (_, deviation) = mean_and_deviation(&released);
        let expected = 1.0 / (1.0 - 1.0 / 1.44f64).sqrt() * norm / 10.0;
        assert!((deviation / expected - 1.0).abs() < 0.02, "{round}: {deviation} for {expected}");
        norms.push(norm);
        carried = next;
    }
    // No update was within: the norm grows, up to its clamp.
    assert!(norms[0] == 1.0 && norms[1] > 1.0 && norms[2] > norms[1] && norms[2] <= 2.0, "{norms:?}");
    let beyond = serde_json::from_str(r#"{"clip_norm":9.0,"frozen":false}"#).unwrap();
    assert_eq!(clip_norm_of(&contract, Some(&beyond)), Some(2.0), "what is stored does not lift the clamp");
}

fn correlated() -> ResolvedContract {
    let contract = PrivacyContract::client_central(1.0, Noise::Multiplier(1.0), 1e-5, 50.0).unwrap();
    let contract = contract.with_mechanism(CentralMechanism::Blt).unwrap();
    let cohort: undertone_core::cohort::Cohort = serde_json::from_value(serde_json::json!({
        "rule": "uniform", "size": 10, "min_clients": 1, "participations": 2, "separation": 2,
    }))
    .unwrap();
    contract.resolve_for(Schedule { rounds: 4, local_steps: 1 }, &cohort).unwrap()
}

#[test]
fn correlated_noise_cancels_over_the_rounds_and_does_not_start_again() {
    let contract = correlated();
    let mut rng = NoiseRng::seeded_for_tests(13);
    let mut carried = Carried::default();
    let (mut prefix, mut independent) = (vec![0.0; 20_000], 0.0);
    for round in 1..=4 {
        let entry = at_round(round, &contract);
        // Another round's noise, or none, is refused before anything is drawn.
        let other = at_round(round + 1, &contract);
        let kept = carried.clone();
        let e = release(sum(20_000, 1, 1), &contract, &other, 1, kept, &mut rng).unwrap_err();
        assert!(e.is_final() && matches!(e, ReleaseError::NoiseLost { .. }), "{e}");
        let (released, next) = release(sum(20_000, 1, 1), &contract, &entry, 1, carried, &mut rng).unwrap();
        prefix.iter_mut().zip(released.mean()).for_each(|(p, m)| *p += m - 0.5);
        independent += mean_and_deviation(&released).1.powi(2);
        carried = next;
    }
    let mean = prefix.iter().sum::<f64>() / 20_000.0;
    let variance = prefix.iter().map(|p| (p - mean).powi(2)).sum::<f64>() / 20_000.0;
    assert!(variance < 0.8 * independent, "{variance} against {independent} of independent rounds");
    let mut damaged = carried.clone();
    damaged.noise.as_mut().unwrap()[60] ^= 1;
    let e = release(sum(20_000, 1, 1), &contract, &at_round(5, &contract), 1, damaged, &mut rng).unwrap_err();
    assert!(e.is_final() && e.to_string().contains("damaged"), "{e}");
    let e = release(sum(20_000, 1, 1), &contract, &at_round(5, &contract), 1, carried, &mut rng).unwrap_err();
    assert!(matches!(e, ReleaseError::Correlated(BltError::Finished(4))), "{e}");
}

#[test]
fn the_fast_gaussian_has_the_contracts_deviation() {
    let contract = PrivacyContract::client_central(1.0, Noise::Multiplier(1.0), 1e-5, 50.0).unwrap();
    let contract = resolve(contract.with_mechanism(CentralMechanism::FastGaussian).unwrap());
    assert_ne!(contract.digest(), client().digest());
    let mut rng = NoiseRng::seeded_for_tests(17);
    let (released, next) =
        release(sum(50_000, 1, 1), &contract, &entry(&contract), 10, Carried::default(), &mut rng).unwrap();
    assert!((mean_and_deviation(&released).1 / 0.1 - 1.0).abs() < 0.02);
    assert_eq!(next, Carried::default());
}

/// A client that counts ten times can move the sum ten times as far: that is what the noise is scaled to.
#[test]
fn weights_are_in_the_sensitivity_and_in_the_fixed_denominator() {
    let contract = PrivacyContract::client_central(1.0, Noise::Multiplier(1.0), 1e-5, 50.0).unwrap();
    let contract = resolve(contract.with_max_weight(10).unwrap());
    assert_eq!(contract.epsilon_after(3), client().epsilon_after(3));
    let mut rng = NoiseRng::seeded_for_tests(19);
    for (updates, weight) in [(0, 1), (4, 3), (10, 10)] {
        let (released, _) = release(
            sum(50_000, updates, weight),
            &contract,
            &entry(&contract),
            10,
            Carried::default(),
            &mut rng,
        )
        .unwrap();
        let (mean, deviation) = mean_and_deviation(&released);
        let expected = 0.5 * f64::from(updates * weight) / 100.0;
        assert!((mean - expected).abs() < 0.003, "{mean} for {expected}");
        assert!((deviation / 0.1 - 1.0).abs() < 0.02, "{deviation}");
    }
    let e =
        release(sum(2, 2, 11), &contract, &entry(&contract), 10, Carried::default(), &mut rng).unwrap_err();
    assert_eq!(e, ReleaseError::TooHeavy { updates: 2, total_weight: 22, max_weight: 10 });
}

#[test]
fn a_robust_rule_releases_what_was_private_and_nothing_that_waits_for_noise() {
    use undertone_core::rules::{MemoryRows, Rule, Tiling};
    let grid = Grid::new(16).unwrap();
    let rows =
        MemoryRows::new(vec![(vec![1 << 16, 2], 1), (vec![3 << 16, 4], 1), (vec![1 << 29, 6], 1)]).unwrap();
    let aggregate = || Rule::Median {}.aggregate(&rows, grid, Tiling::new(1, 3), None).unwrap();
    let contract = record();
    let released = release_robust(aggregate(), grid, &contract, &entry(&contract)).unwrap();
    assert_eq!(released.mean().collect::<Vec<_>>(), [3.0, 4.0 / 65_536.0]);
    let real = Aggregate::Real { units: vec![32_768.0] };
    let released = release_robust(real, grid, &contract, &entry(&contract)).unwrap();
    assert_eq!(released.mean().collect::<Vec<_>>(), [0.5]);
    let central = client();
    let e = release_robust(aggregate(), grid, &central, &entry(&central)).unwrap_err();
    assert!(matches!(e, ReleaseError::OtherContract(_)), "{e}");
    let e = release_robust(aggregate(), grid, &contract, &entry(&client())).unwrap_err();
    assert!(matches!(e, ReleaseError::OtherContract(_)), "{e}");
}

/// However a sum is cut, the same noise gives the same release, and what goes on from it.
#[test]
fn a_sum_in_parts_is_released_like_a_whole_one() {
    const LEN: usize = 999;
    let values: Vec<i32> = (0..LEN as i32).map(|i| i * 31 - 7000).collect();
    let part = |range: std::ops::Range<usize>| {
        let mut sum = IntegerSum::zero(Grid::new(16).unwrap(), range.len());
        sum.fold(&values[range], 1).unwrap();
        sum
    };
    let fast = PrivacyContract::client_central(1.0, Noise::Multiplier(1.0), 1e-5, 50.0).unwrap();
    let fast = resolve(fast.with_mechanism(CentralMechanism::FastGaussian).unwrap());
    for contract in [client(), fast, correlated(), adaptive(), record(), resolve(PrivacyContract::none())] {
        let entry = entry(&contract);
        let within = || {
            let mut within = CountSum::default();
            if contract.contract().adaptive_clip().is_some() {
                within.fold(crate::adaptive_clip::WithinBit::from_wire(true));
            }
            within
        };
        let mut rng = NoiseRng::seeded_for_tests(23);
        let collected = Collected { sum: part(0..LEN), within: within() };
        let (at_once, next) = release(collected, &contract, &entry, 1, Carried::default(), &mut rng).unwrap();
        for size in [1, 7, 500, LEN] {
            let mut rng = NoiseRng::seeded_for_tests(23);
            let whole = Whole::of(&part(0..LEN));
            let mut release =
                Release::begin(whole, within(), &contract, &entry, 1, Carried::default(), &mut rng).unwrap();
            assert_eq!(release.next_clip(), next.clip);
            let mut mean = vec![];
            for start in (0..LEN).step_by(size) {
                mean.extend(release.part(part(start..LEN.min(start + size)), &mut rng).unwrap().mean());
            }
            assert_eq!(mean, at_once.mean().collect::<Vec<_>>(), "{size}");
            assert_eq!(release.finish().unwrap(), next);
        }
        // A part of another sum, one too many, or one too few.
        let whole = Whole::of(&part(0..LEN));
        let mut release =
            Release::begin(whole, within(), &contract, &entry, 1, Carried::default(), &mut rng).unwrap();
        let mut heavier = part(0..10);
        heavier.fold(&[0; 10], 1).unwrap();
        assert!(matches!(release.part(heavier, &mut rng), Err(ReleaseError::OtherPart { .. })));
        release.part(part(0..LEN - 1), &mut rng).unwrap();
        assert!(matches!(release.part(part(0..2), &mut rng), Err(ReleaseError::OtherPart { .. })));
        let e = release.finish().unwrap_err();
        assert_eq!(e, ReleaseError::NotWhole { found: LEN - 1, wanted: LEN });
    }
}

/// A buffer of ten: stale updates weigh less of the same whole, and the noise is that of whole ones.
#[test]
fn stale_updates_count_less_under_the_noise_of_fresh_ones() {
    use undertone_core::cohort::{Buffered, Cohort, CohortRule};
    use undertone_core::rules::staleness::Decay;
    let of = |contract: PrivacyContract, decay| {
        let rule = Buffered { concurrency: 20, buffer: 10, max_staleness: 4, decay };
        let cohort = Cohort::new(CohortRule::Buffered(rule));
        contract.resolve_for(Schedule { rounds: 3, local_steps: 2 }, &cohort).unwrap()
    };
    let plain = PrivacyContract::client_central(1.0, Noise::Multiplier(1.0), 1e-5, 50.0).unwrap();
    let (contract, constant) = (of(plain, Decay::InverseSqrt), of(plain, Decay::Constant));
    assert_eq!((contract.full_weight(), constant.full_weight()), (1 << 16, 1));
    assert_eq!(
        contract.epsilon_after(3),
        plain.resolve(Schedule { rounds: 3, local_steps: 2 }).unwrap().epsilon_after(3)
    );
    let digests = [contract.digest(), constant.digest(), client().digest()];
    assert!(digests[0] != digests[1] && digests[1] != digests[2], "{digests:?}");
    let mut rng = NoiseRng::seeded_for_tests(2);
    let mut of = |sum, contract: &ResolvedContract, cohort: Counted| {
        release(sum, contract, &entry(contract), cohort, Carried::default(), &mut rng).map(|(mean, _)| mean)
    };
    for (weight, counts) in [(1 << 16, 1.0), (1 << 15, 0.5), (1, 0.0)] {
        let (mean, deviation) =
            mean_and_deviation(&of(sum(50_000, 10, weight), &contract, 10.into()).unwrap());
        assert!((mean - 0.5 * counts).abs() < 0.003, "{weight}: {mean}");
        assert!((deviation / 0.1 - 1.0).abs() < 0.02, "{weight}: {deviation}");
    }
    let heavy = of(sum(4, 10, (1 << 16) + 1), &contract, 10.into()).unwrap_err();
    assert!(matches!(heavy, ReleaseError::TooHeavy { max_weight: 65_536, .. }), "{heavy}");
    let full = of(sum(4, 11, 1), &contract, 10.into()).unwrap_err();
    assert!(matches!(full, ReleaseError::Cohort { .. }), "{full}");

    // Without noise of the coordinator's: over what they would weigh if fresh.
    let none = resolve(PrivacyContract::none());
    let fresh = |fresh_weight| Counted { most: 2, denominator: 2.0, fresh_weight };
    let half = of(sum(4, 2, 1 << 15), &none, fresh(Some(2 << 16))).unwrap();
    assert!(half.mean().all(|v| v == 0.25), "{half:?}");
    assert!(of(sum(4, 2, 1 << 15), &none, fresh(None)).unwrap().mean().all(|v| v == 0.5));
}
