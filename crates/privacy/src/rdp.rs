//! Rényi accountant of the Poisson-subsampled Gaussian mechanism, add/remove adjacency.
//!
//! At integer orders by the binomial sum of Mironov, Talwar and Zhang (2019, arXiv 1908.10530, §3.3), at
//! fractional orders by quadrature of the same integral, converted to (ε, δ) by Canonne, Kamath and Steinke
//! (2020, arXiv 2004.00010, Prop. 12).
//!
//! The noise that we add is the *discrete* Gaussian on a grid. At integer orders the formula is the same: it needs
//! only E[exp(k(2x-Δ)Δ/2σ²)], which for an integer shift is equal on the integers and on the line. At fractional
//! orders the two differ by less than exp(-π²z²Δ) a dimension (Poisson summation), below 1e-98 as Δ is at least
//! [`MIN_BOUND_UNITS`](crate::clip::MIN_BOUND_UNITS).
//!
//! Arithmetic is `libm`'s, which is the same bits on every machine: client and coordinator must come to one number.

pub mod filter;
mod order;
mod truncated;
mod without_replacement;
pub mod zcdp;

use order::{log_moment_fractional, log_moment_integer};

/// What [`RdpCurve`] is called in reports.
pub const ACCOUNTANT: &str = "rdp";

/// Less noise than this is refused: below it a guarantee is too weak to mean anything.
pub const MIN_NOISE_MULTIPLIER: f64 = 0.3;
/// More noise than this is refused: nothing can be learnt through it.
pub const MAX_NOISE_MULTIPLIER: f64 = 1e6;

/// Every Rényi divergence is charged with this much on top, far above the error of its computation (1e-11).
const ROUNDING_MARGIN: f64 = 1e-9;

/// Why the accountant cannot speak.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum AccountantError {
    /// Too little noise, too much, or not a number.
    #[error(
        "the accountant takes a noise_multiplier from {MIN_NOISE_MULTIPLIER} to {MAX_NOISE_MULTIPLIER}, not {0}: \
         with less noise ε would be too large to promise anything"
    )]
    NoiseMultiplier(f64),
    /// Not a probability above zero.
    #[error("sampling_rate must be above 0 and at most 1, not {0}")]
    SamplingRate(f64),
}

/// The Rényi divergence of one step at each order: the whole privacy loss of a mechanism, computed once.
#[derive(Debug, Clone, PartialEq)]
pub struct RdpCurve {
    /// Order α and RDP(α) of one step.
    points: Vec<(f64, f64)>,
}

impl RdpCurve {
    /// The curve of one step: a batch that holds each record with probability `sampling_rate`, and noise with a
    /// standard deviation of `noise_multiplier` sensitivities. Without sampling (`sampling_rate` = 1) RDP(α) is
    /// α/2z² at any order.
    ///
    /// # Errors
    /// [`AccountantError`] for numbers it has no answer for.
    pub fn new(noise_multiplier: f64, sampling_rate: f64) -> Result<Self, AccountantError> {
        if !(MIN_NOISE_MULTIPLIER..=MAX_NOISE_MULTIPLIER).contains(&noise_multiplier) {
            return Err(AccountantError::NoiseMultiplier(noise_multiplier));
        }
        if !(sampling_rate > 0.0 && sampling_rate <= 1.0) {
            return Err(AccountantError::SamplingRate(sampling_rate));
        }
        let (z, q) = (noise_multiplier, sampling_rate);
        let mut points = Vec::new();
        let mut point = |order: f64, rdp: f64| points.push((order, rdp * (1.0 + ROUNDING_MARGIN)));
        for order in fractional_orders() {
            let rdp = if q == 1.0 {
                order / (2.0 * z * z)
            } else {
                log_moment_fractional(order, z, q) / (order - 1.0)
            };
            point(order, rdp);
        }
        for order in integer_orders() {
            let alpha = f64::from(order);
            let rdp = if q == 1.0 {
                alpha / (2.0 * z * z)
            } else {
                log_moment_integer(order, z, q) / (alpha - 1.0)
            };
            point(alpha, rdp);
        }
        if q == 1.0 {
            for exponent in 11..=24 {
                let alpha = f64::from(1u32 << exponent);
                point(alpha, alpha / (2.0 * z * z));
            }
        }
        Ok(Self { points })
    }

    /// The curve of an ε-differentially private step (δ = 0): min(ε, αε²/2) (Bun and Steinke 2016, Proposition 3.3).
    pub(crate) fn pure(epsilon: f64) -> Self {
        let orders = fractional_orders().chain(integer_orders().map(f64::from));
        let rdp = |order: f64| (order * epsilon * epsilon / 2.0).min(epsilon) * (1.0 + ROUNDING_MARGIN);
        Self { points: orders.map(|order| (order, rdp(order))).collect() }
    }

    /// The smallest ε at which `steps` steps are (ε, `delta`)-differentially private by this accountant: zero
    /// without a step, never negative, never NaN, finite for `delta` in (0, 1).
    pub fn epsilon(&self, steps: u64, delta: f64) -> f64 {
        if steps == 0 {
            return 0.0;
        }
        let steps = steps as f64;
        let convert = |&(alpha, rdp): &(f64, f64)| convert(alpha, steps * rdp, delta);
        self.points.iter().map(convert).fold(f64::INFINITY, f64::min).max(0.0)
    }

    /// The curve without its orders above `largest`.
    pub(crate) fn up_to(mut self, largest: f64) -> Self {
        self.points.retain(|(order, _)| *order <= largest);
        self
    }

    /// No bound at any order.
    pub(crate) fn unbounded() -> Self {
        let orders = fractional_orders().chain(integer_orders().map(f64::from));
        Self { points: orders.map(|order| (order, f64::INFINITY)).collect() }
    }
}

/// The ε that a Rényi loss of `rdp` at order `alpha` is at `delta` (Canonne, Kamath and Steinke 2020, Prop. 12).
pub(crate) fn convert(alpha: f64, rdp: f64, delta: f64) -> f64 {
    rdp + libm::log1p(-1.0 / alpha) - (libm::log(delta) + libm::log(alpha)) / (alpha - 1.0)
}

/// 1.1, 1.2, … 10.9 without the integers: these matter when ε is large.
fn fractional_orders() -> impl Iterator<Item = f64> {
    (11..110).filter(|tenths| tenths % 10 != 0).map(|tenths| f64::from(tenths) / 10.0)
}

/// 2 to 64, then ever wider apart: these matter when ε is small.
fn integer_orders() -> impl Iterator<Item = u32> {
    (2..=64).chain((72..=128).step_by(8)).chain([160, 192, 256, 384, 512, 768, 1024])
}

#[cfg(test)]
mod tests;
