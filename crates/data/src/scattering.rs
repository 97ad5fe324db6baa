//! The scattering transform of pictures: features that nobody has to learn.
//!
//! Two layers of wavelets of two scales (J = 2) and some angles, each followed by the modulus and a low-pass filter
//! (Bruna and Mallat 2013, "Invariant scattering convolution networks"). Filters, padding and subsampling are those of
//! Kymatio (Andreux et al. 2020), so its figures compare. A linear model on these features does better than a network
//! that is trained with privacy (Tramèr and Boneh 2021). The transform is public and the same for everybody, and looks at
//! one picture at a time: it costs no privacy.
//!
//! Of L angles a channel becomes 1 + 2·L + L² maps, each a quarter as high and as wide: 81 of 7x7 for 28x28 and L = 8.

use undertone_core::schema::{Picture, Scattering};

/// The ratio of the sizes of picture and maps, 2^J.
const REDUCTION: usize = 4;
/// The width of the low-pass filter, 0.8·2^(J-1).
const LOW_PASS: f64 = 1.6;

/// The transform for pictures of one size.
#[derive(Debug)]
pub(crate) struct Transform {
    channels: usize,
    height: Axis,
    width: Axis,
    /// Fourier transforms (real) of the wavelets, first those of the small scale.
    small: Vec<Vec<f32>>,
    large: Vec<Vec<f32>>,
    groups: Option<usize>,
}

/// One direction of a picture.
#[derive(Debug)]
struct Axis {
    /// Length of the picture, and with what is added at both ends.
    length: usize,
    padded: usize,
    /// For each place in the padded picture, the one that it mirrors.
    mirrored: Vec<usize>,
    /// Fourier transforms of the padded length and of half of it.
    full: Dft,
    half: Dft,
    /// From the padded length, and from half of it, to a low-passed quarter without its ends; row by row.
    from_full: Vec<f32>,
    from_half: Vec<f32>,
}

/// The matrix of a discrete Fourier transform, cos(2πkn/N) and sin(2πkn/N). The lengths are short (36) and not powers of
/// two: a product per direction is as fast as anything else.
#[derive(Debug)]
struct Dft {
    n: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// A complex picture.
#[derive(Debug, Clone)]
struct Plane {
    re: Vec<f32>,
    im: Vec<f32>,
}

impl Transform {
    pub(crate) fn new(picture: &Picture, scattering: &Scattering) -> Self {
        let (height, width) = (Axis::new(picture.height), Axis::new(picture.width));
        let bank = |scale: f64| -> Vec<Vec<f32>> {
            (0..scattering.angles)
                .map(|i| {
                    let l = scattering.angles as f64;
                    let turn = ((l - l / 2.0 - 1.0).trunc() - i as f64) * std::f64::consts::PI / l;
                    wavelet(height.padded, width.padded, scale, turn, 4.0 / l)
                })
                .collect()
        };
        Self {
            channels: picture.channels,
            small: bank(1.0),
            large: bank(2.0),
            height,
            width,
            groups: scattering.groups,
        }
    }

    /// Appends the features of one picture, maps by maps, to `features`. Channels come one after the other.
    ///
    /// # Panics
    /// If `picture` is not of the size that this is for.
    pub(crate) fn apply(&self, picture: &[u8], features: &mut Vec<f32>) {
        let start = features.len();
        let plane = self.height.length * self.width.length;
        assert_eq!(picture.len(), self.channels * plane, "a picture of another size");
        for channel in picture.chunks_exact(plane) {
            self.channel(channel, features);
        }
        if let Some(groups) = self.groups {
            normalise(&mut features[start..], groups);
        }
    }

    fn channel(&self, picture: &[u8], features: &mut Vec<f32>) {
        let (h, w) = (&self.height, &self.width);
        let at = |i: usize, j: usize| f32::from(picture[h.mirrored[i] * w.length + w.mirrored[j]]) / 255.0;
        let padded: Vec<f32> =
            (0..h.padded).flat_map(|i| (0..w.padded).map(move |j| (i, j))).map(|(i, j)| at(i, j)).collect();
        self.low_pass(&padded, false, features);
        let spectrum = forward(padded, &h.full, &w.full);
        let first: Vec<Plane> = self
            .small
            .iter()
            .map(|filter| {
                let modulus = inverse(spectrum.filtered(filter), &h.full, &w.full).modulus();
                self.low_pass(&modulus, false, features);
                forward(modulus, &h.full, &w.full)
            })
            .collect();
        // The large scale is looked at on every second place.
        let large = |spectrum: &Plane, features: &mut Vec<f32>| {
            for filter in &self.large {
                let halved = spectrum.filtered(filter).subsampled(h.padded, w.padded);
                let modulus = inverse(halved, &h.half, &w.half).modulus();
                self.low_pass(&modulus, true, features);
            }
        };
        large(&spectrum, features);
        for spectrum in &first {
            large(spectrum, features);
        }
    }

    /// Appends a low-passed quarter of a real picture without its ends.
    fn low_pass(&self, picture: &[f32], halved: bool, features: &mut Vec<f32>) {
        let axis = |a: &Axis| if halved { a.padded / 2 } else { a.padded };
        let (rows, columns) = (axis(&self.height), axis(&self.width));
        let (down, across) = match halved {
            true => (&self.height.from_half, &self.width.from_half),
            false => (&self.height.from_full, &self.width.from_full),
        };
        let mut line = vec![0f32; columns];
        for weights in down.chunks_exact(rows) {
            line.fill(0.0);
            for (weight, row) in weights.iter().zip(picture.chunks_exact(columns)) {
                line.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * x);
            }
            features.extend(
                across.chunks_exact(columns).map(|w| w.iter().zip(&line).map(|(w, x)| w * x).sum::<f32>()),
            );
        }
    }
}

impl Axis {
    fn new(length: usize) -> Self {
        // As much at both ends as the low-pass filter reaches, in whole steps of the maps.
        let padded = (length / REDUCTION + 2) * REDUCTION;
        let before = (padded - length) / 2;
        let last = length as isize - 1;
        let mirrored = (0..padded)
            .map(|i| {
                let at = (i as isize - before as isize).abs();
                (if at > last { 2 * last - at } else { at }) as usize
            })
            .collect();
        // A Gaussian at all places that are this one on the circle, and its (real) Fourier transform.
        let kernel: Vec<f64> = (0..padded)
            .map(|i| {
                let at = |turn: i32| i as f64 + f64::from(turn) * padded as f64;
                let sum: f64 =
                    (-2..=2).map(|t| libm::exp(-at(t) * at(t) / (2.0 * LOW_PASS * LOW_PASS))).sum();
                sum / (libm::sqrt(2.0 * std::f64::consts::PI) * LOW_PASS)
            })
            .collect();
        let half = padded / 2;
        // At half the places the filter keeps the lower half of its frequencies.
        let halved: Vec<f64> = (0..half)
            .map(|i| {
                let frequencies = (0..half).map(|k| if k < half / 2 { k } else { k + half });
                let spectrum = frequencies.map(|k| (k, cosine_transform(&kernel, k)));
                let term = |(k, g): (usize, f64)| g * libm::cos(angle(k * i, half));
                spectrum.map(term).sum::<f64>() / half as f64
            })
            .collect();
        Self {
            length,
            padded,
            mirrored,
            full: Dft::new(padded),
            half: Dft::new(half),
            from_full: circulant(&kernel, REDUCTION),
            from_half: circulant(&halved, REDUCTION / 2),
        }
    }
}

/// 2πk/n.
fn angle(k: usize, n: usize) -> f64 {
    2.0 * std::f64::consts::PI * (k % n) as f64 / n as f64
}

/// The Fourier transform of an even sequence at one frequency.
fn cosine_transform(values: &[f64], k: usize) -> f64 {
    values.iter().enumerate().map(|(i, x)| x * libm::cos(angle(k * i, values.len()))).sum()
}

/// The matrix that filters on a circle and keeps each `step`-th place but the first and the last of them.
fn circulant(kernel: &[f64], step: usize) -> Vec<f32> {
    let n = kernel.len();
    (1..n / step - 1).flat_map(|out| (0..n).map(move |i| kernel[(out * step + n - i) % n] as f32)).collect()
}

/// The Fourier transform of a Morlet wavelet on a torus; it is real.
///
/// A plane wave of frequency 3π/4 over the scale, in an elongated Gaussian window, less as much of the window alone as makes
/// its mean zero.
fn wavelet(height: usize, width: usize, scale: f64, turn: f64, slant: f64) -> Vec<f32> {
    let sigma = 0.8 * scale;
    let frequency = 0.75 * std::f64::consts::PI / scale;
    let (c, s) = (libm::cos(turn), libm::sin(turn));
    let mut window = vec![0.0; height * width];
    let (mut re, mut im) = (window.clone(), window.clone());
    for (ex, ey) in (-2..=2).flat_map(|x| (-2..=2).map(move |y| (x, y))) {
        for i in 0..height {
            for j in 0..width {
                let (x, y) =
                    (i as f64 + f64::from(ex) * height as f64, j as f64 + f64::from(ey) * width as f64);
                let (along, across) = (c * x + s * y, -s * x + c * y);
                let g = libm::exp(-(along * along + slant * slant * across * across) / (2.0 * sigma * sigma));
                let at = i * width + j;
                window[at] += g;
                re[at] += g * libm::cos(frequency * along);
                im[at] += g * libm::sin(frequency * along);
            }
        }
    }
    let sum = |v: &[f64]| v.iter().sum::<f64>();
    let (kr, ki) = (sum(&re) / sum(&window), sum(&im) / sum(&window));
    let norm = 2.0 * std::f64::consts::PI * sigma * sigma / slant;
    for (at, g) in window.iter().enumerate() {
        re[at] = (re[at] - kr * g) / norm;
        im[at] = (im[at] - ki * g) / norm;
    }
    // The real part of the transform, Σ (re·cos + im·sin), in two steps of one direction each.
    let (cos_w, sin_w) = tables(width);
    let (cos_h, sin_h) = tables(height);
    let (mut rows_re, mut rows_im) = (vec![0.0; height * width], vec![0.0; height * width]);
    for i in 0..height {
        for l in 0..width {
            for j in 0..width {
                let (x, y) = (re[i * width + j], im[i * width + j]);
                let (c, s) = (cos_w[j * l % width], sin_w[j * l % width]);
                rows_re[i * width + l] += x * c + y * s;
                rows_im[i * width + l] += y * c - x * s;
            }
        }
    }
    (0..height * width)
        .map(|at| {
            let (k, l) = (at / width, at % width);
            (0..height)
                .map(|i| {
                    let (c, s) = (cos_h[i * k % height], sin_h[i * k % height]);
                    rows_re[i * width + l] * c + rows_im[i * width + l] * s
                })
                .sum::<f64>() as f32
        })
        .collect()
}

fn tables(n: usize) -> (Vec<f64>, Vec<f64>) {
    (0..n).map(|k| (libm::cos(angle(k, n)), libm::sin(angle(k, n)))).unzip()
}

impl Dft {
    fn new(n: usize) -> Self {
        let (cos, sin) = tables(n);
        let square = |t: &[f64]| (0..n * n).map(|at| t[at / n * (at % n) % n] as f32).collect();
        Self { n, cos: square(&cos), sin: square(&sin) }
    }

    /// Multiplies each row of `x` by the matrix: sign -1 is the transform, +1 its inverse without the factor 1/N.
    fn rows(&self, x: &Plane, sign: f32) -> Plane {
        let n = self.n;
        let mut out = Plane { re: vec![0.0; x.re.len()], im: vec![0.0; x.re.len()] };
        let lines = out.re.chunks_exact_mut(n).zip(out.im.chunks_exact_mut(n));
        for ((to_re, to_im), (re, im)) in lines.zip(x.re.chunks_exact(n).zip(x.im.chunks_exact(n))) {
            for (k, (a, b)) in re.iter().zip(im).enumerate() {
                self.add(k, *a, *b, sign, to_re, to_im);
            }
        }
        out
    }

    /// Multiplies each column of `x`, whose rows are `width` long.
    fn columns(&self, x: &Plane, width: usize, sign: f32) -> Plane {
        let n = self.n;
        let mut out = Plane { re: vec![0.0; x.re.len()], im: vec![0.0; x.re.len()] };
        let lines = out.re.chunks_exact_mut(width).zip(out.im.chunks_exact_mut(width));
        for (k, (to_re, to_im)) in lines.enumerate() {
            for (i, (re, im)) in x.re.chunks_exact(width).zip(x.im.chunks_exact(width)).enumerate() {
                let (c, s) = (self.cos[k * n + i], sign * self.sin[k * n + i]);
                for (((tr, ti), a), b) in to_re.iter_mut().zip(to_im.iter_mut()).zip(re).zip(im) {
                    *tr += c * a - s * b;
                    *ti += c * b + s * a;
                }
            }
        }
        out
    }

    /// Adds (a + ib) times row `k` of the matrix.
    fn add(&self, k: usize, a: f32, b: f32, sign: f32, to_re: &mut [f32], to_im: &mut [f32]) {
        let (cos, sin) = (&self.cos[k * self.n..(k + 1) * self.n], &self.sin[k * self.n..(k + 1) * self.n]);
        for (((tr, ti), c), s) in to_re.iter_mut().zip(to_im).zip(cos).zip(sin) {
            let s = sign * s;
            *tr += c * a - s * b;
            *ti += c * b + s * a;
        }
    }
}

/// The Fourier transform of a real picture.
fn forward(picture: Vec<f32>, down: &Dft, across: &Dft) -> Plane {
    let im = vec![0.0; picture.len()];
    let rows = across.rows(&Plane { re: picture, im }, -1.0);
    down.columns(&rows, across.n, -1.0)
}

/// The picture of a Fourier transform.
fn inverse(spectrum: Plane, down: &Dft, across: &Dft) -> Plane {
    let mut out = down.columns(&across.rows(&spectrum, 1.0), across.n, 1.0);
    let scale = 1.0 / (down.n * across.n) as f32;
    out.re.iter_mut().chain(&mut out.im).for_each(|x| *x *= scale);
    out
}

impl Plane {
    fn filtered(&self, filter: &[f32]) -> Self {
        let by = |part: &[f32]| part.iter().zip(filter).map(|(x, f)| x * f).collect();
        Self { re: by(&self.re), im: by(&self.im) }
    }

    /// The spectrum of every second place in both directions: the mean of the four frequencies that become one.
    fn subsampled(&self, height: usize, width: usize) -> Self {
        let (h, w) = (height / 2, width / 2);
        let part = |part: &[f32]| {
            (0..h * w)
                .map(|at| {
                    let (i, j) = (at / w, at % w);
                    let of = |i: usize, j: usize| part[i * width + j];
                    (of(i, j) + of(i + h, j) + of(i, j + w) + of(i + h, j + w)) / 4.0
                })
                .collect()
        };
        Self { re: part(&self.re), im: part(&self.im) }
    }

    fn modulus(&self) -> Vec<f32> {
        self.re.iter().zip(&self.im).map(|(a, b)| (a * a + b * b).sqrt()).collect()
    }
}

/// Each group of neighbouring maps to mean 0 and variance 1, of one picture alone (Wu and He 2018, without weights).
fn normalise(features: &mut [f32], groups: usize) {
    let size = features.len() / groups;
    for group in features.chunks_exact_mut(size) {
        let mean = group.iter().map(|x| f64::from(*x)).sum::<f64>() / size as f64;
        let variance = group.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / size as f64;
        let scale = 1.0 / (variance + 1e-5).sqrt();
        group.iter_mut().for_each(|x| *x = ((f64::from(*x) - mean) * scale) as f32);
    }
}

#[cfg(test)]
#[path = "scattering_tests.rs"]
mod tests;
