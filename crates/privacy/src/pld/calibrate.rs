//! From a target ε to the least noise that keeps it.

use super::mechanism::within;
use super::{AccountantError, Adjacency, Composition, MAX_EPSILON, Mechanism};
use crate::rdp::{MAX_NOISE_MULTIPLIER, MIN_NOISE_MULTIPLIER};

/// How far below the target the ε of the result may be, relatively.
const SLACK: f64 = 2e-5;

/// The least noise multiplier, from [`MIN_NOISE_MULTIPLIER`], at which `count` uses of the Gaussian mechanism on a
/// Poisson sample stay within `epsilon` at `delta` by the upper bound. The result itself was found to.
///
/// # Errors
/// [`AccountantError`] for nonsense, or if no noise is enough.
pub fn least_noise_multiplier(
    epsilon: f64,
    delta: f64,
    sampling_rate: f64,
    count: u64,
    adjacency: Adjacency,
) -> Result<f64, AccountantError> {
    let range = (MIN_NOISE_MULTIPLIER, MAX_NOISE_MULTIPLIER);
    least_noise(epsilon, delta, range, |z| {
        Composition::new(adjacency).add(Mechanism::poisson_gaussian(z, sampling_rate)?, count)
    })
}

/// The least z in `range` for which `composition(z)` stays within `epsilon` at `delta` by the upper bound; ε must fall
/// as z rises. The result itself was found to keep the target, and comes to within 2e-5 of it.
///
/// # Errors
/// [`AccountantError`] of the composition, or if the most noise is not enough.
pub fn least_noise(
    epsilon: f64,
    delta: f64,
    range: (f64, f64),
    composition: impl Fn(f64) -> Result<Composition, AccountantError>,
) -> Result<f64, AccountantError> {
    within("epsilon", epsilon, 1e-6, MAX_EPSILON)?;
    // How far log ε is above the target. Less noise than the accountant can speak about is too little.
    let excess = |log_z: f64| -> Result<f64, AccountantError> {
        let upper = match composition(libm::exp(log_z).clamp(range.0, range.1))?.epsilon_upper(delta) {
            Ok(upper) => upper,
            Err(AccountantError::Epsilon(_)) => f64::INFINITY,
            Err(e) => return Err(e),
        };
        Ok(if upper <= 0.0 { f64::NEG_INFINITY } else { libm::log(upper / epsilon) })
    };
    let rough = |log_z: f64| -> Result<f64, AccountantError> {
        composition(libm::exp(log_z).clamp(range.0, range.1))?.epsilon_rough(delta)
    };
    let (mut low, mut high) = (libm::log(range.0), libm::log(range.1));
    if excess(low)? <= 0.0 {
        return Ok(range.0);
    }
    if excess(high)? > 0.0 {
        return Err(AccountantError::Unreachable { epsilon, count: composition(range.1)?.uses() });
    }
    // A first guess from Chernoff's bound, which is some 10 % above.
    let (mut a, mut b) = (low, high);
    for _ in 0..16 {
        let middle = 0.5 * (a + b);
        if rough(middle)? > 1.1 * epsilon { a = middle } else { b = middle }
    }
    let (mut at_low, mut at_high) = (f64::INFINITY, f64::NEG_INFINITY);
    let mut next = 0.5 * (a + b);
    let mut last: Option<(f64, f64)> = None;
    for round in 0..60 {
        let found = excess(next)?;
        if found > 0.0 {
            (low, at_low) = (next, found);
        } else {
            (high, at_high) = (next, found);
            if found >= -SLACK {
                break;
            }
        }
        if high - low <= 1e-9 {
            break;
        }
        // Secant through the last two points, aimed a little inside; the slope of log ε over log z is about -1.
        let aim = -0.4 * SLACK;
        let slope = match last {
            Some((x, y)) if y.is_finite() && found.is_finite() && x != next => (found - y) / (next - x),
            _ => -1.3,
        };
        last = Some((next, found));
        let step = if found.is_finite() { (aim - found) / slope.clamp(-50.0, -0.05) } else { f64::NAN };
        let wish = next + step;
        next = if wish > low && wish < high && round % 8 != 7 { wish } else { 0.5 * (low + high) };
    }
    debug_assert!(at_high <= 0.0 && at_low >= at_high);
    Ok(libm::exp(high).clamp(range.0, range.1))
}
