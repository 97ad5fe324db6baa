//! Values that are exact, or rigorous bounds of another program: our interval holds them without any slack.

use super::*;
use crate::gaussian::analytic_delta;

/// Φ(x).
fn cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x / std::f64::consts::SQRT_2)
}

/// A direction of the Poisson-subsampled Gaussian: its loss at y in units of the noise, P's density there, and δ(ε) of
/// one use at any real ε, in closed form.
#[derive(Clone, Copy)]
struct Sampled {
    mu: f64,
    q: f64,
    direction: &'static str,
}

impl Sampled {
    fn mixture(&self, y: f64, mu: f64) -> f64 {
        (1.0 - self.q) + self.q * libm::exp(mu * (y - 0.5 * mu))
    }

    /// Densities of P and Q over that of N(0, 1).
    fn ratios(&self, y: f64) -> (f64, f64) {
        match self.direction {
            "remove" => (self.mixture(y, self.mu), 1.0),
            "add" => (1.0, self.mixture(y, self.mu)),
            _ => (self.mixture(y, self.mu), self.mixture(y, -self.mu)),
        }
    }

    /// P and Q of the y above `t`, or below it: where P is the likelier.
    fn tails(&self, t: f64) -> (f64, f64) {
        let mixed = |mu: f64, side: f64| (1.0 - self.q) * cdf(side * t) + self.q * cdf(side * (t - mu));
        match self.direction {
            "remove" => (mixed(self.mu, -1.0), cdf(-t)),
            "add" => (cdf(t), mixed(self.mu, 1.0)),
            _ => (mixed(self.mu, -1.0), mixed(-self.mu, -1.0)),
        }
    }

    /// The y at which the loss is `epsilon`, if there is one.
    fn threshold(&self, epsilon: f64) -> Option<f64> {
        let (mu, q) = (self.mu, self.q);
        let of_mixture =
            |ratio: f64| (ratio > 1.0 - q).then(|| libm::log((ratio - 1.0 + q) / q) / mu + 0.5 * mu);
        match self.direction {
            "remove" => of_mixture(libm::exp(epsilon)),
            "add" => of_mixture(libm::exp(-epsilon)),
            _ => {
                // (1 - q + qBe) / (1 - q + qB/e) = e^ε is quadratic in e = e^{μy}.
                let (ratio, part) = (libm::exp(epsilon), q * libm::exp(-0.5 * mu * mu));
                let half = 0.5 * (1.0 - q) * (ratio - 1.0);
                let root = libm::sqrt(half * half + ratio * part * part);
                // Without cancellation.
                let e = if half > 0.0 { (half + root) / part } else { ratio * part / (root - half) };
                Some(libm::log(e) / mu)
            }
        }
    }

    fn one_use(&self, epsilon: f64) -> f64 {
        match (self.threshold(epsilon), self.direction) {
            (Some(t), _) => {
                let (p, q) = self.tails(t);
                (p - libm::exp(epsilon) * q).max(0.0)
            }
            (None, "add") => 0.0,
            (None, _) => -libm::expm1(epsilon),
        }
    }

    /// δ(ε) of `count` uses: E[δ(ε - L)] over the first one's loss. The integrand is smooth but for where the other uses'
    /// loss has its end; double exponential quadrature on both sides of that is as good as exact.
    fn uses(&self, count: u32, epsilon: f64) -> f64 {
        if count == 1 {
            return self.one_use(epsilon);
        }
        let end = f64::from(count - 1) * libm::log1p(-self.q);
        let kink = match self.direction {
            "remove" => self.threshold(epsilon - end),
            "add" => self.threshold(epsilon + end),
            // No end, but a sharp bend where the rest of the loss is zero.
            _ => self.threshold(epsilon),
        };
        let (from, to) = (-9.0, 9.0 + self.mu);
        let middle = kink.unwrap_or(0.5 * self.mu).clamp(from, to);
        self.integral(count, epsilon, from, middle) + self.integral(count, epsilon, middle, to)
    }

    fn integral(&self, count: u32, epsilon: f64, from: f64, to: f64) -> f64 {
        const STEP: f64 = 0.02;
        let (centre, half) = (0.5 * (from + to), 0.5 * (to - from));
        let at = |i: i32| {
            let s = f64::from(i) * STEP;
            let u = 0.5 * std::f64::consts::PI * libm::sinh(s);
            let y = centre + half * libm::tanh(u);
            let slope = half * 0.5 * std::f64::consts::PI * libm::cosh(s) / (libm::cosh(u) * libm::cosh(u));
            let (p, q) = self.ratios(y);
            let density = p * libm::exp(-0.5 * y * y) / libm::sqrt(2.0 * std::f64::consts::PI);
            let weight = density * slope * STEP;
            if weight < 1e-22 { 0.0 } else { weight * self.uses(count - 1, epsilon - libm::log(p / q)) }
        };
        (-180..=180).map(at).sum()
    }
}

/// δ of the worse direction.
pub(super) fn exact(adjacency: Adjacency, z: f64, q: f64, count: u32, epsilon: f64) -> f64 {
    let directions: &[&'static str] = match adjacency {
        Adjacency::AddRemove => &["remove", "add"],
        Adjacency::ReplaceOne => &["replace"],
    };
    let delta = |direction: &&'static str| Sampled { mu: 1.0 / z, q, direction }.uses(count, epsilon);
    directions.iter().map(delta).fold(0.0, f64::max)
}

/// What the tails that are subtracted above may be off by, and the quadrature.
const ROUNDING: f64 = 1e-14;

#[test]
fn the_yardstick_itself_is_right() {
    // mpmath at 25 digits, adaptive quadrature in pieces around the kink.
    let two = exact(Adjacency::AddRemove, 0.4, 0.02, 2, 3.431_895_614_157_377);
    assert!((two - TWO_USES).abs() < 1e-12, "{two:e}");
    // A rate of 1 is a pure Gaussian, two of which are one with √2 of the shift.
    let pure = exact(Adjacency::AddRemove, 2.0, 1.0, 2, 1.0);
    let closed = analytic_delta(0.5 * std::f64::consts::SQRT_2, 1.0);
    assert!((pure - closed).abs() < 1e-13, "{pure:e} {closed:e}");
}

const TWO_USES: f64 = 9.996_183_036_445_68e-4;

fn sampled(adjacency: Adjacency, z: f64, q: f64, count: u64) -> Composition {
    Composition::new(adjacency).add(Mechanism::poisson_gaussian(z, q).unwrap(), count).unwrap()
}

#[test]
fn one_to_three_uses_hold_the_exact_value() {
    for adjacency in [Adjacency::AddRemove, Adjacency::ReplaceOne] {
        for (z, q) in [(0.4, 0.02), (0.7, 0.3), (1.0, 0.01), (1.0, 1e-4), (2.0, 0.5), (6.0, 0.9)] {
            for (count, delta) in [(1, 1e-3), (1, 1e-8), (2, 1e-3), (2, 1e-5), (2, 1e-8), (3, 1e-5)] {
                if count < 3 || q == 0.01 {
                    let found = sampled(adjacency, z, q, u64::from(count)).epsilon(delta).unwrap();
                    let case = format!("{adjacency:?} z={z} q={q} T={count} δ={delta:e}: {found:?}");
                    let at = |epsilon: f64| exact(adjacency, z, q, count, epsilon);
                    assert!(at(found.upper) <= delta + ROUNDING, "{case}: δ is {:e}", at(found.upper));
                    assert!(found.lower == 0.0 || at(found.lower) >= delta - ROUNDING, "{case}");
                    let narrow = 1e-3 * found.upper + 1e-6;
                    assert!(found.upper - found.lower <= narrow, "wide: {case}");
                }
            }
        }
    }
}

/// The reference points of which the truth is known: pure Gaussians, and a sampled one that is used once.
#[test]
fn reference_points_with_a_closed_form_are_never_below_it() {
    let (mut pure, mut once) = (0, 0);
    let mut meet = |line: &str, adjacency: Adjacency, z: f64, q: f64, count: u64, delta: f64| {
        let EpsilonInterval { lower, upper } = sampled(adjacency, z, q, count).epsilon(delta).unwrap();
        let exact_delta = |epsilon: f64| {
            if q == 1.0 {
                let shift = if adjacency == Adjacency::AddRemove { 1.0 } else { 2.0 };
                analytic_delta(shift / z * (count as f64).sqrt(), epsilon)
            } else {
                exact(adjacency, z, q, 1, epsilon)
            }
        };
        *(if q == 1.0 { &mut pure } else { &mut once }) += 1;
        assert!(exact_delta(upper) <= delta + ROUNDING, "{line}: {upper} is below the truth");
        assert!(lower == 0.0 || exact_delta(lower) >= delta - ROUNDING, "{line}: {lower} is above the truth");
    };
    for line in include_str!("reference.csv").lines().filter(|l| !l.starts_with('#')).skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let number = |i: usize| fields[i].parse::<f64>().unwrap();
        let adjacency = if fields[1] == "add_remove" { Adjacency::AddRemove } else { Adjacency::ReplaceOne };
        match (fields[0], fields[6]) {
            ("gaussian", _) => meet(line, adjacency, number(2), 1.0, number(6) as u64, number(7)),
            ("poisson", "1") => meet(line, adjacency, number(2), number(3), 1, number(7)),
            _ => {}
        }
    }
    for line in include_str!("cases.csv").lines().filter(|l| !l.starts_with('#')).skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let adjacency = if fields[1] == "AddRemove" { Adjacency::AddRemove } else { Adjacency::ReplaceOne };
        let part: Vec<&str> = fields[2].split(':').collect();
        let number = |i: usize| part[i].parse::<f64>().unwrap();
        if part[0] == "poisson" && part.len() == 4 && (number(2) == 1.0 || part[3] == "1") {
            meet(line, adjacency, number(1), number(2), number(3) as u64, fields[3].parse().unwrap());
        }
    }
    assert!(pure >= 36 && once >= 10, "{pure} and {once} points");
}

/// Rigorous intervals of an independent accountant: Microsoft's prv_accountant (Gopi, Lee and Wutschitz 2021), with
/// an error of 0.005.
#[test]
fn our_interval_and_another_rigorous_one_overlap() {
    for (z, q, count, delta, low, high) in [
        (1.0, 0.01, 1000, 1e-5, 1.823_105, 1.833_369),
        (0.8, 0.001, 10_000, 1e-6, 0.942_117, 0.952_277),
        (2.0, 0.1, 500, 1e-6, 6.211_424, 6.221_973),
        (0.5, 1e-4, 2000, 1e-6, 1.383_608, 1.394_272),
        (0.6, 0.02, 5000, 1e-6, 37.150_061, 37.162_797),
        (1.1, 256.0 / 60_000.0, 14_062, 1e-5, 2.376_454, 2.386_742),
        (1.0, 0.001, 2000, 1e-8, 0.357_709, 0.367_782),
    ] {
        let EpsilonInterval { lower, upper } = poisson(z, q, count).epsilon(delta).unwrap();
        assert!(low <= upper && lower <= high, "z={z} q={q} T={count}: [{lower}, {upper}], [{low}, {high}]");
    }
}
