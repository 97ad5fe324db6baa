//! From a composition's loss on the grid to bounds on δ(ε) and ε(δ), in one direction.
//!
//! With m the masses after connect-the-dots, [`OneWay::delta_upper`] sums δ(ε) = Σ_{ih>ε} (1-e^{ε-ih})·m_i and adds
//! every error; [`OneWay::lower`] takes P(event) - e^ε·Q(event) at the best threshold. See [`super::one_step`] for why
//! these are bounds, and [`super::convolution`] for the errors.

use super::convolution::Convolution;
use super::fft::RealFft;
use super::layout::{Layout, factors};
use super::scout::log_hockey_peak;
use super::tails::{Tails, Window};

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
    /// e^{-λh}, e^{-(λ+1)h}.
    falls: (f64, f64),
    /// The sums at every [`BLOCK`]th point.
    blocks: Vec<(f64, f64)>,
    /// Bound on the relative error of the sums.
    error: f64,
}

/// Sums are kept at one point in so many and added up from there.
const BLOCK: usize = 64;

impl Sums {
    fn new(convolution: Convolution, tilt: f64, step: f64) -> Self {
        let falls = (libm::exp(-tilt * step), libm::exp(-(tilt + 1.0) * step));
        // Two roundings and that of the exponential at each point, as long as its weight is above e^-80.
        let points = (convolution.tilted.len() as f64).min(80.0 / (tilt.max(1e-300) * step));
        let mut sums = Self { falls, blocks: Vec::new(), error: 5e-16 * (points + 2.0), convolution };
        let mut above = (0.0, 0.0);
        let mut blocks: Vec<(f64, f64)> = vec![above];
        for block in sums.convolution.tilted.chunks(BLOCK).rev() {
            above = sums.add(block, above);
            blocks.push(above);
        }
        blocks.reverse();
        sums.blocks = blocks;
        sums
    }

    fn add(&self, masses: &[f64], above: (f64, f64)) -> (f64, f64) {
        masses
            .iter()
            .rev()
            .fold(above, |(slow, fast), mass| (mass + self.falls.0 * slow, mass + self.falls.1 * fast))
    }

    /// `Σ_{j≥i} tilted[j]·e^{-λ(j-i)h}`: what P's masses add up to; and `Σ_{j≥i} tilted[j]·e^{-(λ+1)(j-i)h}`, Q's.
    fn from(&self, i: usize) -> (f64, f64) {
        let block = i.div_ceil(BLOCK);
        let end = (block * BLOCK).min(self.convolution.tilted.len());
        self.add(&self.convolution.tilted[i..end], self.blocks[block])
    }
}

/// Where ε is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Found {
    /// This is an upper bound.
    Epsilon(f64),
    /// At most here, below the window.
    Below(f64),
    /// Above the window.
    Above,
}

impl OneWay {
    /// Convolves what is laid out.
    pub(super) fn new(layout: Layout, transforms: &mut Transforms) -> Self {
        let factors = factors(&layout.uses, |one| &one.p);
        let fft = transforms.of(layout.window.len);
        let convolution =
            Convolution::new(&factors, layout.tilt, layout.step, layout.window, &layout.tails, fft);
        Self { p: Sums::new(convolution, layout.tilt, layout.step), layout }
    }

    /// An upper bound of δ(ε), before errors of the loss itself.
    fn delta_upper(&self, epsilon: f64) -> f64 {
        let Convolution { window, log_scale, log_error, above, below, noise, .. } = &self.p.convolution;
        let next = (epsilon / self.layout.step).floor() as i64 + 1;
        let at = (next - window.first).clamp(0, window.len as i64);
        let apart = ((window.first + at) as f64 * self.layout.step - epsilon).max(0.0);
        let peak = libm::exp(log_hockey_peak(self.layout.tilt));
        let (slow, fast) = self.p.from(at as usize);
        let slow = libm::exp(-self.layout.tilt * apart) * slow;
        let fast = libm::exp(-(self.layout.tilt + 1.0) * apart) * fast;
        let mut sum = (slow - fast).max(0.0) + 2.0 * self.p.error * slow;
        // What is above the window counts less the farther it is.
        let far = (window.end() as f64 * self.layout.step - epsilon).max(0.0);
        sum += peak.min(libm::exp(-self.layout.tilt * far)) * above;
        sum += self.weights_norm().min(peak * (window.len as f64).sqrt()) * noise;
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

    /// The least ε ≥ 0 at which the upper bound of δ is at most `delta`.
    pub(super) fn epsilon(&self, delta: f64) -> Found {
        if self.delta_upper(-self.layout.loss_error) <= delta {
            return Found::Epsilon(0.0);
        }
        let window = self.p.convolution.window;
        let at = |i: usize| (window.first + i as i64) as f64 * self.layout.step;
        if self.delta_upper(at(0)) <= delta && at(0) > 0.0 {
            return Found::Below(at(0) + self.layout.loss_error);
        }
        if self.delta_upper(at(window.len)) > delta {
            return Found::Above;
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
        Found::Epsilon((high + self.layout.loss_error) * (1.0 + 1e-15))
    }

    /// [`Fineness::hazard`](super::layout::Fineness::hazard) at ε.
    pub(super) fn hazard(&self, epsilon: f64) -> f64 {
        const AROUND: i64 = 4;
        let Window { first, len } = self.p.convolution.window;
        let at = ((epsilon / self.layout.step).round() as i64 - first).clamp(AROUND, len as i64 - AROUND - 1);
        let strip = &self.p.convolution.tilted[(at - AROUND) as usize..=(at + AROUND) as usize];
        let past = self.p.from(at as usize).1;
        if past <= 0.0 {
            return 0.0;
        }
        strip.iter().sum::<f64>() / ((2 * AROUND + 1) as f64 * self.layout.step * past)
    }

    /// Whether ε is so far below the aim that another saddle point is better: a grid of the most points may be coarse.
    pub(super) fn is_astray(&self, apart: f64) -> bool {
        apart > 2.0 * self.layout.deviation
    }

    /// As [`Self::hazard`], for the relative error of δ(ε) instead of that of ε.
    pub(super) fn hazard_of_delta(&self, epsilon: f64) -> f64 {
        let at = (epsilon / self.layout.step).round() as i64 - self.p.convolution.window.first;
        let at = at.clamp(0, self.p.convolution.window.len as i64) as usize;
        let (slow, fast) = self.p.from(at);
        let scale = epsilon.max(0.1 * self.layout.deviation);
        if slow > fast { self.hazard(epsilon) * fast / (slow - fast) * scale } else { 0.0 }
    }

    /// The lower side: P(event) and Q(event) for the events "the rounded loss is at least ih".
    pub(super) fn lower(&self, transforms: &mut Transforms) -> Lower<'_> {
        let window = self.p.convolution.window;
        let factors = factors(&self.layout.uses, |one| &one.q);
        let (tails, _) = Tails::new(&factors, self.layout.tilt, self.layout.step, &self.layout.thetas);
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
        let norm = way.weights_norm();
        let index = p.convolution.window.first + i as i64;
        let lost = way.layout.tails.folded(index, p.convolution.window) + norm * p.convolution.noise;
        let p_sum = p.from(i).0 * (1.0 - p.error) - lost;
        let far = (p.convolution.window.len - i) as f64 * way.layout.step;
        let missing = libm::exp(-(way.layout.tilt + 1.0) * far) * q.convolution.above;
        let q_sum = q.from(i).1 * (1.0 + q.error) + missing + norm * q.convolution.noise;
        if p_sum <= 0.0 {
            return None;
        }
        let place = index as f64 * way.layout.step;
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
