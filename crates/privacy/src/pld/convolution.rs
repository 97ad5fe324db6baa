//! The loss of a composition: a tilted convolution by FFT, with every error bounded.
//!
//! A sequence m on the grid is tilted, x_i = m_i·e^{λih}/M, so that its T-fold convolution is concentrated around the
//! ε that is asked for. A plain FFT of m has an error of about 1e-16 in each mass, which drowns δ < 1e-10; the error
//! here is relative to the tilted masses, whose sum at ε is of the size of 1.
//!
//! With ‖x‖₁ ≤ 1 all coefficients are in the unit disc, and so with computed ones pulled back into it |X̂ᵀ - Xᵀ| ≤
//! T·|X̂ - X|·max(|X|, |X̂|)ᵀ⁻¹. Bounded by T·|X̂ - X|, the error has the size of T·‖x‖₂. But no coefficient is off by
//! more than e = [`RealFft::relative_error`], so that it is also at most 2T·e·|X̂|ᵀ where |X̂| is above a half, and
//! T·e·2¹⁻ᵀ elsewhere: T·‖x^{*T}‖₂, which is far smaller where x has a peak that the convolution spreads out. By
//! Parseval an error in the spectrum becomes one of the same size in the sequence, in L2, which is what
//! [`Convolution::noise`] bounds. Mass that wraps around, or lies outside the window: see [`super::tails`].

use super::fft::{Complex, RealFft, Spectrum};
use super::tails::{Tails, Window};

/// One factor: masses at some points of the grid, in order, and how often they are convolved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Factor<'a> {
    pub(super) at: &'a [i64],
    pub(super) masses: &'a [f64],
    pub(super) count: u64,
}

impl Factor<'_> {
    /// The first and the last index.
    pub(super) fn ends(&self) -> (i64, i64) {
        (self.at[0], self.at[self.at.len() - 1])
    }

    /// The index at which e^{λih} is largest.
    fn top(&self, tilt: f64) -> i64 {
        if tilt >= 0.0 { self.ends().1 } else { self.ends().0 }
    }
}

/// A convolution: the mass at grid index `window.first + i` is
/// `e^{log_scale - λ·index·h}·tilted[i]`.
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

/// log Σ m_i·e^{λih}.
pub(super) fn log_moment(factor: &Factor<'_>, tilt: f64, step: f64) -> f64 {
    let top = factor.top(tilt);
    let term = |(at, mass): (&i64, &f64)| mass * libm::exp(tilt * step * (at - top) as f64);
    let sum: f64 = factor.at.iter().zip(factor.masses).map(term).sum();
    tilt * step * top as f64 + libm::log(sum)
}

/// What the sum and the exponents of [`log_moment`] may be off by: a rounding for each mass, and some u of the size
/// of the exponent.
pub(super) fn log_moment_error(factor: &Factor<'_>, tilt: f64, step: f64) -> f64 {
    let exponent = (tilt * step * factor.top(tilt) as f64).abs();
    2.3e-16 * (64.0 + factor.masses.len() as f64) + 1e-15 * exponent
}

fn total(factors: &[Factor<'_>], of: impl Fn(&Factor<'_>) -> f64) -> f64 {
    factors.iter().map(|f| f.count as f64 * of(f)).sum()
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
        // Errors of the spectrum, as if no coefficient became smaller by powers; and where they do not matter by that.
        let (mut undamped, mut leftover, mut uses) = (0.0, 0.0, 0.0);
        for factor in factors {
            // More than the sum by all that summing may have lost, for ‖x‖₁ ≤ 1.
            let log_sum = log_moment(factor, tilt, step) + 2.3e-16 * (64.0 + factor.masses.len() as f64);
            let top = factor.top(tilt);
            let log_rest = log_sum - tilt * step * top as f64;
            let mut x = vec![Complex::ZERO; window.len / 2];
            let mask = window.len as i64 - 1;
            for (at, mass) in factor.at.iter().zip(factor.masses) {
                let tilted = mass * libm::exp(tilt * step * (at - top) as f64 - log_rest);
                // The remainder of a power of two, packed in pairs.
                let place = (at & mask) as usize;
                let Complex { re, im } = &mut x[place / 2];
                *(if place.is_multiple_of(2) { re } else { im }) += tilted;
            }
            let norm = x.iter().map(|v| v.norm_squared()).sum::<f64>().sqrt();
            let count = factor.count as f64;
            undamped += count * norm * fft.relative_error();
            leftover += count * libm::exp2(1.0 - count.min(1000.0)) * fft.relative_error();
            uses += count;
            log_scale += count * log_sum;
            multiply_power(&mut product, fft.forward(x), factor.count);
        }
        let product = product.expect("a composition has a factor");
        let size = product.norm();
        let damped = 2.0 * uses * size * fft.relative_error() + leftover;
        // Squarings and products: 3u each and for each use (Brent, Percival and Zimmermann 2007); and the way back.
        let noise = undamped.min(damped) + size * (uses * 3.4e-16 + fft.relative_error());
        let packed = fft.inverse(product);
        let scale = 1.0 / packed.len() as f64;
        let from = window.first.rem_euclid(window.len as i64) as usize;
        let part = |place: usize| {
            let Complex { re, im } = packed[place / 2];
            if place.is_multiple_of(2) { re } else { im }
        };
        let tilted = (from..window.len).chain(0..from).map(|place| (part(place) * scale).max(0.0)).collect();
        let (below, above) = (tails.below(window.first), tails.above(window.end()));
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

#[cfg(test)]
mod tests {
    use super::super::binomial;
    use super::*;

    /// Two points, convolved, are a binomial distribution, tilted or not.
    #[test]
    fn rounding_stays_within_the_stated_error() {
        for (count, rate, len) in [(1, 0.5, 1024), (2, 0.1, 1024), (50, 0.3, 1024), (100_000, 0.01, 2048)] {
            let (rest, step, tilt) = (1.0 - rate, 1e-3, 20.0);
            // So that after the tilt the rate is as above.
            let up = rate * libm::exp(-tilt * step);
            let masses = [rest / (rest + up), up / (rest + up)];
            let factor = Factor { at: &[0, 1], masses: &masses, count };
            let thetas = [10.0, -10.0];
            let (tails, _) = Tails::new(&[factor], tilt, step, &thetas);
            let window = Window { first: 0, len };
            let found = Convolution::new(&[factor], tilt, step, window, &tails, &RealFft::new(len));
            let exact = |k: usize| {
                binomial::at_least(k as u64, count, rate) - binomial::at_least(k as u64 + 1, count, rate)
            };
            let apart: f64 =
                found.tilted.iter().enumerate().map(|(k, mass)| (mass - exact(k)) * (mass - exact(k))).sum();
            // A difference of the binomial's tails is right to about 1e-13.
            let apart = (apart.sqrt() - 1e-13 * (len as f64).sqrt()).max(0.0);
            assert!(apart <= found.noise, "T={count}: off by {apart:e}, stated {:e}", found.noise);
            // And the bound is not what it would be without damping.
            assert!(found.noise < 2e-13 * (1.0 + 0.3 * count as f64), "T={count}: {:e}", found.noise);
        }
    }
}
