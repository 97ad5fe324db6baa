//! How far the loss of a composition reaches under the tilted measure, by Chernoff's inequality, and which stretch of
//! the grid has to be computed for that.
//!
//! A transform of N points adds the masses at j + kN up, for every k. What is asked is a sum over the losses j ≥ i, each
//! tilted mass x_j with a weight of at most e^{-λ(j-i)h}. In a [`Window`] that holds i:
//! - what lies above the window is missing: at most e^{-λ(end-i)h} times the tilted mass from the end on;
//! - what lies N or more above i appears below where it is, with a weight of at most 1: [`Tails::above`] i + N;
//! - what lies below the window appears N (or a multiple) higher. For -λ ≤ θ < 0 a mass at l has, N higher, a weight of
//!   at most e^{θ(l+N-i)h}, if it is among those that are summed. Together E_λ[e^{θL}]·e^{-θ(i-N)h}, which is
//!   Chernoff's bound for the losses below i - N: [`Tails::folded`].
//!
//! So N has to be as large as the distance from i to the farther end of the distribution, not as its whole breadth, and
//! the window may end where the weights have fallen off. What appears too often only makes an upper bound larger.

use super::convolution::{Factor, log_moment, log_moment_error};

/// The stretch of the grid that is computed: `len` points from `first`, a power of two.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Window {
    pub(super) first: i64,
    pub(super) len: usize,
}

impl Window {
    /// The index after the last one.
    pub(super) fn end(&self) -> i64 {
        self.first + self.len as i64
    }
}

/// Chernoff's exponents around a tilt.
#[derive(Debug)]
pub(super) struct Tails {
    /// θ and log E_λ[e^{θ·loss}].
    pairs: Vec<(f64, f64)>,
    /// Bound on the error of the logarithms.
    error: f64,
    support: (i64, i64),
    tilt: f64,
    step: f64,
}

impl Tails {
    /// For these θ; and the log moment at the tilt itself, with its error on top.
    pub(super) fn new(factors: &[Factor<'_>], tilt: f64, step: f64, thetas: &[f64]) -> (Self, f64) {
        let total = |of: &dyn Fn(&Factor<'_>) -> f64| -> f64 {
            factors.iter().map(|factor| factor.count as f64 * of(factor)).sum()
        };
        let base = total(&|f| log_moment(f, tilt, step));
        let at = |theta: f64| total(&|f| log_moment(f, tilt + theta, step)) - base;
        let pairs: Vec<(f64, f64)> = thetas.iter().map(|theta| (*theta, at(*theta))).collect();
        let error_at = |theta: f64| total(&|f| log_moment_error(f, tilt + theta, step));
        let error = 2.0 * thetas.iter().map(|theta| error_at(*theta)).fold(error_at(0.0), f64::max) + 1e-9;
        let ends = |f: &Factor<'_>| {
            let count = f.count as i64;
            let (first, last) = f.ends();
            (first.saturating_mul(count), last.saturating_mul(count))
        };
        let add = |(a, b): (i64, i64), (c, d): (i64, i64)| (a.saturating_add(c), b.saturating_add(d));
        let support = factors.iter().map(ends).fold((0, 0), add);
        (Self { pairs, error, support, tilt, step }, base + error)
    }

    /// The window for losses asked about from `low` to `high`, if a tilted mass of e^`log_wrong` may be missing or be
    /// where it does not belong. `None` if that is beyond counting.
    pub(super) fn window(&self, (low, high): (f64, f64), log_wrong: f64) -> Option<Window> {
        // In grid points, with room for an index more or less.
        let (from, to) = ((low / self.step).floor() - 2.0, (high / self.step).ceil() + 2.0);
        let (least, most) = (self.support.0 as f64, self.support.1 as f64 + 1.0);
        let edge = |theta: f64, log_moment: f64| (log_moment - log_wrong) / (theta * self.step);
        let (mut top, mut bottom, mut fold) = (most, least, f64::NEG_INFINITY);
        // Without a θ the weights alone have to fall off.
        let mut end = to - log_wrong / (self.tilt * self.step);
        for &(theta, log_moment) in &self.pairs {
            if theta > 0.0 {
                top = top.min(edge(theta, log_moment));
                end = end.min(edge(theta + self.tilt, log_moment + self.tilt * to * self.step));
            } else {
                bottom = bottom.max(edge(theta, log_moment));
                if theta >= -self.tilt {
                    fold = fold.max(edge(theta, log_moment));
                }
            }
        }
        let end = end.min(most).max(to);
        // Either nothing lies below the window, or it is long enough for that to do no harm.
        let whole = bottom.min(from);
        let (first, needed) = if end - whole < to - fold {
            (whole, (top - from).max(end - whole))
        } else {
            (from, (top - from).max(to - fold).max(end - from))
        };
        if !(needed < 1e15 && first.abs() < 1e15) {
            return None;
        }
        let len = (needed.ceil() as usize + 1).next_power_of_two().max(1024);
        let spare = len as i64 - (end - first).ceil() as i64;
        Some(Window { first: first.floor() as i64 - spare / 2, len })
    }

    /// A bound on the tilted mass at `index` and above.
    pub(super) fn above(&self, index: i64) -> f64 {
        if self.support.1 < index {
            return 0.0;
        }
        self.least_bound(index, |theta| theta > 0.0)
    }

    /// A bound on the tilted mass below `index`.
    pub(super) fn below(&self, index: i64) -> f64 {
        if self.support.0 >= index {
            return 0.0;
        }
        self.least_bound(index - 1, |theta| theta < 0.0)
    }

    /// A bound on what the masses outside of `window`, which holds `index`, add to the weighted sum from `index` on.
    pub(super) fn folded(&self, index: i64, window: Window) -> f64 {
        let len = window.len as i64;
        let from_below = self.least_bound(index - len, |theta| (-self.tilt..0.0).contains(&theta));
        self.above(index + len) + from_below.min(self.below(window.first))
    }

    fn least_bound(&self, edge: i64, of: impl Fn(f64) -> bool) -> f64 {
        let bound = |&(theta, log_moment): &(f64, f64)| {
            libm::exp(log_moment + self.error - theta * edge as f64 * self.step)
        };
        self.pairs.iter().filter(|pair| of(pair.0)).map(bound).fold(1.0, f64::min)
    }
}

#[cfg(test)]
mod tests {
    use super::super::convolution::Convolution;
    use super::super::fft::RealFft;
    use super::*;

    const AT: [i64; 6] = [-9, -2, -1, 0, 2, 31];
    const MASSES: [f64; 6] = [1e-3, 0.1, 0.35, 0.4, 0.148, 1e-3];
    const COUNT: u64 = 40;
    const STEP: f64 = 0.05;

    /// The tilted convolution, over the whole of its support, one factor after the other.
    fn exhaustive(tilt: f64) -> Vec<(i64, f64)> {
        let weight = |i: usize| MASSES[i] * libm::exp(tilt * AT[i] as f64 * STEP);
        let total: f64 = (0..AT.len()).map(weight).sum();
        let mut all = std::collections::BTreeMap::from([(0, 1.0)]);
        for _ in 0..COUNT {
            let mut next = std::collections::BTreeMap::new();
            for (place, mass) in &all {
                for (i, at) in AT.iter().enumerate() {
                    *next.entry(place + at).or_insert(0.0) += mass * weight(i) / total;
                }
            }
            all = next;
        }
        all.into_iter().collect()
    }

    fn factor() -> Factor<'static> {
        Factor { at: &AT, masses: &MASSES, count: COUNT }
    }

    #[test]
    fn bounds_hold_of_the_exhaustive_convolution() {
        for tilt in [0.3, 2.0, 6.0] {
            let all = exhaustive(tilt);
            let thetas = [0.1, 0.5, 2.0, 8.0, -0.1, -0.3, -1.0, -2.5, -5.0];
            let (tails, _) = Tails::new(&[factor()], tilt, STEP, &thetas);
            let sum = |of: &dyn Fn(i64) -> bool| all.iter().filter(|m| of(m.0)).map(|m| m.1).sum::<f64>();
            let mut near = 0;
            for index in (-380..1250).step_by(7) {
                for (bound, exact) in
                    [(tails.above(index), sum(&|l| l >= index)), (tails.below(index), sum(&|l| l < index))]
                {
                    assert!(exact <= bound + 1e-12, "λ={tilt} at {index}: {exact:e} above {bound:e}");
                    near += usize::from(exact > 0.01 * bound && exact < 0.5);
                }
            }
            assert!(near > 10, "λ={tilt}: the bounds say something");
        }
    }

    #[test]
    fn a_window_shorter_than_the_support_gives_sums_within_the_bound() {
        let (mut folded, mut told) = (0, 0);
        for tilt in [0.3, 2.0, 6.0] {
            let all = exhaustive(tilt);
            let thetas = [0.1, 0.5, 2.0, 8.0, -0.1, -0.3, -1.0, -2.0, -5.0];
            let (tails, _) = Tails::new(&[factor()], tilt, STEP, &thetas);
            for (first, len) in [(-20, 64), (-40, 128), (0, 256), (-100, 256), (30, 512)] {
                let window = Window { first, len };
                let found =
                    Convolution::new(&[factor()], tilt, STEP, window, &tails, &RealFft::new(len)).tilted;
                for index in (first..window.end()).step_by(5) {
                    let weight = |l: i64| libm::exp(-tilt * (l - index) as f64 * STEP);
                    let sum: f64 =
                        (index..window.end()).map(|l| weight(l) * found[(l - first) as usize]).sum();
                    let inside = |m: &&(i64, f64)| (index..window.end()).contains(&m.0);
                    let exact: f64 = all.iter().filter(inside).map(|m| weight(m.0) * m.1).sum();
                    let bound = tails.folded(index, window);
                    let case = format!("λ={tilt} {window:?} at {index}: {sum:e}, exact {exact:e}, {bound:e}");
                    // Upper bounds rest on the first, lower bounds on the second.
                    assert!(sum >= exact - 1e-12, "{case}");
                    assert!(sum <= exact + bound + 1e-12, "{case}");
                    folded += usize::from(sum > exact + 1e-9);
                    told += usize::from(bound < 0.1 * exact);
                }
            }
        }
        assert!(folded > 50 && told > 50, "{folded} sums hold folded masses, {told} bounds are small");
    }

    #[test]
    fn a_window_is_long_enough_for_what_it_may_get_wrong() {
        for tilt in [0.3, 2.0, 6.0] {
            let mut thetas: Vec<f64> = (1..40).map(|i| 0.2 * f64::from(i)).collect();
            thetas.extend((1..40).map(|i| -0.2 * f64::from(i)));
            let (tails, _) = Tails::new(&[factor()], tilt, STEP, &thetas);
            for (low, high) in [(0.0, 0.0), (1.0, 3.0), (-2.0, 5.0), (8.0, 8.5)] {
                let log_wrong = -18.0;
                let window = tails.window((low, high), log_wrong).unwrap();
                for loss in [low, high] {
                    let index = libm::round(loss / STEP) as i64;
                    assert!((window.first..window.end()).contains(&index));
                    let far = libm::exp(-tilt * (window.end() - index) as f64 * STEP);
                    let wrong = tails.folded(index, window) + far * tails.above(window.end());
                    assert!(wrong <= 3.0 * libm::exp(log_wrong), "λ={tilt} {loss}: {wrong:e} in {window:?}");
                }
            }
        }
    }
}
