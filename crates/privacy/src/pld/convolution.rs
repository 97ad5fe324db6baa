//! The loss of a composition: a tilted convolution by FFT, with every error bounded.
//!
//! A sequence m on the grid is tilted, x_i = m_i·e^{λih}/M, so that its T-fold convolution is concentrated around the
//! ε that is asked for. A plain FFT of m has an error of about 1e-16 in each mass, which drowns δ < 1e-10; the error
//! here is relative to the tilted masses, whose sum at ε is of the size of 1.
//!
//! With ‖x‖₁ ≤ 1 all coefficients are in the unit disc, and so with computed ones pulled back into it
//! |X̂ᵀ - Xᵀ| ≤ T·|X̂ - X|. By Parseval an error in the spectrum becomes one of the same relative size in the
//! sequence, in L2, which is what [`Convolution::noise`] bounds. Mass that wraps around, or lies outside the window,
//! is bounded by Chernoff's inequality.

use super::fft::{Complex, RealFft, Spectrum};

/// One factor: a sequence and how often it is convolved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Factor<'a> {
    pub(super) first: i64,
    pub(super) masses: &'a [f64],
    pub(super) count: u64,
}

impl Factor<'_> {
    /// The index at which e^{λih} is largest.
    fn top(&self, tilt: f64) -> i64 {
        if tilt >= 0.0 { self.first + self.masses.len() as i64 - 1 } else { self.first }
    }
}

/// The stretch of the grid that is computed: `len` points from `first`, a power of two.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Window {
    pub(super) first: i64,
    pub(super) len: usize,
}

/// A convolution: the mass at grid index `window.first + i` is e^{log_scale - λ·index·h}·tilted[i].
#[derive(Debug)]
pub(super) struct Convolution {
    pub(super) window: Window,
    pub(super) log_scale: f64,
    /// Bound on the error of `log_scale`.
    pub(super) log_error: f64,
    pub(super) tilted: Vec<f64>,
    /// Bound on the tilted mass above the window.
    pub(super) above: f64,
    /// Bound on the tilted mass below the window.
    pub(super) below: f64,
    /// Bound on the error of `tilted` in L2 from rounding in the transforms.
    pub(super) noise: f64,
}

/// Tilted mass left outside of the window on each side.
const LEFT_OUT: f64 = 1e-12;

/// Steps of Chernoff's θ around λ, in standard deviations.
const THETAS: [f64; 4] = [2.5, 5.0, 7.0, 9.0];

/// log Σ m_i·e^{λih}.
fn log_moment(factor: &Factor<'_>, tilt: f64, step: f64) -> f64 {
    let top = factor.top(tilt);
    let mut sum = 0.0;
    for (i, mass) in factor.masses.iter().enumerate() {
        if *mass > 0.0 {
            sum += mass * libm::exp(tilt * step * (factor.first + i as i64 - top) as f64);
        }
    }
    tilt * step * top as f64 + libm::log(sum)
}

/// What the sum and the exponents of [`log_moment`] may be off by: a rounding for each mass, and some u of the size
/// of the exponent.
fn log_moment_error(factor: &Factor<'_>, tilt: f64, step: f64) -> f64 {
    let exponent = (tilt * step * factor.top(tilt) as f64).abs();
    2.3e-16 * (64.0 + factor.masses.len() as f64) + 1e-15 * exponent
}

fn total(factors: &[Factor<'_>], of: impl Fn(&Factor<'_>) -> f64) -> f64 {
    factors.iter().map(|f| f.count as f64 * of(f)).sum()
}

/// Chernoff's exponents around a tilt: pairs (θ, log E_λ[e^{θ·loss}]).
#[derive(Debug)]
pub(super) struct Tails {
    pairs: Vec<(f64, f64)>,
    /// Bound on the error of the logarithms.
    error: f64,
    support: (i64, i64),
    step: f64,
}

impl Tails {
    /// For tilted losses with a standard deviation of about `deviation`; and the log moment at the tilt itself, with
    /// its error on top.
    pub(super) fn new(factors: &[Factor<'_>], tilt: f64, step: f64, deviation: f64) -> (Self, f64) {
        let base = total(factors, |f| log_moment(f, tilt, step));
        // Below -λ the far negative losses would count, which the tilt makes rare.
        let thetas = THETAS.iter().flat_map(|t| [t / deviation, -t / deviation]);
        let thetas = thetas.chain([-0.3, -0.6, -0.9].map(|share| share * tilt));
        let at = |theta: f64| total(factors, |f| log_moment(f, tilt + theta, step)) - base;
        let pairs: Vec<(f64, f64)> = thetas.map(|theta| (theta, at(theta))).collect();
        let error_at = |theta: &f64| total(factors, |f| log_moment_error(f, tilt + theta, step));
        let error = 2.0 * pairs.iter().map(|p| error_at(&p.0)).fold(error_at(&0.0), f64::max) + 1e-9;
        let ends = |f: &Factor<'_>| {
            let count = f.count as i64;
            (f.first.saturating_mul(count), (f.first + f.masses.len() as i64 - 1).saturating_mul(count))
        };
        let add = |(a, b): (i64, i64), (c, d): (i64, i64)| (a.saturating_add(c), b.saturating_add(d));
        (Self { pairs, error, support: factors.iter().map(ends).fold((0, 0), add), step }, base + error)
    }

    /// The indices outside of which there is at most [`LEFT_OUT`] of the tilted mass on each side.
    pub(super) fn edges(&self) -> (i64, i64) {
        let log_left_out = libm::log(LEFT_OUT);
        let (mut low, mut high) = (f64::NEG_INFINITY, f64::INFINITY);
        for &(theta, log_moment) in &self.pairs {
            let edge = (log_moment - log_left_out) / (theta * self.step);
            if theta > 0.0 {
                high = high.min(edge);
            } else {
                low = low.max(edge);
            }
        }
        let (least, most) = self.support;
        ((low.max(least as f64).floor()) as i64, (high.min(most as f64).ceil()) as i64)
    }

    /// Bounds on the tilted mass at indices below and above `window`.
    fn outside(&self, window: Window) -> (f64, f64) {
        let (first, end) = (window.first, window.first + window.len as i64);
        let (mut below, mut above): (f64, f64) = (1.0, 1.0);
        for &(theta, log_moment) in &self.pairs {
            let bound = |edge: i64| libm::exp(log_moment + self.error - theta * edge as f64 * self.step);
            if theta > 0.0 {
                above = above.min(bound(end));
            } else {
                below = below.min(bound(first - 1));
            }
        }
        let (least, most) = self.support;
        (if least >= first { 0.0 } else { below }, if most < end { 0.0 } else { above })
    }
}

impl Convolution {
    /// Convolves `factors`, tilted by `tilt`, in `window`.
    ///
    /// # Panics
    /// If `fft` is not of the window's length.
    pub(super) fn new(
        factors: &[Factor<'_>],
        tilt: f64,
        step: f64,
        window: Window,
        tails: &Tails,
        fft: &RealFft,
    ) -> Self {
        let (mut product, mut log_scale): (Option<Spectrum>, f64) = (None, 0.0);
        let (mut noise, mut smallest, mut uses) = (0.0, f64::INFINITY, 0.0);
        for factor in factors {
            // More than the sum by all that summing may have lost, for ‖x‖₁ ≤ 1.
            let log_sum = log_moment(factor, tilt, step) + 2.3e-16 * (64.0 + factor.masses.len() as f64);
            let top = factor.top(tilt);
            let log_rest = log_sum - tilt * step * top as f64;
            let mut x = vec![0.0; window.len];
            for (i, mass) in factor.masses.iter().enumerate() {
                let index = factor.first + i as i64;
                if *mass > 0.0 {
                    x[index.rem_euclid(window.len as i64) as usize] +=
                        mass * libm::exp(tilt * step * (index - top) as f64 - log_rest);
                }
            }
            let norm = x.iter().map(|v| v * v).sum::<f64>().sqrt();
            let count = factor.count as f64;
            noise += count * norm * fft.relative_error();
            smallest = norm.min(smallest);
            uses += count;
            log_scale += count * log_sum;
            multiply_power(&mut product, fft.forward(&x), factor.count);
        }
        // Squarings and products: 3u each and for each use (Brent, Percival and Zimmermann 2007).
        noise += smallest * (uses * 3.4e-16 + fft.relative_error());
        let mut tilted = fft.inverse(product.expect("a composition has a factor"));
        tilted.rotate_left(window.first.rem_euclid(window.len as i64) as usize);
        tilted.iter_mut().for_each(|mass| *mass = mass.max(0.0));
        let (below, above) = tails.outside(window);
        let log_error = total(factors, |f| log_moment_error(f, tilt, step)) + 1e-15 * log_scale.abs();
        Self { window, log_scale, log_error, tilted, above, below, noise: noise * 1.1 + 1e-25 }
    }
}

/// `product` times `spectrum` to the power `count`, entry by entry.
fn multiply_power(product: &mut Option<Spectrum>, mut spectrum: Spectrum, count: u64) {
    let ends = spectrum.0[0];
    for lanes in spectrum.0.chunks_mut(LANES) {
        raise(lanes, count);
    }
    let mut ends = [Complex { re: ends.re, im: 0.0 }, Complex { re: ends.im, im: 0.0 }];
    raise(&mut ends, count);
    spectrum.0[0] = Complex { re: ends[0].re, im: ends[1].re };
    match product {
        None => *product = Some(spectrum),
        Some(product) => {
            let (a, b) = (product.0[0], spectrum.0[0]);
            for (x, y) in product.0.iter_mut().zip(&spectrum.0) {
                *x = x.times(*y);
            }
            product.0[0] = Complex { re: a.re * b.re, im: a.im * b.im };
        }
    }
}

/// Entries that are raised side by side: one alone waits for each of its own multiplications.
const LANES: usize = 8;

/// x^count of up to [`LANES`] entries by squaring, for |x| ≤ 1 but for rounding; zero where that is below 1e-30.
fn raise(x: &mut [Complex], mut count: u64) {
    let (mut base, mut result) = ([Complex::ZERO; LANES], [Complex::ONE; LANES]);
    for (b, x) in base.iter_mut().zip(x.iter()) {
        let size = x.norm_squared();
        let shrink = if size > 1.0 { 1.0 / size.sqrt() } else { 1.0 };
        *b = Complex { re: x.re * shrink, im: x.im * shrink };
    }
    loop {
        if count & 1 == 1 {
            for (r, b) in result.iter_mut().zip(&base) {
                *r = r.times(*b);
            }
        }
        count >>= 1;
        if count == 0 {
            break;
        }
        let mut largest: f64 = 0.0;
        for b in &mut base {
            let square = b.times(*b);
            let size = square.norm_squared();
            *b = if size < 1e-60 { Complex::ZERO } else { square };
            largest = largest.max(size);
        }
        if largest < 1e-60 {
            result = [Complex::ZERO; LANES];
            break;
        }
    }
    x.copy_from_slice(&result[..x.len()]);
}
