//! Closed forms, exhaustive convolutions, and laws that must hold of any numbers.

use super::truth::exact;
use super::*;
use crate::gaussian::analytic_delta;
use crate::rdp::RdpCurve;
use proptest::prelude::*;

#[test]
fn a_gaussian_on_the_grid_holds_its_closed_form_far_below_1e_10() {
    for (mu, count) in [(1.0, 1), (0.1, 100), (0.02, 4000), (2.5, 3), (0.001, 50)] {
        let mechanism = Mechanism::gdp(mu).unwrap();
        let grid = Composition::on_grid(mechanism, count);
        let total = mu * (count as f64).sqrt();
        for delta in [1e-2, 1e-5, 1e-10, 1e-12, 1e-30, 1e-100] {
            let EpsilonInterval { lower, upper } = grid.epsilon(delta).unwrap();
            let case = format!("μ={mu} T={count} δ={delta:e}: [{lower}, {upper}]");
            assert!(analytic_delta(total, upper) <= delta, "upper bound too small, {case}");
            assert!(lower == 0.0 || analytic_delta(total, lower) >= delta, "lower bound too large, {case}");
            assert!(upper - lower <= 1e-3 * upper + 1e-6, "{case}");
            // The composition itself uses the closed form.
            let exact =
                Composition::new(Adjacency::AddRemove).add(mechanism, count).unwrap().epsilon(delta).unwrap();
            assert!(exact.upper - exact.lower <= 1e-9 * exact.upper + 1e-12, "{exact:?}");
            assert!(exact.lower <= upper && lower <= exact.upper, "{case}, exact {exact:?}");
        }
    }
}

#[test]
fn one_use_holds_its_closed_form() {
    for z in [0.3, 0.6, 1.0, 3.0, 20.0] {
        for q in [1e-4, 0.01, 0.2, 0.9] {
            for epsilon in [0.0, 0.01, 0.3, 2.0] {
                let exact = exact(Adjacency::AddRemove, z, q, 1, epsilon);
                let found = poisson(z, q, 1).delta(epsilon).unwrap();
                let case = format!("z={z} q={q} ε={epsilon}: {found:?}, exact {exact:e}");
                // 1e-14: what the difference of tails above is off by.
                assert!(found.lower <= exact + 1e-14 && exact <= found.upper + 1e-14, "{case}");
                assert!(found.upper - found.lower <= 0.05 * exact + 1e-13, "wide, {case}");
                if exact > 1e-12 {
                    let back = poisson(z, q, 1).epsilon(exact).unwrap();
                    assert!(back.lower <= epsilon + 1e-9 && epsilon <= back.upper + 1e-9, "{back:?}, {case}");
                }
            }
        }
    }
}

/// The losses of a discrete Laplace mechanism composed `count` times, in multiples of its rate.
fn exhaustive(rate: f64, sensitivity: i64, count: u32) -> Vec<(i64, f64)> {
    let end = 1.0 / (1.0 + libm::exp(-rate));
    let mut one = vec![(sensitivity, end), (-sensitivity, end * libm::exp(-rate * sensitivity as f64))];
    let middle = |k: i64| -libm::expm1(-rate) * end * libm::exp(-rate * k as f64);
    one.extend((1..sensitivity).map(|k| (sensitivity - 2 * k, middle(k))));
    let mut all = vec![(0, 1.0)];
    for _ in 0..count {
        let mut next = std::collections::BTreeMap::new();
        for (a, p) in &all {
            for (b, r) in &one {
                *next.entry(a + b).or_insert(0.0) += p * r;
            }
        }
        all = next.into_iter().collect();
    }
    all
}

#[test]
fn discrete_laplace_holds_its_exhaustive_convolution() {
    for (rate, sensitivity, count) in [(0.1, 1, 7), (0.05, 5, 20), (1.0, 2, 4), (0.01, 3, 30), (2.0, 1, 1)] {
        let mechanism = Mechanism::discrete_laplace(rate, sensitivity as u32).unwrap();
        let composition = Composition::new(Adjacency::AddRemove).add(mechanism, u64::from(count)).unwrap();
        let losses = exhaustive(rate, sensitivity, count);
        for epsilon in [0.0, 0.05, 0.3, 1.0, 1.9] {
            let over = |(k, p): &(i64, f64)| (p * -libm::expm1(epsilon - *k as f64 * rate)).max(0.0);
            let exact: f64 = losses.iter().map(over).sum();
            let found = composition.delta(epsilon).unwrap();
            let near = 1e-9 * exact + 1e-15;
            assert!(
                found.lower <= exact + near
                    && exact <= found.upper + near
                    && found.upper <= exact + 2.0 * near,
                "rate {rate} Δ {sensitivity} T {count} ε {epsilon}: {found:?}, exact {exact}"
            );
        }
    }
}

#[test]
fn order_and_grouping_do_not_matter() {
    let gaussian = Mechanism::gaussian(8.0).unwrap();
    let (a, b) =
        (Mechanism::poisson_gaussian(1.0, 0.01).unwrap(), Mechanism::poisson_gaussian(1.5, 0.02).unwrap());
    let of = |parts: &[(Mechanism, u64)]| {
        let all = parts.iter().fold(Composition::new(Adjacency::AddRemove), |c, p| c.add(p.0, p.1).unwrap());
        all.epsilon(1e-5).unwrap()
    };
    let once = of(&[(a, 500), (b, 300), (gaussian, 1)]);
    for parts in
        [vec![(gaussian, 1), (b, 300), (a, 500)], vec![(a, 200), (b, 100), (a, 300), (gaussian, 1), (b, 200)]]
    {
        let again = of(&parts);
        assert!((again.upper / once.upper - 1.0).abs() < 1e-9, "{again:?} {once:?}");
        assert!((again.lower / once.lower - 1.0).abs() < 1e-9, "{again:?} {once:?}");
    }
}

#[test]
fn a_capped_cohort_costs_more_and_tends_to_the_uncapped() {
    // dp-accounting 0.6.0: N=10⁴, q=.01, z=1, T=1000, δ=1e-6: 2.1247 at cap 160, 4.92 at cap 130, 2.1245 without.
    let capped = |cap| {
        let mechanism = Mechanism::truncated_poisson_gaussian(1.0, 0.01, 10_000, cap).unwrap();
        Composition::new(Adjacency::AddRemove).add(mechanism, 1000).unwrap().epsilon_upper(1e-6).unwrap()
    };
    let free = poisson(1.0, 0.01, 1000).epsilon_upper(1e-6).unwrap();
    assert!(
        (capped(160) - 2.1247).abs() < 2e-3 && (capped(130) - 4.92).abs() < 0.01,
        "{} {}",
        capped(160),
        capped(130)
    );
    assert!(capped(130) > capped(160) && capped(160) >= free * (1.0 - 1e-4));
    assert!((capped(220) / free - 1.0).abs() < 1e-3, "{} {free}", capped(220));
}

#[test]
fn nonsense_is_refused_in_one_sentence() {
    let number = |r: Result<Mechanism, AccountantError>| matches!(r, Err(AccountantError::Number { .. }));
    for z in [0.0, -1.0, 0.29, f64::NAN, f64::INFINITY, 1e7] {
        assert!(number(Mechanism::gaussian(z)) && number(Mechanism::poisson_gaussian(z, 0.1)), "{z}");
    }
    for q in [0.0, -0.1, 1.1, 1e-10, f64::NAN] {
        assert!(number(Mechanism::poisson_gaussian(1.0, q)), "{q}");
    }
    assert!(number(Mechanism::laplace(0.0)) && number(Mechanism::laplace(f64::NAN)));
    assert!(number(Mechanism::discrete_laplace(-1.0, 1)) && number(Mechanism::discrete_laplace(1.0, 0)));
    assert!(number(Mechanism::discrete_gaussian(0.5, 2)) && number(Mechanism::gdp(0.0)));
    assert!(number(Mechanism::truncated_poisson_gaussian(0.5, 0.1, 100, 20)));
    for delta in [0.0, -1.0, 1.0, 2.0, f64::NAN, 1e-250] {
        assert!(matches!(poisson(1.0, 0.1, 3).epsilon(delta), Err(AccountantError::Delta(_))), "{delta}");
    }
    let one = Mechanism::gaussian(1.0).unwrap();
    let sampled = Mechanism::poisson_gaussian(1.0, 0.5).unwrap();
    let add = |m, count| Composition::new(Adjacency::AddRemove).add(m, count);
    assert!(matches!(add(sampled, 1_000_000_000), Err(AccountantError::Compositions(1_000_000_000))));
    assert!(matches!(add(sampled, u64::MAX), Err(AccountantError::Compositions(_))));
    let beyond = add(sampled, 50_000_000).unwrap().epsilon(1e-6).unwrap_err();
    assert!(matches!(beyond, AccountantError::Epsilon(_)), "{beyond}");
    assert!(matches!(add(one, 1).unwrap().delta(-1.0), Err(AccountantError::Number { .. })));
    let laplace = Mechanism::laplace(1.0).unwrap();
    let replaced = Composition::new(Adjacency::ReplaceOne).add(laplace, 1);
    assert_eq!(replaced, Err(AccountantError::ReplaceOne));
    let none = calibrate::least_noise_multiplier(1e-6, 1e-9, 1.0, 100_000_000, Adjacency::AddRemove);
    assert!(matches!(none, Err(AccountantError::Unreachable { .. })), "{none:?}");
    assert_eq!(
        Mechanism::gaussian(-1.0).unwrap_err().to_string(),
        "the accountant takes noise_multiplier from 0.3 to 1000000, not -1"
    );
}

#[test]
fn nothing_costs_nothing() {
    let nothing = Composition::new(Adjacency::AddRemove);
    assert_eq!(nothing.epsilon(1e-5).unwrap(), EpsilonInterval { lower: 0.0, upper: 0.0 });
    assert_eq!(nothing.delta(1.0).unwrap(), DeltaInterval { lower: 0.0, upper: 0.0 });
    // One record in a thousand, once: hidden by δ alone.
    assert_eq!(poisson(1.0, 1e-3, 1).epsilon(0.01).unwrap().upper, 0.0);
}

#[test]
fn a_curve_keeps_its_answers_and_counts_what_fits() {
    let mechanism = Mechanism::poisson_gaussian(1.0, 0.01).unwrap();
    let curve = Curve::new(mechanism, Adjacency::AddRemove, 1e-5).unwrap();
    assert_eq!(curve.upper(0).unwrap(), 0.0);
    let first = curve.upper(1000).unwrap();
    assert_eq!((first, first), (curve.upper(1000).unwrap(), curve.interval(1000).unwrap().upper));
    let fits = curve.most_within(first, 5000).unwrap();
    assert!((1000..=1001).contains(&fits), "{fits}");
    assert_eq!((curve.most_within(100.0, 5000).unwrap(), curve.most_within(0.0, 50).unwrap()), (5000, 0));
    assert_eq!(curve, curve.clone());
}

#[test]
fn calibration_is_safe_and_tight_over_the_range() {
    for (epsilon, delta, q, count) in
        [(0.5, 1e-6, 0.001, 500), (8.0, 1e-5, 0.1, 2000), (1.0, 1e-5, 1.0, 50), (3.0, 1e-9, 0.02, 100_000)]
    {
        let z = calibrate::least_noise_multiplier(epsilon, delta, q, count, Adjacency::AddRemove).unwrap();
        let upper = |z: f64| poisson(z, q, count).epsilon_upper(delta).unwrap();
        assert!(upper(z) <= epsilon, "z={z}: {}", upper(z));
        assert!(upper(z * (1.0 - 1e-3)) > epsilon, "z={z} is not the least: {}", upper(z * (1.0 - 1e-3)));
        // Rényi accounting needs more noise, never less.
        assert!(RdpCurve::new(z, q).unwrap().epsilon(count, delta) >= epsilon * (1.0 - 1e-3));
    }
    let enough = calibrate::least_noise_multiplier(1000.0, 1e-3, 0.01, 1, Adjacency::AddRemove).unwrap();
    assert_eq!(enough, crate::rdp::MIN_NOISE_MULTIPLIER);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn more_of_anything_costs_more_and_noise_costs_less(
        z in 0.4f64..6.0, more_noise in 1.0f64..1.5,
        log_q in -7.0f64..0.0, more_q in 1.0f64..1.5,
        log_steps in 0.0f64..8.0, more_steps in 0u64..1000,
        log_delta in -25.0f64..-4.0, more_delta in 0.0f64..0.5,
    ) {
        let (q, steps, delta) = (log_q.exp(), log_steps.exp() as u64, log_delta.exp());
        let here = poisson(z, q, steps).epsilon(delta).unwrap();
        let dearer = [
            poisson(z, q, steps + more_steps).epsilon(delta).unwrap(),
            poisson(z, (q * more_q).min(1.0), steps).epsilon(delta).unwrap(),
            poisson(z, q, steps).epsilon(delta.powf(1.0 + more_delta)).unwrap(),
        ];
        let cheaper = poisson(z * more_noise, q, steps).epsilon(delta).unwrap();
        let at_most = |small: EpsilonInterval, large: EpsilonInterval| {
            // True values are in order, and each interval holds its own.
            small.lower <= large.upper * (1.0 + 1e-9) && small.upper <= large.upper * (1.0 + 2e-3) + 2e-3
        };
        for other in dearer {
            prop_assert!(at_most(here, other), "{here:?} {other:?}");
        }
        prop_assert!(at_most(cheaper, here), "{cheaper:?} {here:?}");
        // Never above the Rényi accountant, whose bound is a looser one of the same distribution.
        let renyi = RdpCurve::new(z, q).unwrap().epsilon(steps, delta);
        prop_assert!(here.lower <= renyi && here.upper <= renyi * (1.0 + 1e-3) + 1e-3, "{here:?}, Rényi {renyi}");
    }

    #[test]
    fn epsilon_and_delta_are_inverse(
        z in 0.5f64..4.0, log_q in -6.0f64..0.0, steps in 1u64..2000, log_delta in -20.0f64..-4.0,
    ) {
        let composition = poisson(z, log_q.exp(), steps);
        let delta = log_delta.exp();
        let epsilon = composition.epsilon(delta).unwrap();
        let there = composition.delta(epsilon.upper).unwrap();
        prop_assert!(there.lower <= delta, "{epsilon:?} {there:?} {delta}");
        if epsilon.lower > 0.0 {
            prop_assert!(composition.delta(epsilon.lower).unwrap().upper >= delta * (1.0 - 1e-9));
        }
    }
}

/// Any mechanism with numbers over the whole of its range.
fn any_mechanism() -> impl Strategy<Value = Mechanism> {
    (0u8..7, 0.0f64..1.0, 0.0f64..1.0, 1u32..9).prop_map(|(kind, a, b, sensitivity)| {
        let log_scale =
            |low: f64, high: f64, at: f64| (low.ln() + (high / low).ln() * at).exp().clamp(low, high);
        let (z, q) = (log_scale(0.3, 1e6, a * a * a), log_scale(1e-9, 1.0, b));
        match kind {
            0 => Mechanism::gaussian(z),
            1 => Mechanism::gdp(log_scale(1e-6, 100.0, a)),
            2 | 3 => Mechanism::poisson_gaussian(z, q),
            4 => Mechanism::truncated_poisson_gaussian(2.0 * z.min(1e5), q, 10_000, 1 + (b * 9000.0) as u64),
            5 => Mechanism::laplace(log_scale(0.02, 1e6, a)),
            6 if b < 0.5 => Mechanism::discrete_laplace(log_scale(1e-6, 5.0, a), sensitivity),
            _ => Mechanism::discrete_gaussian(log_scale(3.0, 2000.0, a), sensitivity),
        }
        .unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    #[test]
    fn extremes_get_a_number_or_a_sentence(
        first in any_mechanism(), second in any_mechanism(),
        log_count in 0.0f64..15.0, few in 1u64..20, log_delta in -400.0f64..-1e-3,
    ) {
        let composition = Composition::new(Adjacency::AddRemove)
            .add(first, log_count.exp() as u64)
            .and_then(|c| c.add(second, few))
            .unwrap();
        match composition.epsilon(log_delta.exp()) {
            Ok(EpsilonInterval { lower, upper }) => {
                prop_assert!(0.0 <= lower && lower <= upper && upper <= MAX_EPSILON, "[{lower}, {upper}]");
            }
            Err(e) => prop_assert!(matches!(e, AccountantError::Epsilon(_)), "{e}"),
        }
    }
}
