//! From a composition's loss on the grid to bounds on δ(ε) and ε(δ), in one direction.
//!
//! With m the masses after connect-the-dots, [`OneWay::delta_upper`] sums δ(ε) = Σ_{ih>ε} (1-e^{ε-ih})·m_i and adds
//! every error; [`OneWay::lower`] takes P(event) - e^ε·Q(event) at the best threshold. See [`super::one_step`] for why
//! these are bounds, and [`super::convolution`] for the errors.

use super::convolution::{Convolution, Factor, Tails, Window};
use super::fft::RealFft;
use super::mechanism::Mechanism;
use super::one_step::{CellWidth, OneStep};
use super::pair::{Direction, Pair};
use super::scout::{Aim, Scout, log_hockey_peak};

/// The most grid points of a mechanism or a window.
const MAX_LEN: usize = 1 << 21;
/// Fewer are not worth saving.
const MIN_LEN: usize = 1 << 11;

/// Transforms by length, shared by the directions of a query.
#[derive(Debug, Default)]
pub(super) struct Transforms(Vec<(usize, RealFft)>);

impl Transforms {
    fn of(&mut self, len: usize) -> &RealFft {
        let at = self.0.iter().position(|(l, _)| *l == len).unwrap_or_else(|| {
            self.0.push((len, RealFft::new(len)));
            self.0.len() - 1
        });
        &self.0[at].1
    }
}

/// A composition in one direction, on the grid but not yet convolved.
#[derive(Debug)]
pub(super) struct Layout {
    step: f64,
    tilt: f64,
    deviation: f64,
    uses: Vec<(OneStep, u64)>,
    tails: Tails,
    window: Window,
    /// Log of the tilted total.
    log_moment: f64,
    /// Bound on P's mass that is not on the grid, over all uses.
    outside: f64,
    /// Log of what relative errors of the masses may multiply the result by.
    mass_error: f64,
    /// What the total loss may be off by.
    loss_error: f64,
}

/// A composition in one direction, ready to be asked about ε near the aim.
#[derive(Debug)]
pub(super) struct OneWay {
    layout: Layout,
    p: Sums,
}

/// Suffix sums of a convolution.
#[derive(Debug)]
struct Sums {
    convolution: Convolution,
    /// Σ_{j≥i} tilted[j]·e^{-λ(j-i)h}: what P's masses add up to.
    slow: Vec<f64>,
    /// Σ_{j≥i} tilted[j]·e^{-(λ+1)(j-i)h}: what Q's add up to.
    fast: Vec<f64>,
    /// Bound on the relative error of the sums.
    error: f64,
}

impl Sums {
    fn new(convolution: Convolution, tilt: f64, step: f64) -> Self {
        let (fall_slow, fall_fast) = (libm::exp(-tilt * step), libm::exp(-(tilt + 1.0) * step));
        let len = convolution.tilted.len();
        let (mut slow, mut fast) = (vec![0.0; len + 1], vec![0.0; len + 1]);
        let (mut slow_sum, mut fast_sum) = (0.0, 0.0);
        for (i, mass) in convolution.tilted.iter().enumerate().rev() {
            slow_sum = mass + fall_slow * slow_sum;
            fast_sum = mass + fall_fast * fast_sum;
            slow[i] = slow_sum;
            fast[i] = fast_sum;
        }
        // Two roundings and that of the exponential at each point, as long as its weight is above e^-80.
        let points = (len as f64).min(80.0 / (tilt.max(1e-300) * step));
        Self { slow, fast, error: 5e-16 * (points + 2.0), convolution }
    }
}

/// How finely a composition is laid out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fineness {
    /// The relative error of ε that rounding to the grid may bring, roughly.
    pub(super) error: f64,
    /// How much of P's mass past ε an ε-wide strip at ε holds, over that strip: what variance at the kink of
    /// (1-e^{ε-L})₊ is multiplied by.
    pub(super) hazard: f64,
}

/// The error of a last look.
pub(super) const FINE: f64 = 1.5e-4;
/// The error of a first look, at a quarter of the points.
pub(super) const COARSE: f64 = 16.0 * FINE;

impl Layout {
    /// Lays `mechanisms` out for `aim`, with tails of mass `tail` cut off each use.
    pub(super) fn new(
        mechanisms: &[(Mechanism, u64)],
        direction: Direction,
        (scout, aim): (&Scout, Aim),
        tail: f64,
        fineness: Fineness,
    ) -> Self {
        let tilt = aim.tilt;
        let deviation = scout.spread(tilt).1.sqrt().max(0.05 / tilt);
        let reach = 20.0 * deviation;
        let epsilon = aim.epsilon.max(0.1 * deviation);
        let noise = 2.0 * fineness.error * epsilon / fineness.hazard.max(tilt + 1.0);
        let on_lattice = mechanisms.iter().all(|(m, _)| m.on_lattice());
        let coarsest = match on_lattice {
            true => f64::INFINITY,
            false => (reach.max(epsilon) / MIN_LEN as f64).min((0.5 / (tilt + 1.0)).max(epsilon / 4096.0)),
        };
        let finest = reach / (1 << 19) as f64;
        let (mut step, on_grid) = scout.grid(tilt, noise, finest, coarsest);
        let pairs: Vec<Pair> = mechanisms.iter().map(|(m, _)| Pair::new(m, direction, tail)).collect();
        let all_uses: f64 = mechanisms.iter().map(|(_, count)| *count as f64).sum();
        let widths: Vec<CellWidth> = pairs
            .iter()
            .enumerate()
            .map(|(i, pair)| {
                let (low, high) = pair.range();
                let variance_density = 0.05 * noise / (all_uses * (high - low));
                // One loss alone may end at ε, whatever the tilted measure thinks of it there.
                let at_kink = (4.0 * noise).max(epsilon * epsilon / (2048.0 * 2048.0));
                let elsewhere = (4.0 * noise).max((high - low) * (high - low) / (2048.0 * 2048.0));
                CellWidth {
                    tilt,
                    log_moment: scout.log_moment_of(i, tilt),
                    variance_density,
                    kink: 2.0 * epsilon,
                    at_kink,
                    elsewhere,
                }
            })
            .collect();
        let mut adjusted = on_grid;
        loop {
            if pairs.iter().any(|pair| OneStep::cells(pair, step) > MAX_LEN as f64) {
                step *= 2.0;
                continue;
            }
            let one_step = |((pair, width), (_, count)): ((&Pair, &CellWidth), &(Mechanism, u64))| {
                (OneStep::new(pair, step, width), *count)
            };
            let uses: Vec<(OneStep, u64)> = pairs.iter().zip(&widths).zip(mechanisms).map(one_step).collect();
            let factors = factors(&uses, |one| &one.p);
            let (tails, log_moment) = Tails::new(&factors, tilt, step, deviation);
            let (low, high) = tails.edges();
            let width = (high - low + 2) as usize;
            if width > MAX_LEN {
                step *= 2.0;
                continue;
            }
            let len = width.next_power_of_two().max(1024);
            // A little coarser saves half of a long window.
            if !adjusted && len >= 1 << 15 && (width as f64) < 0.65 * len as f64 {
                step *= 1.02 * width as f64 / (len / 2) as f64;
                adjusted = true;
                continue;
            }
            let total =
                |of: &dyn Fn(&OneStep) -> f64| uses.iter().map(|(one, count)| of(one) * *count as f64).sum();
            return Self {
                step,
                tilt,
                deviation,
                tails,
                window: Window { first: low - ((len - width) / 2) as i64, len },
                log_moment,
                outside: total(&|one| one.outside),
                mass_error: total(&|one| one.mass_error),
                loss_error: total(&|one| one.loss_error),
                uses,
            };
        }
    }

    /// An ε that no outcome on the grid exceeds.
    pub(super) fn epsilon_pure(&self) -> f64 {
        let largest = |one: &OneStep| (one.first + one.p.len() as i64 - 1) as f64 * self.step;
        let sum: f64 = self.uses.iter().map(|(one, count)| largest(one) * *count as f64).sum();
        sum * (1.0 + 1e-12) + self.loss_error
    }

    /// Chernoff's upper bound of ε at `delta`: loose, and cheap.
    pub(super) fn epsilon_chernoff(&self, delta: f64) -> f64 {
        let log_moment = self.log_moment + self.mass_error + log_hockey_peak(self.tilt) + 1e-9;
        let epsilon = (log_moment - libm::log(delta - self.outside)) / self.tilt + self.loss_error;
        if log_moment.is_finite() && !epsilon.is_nan() { epsilon } else { f64::INFINITY }
    }

    /// Convolves.
    pub(super) fn compose(self, transforms: &mut Transforms) -> OneWay {
        let factors = factors(&self.uses, |one| &one.p);
        let fft = transforms.of(self.window.len);
        let convolution = Convolution::new(&factors, self.tilt, self.step, self.window, &self.tails, fft);
        OneWay { p: Sums::new(convolution, self.tilt, self.step), layout: self }
    }
}

impl OneWay {
    /// An upper bound of δ(ε), before errors of the loss itself.
    fn delta_upper(&self, epsilon: f64) -> f64 {
        let Convolution { window, log_scale, log_error, above, below, noise, .. } = &self.p.convolution;
        let next = (epsilon / self.layout.step).floor() as i64 + 1;
        let at = (next - window.first).clamp(0, window.len as i64);
        let apart = ((window.first + at) as f64 * self.layout.step - epsilon).max(0.0);
        let peak = libm::exp(log_hockey_peak(self.layout.tilt));
        let (slow, fast) = (
            libm::exp(-self.layout.tilt * apart) * self.p.slow[at as usize],
            libm::exp(-(self.layout.tilt + 1.0) * apart) * self.p.fast[at as usize],
        );
        let mut sum = (slow - fast).max(0.0) + 2.0 * self.p.error * slow;
        sum += peak * above + self.weights_norm().min(peak * (window.len as f64).sqrt()) * noise;
        if next < window.first {
            sum += peak * below;
        }
        let shift = self.layout.tilt * epsilon;
        let scale = libm::exp(log_scale + log_error + self.layout.mass_error - shift + 1e-15 * shift.abs());
        (scale * sum + self.layout.outside).min(1.0) * (1.0 + 1e-12)
    }

    /// ‖e^{-λjh}‖₂ over j ≥ 0 in the window.
    fn weights_norm(&self) -> f64 {
        let all = self.p.convolution.window.len as f64;
        (-1.0 / libm::expm1(-2.0 * self.layout.tilt * self.layout.step)).min(all).sqrt()
    }

    /// An upper bound of δ(ε).
    pub(super) fn delta(&self, epsilon: f64) -> f64 {
        self.delta_upper(epsilon - self.layout.loss_error)
    }

    /// The least ε ≥ 0 at which the upper bound of δ is at most `delta`; `None` if the window lies too high to tell.
    pub(super) fn epsilon(&self, delta: f64) -> Option<f64> {
        if self.delta_upper(-self.layout.loss_error) <= delta {
            return Some(0.0);
        }
        let window = self.p.convolution.window;
        let at = |i: usize| (window.first + i as i64) as f64 * self.layout.step;
        if self.delta_upper(at(0)) <= delta && at(0) > 0.0 {
            return None;
        }
        if self.delta_upper(at(window.len)) > delta {
            return Some(self.layout.epsilon_chernoff(delta).min(self.layout.epsilon_pure()));
        }
        let (mut low, mut high) = (0, window.len);
        while high - low > 1 {
            let middle = (low + high) / 2;
            if self.delta_upper(at(middle)) <= delta { high = middle } else { low = middle }
        }
        let (mut low, mut high) = (at(low), at(high));
        for _ in 0..40 {
            let middle = 0.5 * (low + high);
            if self.delta_upper(middle) <= delta { high = middle } else { low = middle }
        }
        Some((high + self.layout.loss_error) * (1.0 + 1e-15))
    }

    /// [`Fineness::hazard`] at ε.
    pub(super) fn hazard(&self, epsilon: f64) -> f64 {
        const AROUND: i64 = 4;
        let Window { first, len } = self.p.convolution.window;
        let at = ((epsilon / self.layout.step).round() as i64 - first).clamp(AROUND, len as i64 - AROUND - 1);
        let strip = &self.p.convolution.tilted[(at - AROUND) as usize..=(at + AROUND) as usize];
        let past = self.p.fast[at as usize];
        if past <= 0.0 {
            return 0.0;
        }
        strip.iter().sum::<f64>() / ((2 * AROUND + 1) as f64 * self.layout.step * past)
    }

    /// As [`Self::hazard`], for the relative error of δ(ε) instead of that of ε.
    pub(super) fn hazard_of_delta(&self, epsilon: f64) -> f64 {
        let at = (epsilon / self.layout.step).round() as i64 - self.p.convolution.window.first;
        let at = at.clamp(0, self.p.convolution.window.len as i64) as usize;
        let (slow, fast) = (self.p.slow[at], self.p.fast[at]);
        let scale = epsilon.max(0.1 * self.layout.deviation);
        if slow > fast { self.hazard(epsilon) * fast / (slow - fast) * scale } else { 0.0 }
    }

    /// The lower side: P(event) and Q(event) for the events "the rounded loss is at least ih".
    pub(super) fn lower(&self, transforms: &mut Transforms) -> Lower<'_> {
        let window = self.p.convolution.window;
        let factors = factors(&self.layout.uses, |one| &one.q);
        let (tails, _) = Tails::new(&factors, self.layout.tilt, self.layout.step, self.layout.deviation);
        let q = Convolution::new(
            &factors,
            self.layout.tilt,
            self.layout.step,
            window,
            &tails,
            transforms.of(window.len),
        );
        Lower { way: self, q: Sums::new(q, self.layout.tilt, self.layout.step) }
    }
}

fn factors(uses: &[(OneStep, u64)], of: impl Fn(&OneStep) -> &Vec<f64>) -> Vec<Factor<'_>> {
    uses.iter().map(|(one, count)| Factor { first: one.first, masses: of(one), count: *count }).collect()
}

/// Lower bounds.
#[derive(Debug)]
pub(super) struct Lower<'a> {
    way: &'a OneWay,
    q: Sums,
}

impl Lower<'_> {
    /// A lower bound of log P and an upper bound of log Q of the event from window position `i` on. `None` if the
    /// event may be empty.
    fn event(&self, i: usize) -> Option<(f64, f64)> {
        let (way, p, q) = (self.way, &self.way.p, &self.q);
        let place = (p.convolution.window.first + i as i64) as f64 * way.layout.step;
        let norm = way.weights_norm();
        let lost = p.convolution.above + p.convolution.below + norm * p.convolution.noise;
        let p_sum = p.slow[i] * (1.0 - p.error) - lost;
        let q_sum = q.fast[i] * (1.0 + q.error) + q.convolution.above + norm * q.convolution.noise;
        if p_sum <= 0.0 {
            return None;
        }
        let (p_shift, q_shift) = (way.layout.tilt * place, (way.layout.tilt + 1.0) * place);
        let log_p = p.convolution.log_scale - p.convolution.log_error - way.layout.mass_error - p_shift
            + libm::log(p_sum);
        let log_q =
            q.convolution.log_scale + q.convolution.log_error + way.layout.mass_error + way.layout.loss_error
                - q_shift
                + libm::log(q_sum);
        let slack = 1e-13 * (1.0 + log_p.abs() + log_q.abs()) + 1e-15 * q_shift.abs();
        Some((log_p - slack, log_q + slack))
    }

    /// The largest ε at which δ(ε) ≥ `delta` is certain, searched near `near`. Not below zero.
    pub(super) fn epsilon(&self, delta: f64, near: f64) -> f64 {
        let bound = |i: usize| match self.event(i) {
            Some((log_p, log_q)) if libm::exp(log_p) > delta => libm::log(libm::exp(log_p) - delta) - log_q,
            _ => f64::NEG_INFINITY,
        };
        self.best(near, bound).max(0.0)
    }

    /// A lower bound of δ(ε).
    pub(super) fn delta(&self, epsilon: f64) -> f64 {
        let bound = |i: usize| match self.event(i) {
            Some((log_p, log_q)) => libm::exp(log_p) * -libm::expm1(epsilon + log_q - log_p),
            None => 0.0,
        };
        self.best(epsilon, bound).max(0.0)
    }

    /// The best of `bound` over thresholds around `near`: any threshold gives a bound, so the search may stop short.
    fn best(&self, near: f64, bound: impl Fn(usize) -> f64) -> f64 {
        let window = self.way.p.convolution.window;
        let last = window.len as i64;
        let centre = ((near / self.way.layout.step).round() as i64 - window.first).clamp(0, last);
        let mut best = (bound(centre as usize), centre);
        let mut stride = ((self.way.layout.deviation / self.way.layout.step) as i64).clamp(1, last);
        while stride > 0 {
            for at in [best.1 - stride, best.1 + stride] {
                if (0..=last).contains(&at) {
                    let found = bound(at as usize);
                    if found > best.0 {
                        best = (found, at);
                    }
                }
            }
            stride /= 2;
        }
        best.0
    }
}
