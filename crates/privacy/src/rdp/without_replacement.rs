//! Cohorts of a fixed size, drawn without replacement: replace-one adjacency.
//!
//! Wang, Balle and Kasiviswanathan (2019, arXiv 1808.00087), Theorem 27, for the Gaussian mechanism. It takes no
//! privacy loss distribution and no tighter known bound: where Poisson sampling is possible it costs far less.

use super::order::{LogSum, log_binomial_moment, log_expm1};
use super::{AccountantError, MAX_NOISE_MULTIPLIER, MIN_NOISE_MULTIPLIER, ROUNDING_MARGIN, RdpCurve};

/// Up to this order the forward differences are summed; above, their simple bound is used.
const EXACT_ORDER: u32 = 256;

impl RdpCurve {
    /// The curve of one cohort of `sample` out of `population`, and noise with a standard deviation of
    /// `noise_multiplier` *sensitivities of a replacement*: a sum of vectors clipped to C moves by up to 2C when one is
    /// replaced, so that noise of z·C is a multiplier of z/2 here. Integer orders, and between them the interpolation
    /// of the paper's Corollary 10.
    ///
    /// # Errors
    /// [`AccountantError`] for noise out of range, an empty sample or one larger than the population.
    pub fn without_replacement(
        noise_multiplier: f64,
        sample: u64,
        population: u64,
    ) -> Result<Self, AccountantError> {
        if !(MIN_NOISE_MULTIPLIER..=MAX_NOISE_MULTIPLIER).contains(&noise_multiplier) {
            return Err(AccountantError::NoiseMultiplier(noise_multiplier));
        }
        if sample == 0 || sample > population {
            return Err(AccountantError::SamplingRate(sample as f64 / population as f64));
        }
        let (z, q) = (noise_multiplier, sample as f64 / population as f64);
        if sample == population {
            return Self::new(z, 1.0);
        }
        let moments = Moments::new(z, q);
        let at_integer = |alpha: u32| if alpha == 1 { 0.0 } else { moments.log_moment(alpha) };
        let mut points = Vec::new();
        for order in super::fractional_orders() {
            let (below, share) = (order.floor(), order - order.floor());
            let cgf = (1.0 - share) * at_integer(below as u32) + share * at_integer(below as u32 + 1);
            points.push((order, cgf / (order - 1.0) * (1.0 + ROUNDING_MARGIN)));
        }
        for alpha in super::integer_orders() {
            let order = f64::from(alpha);
            points.push((order, at_integer(alpha) / (order - 1.0) * (1.0 + ROUNDING_MARGIN)));
        }
        Ok(Self { points })
    }
}

/// The bound's ingredients.
struct Moments {
    z: f64,
    log_q: f64,
    /// log of the l-th forward differences at 0 of k ↦ e^{k(k-1)/2z²}, by l; of the even ones.
    log_differences: Vec<f64>,
}

impl Moments {
    fn new(z: f64, q: f64) -> Self {
        // As a sum, Σ_k (-1)^(l-k)·C(l,k)·f(k), a difference cancels. The equal integral E[(w-1)^l] does not where l
        // is even, which is all that is used.
        let log_differences =
            (0..=EXACT_ORDER + 1).map(|l| if l % 2 == 0 { even_difference(l, z) } else { f64::NAN });
        Self { z, log_q: libm::log(q), log_differences: log_differences.collect() }
    }

    /// (α-1)·RDP(α) at an integer α ≥ 2.
    fn log_moment(&self, alpha: u32) -> f64 {
        let rdp = |order: f64| order / (2.0 * self.z * self.z);
        log_binomial_moment(alpha, |k| {
            let k_f = f64::from(k);
            let simple = std::f64::consts::LN_2 + (k_f - 1.0) * rdp(k_f);
            let bound = if k == 2 {
                (libm::log(4.0) + log_expm1(rdp(2.0))).min(simple)
            } else if alpha <= EXACT_ORDER {
                let (low, high) = (2 * (k / 2), 2 * k.div_ceil(2));
                let mean = 0.5 * (self.log_differences[low as usize] + self.log_differences[high as usize]);
                (libm::log(4.0) + mean).min(simple)
            } else {
                simple
            };
            k_f * self.log_q + bound
        })
    }
}

/// log E_Q[(w-1)^l] for even l, with w = e^{(2x-1)/2z²} and x ~ N(0, z²): the l-th forward difference at 0 of
/// k ↦ E[w^k] = e^{k(k-1)/2z²}. By the trapezoidal rule, as [`super::order`] does.
fn even_difference(l: u32, z: f64) -> f64 {
    if l == 0 {
        return 0.0;
    }
    const TAIL: f64 = 10.0;
    let order = f64::from(l);
    let step = 0.4 * z.min(1.0);
    let last = ((order / z + TAIL) / step).ceil() as i64;
    let first = -((TAIL / step).ceil() as i64);
    let mut sum = LogSum::EMPTY;
    for i in first..=last {
        let y = i as f64 * step;
        let exponent = (y - 0.5 / z) / z;
        let w = if exponent < 30.0 { libm::log(libm::expm1(exponent).abs()) } else { exponent };
        sum.add(order * w - 0.5 * y * y);
    }
    sum.total() + libm::log(step / libm::sqrt(2.0 * std::f64::consts::PI))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meets_the_reference() {
        // dp-accounting 0.6.0, Rényi accountant, replace-one; σ in sensitivities of a replacement.
        for (sigma, sample, population, steps, delta, reference) in [
            (1.478, 100, 1000, 624, 1e-5, 24.451_513_032_888_162),
            (1.689, 64, 1000, 66, 1e-5, 3.324_784_450_946_263_6),
            (1.319, 64, 1000, 112, 1e-5, 6.276_971_656_308_31),
        ] {
            let curve = RdpCurve::without_replacement(sigma, sample, population).unwrap();
            let found = curve.epsilon(steps, delta);
            assert!((found / reference - 1.0).abs() < 1e-8, "{found} {reference}");
        }
    }

    #[test]
    fn differences_equal_their_sums_where_those_do_not_cancel() {
        for z in [0.5, 1.0, 2.0] {
            let f = |k: f64| libm::exp(k * (k - 1.0) / (2.0 * z * z));
            let second = f(2.0) - 2.0 * f(1.0) + f(0.0);
            let fourth = f(4.0) - 4.0 * f(3.0) + 6.0 * f(2.0) - 4.0 * f(1.0) + f(0.0);
            assert!((libm::exp(even_difference(2, z)) / second - 1.0).abs() < 1e-12, "{z}");
            assert!((libm::exp(even_difference(4, z)) / fourth - 1.0).abs() < 1e-10, "{z}");
        }
    }

    #[test]
    fn a_full_cohort_is_no_sample_and_nonsense_is_refused() {
        assert_eq!(RdpCurve::without_replacement(2.0, 9, 9).unwrap(), RdpCurve::new(2.0, 1.0).unwrap());
        for (sample, population) in [(0, 5), (6, 5), (0, 0)] {
            let refused = RdpCurve::without_replacement(2.0, sample, population);
            assert!(matches!(refused, Err(AccountantError::SamplingRate(_))), "{sample} of {population}");
        }
        assert!(RdpCurve::without_replacement(0.1, 1, 5).is_err());
    }
}
