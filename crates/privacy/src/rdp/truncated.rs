//! A Poisson sample that is cut down to a cap by chance: add/remove adjacency.
//!
//! **Theorem.** Of N contributions each is drawn with probability q; of more than B that are drawn, B are kept,
//! uniformly. With f = Pr[Bin(N-1, q) ≥ B] and A_z(α) the moment of the Poisson-subsampled Gaussian, (α-1)·RDP(α) ≤
//! log((1-f)·A_z(α) + f·A_{z/2}(α)).
//!
//! *Proof.* Let x be the contribution that is there or is not, and n the number of others drawn, which has the same
//! law in both cases. Telling n as well only helps the adversary. For n < B nothing is cut off: this is the subsampled
//! Gaussian. For n ≥ B let V be a uniform set of B of the others, and a uniform in V. Without x the sum is S(V). With
//! it, x is kept with probability k = q·B/(n+1) ≤ q, together with B-1 uniform others; V without a is such a set. So
//! the outputs are E[N(S(V), σ²)] and E[(1-k)·N(S(V), σ²) + k·N(S(V) - a + x, σ²)], over the same V and a, and ‖x - a‖
//! is at most twice the clip norm. Moments are jointly convex (as all f-divergences), grow with the distance, and with
//! k (the mixture with k is a mixture of those with q and with 0): what is left is the subsampled Gaussian of twice
//! the sensitivity, in the same direction. The moments of the n add up with their probabilities. In either direction A
//! bounds the moment of the subsampled Gaussian (Mironov, Talwar and Zhang 2019). ∎
//!
//! However rarely the cap binds, that event keeps its share of the high moments: at z = 1, q = 0.01 and a cap of 1.6
//! times the mean (f = 2e-8) orders above 5 are lost, and 1000 uses cost ε = 3.9 at δ = 1e-6, where the loss
//! distribution says 2.1. At a cap of 2.2 times the mean it is 2.6, as much as without a cap but for 6 %.
//!
//! The bound is an own one. That of [`crate::pld::Mechanism::truncated_poisson_gaussian`], as in Google's
//! dp-accounting, takes the second part to be a replacement of twice the sensitivity, which costs more where the cap
//! binds often.

use super::order::{LogSum, log_expm1, log_one_plus_exp};
use super::{AccountantError, ROUNDING_MARGIN, RdpCurve};
use crate::pld::binomial;

impl RdpCurve {
    /// The curve of one Poisson sample of `population` contributions at `sampling_rate`, of which at most `cap` are kept,
    /// and noise with a standard deviation of `noise_multiplier` sensitivities of one contribution more or less.
    ///
    /// # Errors
    /// [`AccountantError`] for numbers it has no answer for; where the cap can bind, noise has to be at least twice
    /// [`MIN_NOISE_MULTIPLIER`](super::MIN_NOISE_MULTIPLIER).
    pub fn truncated_poisson(
        noise_multiplier: f64,
        sampling_rate: f64,
        population: u64,
        cap: u64,
    ) -> Result<Self, AccountantError> {
        let free = Self::new(noise_multiplier, sampling_rate)?;
        if cap >= population {
            return Ok(free);
        }
        let displacing = Self::new(0.5 * noise_multiplier, sampling_rate)?;
        let log_full = log_full(cap, population - 1, sampling_rate);
        let log_rest = libm::log1p(-libm::exp(log_full));
        let mixed = |(&(order, rdp), &(same_order, displaced)): (&(f64, f64), &(f64, f64))| {
            debug_assert!(order == same_order);
            // The moment less one, which is small where divergences are.
            let mut excess = LogSum::EMPTY;
            excess.add(log_rest + log_expm1((order - 1.0) * rdp));
            excess.add(log_full + log_expm1((order - 1.0) * displaced));
            (order, log_one_plus_exp(excess.total()) / (order - 1.0) * (1.0 + ROUNDING_MARGIN))
        };
        Ok(Self { points: free.points.iter().zip(&displacing.points).map(mixed).collect() })
    }
}

/// The logarithm of Pr[Bin(`others`, `rate`) ≥ `cap`], rounded up.
fn log_full(cap: u64, others: u64, rate: f64) -> f64 {
    if rate == 1.0 {
        return 0.0;
    }
    let full = binomial::at_least(cap, others, rate);
    if full > 1e-280 {
        // What the tail may be off by.
        return libm::log((full * (1.0 + 1e-11)).min(1.0));
    }
    // Too small for a number, and yet high moments may be larger: Chernoff's bound, with the relative entropy.
    let (hit, missed, all) = (cap as f64, (others - cap) as f64, others as f64);
    let missing = if others == cap { 0.0 } else { missed * libm::log(missed / (all * (1.0 - rate))) };
    (hit * libm::log(all * rate / hit) - missing) * (1.0 - 1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pld::{Adjacency, Composition, Mechanism};

    /// At this cap, of a mean of 100, it hardly ever binds.
    const WIDE: u64 = 300;

    /// The output density of the mechanism on scalars, over every sample and every choice of those kept.
    fn density(data: &[f64], q: f64, cap: usize, sigma: f64, y: f64) -> f64 {
        let normal = |mean: f64| {
            libm::exp(-(y - mean) * (y - mean) / (2.0 * sigma * sigma))
                / (sigma * libm::sqrt(2.0 * std::f64::consts::PI))
        };
        let sets = || 0u32..1 << data.len();
        let sum = |set: u32| (0..data.len()).filter(|i| set >> i & 1 == 1).map(|i| data[i]).sum::<f64>();
        let drawn = |set: u32| {
            let (taken, all) = (set.count_ones() as i32, data.len() as i32);
            q.powi(taken) * (1.0 - q).powi(all - taken)
        };
        sets()
            .map(|set| {
                if set.count_ones() as usize <= cap {
                    return drawn(set) * normal(sum(set));
                }
                let kept: Vec<u32> =
                    sets().filter(|sub| sub & set == *sub && sub.count_ones() as usize == cap).collect();
                drawn(set) / kept.len() as f64 * kept.iter().map(|sub| normal(sum(*sub))).sum::<f64>()
            })
            .sum()
    }

    /// Over y, by the trapezoidal rule.
    fn integral(f: impl Fn(f64) -> f64) -> f64 {
        (-800..=800).map(|i| 0.03 * f(f64::from(i) * 0.03)).sum()
    }

    #[test]
    fn the_mechanism_itself_stays_below_the_curve_in_both_directions() {
        let mut near: f64 = 0.0;
        for others in [[1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, -1.0, -1.0], [-1.0, 1.0, 0.5, -0.2], [0.0; 4]] {
            for (z, q, cap) in [(0.8, 0.3, 1), (1.0, 0.5, 2), (1.5, 0.9, 3), (2.0, 0.1, 1)] {
                let mut data = others.to_vec();
                data.push(1.0);
                let curve = RdpCurve::truncated_poisson(z, q, data.len() as u64, cap as u64).unwrap();
                let p = |y: f64| density(&data, q, cap, z, y);
                let without = |y: f64| density(&others, q, cap, z, y);
                assert!((integral(p) - 1.0).abs() < 1e-9);
                for order in [1.5, 2.0, 3.0, 5.0] {
                    let rdp = curve.at(order).unwrap();
                    for (a, b) in
                        [(&p as &dyn Fn(f64) -> f64, &without as &dyn Fn(f64) -> f64), (&without, &p)]
                    {
                        let moment = integral(|y| b(y) * libm::pow(a(y) / b(y), order));
                        let exact = libm::log(moment) / (order - 1.0);
                        assert!(exact <= rdp, "z={z} q={q} cap={cap} α={order}: {exact} above {rdp}");
                        near = near.max(exact / rdp);
                    }
                }
            }
        }
        assert!(near > 0.5, "the bound is not loose by orders: {near}");
    }

    #[test]
    fn the_mechanism_itself_stays_within_the_loss_distribution() {
        for (z, q, cap, others) in [
            (1.0, 0.5, 2, [-1.0, -1.0, -1.0, -1.0]),
            (0.8, 0.3, 1, [-1.0, -1.0, -1.0, -1.0]),
            (1.5, 0.9, 3, [1.0; 4]),
        ] {
            let mut data = others.to_vec();
            data.push(1.0);
            let mechanism = Mechanism::truncated_poisson_gaussian(z, q, 5, cap as u64).unwrap();
            let once = Composition::new(Adjacency::AddRemove).add(mechanism, 1).unwrap();
            let p = |y: f64| density(&data, q, cap, z, y);
            let without = |y: f64| density(&others, q, cap, z, y);
            for epsilon in [0.0, 0.5, 1.5] {
                let over = |a: &dyn Fn(f64) -> f64, b: &dyn Fn(f64) -> f64| {
                    integral(|y| (a(y) - libm::exp(epsilon) * b(y)).max(0.0))
                };
                let exact = over(&p, &without).max(over(&without, &p));
                let claimed = once.delta(epsilon).unwrap().upper;
                assert!(
                    exact <= claimed + 1e-4,
                    "z={z} q={q} cap={cap} ε={epsilon}: {exact} above {claimed}"
                );
            }
        }
    }

    #[test]
    fn a_cap_costs_between_no_cap_and_no_sampling() {
        let (free, all) = (RdpCurve::new(1.0, 0.01).unwrap(), RdpCurve::new(0.5, 1.0).unwrap());
        let mut before = free.clone();
        for cap in [220, 160, 130, 110, 60, 1] {
            let curve = RdpCurve::truncated_poisson(1.0, 0.01, 10_000, cap).unwrap();
            for ((order, rdp), (_, less)) in curve.points.iter().zip(&before.points) {
                assert!(*rdp >= less * (1.0 - 1e-9), "cap {cap} at {order}");
                assert!(*rdp <= all.at(*order).unwrap(), "cap {cap} at {order}");
            }
            before = curve;
        }
        let wide = RdpCurve::truncated_poisson(1.0, 0.01, 10_000, WIDE).unwrap();
        let (wide, free_epsilon) = (wide.epsilon(1000, 1e-6), free.epsilon(1000, 1e-6));
        assert!((wide / free_epsilon - 1.0).abs() < 1e-3, "{wide} {free_epsilon}");
        assert_eq!(RdpCurve::truncated_poisson(1.0, 0.01, 50, 50).unwrap(), free);
        // Nothing is left to chance: everybody is drawn, and one pushes another out.
        let certain = RdpCurve::truncated_poisson(1.0, 1.0, 50, 20).unwrap();
        assert!((certain.at(2.0).unwrap() / all.at(2.0).unwrap() - 1.0).abs() < 1e-8);
    }

    /// Two accountants of one mechanism. The Rényi one pays for the rare event, but far less than without sampling.
    #[test]
    fn it_lies_above_the_loss_distribution_and_far_below_no_sampling() {
        for (cap, most) in [(160, 1.9), (220, 1.25), (WIDE, 1.15)] {
            let mechanism = Mechanism::truncated_poisson_gaussian(1.0, 0.01, 10_000, cap).unwrap();
            let pld =
                Composition::new(Adjacency::AddRemove).add(mechanism, 1000).unwrap().epsilon(1e-6).unwrap();
            let rdp = RdpCurve::truncated_poisson(1.0, 0.01, 10_000, cap).unwrap().epsilon(1000, 1e-6);
            assert!(rdp >= pld.lower && rdp <= most * pld.upper, "{cap}: {rdp} {pld:?}");
            let unsampled = RdpCurve::new(0.5, 1.0).unwrap().epsilon(1000, 1e-6);
            assert!(rdp < 0.01 * unsampled, "{rdp} {unsampled}");
        }
    }

    #[test]
    fn an_event_too_rare_for_a_number_still_counts() {
        // f = 0.3^999, about e^-1203.
        let curve = RdpCurve::truncated_poisson(0.7, 0.3, 1000, 999).unwrap();
        let (free, displacing) = (RdpCurve::new(0.7, 0.3).unwrap(), RdpCurve::new(0.35, 0.3).unwrap());
        let rare = 999.0 * libm::log(0.3) + 255.0 * displacing.at(256.0).unwrap();
        let found = 255.0 * curve.at(256.0).unwrap();
        assert!(rare > 255.0 * free.at(256.0).unwrap() + 1000.0 && (found / rare - 1.0).abs() < 1e-6);
        assert!((log_full(999, 999, 0.3) / (999.0 * libm::log(0.3)) - 1.0).abs() < 1e-8);
        assert_eq!(binomial::at_least(600, 1000, 0.01), 0.0);
        assert!((-2100.0..-2000.0).contains(&log_full(600, 1000, 0.01)), "{}", log_full(600, 1000, 0.01));
    }

    #[test]
    fn too_little_noise_is_refused() {
        assert!(RdpCurve::truncated_poisson(0.5, 0.1, 100, 20).is_err());
        assert!(RdpCurve::truncated_poisson(1.0, 0.0, 100, 20).is_err());
        assert!(RdpCurve::truncated_poisson(f64::NAN, 0.1, 100, 20).is_err());
    }
}
