//! The statistics against published figures, an independent evaluation, and mechanisms whose ε is known.

use super::*;
use crate::noise::NoiseRng;
use proptest::prelude::*;

fn bound(canaries: u32, guesses: u32, right: u32, delta: f64, confidence: f64) -> f64 {
    Evidence::new(canaries, guesses, right).unwrap().epsilon_lower_bound(delta, confidence)
}

/// The first three are the power table of the project's notes (formula as in jax_privacy's `auditing.py`); all were
/// evaluated anew in Python with `math.lgamma` and plain sums.
#[test]
fn bounds_are_those_of_the_paper() {
    for (canaries, guesses, right, delta, confidence, wanted) in [
        (1000, 100, 100, 1e-5, 0.95, 3.465_376),
        (1000, 100, 95, 1e-5, 0.95, 2.165_176),
        (5000, 500, 500, 1e-5, 0.95, 4.977_758),
        (1000, 100, 100, 0.0, 0.95, 3.492_965),
        (1000, 1000, 700, 1e-5, 0.99, 0.684_955),
        (20, 20, 20, 1e-3, 0.95, 1.759_375),
        (100, 50, 48, 0.0, 0.9, 2.164_768),
        (20_000, 8000, 8000, 1e-5, 0.95, 7.279_994),
        (1000, 100, 52, 1e-5, 0.95, 0.0),
    ] {
        let found = bound(canaries, guesses, right, delta, confidence);
        assert!((found - wanted).abs() < 2e-6, "{guesses} {right}: {found} not {wanted}");
    }
}

#[test]
fn without_delta_and_with_all_right_it_is_a_power() {
    // Pr[W ≥ r] = q^r, so that ε = log(q/(1-q)) at q = (1 - confidence)^(1/r).
    for guesses in [5, 40, 3000] {
        let q = libm::pow(0.05, 1.0 / f64::from(guesses));
        let found = bound(guesses, guesses, guesses, 0.0, 0.95);
        assert!((found - libm::log(q / (1.0 - q))).abs() < 1e-6, "{guesses}: {found}");
    }
}

#[test]
fn impossible_counts_are_no_evidence() {
    assert_eq!(Evidence::new(10, 11, 5), None);
    assert_eq!(Evidence::new(10, 5, 6), None);
    assert_eq!(bound(0, 0, 0, 1e-5, 0.95), 0.0);
    assert_eq!(bound(10, 10, 0, 1e-5, 0.95), 0.0);
}

/// Bisection, and the claim that all below the bound is refuted too, rest on this.
#[test]
fn p_grows_with_epsilon_below_one_half() {
    let check = |evidence: Evidence, delta: f64| {
        let mut before = 0.0;
        for step in 0..120 {
            let p = evidence.p_value(f64::from(step) * 0.1, delta);
            assert!(
                p >= before - 1e-12 || before > 0.5,
                "{evidence:?} {delta} at {step}: {p} after {before}"
            );
            before = p;
        }
    };
    for delta in [0.0, 1e-9, 1e-5, 1e-3, 0.03] {
        for guesses in 1..=16 {
            for right in 0..=guesses {
                for canaries in [guesses, 4 * guesses, 1000] {
                    check(Evidence::new(canaries, guesses, right).unwrap(), delta);
                }
            }
        }
        for (guesses, right) in [(100, 60), (100, 99), (1000, 700), (1000, 1000)] {
            check(Evidence::new(1000, guesses, right).unwrap(), delta);
        }
    }
}

proptest! {
    #[test]
    fn more_right_guesses_prove_more(guesses in 1u32..300, extra in 0u32..1000, log_delta in -23f64..-3.0) {
        let delta = libm::exp(log_delta);
        let mut before = 0.0;
        for right in (0..=guesses).step_by((guesses / 20 + 1) as usize) {
            let found = bound(guesses + extra, guesses, right, delta, 0.95);
            prop_assert!(found >= before, "{right} right: {found} after {before}");
            before = found;
        }
    }

    #[test]
    fn caution_proves_less(
        guesses in 1u32..200, extra in 0u32..500, share in 0.5f64..=1.0, log_delta in -23f64..-3.0, sure in 0.5f64..0.99,
    ) {
        let right = (share * f64::from(guesses)) as u32;
        let delta = libm::exp(log_delta);
        let found = bound(guesses + extra, guesses, right, delta, sure);
        prop_assert!(bound(guesses + extra, guesses, right, delta, sure + 0.009) <= found);
        prop_assert!(bound(guesses + extra, guesses, right, 2.0 * delta, sure) <= found);
        prop_assert!(bound(guesses + extra + 1, guesses, right, delta, sure) <= found);
        // And what it says is what p says.
        let p = Evidence::new(guesses + extra, guesses, right).unwrap();
        if found > 0.0 {
            prop_assert!(p.p_value(found, delta) <= 1.0 - sure);
        }
        prop_assert!(p.p_value(found + 1e-6, delta) > (1.0 - sure) * (1.0 - 1e-7));
    }
}

/// Randomised response, whose ε is known, and with a chance of δ a slip that tells the truth: the bound may be above ε
/// in one experiment of twenty, and comes near it.
#[test]
fn the_bound_on_randomised_response_keeps_its_confidence() {
    let mut rng = NoiseRng::seeded_for_tests(17);
    let mut chance = |p: f64| (rng.bits() >> 11) as f64 / (1u64 << 53) as f64 <= p;
    for (epsilon, delta) in [(0.5, 0.0), (1.0, 0.0), (3.0, 0.0), (1.0, 1e-2)] {
        let honest = 1.0 / (1.0 + libm::exp(-epsilon));
        let (canaries, experiments) = (400, 2000);
        let (mut above, mut sum) = (0u32, 0.0);
        for _ in 0..experiments {
            let right = (0..canaries).filter(|_| chance(delta) || chance(honest)).count() as u32;
            let found = bound(canaries, canaries, right, delta, 0.95);
            above += u32::from(found > epsilon);
            sum += found;
        }
        // 5 % of 2000, and four standard deviations.
        assert!(above <= 139, "ε {epsilon}: {above} of {experiments} bounds are above it");
        let mean = sum / f64::from(experiments);
        assert!(delta > 0.0 || mean > 0.6 * epsilon - 0.1, "ε {epsilon}: bounds of {mean} are of no use");
    }
}
