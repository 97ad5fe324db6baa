//! The clip norm finds its quantile from either side, stays within its clamps, and is paid for.

use super::*;
use proptest::prelude::*;

fn rule(initial: f64, target_quantile: f64, count_noise: f64) -> AdaptiveClip {
    let rule = Rule { initial, min: 1e-3, max: 1e3, target_quantile, learning_rate: 0.2, count_noise };
    AdaptiveClip::try_from(rule).unwrap()
}

/// Rounds over clients whose norms are spread evenly over 0 to 2: the γ-quantile is 2γ.
fn run(rule: &AdaptiveClip, rounds: u32, seed: u64) -> f64 {
    const CLIENTS: u32 = 100;
    let mut rng = NoiseRng::seeded_for_tests(seed);
    let mut state = rule.start();
    // The mean over the last rounds, for noise goes on for ever.
    let mut late = 0.0;
    for round in 0..rounds {
        let mut sum = CountSum::default();
        for client in 0..CLIENTS {
            let norm = (f64::from(client) + 0.5) / f64::from(CLIENTS) * 2.0;
            sum.fold(WithinBit::of(&RawUpdate::new(vec![norm as f32]), state.clip_norm()));
        }
        let share = sum.noised(rule, Adjacency::AddRemove, f64::from(CLIENTS), &mut rng).unwrap();
        state = state.after(rule, share).unwrap();
        late += if round >= rounds / 2 { state.clip_norm() } else { 0.0 };
    }
    late / f64::from(rounds - rounds / 2)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// From far below and from far above; a bit with the inverted sign runs away from both.
    #[test]
    fn converges_to_the_target_quantile(
        quantile in 0.2f64..0.8, log_start in -4f64..4.0, seed: u64,
    ) {
        let found = run(&rule(log_start.exp(), quantile, 5.0), 400, seed);
        prop_assert!((found / (2.0 * quantile) - 1.0).abs() < 0.1, "{found}, not {}", 2.0 * quantile);
    }

    #[test]
    fn never_leaves_the_clamps(shares in prop::collection::vec(any::<f64>(), 0..50), start in 1e-3f64..1e3) {
        let rule = rule(start, 0.5, 5.0);
        let mut state = rule.start();
        for share in shares {
            state = state.after(&rule, NoisedShare(share)).unwrap();
            prop_assert!((1e-3..=1e3).contains(&state.clip_norm()));
        }
    }

    /// The noise of update and count together is that of one Gaussian of z: 1/z² = 1/z_Δ² + (½/σ_b)².
    #[test]
    fn the_count_is_paid_for(z in 0.3f64..20.0, count_noise in 0.25f64..50.0) {
        let rule = rule(1.0, 0.5, count_noise);
        match rule.update_noise(z) {
            Err(e) => prop_assert!(z >= 2.0 * count_noise, "{}", e),
            Ok(update) => {
                prop_assert!(z < 2.0 * count_noise && update > z);
                let spent = 1.0 / (update * update) + 1.0 / (4.0 * count_noise * count_noise);
                prop_assert!(spent <= 1.0 / (z * z) * (1.0 + 1e-15));
                prop_assert!(spent >= 1.0 / (z * z) * (1.0 - 1e-9));
            }
        }
    }

    /// One client more moves the count by half a client, one that changes its mind by one.
    #[test]
    fn one_client_moves_the_count_by_half(bits in prop::collection::vec(any::<bool>(), 0..60), bit: bool) {
        let sum = |bits: &[bool]| {
            let mut sum = CountSum::default();
            bits.iter().for_each(|&b| sum.fold(WithinBit::from_wire(b)));
            sum.0
        };
        let (mut more, mut other) = (bits.clone(), bits.clone());
        more.push(bit);
        other.push(!bit);
        prop_assert_eq!((sum(&more) - sum(&bits)).abs(), HALF);
        prop_assert_eq!((sum(&more) - sum(&other)).abs(), 2 * HALF);
    }
}

#[test]
fn the_published_charge() {
    // n = 100, z = 1, σ_b = n/20.
    let update = rule(1.0, 0.5, 5.0).update_noise(1.0).unwrap();
    assert!((update - 1.005_037_8).abs() < 1e-6, "{update}");
    for z in [10.0, 11.0, 0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(rule(1.0, 0.5, 5.0).update_noise(z), Err(AdaptiveClipError::CountNoise { .. })));
    }
}

#[test]
fn what_is_not_finite_is_not_within() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert!(!WithinBit::of(&RawUpdate::new(vec![0.0, bad]), 1e9).to_wire());
    }
    assert!(!WithinBit::of_norm(0.0, f64::NAN).to_wire());
    for within in [vec![], vec![0.0; 3], vec![1e-45], vec![1.0]] {
        assert!(WithinBit::of(&RawUpdate::new(within), 1.0).to_wire());
    }
    assert!(!WithinBit::of(&RawUpdate::new(vec![1e38; 4]), 1.0).to_wire());
}

#[test]
fn missing_reports_pull_towards_a_half_and_nothing_else() {
    let rule = rule(1.0, 0.5, 0.25);
    let mut rng = NoiseRng::seeded_for_tests(1);
    let mut share = |within: usize, reported: usize| {
        let mut sum = CountSum::default();
        (0..reported).for_each(|i| sum.fold(WithinBit::from_wire(i < within)));
        sum.noised(&rule, Adjacency::AddRemove, 1000.0, &mut rng).unwrap().value()
    };
    for (within, reported, expected) in [(0, 0, 0.5), (500, 500, 0.75), (1000, 1000, 1.0), (0, 1000, 0.0)] {
        assert!((share(within, reported) - expected).abs() < 0.002, "{within} of {reported}");
    }
}

#[test]
fn a_frozen_norm_stays() {
    let rule = rule(2.0, 0.5, 5.0);
    let frozen = rule.start().freeze();
    assert_eq!(frozen.after(&rule, NoisedShare(0.0)), Err(AdaptiveClipError::Frozen(2.0)));
    let read: ClipState = serde_json::from_str(&serde_json::to_string(&frozen).unwrap()).unwrap();
    assert_eq!(read, frozen);
    assert!(read.is_frozen());
}

#[test]
fn nonsense_rules_are_refused_when_they_are_read() {
    let good = Rule::from(rule(1.0, 0.5, 5.0));
    let read = |rule: Rule| serde_json::from_value::<AdaptiveClip>(serde_json::to_value(rule).unwrap());
    assert_eq!(read(good).unwrap(), AdaptiveClip(good));
    for bad in [
        Rule { min: 0.0, ..good },
        Rule { max: 1e-4, ..good },
        Rule { initial: 1e4, ..good },
        Rule { target_quantile: 1.0, ..good },
        Rule { learning_rate: -0.2, ..good },
        Rule { count_noise: 0.0, ..good },
    ] {
        assert!(read(bad).is_err(), "{bad:?}");
    }
    assert!(AdaptiveClip::try_from(Rule { initial: f64::NAN, ..good }).is_err());
    assert!(AdaptiveClip(good).check_grid(Grid::new(16).unwrap()).is_err());
    assert!(AdaptiveClip(Rule { min: 0.1, max: 100.0, ..good }).check_grid(Grid::new(16).unwrap()).is_ok());
}
