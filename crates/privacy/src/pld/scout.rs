//! Where to look: the tilt, the grid and ε by and large, from a coarse picture of the loss.
//!
//! Nothing here is a bound. A bad choice makes the interval wider, never wrong.

use super::mechanism::Mechanism;
use super::pair::{Direction, Pair};

/// The moment generating function of a composition's loss, in one direction, from a few hundred points.
#[derive(Debug)]
pub(super) struct Scout {
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    count: f64,
    /// (loss, probability); the first `atoms` are atoms.
    points: Vec<(f64, f64)>,
    atoms: usize,
    lattice: Option<f64>,
}

/// What a computation is laid out for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Aim {
    /// The exponential tilt λ.
    pub(super) tilt: f64,
    /// ε, roughly, and not below it.
    pub(super) epsilon: f64,
    /// log δ(ε), roughly, and not below it.
    pub(super) log_delta: f64,
}

const POINTS: usize = 320;
const MAX_ATOMS: usize = 2000;
const MAX_TILT: f64 = 1e5;

impl Scout {
    pub(super) fn new(mechanisms: &[(Mechanism, u64)], direction: Direction, tail: f64) -> Self {
        let part = |(mechanism, count): &(Mechanism, u64)| {
            let pair = Pair::new(mechanism, direction, tail);
            let stride = pair.atoms.len().div_ceil(MAX_ATOMS).max(1);
            let mut points: Vec<(f64, f64)> = pair
                .atoms
                .chunks(stride)
                .map(|c| {
                    let mass: f64 = c.iter().map(|a| a.1).sum();
                    (c[c.len() / 2].0, mass)
                })
                .collect();
            let atoms = points.len();
            for density in &pair.densities {
                let width = (density.to - density.from) / POINTS as f64;
                points.extend((0..POINTS).map(|i| {
                    let y = density.from + (i as f64 + 0.5) * width;
                    let loss = density.loss(y);
                    (loss, density.weight * density.density(y, loss) * width)
                }));
            }
            points.retain(|p| p.1 > 0.0);
            let atoms = atoms.min(points.len());
            Part { count: *count as f64, points, atoms, lattice: pair.lattice }
        };
        Self { parts: mechanisms.iter().map(part).collect() }
    }

    /// log E[e^{λL}] of the whole composition.
    fn log_moment(&self, tilt: f64) -> f64 {
        self.parts.iter().enumerate().map(|(i, part)| part.count * self.log_moment_of(i, tilt)).sum()
    }

    /// log E[e^{λL}] of one use of a mechanism.
    pub(super) fn log_moment_of(&self, mechanism: usize, tilt: f64) -> f64 {
        let points = &self.parts[mechanism].points;
        let top = points.iter().fold(f64::NEG_INFINITY, |m, p| m.max(p.0));
        let sum: f64 = points.iter().map(|p| p.1 * libm::exp(tilt * (p.0 - top))).sum();
        tilt * top + libm::log(sum)
    }

    /// Chernoff: δ(ε) ≤ e^{log M(λ) + log W(λ) - λε} for every λ. The best λ and ε for `log_delta`.
    pub(super) fn for_delta(&self, log_delta: f64) -> Aim {
        let epsilon = |tilt: f64| (self.log_moment(tilt) + log_hockey_peak(tilt) - log_delta) / tilt;
        let tilt = least(|log_tilt| epsilon(libm::exp(log_tilt)));
        Aim { tilt, epsilon: epsilon(tilt), log_delta }
    }

    /// The best λ and log δ for `epsilon`.
    pub(super) fn for_epsilon(&self, epsilon: f64) -> Aim {
        let log_delta = |tilt: f64| self.log_moment(tilt) + log_hockey_peak(tilt) - tilt * epsilon;
        let tilt = least(|log_tilt| log_delta(libm::exp(log_tilt)));
        Aim { tilt, epsilon, log_delta: log_delta(tilt) }
    }

    /// The widest grid on which rounding to it adds at most the variance `noise` to the tilted total loss. A loss
    /// u above a grid point has u(h-u) ≤ min(h²/4, |loss|·h). Atoms that are multiples of one number are put on the
    /// grid, where they add none, unless they are closer than `finest`. Also says whether they are on it.
    pub(super) fn grid(&self, tilt: f64, noise: f64, finest: f64, coarsest: f64) -> (f64, bool) {
        let lattice = self.parts.iter().find_map(|part| part.lattice);
        let on_lattice = lattice.filter(|unit| *unit >= finest);
        let tilted: Vec<(f64, f64)> =
            self.parts.iter().flat_map(|part| tilted(part, tilt, on_lattice)).collect();
        let variance = |h: f64| tilted.iter().map(|&(l, w)| w * (0.25 * h * h).min(l.abs() * h)).sum::<f64>();
        let (mut low, mut high) = (-40.0, 4.0);
        for _ in 0..40 {
            let middle = 0.5 * (low + high);
            if variance(libm::exp(middle)) > noise { high = middle } else { low = middle }
        }
        let wanted = libm::exp(low).max(finest).min(coarsest);
        match on_lattice {
            Some(unit) => (unit / (unit / wanted).ceil(), true),
            None => (wanted, false),
        }
    }

    /// Mean and variance of the tilted total loss.
    pub(super) fn spread(&self, tilt: f64) -> (f64, f64) {
        let of = |part: &Part| {
            let points = tilted(part, tilt, None);
            let mean: f64 = points.iter().map(|p| p.0 * p.1).sum::<f64>() / part.count;
            let variance: f64 = points.iter().map(|p| (p.0 - mean) * (p.0 - mean) * p.1).sum();
            (mean * part.count, variance)
        };
        self.parts.iter().map(of).fold((0.0, 0.0), |(m, v), (a, b)| (m + a, v + b))
    }
}

/// The points under the tilted measure, times the count; without atoms on the `lattice`.
fn tilted(part: &Part, tilt: f64, lattice: Option<f64>) -> Vec<(f64, f64)> {
    let top = part.points.iter().fold(f64::NEG_INFINITY, |m, p| m.max(p.0));
    let weight = |p: &(f64, f64)| p.1 * libm::exp(tilt * (p.0 - top));
    let total: f64 = part.points.iter().map(weight).sum();
    let skip = if lattice.is_some() && part.lattice == lattice { part.atoms } else { 0 };
    part.points[skip..].iter().map(|p| (p.0, part.count * weight(p) / total)).collect()
}

/// log of the largest e^{-λu}(1-e^{-u}) over u ≥ 0, at u = log(1 + 1/λ).
pub(super) fn log_hockey_peak(tilt: f64) -> f64 {
    if tilt == 0.0 { 0.0 } else { -tilt * libm::log1p(1.0 / tilt) - libm::log1p(tilt) }
}

/// e^x for the x that minimises `f`, which falls and then rises, by golden section.
fn least(f: impl Fn(f64) -> f64) -> f64 {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    let (mut low, mut high) = (libm::log(1e-4), libm::log(MAX_TILT));
    let (mut a, mut b) = (high - GOLDEN * (high - low), low + GOLDEN * (high - low));
    let (mut fa, mut fb) = (f(a), f(b));
    for _ in 0..24 {
        if fa <= fb {
            (high, b, fb) = (b, a, fa);
            a = high - GOLDEN * (high - low);
            fa = f(a);
        } else {
            (low, a, fa) = (a, b, fb);
            b = low + GOLDEN * (high - low);
            fb = f(b);
        }
    }
    libm::exp(0.5 * (low + high))
}
