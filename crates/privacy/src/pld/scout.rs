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
    /// The saddle point: the exponential tilt λ under which ε is typical.
    pub(super) tilt: f64,
    /// ε, roughly, and not below it.
    pub(super) epsilon: f64,
    /// log δ(ε), roughly, and not below it.
    pub(super) log_delta: f64,
}

/// How a composition is tilted, and what its tails are bounded with.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// The tilt λ.
    pub(super) tilt: f64,
    /// The θ for Chernoff's inequality.
    pub(super) thetas: Vec<f64>,
    /// The stretch of losses to compute, roughly.
    pub(super) span: f64,
    /// Log of the tilted mass that may be missing, or be where it does not belong.
    pub(super) log_wrong: f64,
}

/// The share of δ that folded losses may bring.
const WRONG_SHARE: f64 = 1e-9;
const POINTS: usize = 320;
const MAX_ATOMS: usize = 2000;
const TILTS: (f64, f64) = (1e-4, 1e5);

/// How much smaller than at the saddle point the tilted mass past ε may be: at most e^8, and less if there are so many
/// uses that the errors of the transforms would count.
fn most_lost(uses: f64) -> f64 {
    libm::log(6e7 / uses).clamp(0.5, 8.0)
}

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
        let tilt = least(TILTS, 24, epsilon);
        Aim { tilt, epsilon: epsilon(tilt), log_delta }
    }

    /// The best λ and log δ for `epsilon`.
    pub(super) fn for_epsilon(&self, epsilon: f64) -> Aim {
        let log_delta = |tilt: f64| self.log_moment(tilt) + log_hockey_peak(tilt) - tilt * epsilon;
        let tilt = least(TILTS, 24, log_delta);
        Aim { tilt, epsilon, log_delta: log_delta(tilt) }
    }

    /// The tilt λ and the Chernoff exponents for a short window in which to ask for losses from `low` to `high`.
    ///
    /// With G(μ) = log M(μ) - με - log δ, less the log of the share of δ that may be wrong, the losses that may not be
    /// folded onto ε begin min_{μ>λ} G(μ)/(μ-λ) above it and min_{0≤ν<λ} G(ν)/(λ-ν) below it ([`super::tails`]). The
    /// saddle point, where G is least, is best for precision. But a heavy tail above makes that distance long: a smaller
    /// λ lets it fall off, and the window can be as short as the chord between the two sides of G allows.
    pub(super) fn plan(&self, aim: Aim, spread: f64, (low, high): (f64, f64)) -> Plan {
        let (saddle, spread) = (aim.tilt, spread.max(1e-9));
        let log_moment = |tilt: f64| self.log_moment(tilt);
        let excess = |tilt: f64, log_moment: f64| {
            log_moment - tilt * aim.epsilon - aim.log_delta - libm::log(WRONG_SHARE)
        };
        let mut table = vec![(0.0, excess(0.0, 0.0))];
        let mut theta = 0.03 / spread;
        while theta < 40.0 / spread {
            for tilt in [saddle - theta, saddle + theta] {
                table.push((tilt, excess(tilt, log_moment(tilt))));
            }
            theta *= 1.35;
        }
        table.retain(|point| point.1.is_finite());
        // The distance to where folded losses begin, above and below.
        let reach = |tilt: f64| {
            let above = table.iter().filter(|p| p.0 > tilt).map(|p| p.1 / (p.0 - tilt));
            let below = table.iter().filter(|p| (0.0..tilt).contains(&p.0)).map(|p| p.1 / (tilt - p.0));
            (above.fold(f64::INFINITY, f64::min), below.fold(f64::INFINITY, f64::min))
        };
        // The first rises with λ, the second falls.
        let lowest = excess(saddle, log_moment(saddle));
        let (mut from, mut to) = (0.2 * saddle, 1.5 * saddle);
        for _ in 0..24 {
            let middle = 0.5 * (from + to);
            let (above, below) = reach(middle);
            let (above, below) = (above + aim.epsilon - low, below + high - aim.epsilon);
            if above > below { to = middle } else { from = middle }
        }
        let mut tilt = 0.5 * (from + to);
        // Rounding in the transforms counts the more, the farther from the saddle point.
        let most_lost = most_lost(self.parts.iter().map(|part| part.count).sum());
        for _ in 0..8 {
            if excess(tilt, log_moment(tilt)) - lowest < most_lost {
                break;
            }
            tilt = 0.5 * (tilt + saddle);
        }
        let best = |of: &dyn Fn(f64) -> bool, distance: &dyn Fn(&(f64, f64)) -> f64| {
            let points = table.iter().filter(|p| of(p.0));
            points.min_by(|a, b| distance(a).total_cmp(&distance(b))).map(|p| (p.0 - tilt, distance(p)))
        };
        let top = best(&|t| t > tilt, &|p| p.1 / (p.0 - tilt));
        let fold = best(&|t| (0.0..tilt).contains(&t), &|p| p.1 / (tilt - p.0));
        let bottom = best(&|t| t < tilt, &|p| p.1 / (tilt - p.0));
        let end = best(&|t| t > tilt, &|p| p.1 / p.0);
        let distance = |found: Option<(f64, f64)>| found.map_or(f64::INFINITY, |f| f.1);
        let (above, below) = (aim.epsilon - low, high - aim.epsilon);
        let whole = distance(end) + below + distance(bottom);
        let span = (distance(top) + above)
            .max((distance(fold) + below).min(whole))
            .max(distance(end) + above + below);
        let log_wrong = aim.log_delta + tilt * aim.epsilon - log_moment(tilt) + libm::log(WRONG_SHARE);
        let thetas = [top, fold, bottom, end].into_iter().flatten().map(|f| f.0).collect();
        Plan { tilt, thetas, span, log_wrong: log_wrong.min(-1.0) }
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

/// The x that minimises `f`, which falls and then rises, by `steps` of golden section over its logarithm.
fn least((low, high): (f64, f64), steps: u32, f: impl Fn(f64) -> f64) -> f64 {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    let f = |log: f64| f(libm::exp(log));
    let (mut low, mut high) = (libm::log(low), libm::log(high));
    let (mut a, mut b) = (high - GOLDEN * (high - low), low + GOLDEN * (high - low));
    let (mut fa, mut fb) = (f(a), f(b));
    for _ in 0..steps {
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
