//! The Gaussian mechanism in closed form: one release, no sampling (Balle and Wang 2018, arXiv 1805.06530, Theorem 8).
//!
//! Also the yardstick that the accountants are measured against. The textbook's σ = Δ√(2 ln(1.25/δ))/ε holds for ε < 1
//! only and promises too much beyond (at ε = 10, δ = 1e-5 its noise gives 10.39): it is not used anywhere.

use std::f64::consts::{PI, SQRT_2};

/// The smallest δ for which one Gaussian release is (`epsilon`, δ)-differentially private, where `mu` is the
/// sensitivity in multiples of the noise's standard deviation (the μ of Gaussian differential privacy).
///
/// T releases without sampling are one with μ√T. Relative accuracy holds far below 1e-12, because the difference
/// of the two tails is taken between their logarithms.
///
/// # Panics
/// If `mu` is not a finite number above zero or `epsilon` is not a finite number from zero.
pub fn analytic_delta(mu: f64, epsilon: f64) -> f64 {
    assert!(mu.is_finite() && mu > 0.0 && epsilon.is_finite() && epsilon >= 0.0);
    let kept = log_normal_cdf(mu / 2.0 - epsilon / mu);
    let taken = epsilon + log_normal_cdf(-mu / 2.0 - epsilon / mu);
    (libm::exp(kept) * -libm::expm1(taken - kept)).clamp(0.0, 1.0)
}

/// The least σ, in multiples of the sensitivity, at which one Gaussian release is (`epsilon`, `delta`)-differentially
/// private; rounded up, by less than one part in 10^9. `None` if the numbers are not ε in [1e-3, 100] and δ in
/// [1e-12, 1).
pub fn analytic_sigma(epsilon: f64, delta: f64) -> Option<f64> {
    if !((1e-3..=100.0).contains(&epsilon) && (1e-12..1.0).contains(&delta)) {
        return None;
    }
    // δ falls as σ grows. At σ = 1e5 even the smallest ε has a δ below 1e-12, at 1e-3 the largest has one of 1.
    Some(bisect(1e-3, 1e5, |sigma| analytic_delta(1.0 / sigma, epsilon) <= delta))
}

/// The least ε at which one Gaussian release of `mu` is (ε, `delta`)-differentially private: zero if that holds without
/// any; rounded up.
///
/// # Panics
/// If `mu` is not a finite number above zero or `delta` is not between zero and one.
pub fn analytic_epsilon(mu: f64, delta: f64) -> f64 {
    assert!(mu.is_finite() && mu > 0.0 && delta > 0.0 && delta < 1.0);
    if analytic_delta(mu, 0.0) <= delta {
        return 0.0;
    }
    let mut high = 1.0;
    while analytic_delta(mu, high) > delta {
        high *= 2.0;
    }
    bisect(1e-12, high, |epsilon| analytic_delta(mu, epsilon) <= delta)
}

/// The least x between two positive numbers from which on `holds`, which it must at `high`; rounded up.
fn bisect(mut low: f64, mut high: f64, holds: impl Fn(f64) -> bool) -> f64 {
    while high / low > 1.0 + 5e-10 {
        let middle = libm::sqrt(low * high);
        if holds(middle) { high = middle } else { low = middle }
    }
    high
}

/// log Φ(x).
fn log_normal_cdf(x: f64) -> f64 {
    log_erfc(-x / SQRT_2) - std::f64::consts::LN_2
}

/// log erfc(x), also where erfc itself would underflow (x above about 26.5).
fn log_erfc(x: f64) -> f64 {
    if x < 20.0 {
        return libm::log(libm::erfc(x));
    }
    // Asymptotic series 1 - 1/(2x²) + 3/(2x²)² - 15/(2x²)³ + …; at x = 20 the sixth term is below 1e-14.
    let step = 1.0 / (2.0 * x * x);
    let (mut term, mut rest) = (1.0, 0.0);
    for k in 1..=6 {
        term *= -step * f64::from(2 * k - 1);
        rest += term;
    }
    -x * x - libm::log(x * libm::sqrt(PI)) + libm::log1p(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CORNERS: [(f64, f64, f64); 8] = [
        (0.001, 1e-12, 5412.302193844),
        (0.001, 0.1, 3.961059966706),
        (0.001, 1e-05, 1724.259033584),
        (100.0, 1e-12, 0.1135461755568),
        (100.0, 0.9, 0.06428875514579),
        (100.0, 1e-06, 0.09783722397444),
        (0.1, 1e-12, 61.53905591889),
        (5.0, 1e-12, 1.409837723611),
    ];

    #[test]
    fn calibration_meets_the_published_values() {
        // An independent implementation in 50-digit arithmetic.
        for (epsilon, delta, sigma) in [
            (0.1, 1e-5, 30.749566),
            (0.5, 1e-5, 7.031827),
            (1.0, 1e-5, 3.730632),
            (1.0, 1e-6, 4.224679),
            (2.0, 1e-6, 2.230476),
            (8.0, 1e-6, 0.652935),
            (10.0, 1e-5, 0.499889),
        ] {
            let found = analytic_sigma(epsilon, delta).unwrap();
            // The values are given to six places.
            assert!(
                (found - sigma).abs() < 1e-6 * sigma.max(0.6),
                "({epsilon}, {delta}): {found}, not {sigma}"
            );
        }
    }

    #[test]
    fn calibration_holds_at_the_ends_of_its_range() {
        // mpmath 1.3 at 60 digits.
        for (epsilon, delta, sigma) in CORNERS {
            let found = analytic_sigma(epsilon, delta).unwrap();
            assert!((found / sigma - 1.0).abs() < 1e-7, "({epsilon}, {delta}): {found}, not {sigma}");
            // And back.
            let again = analytic_epsilon(1.0 / sigma, delta);
            assert!((again / epsilon - 1.0).abs() < 1e-6, "{again}, not {epsilon}");
        }
        for (epsilon, delta) in
            [(9e-4, 1e-5), (101.0, 1e-5), (1.0, 1e-13), (1.0, 1.0), (f64::NAN, 1e-5), (1.0, f64::NAN)]
        {
            assert_eq!(analytic_sigma(epsilon, delta), None);
        }
    }

    #[test]
    fn published_zcdp_guarantees_are_met() {
        // ρ-zCDP of a pure Gaussian is μ = √(2ρ). Gboard's language models, google-research/federated
        // mf_dpftrl_matrices: es-ES 3.42 and pt-BR 0.994, both at δ = 1e-10.
        for (rho, epsilon) in [(0.15, 3.4157), (0.0144, 0.9956)] {
            let found = analytic_epsilon(libm::sqrt(2.0 * rho), 1e-10);
            assert!((found - epsilon).abs() < 1e-4, "ρ={rho}: {found}");
        }
        assert_eq!(analytic_epsilon(0.01, 0.5), 0.0);
        // Three participations without amplification, z = 1: 9.254 at δ = 1e-6.
        assert!((analytic_epsilon(libm::sqrt(3.0), 1e-6) - 9.254).abs() < 1e-3);
    }

    /// A local mechanism elsewhere takes the textbook's formula at any ε.
    #[test]
    fn the_textbook_formula_would_promise_too_much() {
        let textbook = libm::sqrt(2.0 * libm::log(1.25 / 1e-5)) / 10.0;
        assert!(analytic_epsilon(1.0 / textbook, 1e-5) > 10.38);
        assert!(analytic_sigma(10.0, 1e-5).unwrap() > textbook);
    }

    #[test]
    fn tails_stay_accurate_and_join_smoothly() {
        let direct = libm::log(libm::erfc(20.0));
        assert!((log_erfc(20.0) / direct - 1.0).abs() < 1e-14);
        // Gboard's published guarantee: ρ = 0.15 zCDP is ε = 3.4157 at δ = 1e-10.
        let delta = analytic_delta(libm::sqrt(0.3), 3.4157);
        assert!((delta / 1e-10 - 1.0).abs() < 1e-3, "{delta}");
        let far = analytic_delta(0.1, 6.0);
        assert!(far == 0.0 || far.is_normal(), "{far}");
    }
}
