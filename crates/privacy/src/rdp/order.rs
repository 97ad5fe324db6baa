//! The moment A(α) = E[((1-q) + q·e^{(2x-1)/2z²})^α], x ~ N(0, z²), at one order: RDP(α) = log A(α) / (α-1).
//!
//! Both forms compute A - 1, a sum of positive terms, so that relative accuracy holds however small it is (with
//! q = 1e-4 the divergence of a step is 1e-9, and a million steps are to be added up). The likelihood ratio has mean
//! 1, which is why the terms of order zero and one drop out.

/// log A(α) at an integer α ≥ 2:
/// A - 1 = Σ_{k≥2} C(α,k)·(1-q)^{α-k}·q^k·(e^{(k²-k)/2z²} - 1).
pub(super) fn log_moment_integer(alpha: u32, z: f64, q: f64) -> f64 {
    let (log_q, log_rest) = (libm::log(q), libm::log1p(-q));
    log_binomial_moment(alpha, |k| {
        let (k, rest) = (f64::from(k), f64::from(alpha - k));
        k * log_q + rest * log_rest + log_expm1(k * (k - 1.0) / (2.0 * z * z))
    })
}

/// log(1 + Σ_{k=2}^α C(α,k)·e^{log_term(k)}).
pub(super) fn log_binomial_moment(alpha: u32, log_term: impl Fn(u32) -> f64) -> f64 {
    let mut sum = LogSum::EMPTY;
    let mut log_binomial = libm::log(f64::from(alpha));
    for k in 2..=alpha {
        log_binomial += libm::log(f64::from(alpha - k + 1) / f64::from(k));
        sum.add(log_binomial + log_term(k));
    }
    log_one_plus_exp(sum.total())
}

/// log A(α) at any real α above 1, by the trapezoidal rule on
/// A - 1 = E[(1+w)^α - 1 - αw], w = q·(e^{(2x-1)/2z²} - 1).
///
/// The integrand is analytic up to the zero of 1 + w at |Im x| = πz² and falls off like a Gaussian on both sides
/// of [0, α], so that with this step and range the error is below 1e-16 of the value (Trefethen and Weideman 2014).
pub(super) fn log_moment_fractional(alpha: f64, z: f64, q: f64) -> f64 {
    const TAIL: f64 = 10.0;
    // In units of z: the density is then exp(-y²/2), whatever z is.
    let step = 0.4 * z.min(1.0);
    let last = ((alpha / z + TAIL) / step).ceil() as i64;
    let first = -((TAIL / step).ceil() as i64);
    let mut sum = LogSum::EMPTY;
    for i in first..=last {
        let y = i as f64 * step;
        let w = q * libm::expm1((y - 0.5 / z) / z);
        sum.add(log_excess(alpha, w) - 0.5 * y * y);
    }
    let log_density = libm::log(step / libm::sqrt(2.0 * std::f64::consts::PI));
    log_one_plus_exp(sum.total() + log_density)
}

/// log((1+w)^α - 1 - αw) for w > -1 and α > 1: never negative before the logarithm (Bernoulli's inequality).
fn log_excess(alpha: f64, w: f64) -> f64 {
    if w == 0.0 {
        return f64::NEG_INFINITY;
    }
    if (alpha * w).abs() < 0.1 {
        // The binomial series from its second term on, where the closed form would cancel.
        let mut term = alpha * w;
        let mut series = 0.0;
        for k in 2..24 {
            term *= (alpha - f64::from(k - 1)) / f64::from(k) * w;
            series += term;
        }
        return libm::log(series);
    }
    let power = alpha * libm::log1p(w);
    if power < 30.0 {
        libm::log(libm::expm1(power) - alpha * w)
    } else {
        power + libm::log1p(-(1.0 + alpha * w) * libm::exp(-power))
    }
}

/// log(e^x - 1) for x > 0.
pub(super) fn log_expm1(x: f64) -> f64 {
    if x < 30.0 { libm::log(libm::expm1(x)) } else { x + libm::log1p(-libm::exp(-x)) }
}

/// log(1 + e^x).
pub(super) fn log_one_plus_exp(x: f64) -> f64 {
    if x < 30.0 { libm::log1p(libm::exp(x)) } else { x + libm::log1p(libm::exp(-x)) }
}

/// A sum of e^x kept as a logarithm.
pub(super) struct LogSum {
    largest: f64,
    scaled: f64,
}

impl LogSum {
    pub(super) const EMPTY: Self = Self { largest: f64::NEG_INFINITY, scaled: 0.0 };

    pub(super) fn add(&mut self, x: f64) {
        if x <= self.largest {
            if x > f64::NEG_INFINITY {
                self.scaled += libm::exp(x - self.largest);
            }
        } else {
            self.scaled = self.scaled * libm::exp(self.largest - x) + 1.0;
            self.largest = x;
        }
    }

    pub(super) fn total(&self) -> f64 {
        self.largest + libm::log(self.scaled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quadrature_and_binomial_sum_agree_at_integers() {
        for z in [0.3, 0.6, 1.0, 4.0, 50.0, 1e5] {
            for q in [1e-6, 1e-3, 0.05, 0.5, 0.99] {
                for alpha in [2, 3, 7, 11, 16] {
                    let exact = log_moment_integer(alpha, z, q);
                    let found = log_moment_fractional(f64::from(alpha), z, q);
                    assert!((found / exact - 1.0).abs() < 1e-10, "α={alpha} z={z} q={q}: {found} {exact}");
                }
            }
        }
    }

    #[test]
    fn the_second_moment_has_its_closed_form() {
        // A(2) = 1 + q²(e^{1/z²} - 1).
        let exact = libm::log1p(0.01 * 0.01 * libm::expm1(1.0 / 4.0));
        assert!((log_moment_integer(2, 2.0, 0.01) / exact - 1.0).abs() < 1e-13);
    }

    #[test]
    fn log_moment_is_convex_between_orders() {
        // (α-1)·RDP(α) is convex in α with a zero at 1: a wrong value at one order would break it.
        for (z, q) in [(0.3, 0.01), (1.0, 0.01), (2.0, 0.5), (20.0, 0.001)] {
            let at = |tenths: i32| match tenths {
                10 => 0.0,
                t => log_moment_fractional(f64::from(t) / 10.0, z, q),
            };
            for t in 11..109 {
                let middle = f64::midpoint(at(t - 1), at(t + 1));
                assert!(at(t) <= middle * (1.0 + 1e-9), "z={z} q={q} at {t}");
            }
        }
    }
}
