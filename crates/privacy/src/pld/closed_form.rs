//! Pure Gaussians, exactly (Balle and Wang 2018, Theorem 8), with the rounding of the formula bounded.

use crate::gaussian::analytic_delta;

/// Bounds on δ(ε) of the pair N(0,1), N(μ,1).
pub(super) fn delta(mu: f64, epsilon: f64) -> (f64, f64) {
    let delta = analytic_delta(mu, epsilon);
    let error = relative_error(mu, epsilon, delta);
    ((delta * (1.0 - error)).max(0.0), (delta * (1.0 + error) + 1e-290).min(1.0))
}

/// Bounds on ε(δ).
pub(super) fn epsilon(mu: f64, log_like: f64) -> (f64, f64) {
    let target = log_like;
    // L is N(μ²/2, μ²): δ(ε) ≤ Pr[L > ε] ≤ e^{-t²/2} for ε = μ²/2 + tμ.
    let far = 0.5 * mu * mu + mu * libm::sqrt(-2.0 * libm::log(target)) + 1e-9;
    let solve = |holds: &dyn Fn(f64) -> bool| {
        if holds(0.0) {
            return (0.0, 0.0);
        }
        let (mut low, mut high) = (0.0, far);
        for _ in 0..200 {
            let middle = 0.5 * (low + high);
            if middle <= low || middle >= high {
                break;
            }
            if holds(middle) { high = middle } else { low = middle }
        }
        (low, high)
    };
    let upper = solve(&|e| delta(mu, e).1 <= target).1;
    let lower = solve(&|e| delta(mu, e).0 <= target).0;
    (lower, upper)
}

/// δ is a difference of two tails, each right to some u times its logarithm; the difference is the larger tail times
/// about μ/(t+2), t being the threshold in standard deviations.
fn relative_error(mu: f64, epsilon: f64, delta: f64) -> f64 {
    let size = epsilon
        + 2.0 * (epsilon / mu) * (epsilon / mu)
        + 0.5 * mu * mu
        + if delta > 0.0 { -2.0 * libm::log(delta) } else { 1500.0 };
    let threshold = (epsilon / mu - 0.5 * mu).abs();
    (1e-15 * (8.0 + size) * (2.0 + (threshold + 2.0) / mu)).min(0.5)
}
