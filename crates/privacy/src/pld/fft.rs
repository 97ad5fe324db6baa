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

impl Spectrum {
    /// ‖x‖₂ of the sequence, by Parseval.
    pub(super) fn norm(&self) -> f64 {
        let ends = 0.5 * self.0[0].norm_squared();
        let all: f64 = self.0[1..].iter().map(|c| c.norm_squared()).sum();
        ((ends + all) / self.0.len() as f64).sqrt()
    }
}

/// Tables for one length.
#[derive(Debug)]
pub(super) struct RealFft {
    len: usize,
    /// At `l`: e^{-2πi·j/2^l} for j < 2^(l-1).
    twiddles: Vec<Vec<Complex>>,
    /// e^{-2πi·k/N} for the pairs, in their order.
    pairs: Vec<Complex>,
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
        let roots = roots_of_unity(len);
        let mut twiddles = vec![Vec::new(); levels];
        twiddles[levels - 1] = roots.iter().step_by(2).copied().collect();
        for l in (1..levels - 1).rev() {
            twiddles[l] = twiddles[l + 1].iter().step_by(2).copied().collect();
        }
        let mut pairs = Vec::with_capacity(len / 4);
        each_pair(len / 2, |p, _| pairs.push(roots[p.reverse_bits() >> (usize::BITS + 1 - levels as u32)]));
        Self { len, twiddles, pairs }
    }

    /// A bound on ‖computed - exact‖₂ / ‖exact‖₂ of one transform, forward or inverse.
    ///
    /// η·log₂N with η = μ + γ₄(√2 + μ) < 1e-15 where the twiddles are right to μ < 3u (Higham 2002, *Accuracy and
    /// Stability of Numerical Algorithms*, in the chapter on the fast Fourier transform). The pass between real and
    /// complex is one stage more; the bound is doubled.
    ///
    /// It also bounds |computed - exact| / ‖x‖₁ of each coefficient: an input comes to an output along one path of
    /// log₂N stages, which each add η of it, and in the pass between real and complex by way of two outputs.
    pub(super) fn relative_error(&self) -> f64 {
        2e-15 * f64::from(self.len.trailing_zeros() + 1)
    }

    /// The spectrum of a real sequence, whose entries 2i and 2i + 1 are the two parts of `z[i]`.
    pub(super) fn forward(&self, mut z: Vec<Complex>) -> Spectrum {
        assert_eq!(z.len() * 2, self.len);
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

    /// The real sequence of a spectrum, packed in the same way, and times half its length.
    pub(super) fn inverse(&self, spectrum: Spectrum) -> Vec<Complex> {
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
        z
    }

    /// Calls `f` on the coefficients k and N/2-k of each pair, with e^{-2πi·k/N}.
    fn each_pair(&self, z: &mut [Complex], f: impl Fn(Complex, Complex, Complex) -> (Complex, Complex)) {
        let mut twiddles = self.pairs.iter();
        each_pair(z.len(), |p, partner| {
            let w = twiddles.next().expect("one for each pair");
            let (a, b) = f(z[p], z[partner], *w);
            z[partner] = b;
            z[p] = a;
        });
    }

    /// Decimation in frequency: natural order to bit-reversed order.
    fn split(&self, z: &mut [Complex]) {
        if z.len() > BLOCK {
            self.split_twice(z);
            z.chunks_exact_mut(z.len() / 4).for_each(|quarter| self.split(quarter));
            return;
        }
        let mut len = z.len();
        while len >= 4 {
            z.chunks_exact_mut(len).for_each(|block| self.split_twice(block));
            len /= 4;
        }
        if len == 2 {
            for pair in z.chunks_exact_mut(2) {
                (pair[0], pair[1]) = (pair[0].plus(pair[1]), pair[0].minus(pair[1]));
            }
        }
    }

    /// Two stages in one pass over the memory.
    fn split_twice(&self, z: &mut [Complex]) {
        let quarter = z.len() / 4;
        let level = z.len().trailing_zeros() as usize;
        let (whole, half) = (&self.twiddles[level], &self.twiddles[level - 1][..quarter]);
        let (first, second) = (&whole[..quarter], &whole[quarter..2 * quarter]);
        let (low, high) = z.split_at_mut(2 * quarter);
        let ((a, b), (c, d)) = (low.split_at_mut(quarter), high.split_at_mut(quarter));
        for j in 0..quarter {
            let (w, w_turned, w_half) = (first[j], second[j], half[j]);
            let (p, q) = (a[j].plus(c[j]), b[j].plus(d[j]));
            let (r, s) = (a[j].minus(c[j]).times(w), b[j].minus(d[j]).times(w_turned));
            (a[j], b[j]) = (p.plus(q), p.minus(q).times(w_half));
            (c[j], d[j]) = (r.plus(s), r.minus(s).times(w_half));
        }
    }

    /// Decimation in time, with the inverse's sign: bit-reversed order to natural order.
    fn join(&self, z: &mut [Complex]) {
        if z.len() > BLOCK {
            z.chunks_exact_mut(z.len() / 4).for_each(|quarter| self.join(quarter));
            self.join_twice(z);
            return;
        }
        let mut len = 4;
        if z.len().trailing_zeros() % 2 == 1 {
            for pair in z.chunks_exact_mut(2) {
                (pair[0], pair[1]) = (pair[0].plus(pair[1]), pair[0].minus(pair[1]));
            }
            len = 8;
        }
        while len <= z.len() {
            z.chunks_exact_mut(len).for_each(|block| self.join_twice(block));
            len *= 4;
        }
    }

    /// Two stages in one pass over the memory.
    fn join_twice(&self, z: &mut [Complex]) {
        let quarter = z.len() / 4;
        let level = z.len().trailing_zeros() as usize;
        let (whole, half) = (&self.twiddles[level], &self.twiddles[level - 1][..quarter]);
        let (first, second) = (&whole[..quarter], &whole[quarter..2 * quarter]);
        let (low, high) = z.split_at_mut(2 * quarter);
        let ((a, b), (c, d)) = (low.split_at_mut(quarter), high.split_at_mut(quarter));
        for j in 0..quarter {
            let (w, w_turned, w_half) = (first[j].conj(), second[j].conj(), half[j].conj());
            let (q, s) = (b[j].times(w_half), d[j].times(w_half));
            let (p, q) = (a[j].plus(q), a[j].minus(q));
            let (r, s) = (c[j].plus(s), c[j].minus(s));
            let (r, s) = (r.times(w), s.times(w_turned));
            (a[j], c[j]) = (p.plus(r), p.minus(r));
            (b[j], d[j]) = (q.plus(s), q.minus(s));
        }
    }
}

/// The positions of the coefficients k and -k of `len`, for all k but 0. In bit-reversed order -k is at the mirror image
/// within the block of k's highest bit.
fn each_pair(len: usize, mut f: impl FnMut(usize, usize)) {
    let mut block = 1;
    while block < len {
        for p in block..block + block.div_ceil(2) {
            f(p, 3 * block - 1 - p);
        }
        block *= 2;
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

    fn packed(x: &[f64]) -> Vec<Complex> {
        x.chunks_exact(2).map(|pair| Complex { re: pair[0], im: pair[1] }).collect()
    }

    fn unpacked(z: &[Complex]) -> Vec<f64> {
        let scale = 1.0 / z.len() as f64;
        z.iter().flat_map(|c| [c.re * scale, c.im * scale]).collect()
    }

    #[test]
    fn equals_the_sum_that_defines_it() {
        for len in [8, 16, 64, 256] {
            let (fft, x) = (RealFft::new(len), sequence(len));
            let spectrum = fft.forward(packed(&x));
            let norm = x.iter().map(|v| v * v).sum::<f64>().sqrt();
            assert!((spectrum.norm() / norm - 1.0).abs() < 1e-14);
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
            let back = unpacked(&fft.inverse(fft.forward(packed(&x))));
            let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|d| d * d).sum::<f64>().sqrt();
            let error = norm(&mut back.iter().zip(&x).map(|(a, b)| a - b));
            assert!(error <= 2.0 * fft.relative_error() * norm(&mut x.iter().copied()), "{len}: {error}");
        }
    }

    #[test]
    fn bits_are_pinned() {
        // Contract digests rest on these bits. A change of this number is a change of every digest.
        let fft = RealFft::new(4096);
        let spectrum = fft.forward(packed(&sequence(4096)));
        let fold = |bits: u64, c: &Complex| {
            bits.rotate_left(7) ^ c.re.to_bits() ^ c.im.to_bits().wrapping_mul(0x9e37_79b9_7f4a_7c15)
        };
        let bits = spectrum.0.iter().fold(0u64, fold);
        let back =
            unpacked(&fft.inverse(spectrum)).iter().fold(0u64, |bits, x| bits.rotate_left(7) ^ x.to_bits());
        assert_eq!((bits, back), (PINNED_FORWARD, PINNED_INVERSE), "{bits:#x} {back:#x}");
    }

    const PINNED_FORWARD: u64 = 0x2be4_9d96_6060_39f6;
    const PINNED_INVERSE: u64 = 0xe082_ad91_1ef4_fe50;
}
