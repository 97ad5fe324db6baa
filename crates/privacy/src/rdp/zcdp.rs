//! Zero-concentrated differential privacy: one number, ρ, that adds up.
//!
//! Bun and Steinke (2016, arXiv 1605.02065): ρ-zCDP is RDP(α) ≤ ρα at every order α > 1. The discrete Gaussian's bound
//! is the Gaussian's (Canonne, Kamath and Steinke 2020, arXiv 2004.00010).

use super::{AccountantError, MAX_NOISE_MULTIPLIER, MIN_NOISE_MULTIPLIER, RdpCurve};

/// A privacy loss of ρ.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Zcdp {
    rho: f64,
}

impl Zcdp {
    /// No loss.
    pub const ZERO: Self = Self { rho: 0.0 };

    /// The Gaussian mechanism, continuous or discrete, with a standard deviation of `noise_multiplier` sensitivities in
    /// L2: ρ = 1/2z². For the discrete one the sensitivity is that of the integer vector.
    ///
    /// # Errors
    /// [`AccountantError::NoiseMultiplier`] outside the accountant's range.
    pub fn gaussian(noise_multiplier: f64) -> Result<Self, AccountantError> {
        if !(MIN_NOISE_MULTIPLIER..=MAX_NOISE_MULTIPLIER).contains(&noise_multiplier) {
            return Err(AccountantError::NoiseMultiplier(noise_multiplier));
        }
        Ok(Self { rho: 0.5 / (noise_multiplier * noise_multiplier) })
    }

    /// ρ.
    pub fn rho(self) -> f64 {
        self.rho
    }

    /// `count` uses: ρ adds up, adaptively too (Bun and Steinke).
    pub fn times(self, count: u64) -> Self {
        Self { rho: self.rho * count as f64 }
    }

    /// This, then `other`.
    pub fn then(self, other: Self) -> Self {
        Self { rho: self.rho + other.rho }
    }

    /// The smallest ε at `delta` by the conversion of Canonne, Kamath and Steinke, Proposition 12, over all orders.
    /// About 5 % above what a pure Gaussian costs ([`crate::pld::Mechanism::gdp`] with μ = √2ρ).
    ///
    /// # Panics
    /// If `delta` is not above 0 and below 1.
    pub fn epsilon(self, delta: f64) -> f64 {
        assert!(delta > 0.0 && delta < 1.0, "delta {delta}");
        if self.rho == 0.0 {
            return 0.0;
        }
        let log_delta = libm::log(delta);
        let at = |log_excess: f64| {
            let excess = libm::exp(log_excess);
            let alpha = 1.0 + excess;
            self.rho * alpha + libm::log(excess / alpha) - (log_delta + libm::log(alpha)) / excess
        };
        // Convex around its minimum; any order is a bound.
        let (mut low, mut high) = (-12.0, 25.0);
        for _ in 0..120 {
            let (a, b) = (low + (high - low) / 3.0, high - (high - low) / 3.0);
            if at(a) <= at(b) { high = b } else { low = a }
        }
        at(0.5 * (low + high)).max(0.0)
    }
}

impl RdpCurve {
    /// The discrete Gaussian with σ on the integer grid, for an integer vector of L2 `sensitivity`:
    /// RDP(α) = α·Δ²/2σ².
    ///
    /// # Errors
    /// [`AccountantError::NoiseMultiplier`] if σ/Δ is out of range.
    pub fn discrete_gaussian(sigma: f64, sensitivity: f64) -> Result<Self, AccountantError> {
        Self::new(sigma / sensitivity, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_meet_known_values() {
        // An independent implementation: what distributed DP pays over the pure Gaussian (3.4157 and 4.89).
        let of = |rho: f64| Zcdp { rho };
        assert!((of(0.15).epsilon(1e-10) - 3.574).abs() < 1e-3, "{}", of(0.15).epsilon(1e-10));
        assert!((of(0.5).epsilon(1e-6) - 5.22).abs() < 5e-3, "{}", of(0.5).epsilon(1e-6));
        assert_eq!(Zcdp::ZERO.epsilon(1e-5), 0.0);
    }

    #[test]
    fn is_never_above_the_curve_at_fixed_orders_and_never_below_the_exact_one() {
        for z in [0.5, 1.0, 4.0, 30.0] {
            for delta in [1e-3, 1e-6, 1e-10] {
                let rho = Zcdp::gaussian(z).unwrap().times(7);
                let curve = RdpCurve::new(z, 1.0).unwrap().epsilon(7, delta);
                let found = rho.epsilon(delta);
                assert!(found <= curve * (1.0 + 1e-6), "z={z} δ={delta}: {found} {curve}");
                let exact = crate::gaussian::analytic_delta(7f64.sqrt() / z, found);
                assert!(exact <= delta, "z={z} δ={delta}: {found}");
                // Rényi orders of the discrete Gaussian are the Gaussian's.
                assert_eq!(RdpCurve::discrete_gaussian(3.0 * z, 3.0).unwrap().epsilon(7, delta), curve);
            }
        }
    }

    #[test]
    fn the_discrete_gaussian_is_never_above_its_bound() {
        // Its Rényi divergence at integer orders, summed directly.
        for (sigma, delta) in [(0.5f64, 1i32), (1.0, 1), (2.3, 3)] {
            let weight = |k: i32| libm::exp(-f64::from(k * k) / (2.0 * sigma * sigma));
            let total: f64 = (-60..=60).map(weight).sum();
            for alpha in [2, 3, 5] {
                let term = |k: i32| {
                    libm::exp(
                        -f64::from(k * k) / (2.0 * sigma * sigma)
                            + f64::from(alpha - 1) * loss(k, delta, sigma),
                    )
                };
                let moment: f64 = (-60..=60).map(term).sum::<f64>() / total;
                let divergence = libm::log(moment) / f64::from(alpha - 1);
                let bound = f64::from(alpha * delta * delta) / (2.0 * sigma * sigma);
                assert!(
                    divergence <= bound * (1.0 + 1e-9),
                    "σ={sigma} Δ={delta} α={alpha}: {divergence} {bound}"
                );
            }
        }
        fn loss(k: i32, delta: i32, sigma: f64) -> f64 {
            f64::from(delta * delta - 2 * k * delta) / (2.0 * sigma * sigma)
        }
    }
}
