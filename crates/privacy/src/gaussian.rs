//! The Gaussian mechanism in closed form: one release, no sampling (Balle and Wang 2018, Theorem 8).
//!
//! Nothing is charged from here yet: it is the yardstick that the accountants are measured against.

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

    /// The smallest σ (at sensitivity 1) for (ε, δ).
    fn sigma_for(epsilon: f64, delta: f64) -> f64 {
        let (mut low, mut high) = (1e-3, 1e3);
        for _ in 0..100 {
            let middle = f64::midpoint(low, high);
            if analytic_delta(1.0 / middle, epsilon) > delta { low = middle } else { high = middle }
        }
        high
    }

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
            let found = sigma_for(epsilon, delta);
            assert!((found - sigma).abs() < 1e-6, "({epsilon}, {delta}): {found}, not {sigma}");
        }
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
