//! The dominating pair (P, Q) of a mechanism in one direction, as the distribution of the loss log P/Q under P.
//!
//! Gaussian pairs are in units of the noise, with μ = 1/z, and mirrored where needed so that the loss rises with y:
//! - remove: P = (1-q)·N(0,1) + q·N(μ,1), Q = N(0,1);
//! - add: the same pair with the roles changed;
//! - replace: P as for remove, Q = (1-q)·N(0,1) + q·N(-μ,1) (as in Google's dp-accounting).
//!
//! That these dominate for vectors and adaptive queries: Zhu, Dong and Wang (2022, arXiv 2106.08567) on
//! dominating pairs, which also compose.

use super::binomial;
use super::mechanism::{Adjacency, Kind, Mechanism};

/// A direction of neighbouring data sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Remove,
    Add,
    Replace,
}

/// A loss distribution: a mixture of densities and atoms.
#[derive(Debug, Clone, Default)]
pub(super) struct Pair {
    pub(super) densities: Vec<Density>,
    /// (loss, probability under P).
    pub(super) atoms: Vec<(f64, f64)>,
    /// If all atoms are multiples of one number: that number.
    pub(super) lattice: Option<f64>,
    /// P's mass that is left out above and below.
    pub(super) outside: f64,
    /// What the weights of the parts may be rounded up by, relatively.
    pub(super) weight_error: f64,
}

/// A density over y whose loss rises with y.
#[derive(Debug, Clone, Copy)]
pub(super) struct Density {
    pub(super) weight: f64,
    shape: Shape,
    /// Where y is cut off.
    pub(super) from: f64,
    /// Where y is cut off.
    pub(super) to: f64,
}

#[derive(Debug, Clone, Copy)]
enum Shape {
    Gaussian {
        direction: Direction,
        mu: f64,
        q: f64,
    },
    /// Between the atoms of the Laplace pair: y is the loss itself, its density ¼·e^{(y-1/b)/2}.
    Exponential {
        reach: f64,
    },
}

impl Pair {
    /// The pair of `mechanism`, without tails of P's mass `tail` each.
    pub(super) fn new(mechanism: &Mechanism, direction: Direction, tail: f64) -> Self {
        let mut pair = Self::default();
        match mechanism.0 {
            Kind::Gaussian { z } => {
                let mu = if direction == Direction::Replace { 2.0 / z } else { 1.0 / z };
                pair.gaussian(1.0, Direction::Remove, mu, 1.0, tail);
            }
            Kind::Gdp { mu } => pair.gaussian(1.0, Direction::Remove, mu, 1.0, tail),
            Kind::PoissonGaussian { z, q } => pair.gaussian(1.0, direction, 1.0 / z, q, tail),
            Kind::TruncatedPoissonGaussian { z, q, population, cap } => {
                pair.truncated(direction, z, q, population, cap, tail);
            }
            Kind::Laplace { scale } => pair.laplace(1.0 / scale),
            Kind::DiscreteLaplace { rate, sensitivity } => pair.discrete_laplace(rate, sensitivity),
            Kind::DiscreteGaussian { sigma, sensitivity } => pair.discrete_gaussian(sigma, sensitivity, tail),
        }
        pair
    }

    fn gaussian(&mut self, weight: f64, direction: Direction, mu: f64, q: f64, tail: f64) {
        // A part that is rare itself may lose more of its tails, or all.
        let tail = tail / weight;
        if tail >= 0.5 {
            self.outside += weight;
            return;
        }
        let reach = |mass: f64| libm::sqrt(-2.0 * libm::log(mass.min(1.0)));
        // Φ(-reach(t)) ≤ t/2.
        let (from, to) = match direction {
            Direction::Add => (-reach(tail), reach(tail)),
            _ if q == 1.0 => (mu - reach(tail), mu + reach(tail)),
            _ => (-reach(tail), reach(tail).max(mu + reach(tail / q))),
        };
        self.outside += weight * 2.0 * tail;
        self.densities.push(Density { weight, shape: Shape::Gaussian { direction, mu, q }, from, to });
    }

    /// The capped Poisson sample: with probability `full` the other contributions alone reach the cap.
    fn truncated(&mut self, direction: Direction, z: f64, q: f64, population: u64, cap: u64, tail: f64) {
        // What the binomial tails may be off by, rounded to the worse side.
        const UP: f64 = 1.0 + 1e-11;
        let full = (binomial::at_least(cap, population - 1, q) * UP).min(1.0);
        if full < 1e-300 {
            return self.gaussian(1.0, direction, 1.0 / z, q, tail);
        }
        let overfull = binomial::at_least(cap + 1, population, q);
        let kept = (overfull * cap as f64 / (full * population as f64) * UP).min(1.0);
        self.weight_error = 3e-11;
        if full < 1.0 {
            self.gaussian((1.0 - full) * UP, direction, 1.0 / z, q, tail);
        }
        if kept > 0.0 {
            self.gaussian(full, Direction::Replace, 2.0 / z, kept, tail);
        } else {
            self.atoms.push((0.0, full));
        }
    }

    /// The Laplace pair: two atoms at ±1/b, a density between them. Both directions are alike.
    fn laplace(&mut self, reach: f64) {
        self.atoms = vec![(reach, 0.5), (-reach, 0.5 * libm::exp(-reach))];
        self.lattice = Some(reach);
        self.densities.push(Density {
            weight: 1.0,
            shape: Shape::Exponential { reach },
            from: -reach,
            to: reach,
        });
    }

    /// Losses rate·(Δ - 2k) for 0 < k < Δ, the rest at the two ends.
    fn discrete_laplace(&mut self, rate: f64, sensitivity: u32) {
        let delta = f64::from(sensitivity);
        let end = 1.0 / (1.0 + libm::exp(-rate));
        let middle = -libm::expm1(-rate) * end;
        self.lattice = Some(rate);
        self.atoms = vec![(-rate * delta, end * libm::exp(-rate * delta))];
        self.atoms.extend((1..sensitivity).rev().map(|k| {
            let k = f64::from(k);
            (rate * (delta - 2.0 * k), middle * libm::exp(-rate * k))
        }));
        self.atoms.push((rate * delta, end));
    }

    /// Losses Δ·(2k+Δ)/2σ² with the discrete Gaussian's probability of k.
    fn discrete_gaussian(&mut self, sigma: f64, sensitivity: u32, tail: f64) {
        let delta = f64::from(sensitivity);
        // It is subgaussian with σ² (Canonne, Kamath and Steinke 2020): Pr[k ≥ m] ≤ exp(-m²/2σ²).
        let reach = (sigma * libm::sqrt(-2.0 * libm::log(tail))).ceil();
        let weight = |k: f64| libm::exp(-k * k / (2.0 * sigma * sigma));
        let total_reach = (sigma * 40.0).ceil() as i64;
        let total = 1.0 + 2.0 * (1..=total_reach).rev().map(|k| weight(k as f64)).sum::<f64>();
        let unit = delta / (2.0 * sigma * sigma);
        self.lattice = Some(unit);
        self.outside = 2.0 * tail;
        let reach = reach as i64;
        let atom = |k: i64| (unit * (2.0 * k as f64 + delta), weight(k as f64) / total);
        self.atoms = (-reach..=reach).map(atom).collect();
    }

    /// The least and the largest loss.
    pub(super) fn range(&self) -> (f64, f64) {
        let ends = self.densities.iter().map(|d| (d.loss(d.from), d.loss(d.to)));
        let atoms = self.atoms.iter().map(|a| (a.0, a.0));
        ends.chain(atoms)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), (a, b)| (low.min(a), high.max(b)))
    }

    /// What a computed loss may be off by: the argument of an exponential of size `a` brings a·u, u = 2⁻⁵³, and the
    /// rest a few u of the largest loss.
    pub(super) fn loss_error(&self) -> f64 {
        let (low, high) = self.range();
        let largest = low.abs().max(high.abs());
        let steepest = self.densities.iter().map(|d| d.exponent()).fold(0.0, f64::max);
        1e-15 * (8.0 + 2.0 * steepest) * largest
    }
}

impl Density {
    /// The loss at y.
    pub(super) fn loss(&self, y: f64) -> f64 {
        match self.shape {
            Shape::Exponential { .. } => y,
            Shape::Gaussian { direction, mu, q } => match direction {
                Direction::Remove => mixed(mu * (y - 0.5 * mu), q),
                Direction::Add => -mixed(-mu * (y + 0.5 * mu), q),
                Direction::Replace => mixed(mu * (y - 0.5 * mu), q) - mixed(-mu * (y + 0.5 * mu), q),
            },
        }
    }

    /// P's density at y (without the weight), given the loss there.
    pub(super) fn density(&self, y: f64, loss: f64) -> f64 {
        libm::exp(self.log_density(y, loss))
    }

    /// Its logarithm.
    pub(super) fn log_density(&self, y: f64, loss: f64) -> f64 {
        const LOG_4: f64 = 2.0 * std::f64::consts::LN_2;
        const LOG_ROOT_2_PI: f64 = 0.918_938_533_204_672_7;
        match self.shape {
            Shape::Exponential { reach } => 0.5 * (y - reach) - LOG_4,
            Shape::Gaussian { direction, mu, q } => {
                let exponent = match direction {
                    Direction::Remove => loss,
                    Direction::Add => 0.0,
                    Direction::Replace => mixed(mu * (y - 0.5 * mu), q),
                };
                exponent - 0.5 * y * y - LOG_ROOT_2_PI
            }
        }
    }

    /// The y at which the loss is `loss`, as far as there is one: infinite beyond the ends.
    pub(super) fn point(&self, loss: f64) -> f64 {
        match self.shape {
            Shape::Exponential { .. } => loss,
            Shape::Gaussian { direction, mu, q } => match direction {
                Direction::Remove => unmixed(loss, q) / mu + 0.5 * mu,
                Direction::Add => -unmixed(-loss, q) / mu - 0.5 * mu,
                Direction::Replace => replaced(loss, mu, q),
            },
        }
    }

    /// The longest stretch of y around `y` over which the Gaussian quadrature of [`super::one_step`] holds.
    pub(super) fn stretch(&self, y: f64) -> f64 {
        0.25 / (1.0 + 0.25 * y.abs())
    }

    /// The largest argument of an exponential in [`Self::loss`].
    fn exponent(&self) -> f64 {
        match self.shape {
            Shape::Exponential { .. } => 0.0,
            Shape::Gaussian { mu, .. } => mu * (self.from.abs().max(self.to.abs()) + mu),
        }
    }
}

/// log(1 - q + q·e^a): the loss of a mixture whose part has the loss a.
fn mixed(a: f64, q: f64) -> f64 {
    if q == 1.0 {
        a
    } else if q <= 0.5 && a < 700.0 {
        libm::log1p(q * libm::expm1(a))
    } else if a < 700.0 {
        libm::log((1.0 - q) + q * libm::exp(a))
    } else {
        a + libm::log(q)
    }
}

/// The a of which [`mixed`] is the loss.
fn unmixed(loss: f64, q: f64) -> f64 {
    if q == 1.0 {
        return loss;
    }
    if loss > 600.0 {
        return loss - libm::log(q);
    }
    let ratio = libm::expm1(loss) / q;
    if ratio <= -1.0 { f64::NEG_INFINITY } else { libm::log1p(ratio) }
}

/// Solves (1-q+qBe)/(1-q+qB/e) = e^loss for e = e^{μy}, with B = e^{-μ²/2}; odd in the loss.
fn replaced(loss: f64, mu: f64, q: f64) -> f64 {
    if loss < 0.0 {
        return -replaced(-loss, mu, q);
    }
    let (t1, qb) = (libm::expm1(loss), q * libm::exp(-0.5 * mu * mu));
    let half = 0.5 * (1.0 - q) * t1;
    let root = libm::sqrt(half * half + (1.0 + t1) * qb * qb);
    libm::log((half + root) / qb) / mu
}

/// The directions that `adjacency` asks for. Where all pairs are symmetric one is enough.
pub(super) fn directions(adjacency: Adjacency, mechanisms: &[(Mechanism, u64)]) -> &'static [Direction] {
    match adjacency {
        Adjacency::ReplaceOne => &[Direction::Replace],
        Adjacency::AddRemove => {
            let one_sided = |m: &Mechanism| {
                matches!(m.0, Kind::PoissonGaussian { .. } | Kind::TruncatedPoissonGaussian { .. })
            };
            if mechanisms.iter().any(|(m, _)| one_sided(m)) {
                &[Direction::Remove, Direction::Add]
            } else {
                &[Direction::Remove]
            }
        }
    }
}
