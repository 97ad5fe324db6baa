use super::*;
use crate::ledger::Loss;
use undertone_core::cohort::CohortRule;
use undertone_core::fixed::Grid;

const PLAN: Schedule = Schedule { rounds: 20, local_steps: 2 };

fn record(noise: Noise) -> PrivacyContract {
    PrivacyContract::record_local(1.0, 0.25, noise, 1e-3, 10.0).unwrap()
}

#[test]
fn a_target_is_kept_by_the_planned_rounds_and_nearly_reached() {
    let resolved = record(Noise::TargetEpsilon(5.0)).resolve(PLAN).unwrap();
    let epsilon = resolved.epsilon_after(20).unwrap();
    assert!(epsilon <= 5.0 && epsilon > 4.9999, "{epsilon}");
    assert!(resolved.epsilon_after(21).unwrap() > 5.0);
    assert_eq!(resolved.epsilon_after(0), Some(0.0));
    assert_eq!((resolved.charge(), resolved.accountant()), (2, Some("pld")));
    let r = resolved.record_privacy(200).unwrap();
    assert_eq!((r.clip_norm, r.sampling_rate, r.expected_batch), (1.0, 0.25, 50.0));
    assert_eq!(Some(r.noise_multiplier), resolved.noise_multiplier());
    assert!(resolved.record_privacy(0).unwrap().expected_batch > 0.0);
}

#[test]
fn client_level_is_one_gaussian_release_a_round() {
    let contract = PrivacyContract::client_central(0.5, Noise::Multiplier(4.0), 1e-6, 20.0).unwrap();
    let resolved = contract.resolve(Schedule { rounds: 100, local_steps: 7 }).unwrap();
    // dp-accounting 0.6.0 says 14.4508 (privacy loss distribution), the closed form a little less.
    assert!((resolved.epsilon_after(100).unwrap() - 14.450_777).abs() < 1e-3);
    let interval = resolved.epsilon_interval_after(100).unwrap();
    assert!(interval.lower <= interval.upper && interval.upper - interval.lower < 1e-3, "{interval:?}");
    assert_eq!((resolved.charge(), resolved.record_privacy(100)), (1, None));
}

#[test]
fn a_local_message_is_one_gaussian_release_a_round() {
    let of = |contract: Result<PrivacyContract, _>| {
        let contract: PrivacyContract = contract.unwrap();
        contract.resolve(Schedule { rounds: 100, local_steps: 7 }).unwrap()
    };
    let local = of(PrivacyContract::client_local(0.5, Noise::Multiplier(4.0), 1e-6, 20.0));
    let central = of(PrivacyContract::client_central(0.5, Noise::Multiplier(4.0), 1e-6, 20.0));
    // Nobody is sampled, and the noise is counted in sensitivities: the price is that of the central mechanism.
    assert_eq!(local.epsilon_after(100), central.epsilon_after(100));
    assert_eq!(local.charge(), 1);
    assert_ne!(local.digest(), central.digest());
    assert!(!local.is_noised_by_the_coordinator() && central.is_noised_by_the_coordinator());
    let Terms::ClientLocal(terms) = local.terms() else { panic!() };
    // Any two updates are neighbours: twice the clip norm.
    let sigma = terms.noise(Grid::new(16).unwrap()).unwrap().sigma();
    assert!((sigma / (4.0 * 2.0 * 0.5 * 65_536.0) - 1.0).abs() < 1e-6, "{sigma}");
    assert!(matches!(local.loss(), Some(Loss::Gaussian { sampling_rate: 1.0, .. })));
}

#[test]
fn only_a_poisson_draw_is_amplified_and_its_cap_is_charged() {
    let plan = Schedule { rounds: 100, local_steps: 1 };
    let central = |noise| PrivacyContract::client_central(1.0, noise, 1e-6, 100.0).unwrap();
    let poisson = |cap| Cohort::new(CohortRule::Poisson { rate: 0.1, population: 1000, cap, min_clients: 1 });
    let of = |cohort: &Cohort| central(Noise::Multiplier(1.0)).resolve_for(plan, cohort).unwrap();
    let everyone = central(Noise::Multiplier(1.0)).resolve(plan).unwrap();
    let spent = |r: &ResolvedContract| r.epsilon_after(100).unwrap();
    // A fixed-size draw of a tenth is charged as if it were everyone.
    let fixed = of(&Cohort::new(CohortRule::Uniform { size: 100, min_clients: 1 }));
    assert_eq!((spent(&fixed), fixed.digest()), (spent(&everyone), everyone.digest()));
    let (wide, capped, tight) = (of(&poisson(200)), of(&poisson(130)), of(&poisson(110)));
    assert!(spent(&wide) < 0.3 * spent(&everyone), "{} of {}", spent(&wide), spent(&everyone));
    assert!(spent(&wide) < spent(&capped) && spent(&capped) < spent(&tight));
    assert_ne!(wide.digest(), capped.digest());
    assert!(matches!(capped.loss(), Some(Loss::CappedPoissonGaussian { population: 1000, cap: 130, .. })));
    let twice = capped.instead(capped.contract(), Schedule { rounds: 50, ..plan }).unwrap();
    assert_eq!(twice.epsilon_after(50), capped.epsilon_after(50), "the draw is kept");
    let target = central(Noise::TargetEpsilon(2.0)).resolve_for(plan, &poisson(200)).unwrap();
    assert!(spent(&target) <= 2.0 && spent(&target) > 1.999, "{}", spent(&target));
    let local = PrivacyContract::client_local(1.0, Noise::Multiplier(9.0), 1e-6, 100.0).unwrap();
    let replace = central(Noise::Multiplier(9.0)).with_adjacency(Adjacency::ReplaceOne).unwrap();
    for other in [record(Noise::Multiplier(2.0)), local, replace, PrivacyContract::none()] {
        let e = other.resolve_for(plan, &poisson(200)).unwrap_err().to_string();
        assert!(e.contains("goes with unit = \"client\"") && e.contains("rule = \"uniform\""), "{e}");
    }
}

#[test]
fn no_promise_has_no_number_to_show() {
    let resolved = PrivacyContract::none().resolve(PLAN).unwrap();
    assert_eq!(resolved.epsilon_after(5), None);
    assert_eq!((resolved.delta(), resolved.budget_epsilon(), resolved.charge()), (None, None, 0));
    assert_eq!((resolved.accountant(), resolved.record_privacy(9)), (None, None));
}

#[test]
fn the_digest_covers_schedule_and_noise() {
    let contract = record(Noise::TargetEpsilon(5.0));
    let digest = |rounds, local_steps| contract.resolve(Schedule { rounds, local_steps }).unwrap().digest();
    assert_eq!(digest(20, 2), digest(20, 2));
    assert_ne!(digest(20, 2), digest(21, 2));
    assert_ne!(digest(20, 2), digest(20, 3));
    // Two ways to the same noise are still two contracts.
    let noise = contract.resolve(PLAN).unwrap().noise_multiplier().unwrap();
    assert_ne!(record(Noise::Multiplier(noise)).resolve(PLAN).unwrap().digest(), digest(20, 2));
    // Local steps mean nothing at client level.
    let client = PrivacyContract::client_central(1.0, Noise::Multiplier(1.0), 1e-5, 90.0).unwrap();
    let digest = |local_steps| client.resolve(Schedule { rounds: 3, local_steps }).unwrap().digest();
    assert_eq!(digest(0), digest(9));
}

#[test]
fn a_plan_beyond_its_budget_is_refused_with_what_would_fit() {
    let contract = PrivacyContract::client_central(1.0, Noise::Multiplier(2.0), 1e-5, 6.0).unwrap();
    let plan = |rounds| contract.resolve(Schedule { rounds, local_steps: 1 });
    let ContractError::OverBudget { fits, epsilon, .. } = plan(100).unwrap_err() else { panic!() };
    assert!(fits > 0 && epsilon > 6.0);
    assert!(plan(fits).unwrap().epsilon_after(fits).unwrap() <= 6.0);
    let e = plan(fits + 1).unwrap_err().to_string();
    assert!(e.contains(&format!("{fits} rounds would fit")), "{e}");
    let dear = PrivacyContract::client_central(1.0, Noise::Multiplier(0.5), 1e-5, 1.0).unwrap();
    let e = dear.resolve(Schedule { rounds: 1, local_steps: 1 }).unwrap_err().to_string();
    assert!(e.contains("0 rounds would fit"), "{e}");
}

#[test]
fn impossible_schedules_are_refused() {
    let contract = record(Noise::TargetEpsilon(5.0));
    let of = |rounds, local_steps| contract.resolve(Schedule { rounds, local_steps }).unwrap_err();
    assert_eq!(of(0, 1), ContractError::Rounds(0));
    assert_eq!(of(1, 0), ContractError::LocalSteps(0));
    let strict = PrivacyContract::client_central(1.0, Noise::TargetEpsilon(1e-5), 1e-9, 1.0).unwrap();
    let e = strict.resolve(Schedule { rounds: 1_000_000, local_steps: 1 }).unwrap_err();
    assert!(matches!(e, ContractError::Unreachable { compositions: 1_000_000, .. }), "{e}");
}

fn limited(participations: u32, separation: u32) -> Cohort {
    serde_json::from_value(serde_json::json!({
        "rule": "uniform", "size": 10, "min_clients": 1, "participations": participations, "separation": separation,
    }))
    .unwrap()
}

#[test]
fn correlated_noise_is_one_mechanism_for_the_whole_run() {
    let plan = Schedule { rounds: 100, local_steps: 1 };
    let central = |noise| {
        let contract = PrivacyContract::client_central(1.0, noise, 1e-6, 20.0).unwrap();
        contract.with_mechanism(CentralMechanism::Blt).unwrap()
    };
    let resolved = central(Noise::Multiplier(1.0)).resolve_for(plan, &limited(4, 20)).unwrap();
    // One Gaussian of multiplier 1, whatever the attempts.
    let one = crate::gaussian::analytic_epsilon(1.0, 1e-6);
    for attempts in [1, 2, 100, 300] {
        let epsilon = resolved.epsilon_after(attempts).unwrap();
        assert!(epsilon >= one * (1.0 - 1e-9) && epsilon < one * 1.001, "{attempts}: {epsilon}, {one}");
    }
    assert_eq!(resolved.epsilon_after(0), Some(0.0));
    assert_eq!((resolved.charge_after(0), resolved.charge_after(1), resolved.paying_attempts()), (1, 0, 1));
    assert!(matches!(
        resolved.loss(),
        Some(Loss::CorrelatedGaussian { participations: 4, separation: 20, .. })
    ));
    assert_ne!(
        central(Noise::Multiplier(1.0)).resolve_for(plan, &limited(5, 20)).unwrap().digest(),
        resolved.digest()
    );
    let target = central(Noise::TargetEpsilon(2.0)).resolve_for(plan, &limited(4, 20)).unwrap();
    assert!(target.epsilon_after(100).unwrap() <= 2.0 && target.epsilon_after(100).unwrap() > 1.999);
    // The price of other terms is asked for the same clients.
    let half = target.instead(target.contract(), Schedule { rounds: 50, ..plan }).unwrap();
    assert!(half.epsilon_after(50).unwrap() <= 2.0 && half.is_correlated());
    let e = central(Noise::Multiplier(1.0)).resolve(plan).unwrap_err();
    assert!(e.to_string().contains("needs [cohort] participations and separation"), "{e}");
    let poisson = Cohort::new(CohortRule::Poisson { rate: 0.1, population: 1000, cap: 200, min_clients: 1 });
    let e = central(Noise::Multiplier(1.0)).resolve_for(plan, &poisson).unwrap_err();
    assert!(e.to_string().contains("does not go with rule = \"poisson\""), "{e}");
}

#[test]
fn a_noised_count_leaves_no_noise_for_updates_that_it_uses_up() {
    let rule = crate::adaptive_clip::Rule {
        initial: 1.0,
        min: 0.1,
        max: 10.0,
        target_quantile: 0.5,
        learning_rate: 0.2,
        count_noise: 1.0,
    };
    let of = |z| {
        let contract = PrivacyContract::client_central(1.0, Noise::Multiplier(z), 1e-6, 90.0).unwrap();
        contract.with_adaptive_clip(rule.try_into().unwrap()).unwrap().resolve(PLAN)
    };
    let plain = PrivacyContract::client_central(1.0, Noise::Multiplier(1.5), 1e-6, 90.0).unwrap();
    let (adaptive, plain) = (of(1.5).unwrap(), plain.resolve(PLAN).unwrap());
    assert_eq!(adaptive.epsilon_after(20), plain.epsilon_after(20), "the price is the round's as a whole");
    assert_ne!(adaptive.digest(), plain.digest());
    let e = of(2.0).unwrap_err();
    assert!(e.to_string().contains("count_noise must be above 1"), "{e}");
}

#[test]
fn measurements_are_charged_with_the_rounds_that_are_measured() {
    let cohort = Cohort::new(CohortRule::All { size: 2, min_clients: 1 });
    let metrics = crate::metrics::MetricsPrivacy::new(0.1, 4.0).unwrap();
    let plain = record(Noise::Multiplier(2.0));
    let with = plain.with_metrics(metrics).unwrap();
    let every = |n| with.resolve_measured(PLAN, &cohort, n).unwrap();
    let trained = plain.resolve(PLAN).unwrap();
    for (n, attempts, measured) in [(1, 20, 20), (3, 20, 7), (3, 7, 2), (20, 20, 1), (1, 25, 25), (7, 0, 0)] {
        let expected = trained.epsilon_after(attempts).unwrap() + 0.1 * f64::from(measured);
        let found = every(n).epsilon_after(attempts).unwrap();
        assert!((found - expected).abs() < 1e-12, "every {n}, {attempts}: {found}, {expected}");
    }
    let third = every(3);
    let paying: Vec<u32> = (1..=20).filter(|r| third.measured_epsilon(*r).is_some()).collect();
    assert_eq!(paying, [3, 6, 9, 12, 15, 18, 20]);
    assert_eq!(third.planned_measurements(), Some((7, 0.1)));
    assert_ne!(third.digest(), every(4).digest());
    // Never measured: nothing is charged, and nothing may be measured.
    let never = every(0);
    assert_eq!((never.epsilon_after(20), never.measured_epsilon(20)), (trained.epsilon_after(20), None));
    let interval = third.epsilon_interval_after(20).unwrap();
    assert!(
        interval.lower <= trained.epsilon_after(20).unwrap()
            && Some(interval.upper) == third.epsilon_after(20)
    );
    // A target covers both; what the measurements leave is what training gets.
    let target = record(Noise::TargetEpsilon(5.0)).with_metrics(metrics).unwrap();
    let resolved = target.resolve_measured(PLAN, &cohort, 1).unwrap();
    let epsilon = resolved.epsilon_after(20).unwrap();
    assert!(epsilon <= 5.0 && epsilon > 4.999, "{epsilon}");
    let none = record(Noise::TargetEpsilon(1.9)).with_metrics(metrics).unwrap();
    let e = none.resolve_measured(PLAN, &cohort, 1).unwrap_err().to_string();
    assert!(e.contains("leaves nothing for training beside 20 measurements"), "{e}");
    assert!(PrivacyContract::none().with_metrics(metrics).is_err());
}

#[test]
fn what_does_not_go_with_buffers_says_why() {
    use undertone_core::cohort::Buffered;
    use undertone_core::rules::staleness::Decay;
    let rule = Buffered { concurrency: 20, buffer: 10, max_staleness: 4, decay: Decay::InverseSqrt };
    let cohort = Cohort::new(CohortRule::Buffered(rule));
    let plain = PrivacyContract::client_central(1.0, Noise::Multiplier(2.0), 1e-6, 90.0).unwrap();
    let no_draw = plain.resolve_for(PLAN, &cohort).unwrap();
    assert!(!no_draw.is_drawn());
    assert_eq!(no_draw.epsilon_after(20), plain.resolve(PLAN).unwrap().epsilon_after(20), "no amplification");
    // The price of other terms keeps the weights.
    assert_eq!(no_draw.instead(&plain, PLAN).unwrap(), no_draw);
    let clip = crate::adaptive_clip::Rule {
        initial: 1.0,
        min: 0.1,
        max: 10.0,
        target_quantile: 0.5,
        learning_rate: 0.2,
        count_noise: 5.0,
    };
    let adaptive = plain.with_adaptive_clip(clip.try_into().unwrap()).unwrap();
    let heavy = plain.with_max_weight(10_000).unwrap();
    let blt = plain.with_mechanism(CentralMechanism::Blt).unwrap();
    for (contract, words) in [
        (adaptive, "clipped to the norm of an older round"),
        (heavy, "max_weight must be 1 to 8192"),
        (blt, "mechanism = \"blt\" does not go with rule = \"buffered\""),
    ] {
        let e = contract.resolve_for(PLAN, &cohort).unwrap_err().to_string();
        assert!(e.contains(words), "{words}: {e}");
    }
}
