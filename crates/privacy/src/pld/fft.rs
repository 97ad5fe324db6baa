//! A real fast Fourier transform of power-of-two length: scalar, in place, the same bits on every machine.
//!
//! A real sequence of length N is transformed as N/2 complex numbers. The forward transform leaves the spectrum in
//! bit-reversed order and the inverse takes it so: everything in between is pointwise. The error is bounded by
//! [`RealFft::relative_error`]. Why this is not a library: `docs/decisions/0008-own-fft.md`.

/// A complex number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Complex {
    pub(super) re: f64,
    pub(super) im: f64,
}

impl Complex {
    pub(super) const ZERO: Self = Self { re: 0.0, im: 0.0 };
    pub(super) const ONE: Self = Self { re: 1.0, im: 0.0 };

    pub(super) fn times(self, o: Self) -> Self {
        Self { re: self.re * o.re - self.im * o.im, im: self.re * o.im + self.im * o.re }
    }

    pub(super) fn norm_squared(self) -> f64 {
        self.re * self.re + self.im * self.im
    }

    fn plus(self, o: Self) -> Self {
        Self { re: self.re + o.re, im: self.im + o.im }
    }

    fn minus(self, o: Self) -> Self {
        Self { re: self.re - o.re, im: self.im - o.im }
    }

    fn conj(self) -> Self {
        Self { re: self.re, im: -self.im }
    }

    fn scaled(self, by: f64) -> Self {
        Self { re: self.re * by, im: self.im * by }
    }
}

/// The spectrum of a real sequence of length N: N/2 entries in bit-reversed order, the first of which holds the two
/// real coefficients 0 and N/2.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Spectrum(pub(super) Vec<Complex>);

/// Tables for one length.
#[derive(Debug)]
pub(super) struct RealFft {
    len: usize,
    /// At `l`: e^{-2πi·j/2^l} for j < 2^(l-1).
    twiddles: Vec<Vec<Complex>>,
}

/// Blocks of this many complex numbers stay in the first-level cache and are done stage by stage.
const BLOCK: usize = 1024;

impl RealFft {
    /// Tables for real sequences of length `len`.
    ///
    /// # Panics
    /// If `len` is not a power of two from 8.
    pub(super) fn new(len: usize) -> Self {
        assert!(len.is_power_of_two() && len >= 8, "length {len}");
        let levels = len.trailing_zeros() as usize;
        let mut twiddles = vec![Vec::new(); levels + 1];
        twiddles[levels] = roots_of_unity(len);
        for l in (1..levels).rev() {
            twiddles[l] = twiddles[l + 1].iter().step_by(2).copied().collect();
        }
        Self { len, twiddles }
    }

    /// A bound on ‖computed - exact‖₂ / ‖exact‖₂ of one transform, forward or inverse.
    ///
    /// Higham (2002), *Accuracy and Stability of Numerical Algorithms*, Theorem 24.2: η·log₂N with
    /// η = μ + γ₄(√2 + μ) < 1e-15 where the twiddles are right to μ < 3u. The pass between real and complex is one
    /// stage more; the bound is doubled.
    pub(super) fn relative_error(&self) -> f64 {
        2e-15 * f64::from(self.len.trailing_zeros() + 1)
    }

    /// The spectrum of `x`.
    pub(super) fn forward(&self, x: &[f64]) -> Spectrum {
        assert_eq!(x.len(), self.len);
        let mut z: Vec<Complex> =
            x.chunks_exact(2).map(|pair| Complex { re: pair[0], im: pair[1] }).collect();
        self.split(&mut z);
        let first = z[0];
        z[0] = Complex { re: first.re + first.im, im: first.re - first.im };
        self.each_pair(&mut z, |a, b, w| {
            let (even, odd) = (a.plus(b.conj()).scaled(0.5), a.minus(b.conj()).scaled(0.5));
            let turned = w.times(Complex { re: odd.im, im: -odd.re });
            (even.plus(turned), even.minus(turned).conj())
        });
        Spectrum(z)
    }

    /// The real sequence of a spectrum.
    pub(super) fn inverse(&self, spectrum: Spectrum) -> Vec<f64> {
        let mut z = spectrum.0;
        assert_eq!(z.len() * 2, self.len);
        let first = z[0];
        z[0] = Complex { re: 0.5 * (first.re + first.im), im: 0.5 * (first.re - first.im) };
        self.each_pair(&mut z, |a, b, w| {
            let (even, turned) = (a.plus(b.conj()).scaled(0.5), a.minus(b.conj()).scaled(0.5));
            let odd = w.conj().times(turned);
            let i_odd = Complex { re: -odd.im, im: odd.re };
            (even.plus(i_odd), even.minus(i_odd).conj())
        });
        self.join(&mut z);
        let scale = 2.0 / self.len as f64;
        z.iter().flat_map(|c| [c.re * scale, c.im * scale]).collect()
    }

    /// Calls `f` on the coefficients k and N/2-k of each pair, with e^{-2πi·k/N}. In bit-reversed order -k is at
    /// the mirror image within the block of k's highest bit.
    fn each_pair(&self, z: &mut [Complex], f: impl Fn(Complex, Complex, Complex) -> (Complex, Complex)) {
        let levels = z.len().trailing_zeros();
        let table = &self.twiddles[levels as usize + 1];
        let mut block = 1;
        while block < z.len() {
            for p in block..block + block.div_ceil(2) {
                let partner = 3 * block - 1 - p;
                let k = p.reverse_bits() >> (usize::BITS - levels);
                let (a, b) = f(z[p], z[partner], table[k]);
                z[partner] = b;
                z[p] = a;
            }
            block *= 2;
        }
    }

    /// Decimation in frequency: natural order to bit-reversed order.
    fn split(&self, z: &mut [Complex]) {
        if z.len() > BLOCK {
            let (low, high) = self.split_once(z);
            self.split(low);
            self.split(high);
            return;
        }
        let mut len = z.len();
        while len > 1 {
            for block in z.chunks_exact_mut(len) {
                self.split_once(block);
            }
            len /= 2;
        }
    }

    fn split_once<'z>(&self, z: &'z mut [Complex]) -> (&'z mut [Complex], &'z mut [Complex]) {
        let table = &self.twiddles[z.len().trailing_zeros() as usize];
        let (low, high) = z.split_at_mut(z.len() / 2);
        for ((a, b), w) in low.iter_mut().zip(high.iter_mut()).zip(table) {
            let (x, y) = (*a, *b);
            *a = x.plus(y);
            *b = x.minus(y).times(*w);
        }
        (low, high)
    }

    /// Decimation in time, with the inverse's sign: bit-reversed order to natural order.
    fn join(&self, z: &mut [Complex]) {
        if z.len() > BLOCK {
            let (low, high) = z.split_at_mut(z.len() / 2);
            self.join(low);
            self.join(high);
            self.join_once(z);
            return;
        }
        let mut len = 2;
        while len <= z.len() {
            for block in z.chunks_exact_mut(len) {
                self.join_once(block);
            }
            len *= 2;
        }
    }

    fn join_once(&self, z: &mut [Complex]) {
        let table = &self.twiddles[z.len().trailing_zeros() as usize];
        let (low, high) = z.split_at_mut(z.len() / 2);
        for ((a, b), w) in low.iter_mut().zip(high.iter_mut()).zip(table) {
            let (x, y) = (*a, b.times(w.conj()));
            *a = x.plus(y);
            *b = x.minus(y);
        }
    }
}

/// e^{-2πi·j/len} for j < len/2, each from an angle of at most π/4: a rounding of the last place or two.
fn roots_of_unity(len: usize) -> Vec<Complex> {
    let eighth = len / 8;
    let angle = |j: usize| 2.0 * std::f64::consts::PI * (j as f64 / len as f64);
    let first: Vec<(f64, f64)> = (0..=eighth).map(|j| libm::sincos(angle(j))).collect();
    (0..len / 2)
        .map(|j| {
            let (octant, within) = (j / eighth, j % eighth);
            let (sin, cos) = first[if octant.is_multiple_of(2) { within } else { eighth - within }];
            let (re, im) = match octant {
                0 => (cos, sin),
                1 => (sin, cos),
                2 => (-sin, cos),
                _ => (-cos, sin),
            };
            Complex { re, im: -im }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(len: usize) -> Vec<f64> {
        let mut state = 1u64;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 11) as f64 / (1u64 << 53) as f64
            })
            .collect()
    }

    #[test]
    fn equals_the_sum_that_defines_it() {
        for len in [8, 16, 64, 256] {
            let (fft, x) = (RealFft::new(len), sequence(len));
            let spectrum = fft.forward(&x);
            let levels = (len / 2).trailing_zeros();
            for (p, found) in spectrum.0.iter().enumerate().skip(1) {
                let k = p.reverse_bits() >> (usize::BITS - levels);
                let mut exact = Complex::ZERO;
                for (j, value) in x.iter().enumerate() {
                    let (sin, cos) =
                        libm::sincos(-2.0 * std::f64::consts::PI * ((j * k) % len) as f64 / len as f64);
                    exact = exact.plus(Complex { re: cos, im: sin }.scaled(*value));
                }
                assert!(found.minus(exact).norm_squared() < 1e-24, "len {len} k {k}");
            }
            let (sum, alternating) =
                x.chunks(2).fold((0.0, 0.0), |(s, a), c| (s + c[0] + c[1], a + c[0] - c[1]));
            assert!((spectrum.0[0].re - sum).abs() < 1e-12 && (spectrum.0[0].im - alternating).abs() < 1e-12);
        }
    }

    #[test]
    fn there_and_back_stays_within_the_stated_error() {
        for len in [8, 1024, 4096, 1 << 15] {
            let (fft, x) = (RealFft::new(len), sequence(len));
            let back = fft.inverse(fft.forward(&x));
            let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|d| d * d).sum::<f64>().sqrt();
            let error = norm(&mut back.iter().zip(&x).map(|(a, b)| a - b));
            assert!(error <= 2.0 * fft.relative_error() * norm(&mut x.iter().copied()), "{len}: {error}");
        }
    }

    #[test]
    fn bits_are_pinned() {
        // Contract digests rest on these bits. A change of this number is a change of every digest.
        let fft = RealFft::new(4096);
        let spectrum = fft.forward(&sequence(4096));
        let fold = |bits: u64, c: &Complex| {
            bits.rotate_left(7) ^ c.re.to_bits() ^ c.im.to_bits().wrapping_mul(0x9e37_79b9_7f4a_7c15)
        };
        let bits = spectrum.0.iter().fold(0u64, fold);
        let back = fft.inverse(spectrum).iter().fold(0u64, |bits, x| bits.rotate_left(7) ^ x.to_bits());
        assert_eq!((bits, back), (PINNED_FORWARD, PINNED_INVERSE), "{bits:#x} {back:#x}");
    }

    const PINNED_FORWARD: u64 = 0x2be4_9d96_6060_39f6;
    const PINNED_INVERSE: u64 = 0xe082_ad91_1ef4_fe50;
}
