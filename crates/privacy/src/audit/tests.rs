//! The audit on contracts of both kinds: the claim stands, and without noise it falls.

use super::*;
use crate::contract::{Noise, PrivacyContract};
use crate::resolve::{ResolvedContract, Schedule};
use crate::sensitivity::Adjacency;
use undertone_core::cohort::{Cohort, CohortRule};
use undertone_core::fixed::Grid;

const WISHES: Wishes = Wishes { canaries: None, guesses: None, rounds: None, confidence: 0.95 };

fn grid() -> Grid {
    Grid::new(16).unwrap()
}

fn client(noise: Noise, rounds: u32) -> ResolvedContract {
    let contract = PrivacyContract::client_central(0.7, noise, 1e-5, 100.0).unwrap();
    contract.resolve(Schedule { rounds, local_steps: 1 }).unwrap()
}

fn record(sampling_rate: f64, noise: Noise, delta: f64, rounds: u32, local_steps: u32) -> ResolvedContract {
    let contract = PrivacyContract::record_local(1.3, sampling_rate, noise, delta, 100.0).unwrap();
    contract.resolve(Schedule { rounds, local_steps }).unwrap()
}

fn drawn(rate: f64, population: u32, cap: u32, noise: Noise, rounds: u32) -> ResolvedContract {
    let contract = PrivacyContract::client_central(0.7, noise, 1e-5, 100.0).unwrap();
    let cohort = Cohort::new(CohortRule::Poisson { rate, population, cap, min_clients: 1 });
    contract.resolve_for(Schedule { rounds, local_steps: 1 }, &cohort).unwrap()
}

fn local(adjacency: Adjacency, noise: Noise, rounds: u32) -> ResolvedContract {
    let contract = PrivacyContract::client_local(0.7, noise, 1e-5, 100.0).unwrap();
    let contract = contract.with_adjacency(adjacency).unwrap();
    contract.resolve(Schedule { rounds, local_steps: 1 }).unwrap()
}

/// Runs the job and the control with several seeds; the measurements with noise.
fn check(contract: &ResolvedContract, wishes: Wishes) -> Vec<f64> {
    let design = Design::new(contract, wishes).unwrap();
    let measure = |seed: u64| {
        let noise = |salt: u64| NoiseRng::seeded_for_tests(1000 * salt + seed);
        let mut job = JobUnderAudit::new(contract, grid(), noise(1));
        let outcome = design.run(&mut job, Coins::seeded(seed)).unwrap();
        assert!(!outcome.contradicts_the_claim(), "seed {seed}: {outcome:?}");
        let mut control = WithoutNoise::new(contract, grid(), noise(2));
        let exposed = design.run(&mut control, Coins::seeded(seed)).unwrap();
        assert!(exposed.contradicts_the_claim(), "seed {seed}: {exposed:?}");
        assert_eq!(exposed.evidence.right(), design.guesses(), "seed {seed}");
        assert!(outcome.measured < exposed.measured);
        outcome.measured
    };
    (1..=4).map(measure).collect()
}

/// The share of the claim that was measured, on average.
fn seen(measured: &[f64], contract: &ResolvedContract) -> f64 {
    let claimed = contract.epsilon_after(contract.schedule().rounds).unwrap();
    measured.iter().sum::<f64>() / measured.len() as f64 / claimed
}

#[test]
fn client_level_keeps_its_claim_and_fails_without_noise() {
    for (noise, rounds) in
        [(Noise::TargetEpsilon(3.0), 20), (Noise::Multiplier(1.0), 1), (Noise::TargetEpsilon(0.5), 5)]
    {
        let contract = client(noise, rounds);
        let measured = check(&contract, WISHES);
        // An audit that measures nothing would keep any claim: here it sees a good part of what there is.
        let claimed = contract.epsilon_after(rounds).unwrap();
        assert!(claimed < 1.0 || seen(&measured, &contract) > 0.15, "measured {measured:?} of {claimed}");
    }
}

/// A replaced client is twice as far away, and has twice the noise: a guesser that only looked for canaries that are
/// absent would see half of it.
#[test]
fn client_level_with_replaced_clients_keeps_its_claim_and_fails_without_noise() {
    let contract = PrivacyContract::client_central(0.7, Noise::TargetEpsilon(3.0), 1e-5, 100.0).unwrap();
    let contract = contract.with_adjacency(Adjacency::ReplaceOne).unwrap();
    let contract = contract.resolve(Schedule { rounds: 20, local_steps: 1 }).unwrap();
    let measured = check(&contract, WISHES);
    assert!(seen(&measured, &contract) > 0.35, "{measured:?}");
}

#[test]
fn record_level_with_full_batches_keeps_its_claim_and_fails_without_noise() {
    let contract = record(1.0, Noise::Multiplier(4.0), 1e-5, 5, 2);
    let measured = check(&contract, WISHES);
    assert!(measured.iter().all(|&m| m > 0.1 * contract.epsilon_after(5).unwrap()), "{measured:?}");
}

/// The contract of the hospitals' example.
#[test]
fn record_level_with_sampling_keeps_its_claim_and_fails_without_noise() {
    let wishes = Wishes { canaries: Some(50_000), ..WISHES };
    let measured = check(&record(0.25, Noise::TargetEpsilon(5.0), 1e-3, 20, 2), wishes);
    assert!(measured.iter().all(|&m| m > 0.5), "{measured:?}");
}

#[test]
fn record_level_with_sparse_sampling_keeps_its_claim_and_fails_without_noise() {
    check(&record(0.05, Noise::TargetEpsilon(1.5), 1e-6, 10, 5), WISHES);
}

/// The claim is the amplified one, a part of what the same noise costs where everyone is asked.
#[test]
fn drawn_cohorts_keep_their_amplified_claim_and_fail_without_noise() {
    let wishes = Wishes { canaries: Some(10_000), ..WISHES };
    for (rate, population, cap, noise, rounds, least) in [
        (0.1, 1000, 200, Noise::TargetEpsilon(3.0), 20, 0.25),
        (0.5, 100, 80, Noise::Multiplier(1.5), 3, 0.3),
        // A cap that cuts most draws down: who is in pushes another one out.
        (0.2, 500, 90, Noise::TargetEpsilon(2.0), 4, 0.05),
        (0.02, 100_000, 3000, Noise::Multiplier(0.6), 10, 0.15),
    ] {
        let contract = drawn(rate, population, cap, noise, rounds);
        let measured = check(&contract, wishes);
        assert!(seen(&measured, &contract) > least, "{rate} of {population}, {cap} at most: {measured:?}");
    }
}

#[test]
fn local_messages_keep_their_claim_and_fail_without_noise() {
    for adjacency in [Adjacency::ReplaceOne, Adjacency::AddRemove] {
        for (noise, rounds, least) in [
            (Noise::TargetEpsilon(4.0), 10, 0.35),
            (Noise::Multiplier(1.0), 1, 0.35),
            (Noise::TargetEpsilon(1.0), 5, 0.0),
        ] {
            let contract = local(adjacency, noise, rounds);
            let measured = check(&contract, WISHES);
            assert!(seen(&measured, &contract) >= least, "{adjacency:?}, {noise:?}: {measured:?}");
        }
    }
}

/// The audit has teeth: a claim that is three times too good is refuted. The job is the one with its true noise; the
/// claim is that of another contract.
#[test]
fn noise_that_is_too_small_for_the_claim_is_found_out() {
    let weak = client(Noise::Multiplier(0.5), 4);
    let strong = client(Noise::TargetEpsilon(1.0), 4);
    let design = Design::new(&strong, WISHES).unwrap();
    for seed in 1..=3 {
        let mut job = JobUnderAudit::new(&weak, grid(), NoiseRng::seeded_for_tests(seed));
        let outcome = design.run(&mut job, Coins::seeded(seed)).unwrap();
        assert!(outcome.contradicts_the_claim(), "{outcome:?}");
    }
    let weak = record(0.5, Noise::Multiplier(0.5), 1e-5, 2, 2);
    let strong = record(0.5, Noise::TargetEpsilon(1.0), 1e-5, 2, 2);
    let design = Design::new(&strong, WISHES).unwrap();
    let mut job = JobUnderAudit::new(&weak, grid(), NoiseRng::seeded_for_tests(9));
    assert!(design.run(&mut job, Coins::seeded(9)).unwrap().contradicts_the_claim());
}

/// An amplified claim for cohorts that are drawn more often than it says, or not at all; a local message with a
/// third of the noise.
#[test]
fn a_draw_or_a_neighbour_other_than_the_claimed_one_is_found_out() {
    let noise = Noise::Multiplier(1.0);
    let claims_tenth = drawn(0.1, 1000, 200, noise, 4);
    let (often, everyone) = (drawn(0.9, 1000, 1000, noise, 4), client(noise, 4));
    let replaced = |z| local(Adjacency::ReplaceOne, Noise::Multiplier(z), 4);
    let (local_claim, third) = (replaced(3.0), replaced(1.0));
    for (claim, truth) in [(&claims_tenth, &often), (&claims_tenth, &everyone), (&local_claim, &third)] {
        let design =
            Design::new(claim, Wishes { canaries: Some(10_000), guesses: Some(200), ..WISHES }).unwrap();
        let mut job = JobUnderAudit::new(truth, grid(), NoiseRng::seeded_for_tests(3));
        let outcome = design.run(&mut job, Coins::seeded(3)).unwrap();
        assert!(outcome.contradicts_the_claim(), "{:?}: {outcome:?}", truth.loss());
    }
}

#[test]
fn coins_repeat_with_their_seed_and_are_fair() {
    let toss = |seed| Coins::seeded(seed).toss(10_000);
    assert_eq!(toss(1), toss(1));
    assert_ne!(toss(1), toss(2));
    let heads = toss(3).iter().filter(|&&c| c).count();
    assert!((4700..5300).contains(&heads), "{heads}");
    let mut rng = NoiseRng::seeded_for_tests(4);
    assert_ne!(Coins::fresh(&mut rng).toss(100), Coins::fresh(&mut rng).toss(100));
}

#[test]
fn the_same_seeds_measure_the_same() {
    let contract = client(Noise::TargetEpsilon(3.0), 3);
    let design = Design::new(&contract, WISHES).unwrap();
    let run = |noise| {
        let mut job = JobUnderAudit::new(&contract, grid(), NoiseRng::seeded_for_tests(noise));
        design.run(&mut job, Coins::seeded(5)).unwrap()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn everything_is_fixed_beforehand_and_has_power() {
    let contract = record(0.25, Noise::TargetEpsilon(5.0), 1e-3, 20, 2);
    let design = Design::new(&contract, WISHES).unwrap();
    // At a δ of 1e-3 no run refutes an ε of 5: the claim is looked at where one can.
    assert!(design.delta() < 1e-3 && design.claimed() > contract.epsilon_after(20).unwrap());
    assert_eq!(Some(design.claimed()), contract.epsilon_at(20, design.delta()));
    assert_eq!((design.guesses_out(), design.rounds()), (0, 20));
    let exposed = Evidence::new(design.canaries(), design.guesses(), design.guesses()).unwrap();
    assert!(exposed.epsilon_lower_bound(design.delta(), 0.95) > design.claimed());
    // Where all are in every round, low scores tell as much as high ones, and the contract's own δ will do.
    let contract = client(Noise::TargetEpsilon(3.0), 4);
    let design = Design::new(&contract, Wishes { rounds: Some(2), ..WISHES }).unwrap();
    assert_eq!(design.delta(), 1e-5);
    assert!(design.guesses_in() - design.guesses_out() <= 1);
    assert_eq!(Some(design.claimed()), contract.epsilon_after(2));
    let design =
        Design::new(&contract, Wishes { canaries: Some(3000), guesses: Some(901), ..WISHES }).unwrap();
    assert_eq!((design.canaries(), design.guesses_in(), design.guesses_out()), (3000, 451, 450));
}

#[test]
fn what_cannot_be_audited_is_refused() {
    let contract = client(Noise::TargetEpsilon(3.0), 4);
    let refuse = |wishes| Design::new(&contract, wishes).unwrap_err();
    let none = PrivacyContract::none().resolve(Schedule { rounds: 3, local_steps: 1 }).unwrap();
    assert_eq!(Design::new(&none, WISHES).unwrap_err(), AuditError::NoPromise);
    for canaries in [0, 99, 65_537, u32::MAX] {
        assert_eq!(refuse(Wishes { canaries: Some(canaries), ..WISHES }), AuditError::Canaries(canaries));
    }
    for guesses in [0, 995, u32::MAX] {
        let e = refuse(Wishes { canaries: Some(1000), guesses: Some(guesses), ..WISHES });
        assert!(matches!(e, AuditError::Guesses { .. }), "{e}");
    }
    for confidence in [0.0, 0.49, 1.0, -1.0, f64::NAN, f64::INFINITY] {
        let e = refuse(Wishes { confidence, ..WISHES });
        assert!(matches!(e, AuditError::Confidence(_)), "{e}");
    }
    for rounds in [0, 5] {
        let e = refuse(Wishes { rounds: Some(rounds), ..WISHES });
        assert_eq!(e, AuditError::Rounds { rounds, planned: 4 });
    }
    // An audit that could not fail is none: too few guesses, or a claim beyond any evidence.
    let few = Wishes { canaries: Some(1000), guesses: Some(20), ..WISHES };
    assert!(matches!(refuse(few), AuditError::Powerless { .. }));
    let loose = client(Noise::Multiplier(0.4), 4);
    let e = Design::new(&loose, WISHES).unwrap_err();
    assert!(matches!(e, AuditError::Powerless { canaries: 50_000, .. }), "{e}");
    let long = client(Noise::TargetEpsilon(3.0), 1_000_000);
    let e = Design::new(&long, Wishes { canaries: Some(65_536), ..WISHES }).unwrap_err();
    assert!(matches!(e, AuditError::TooMuchWork { .. }), "{e}");
}

/// Correlated noise cancels over the rounds: what a client gives in two of four rounds is hidden by it all the same. A
/// clip norm that moves pays for its count with more noise on the updates.
#[test]
fn the_coordinators_other_noise_hides_as_much_as_it_claims() {
    use crate::contract::CentralMechanism;
    let contract = PrivacyContract::client_central(0.7, Noise::TargetEpsilon(3.0), 1e-5, 100.0).unwrap();
    let cohort: Cohort = serde_json::from_value(serde_json::json!({
        "rule": "uniform", "size": 10, "min_clients": 1, "participations": 2, "separation": 2,
    }))
    .unwrap();
    let plan = Schedule { rounds: 4, local_steps: 1 };
    let blt = contract.with_mechanism(CentralMechanism::Blt).unwrap().resolve_for(plan, &cohort).unwrap();
    let fast = contract.with_mechanism(CentralMechanism::FastGaussian).unwrap().resolve(plan).unwrap();
    let rule = crate::adaptive_clip::Rule {
        initial: 0.7,
        min: 0.1,
        max: 4.0,
        target_quantile: 0.5,
        learning_rate: 0.2,
        count_noise: 5.0,
    };
    let moving = contract.with_adaptive_clip(rule.try_into().unwrap()).unwrap().resolve(plan).unwrap();
    for contract in [blt, fast, moving] {
        let seen = seen(&check(&contract, WISHES), &contract);
        assert!(seen > 0.1, "{:?}: {seen}", contract.contract());
    }
}
