//! Standard normal numbers by the block: Marsaglia and Tsang's ziggurat (2000) of 256 layers, in the form that Doornik (2005)
//! gave it, whose layer and place within the layer come from different bits.
//!
//! A draw takes 64 bits: eight choose the layer, 52 a place in it, both signs. Where the place is inside the next layer too
//! (98.5 % of all) that is the draw. Else the edge of the layer decides with another uniform number, the tail beyond
//! [`R`] by Marsaglia's method (1964), and what is thrown away is drawn anew. A block is first computed as if nothing would be
//! thrown away, without a branch, and then mended where something was.
//!
//! The bits are ChaCha12's under a 256-bit key that [`NoiseRng`] draws for each vector of noise: the best attack known on
//! ChaCha breaks 7 rounds of 20 (Aumasson, "Too much crypto", 2020), 12 are what `rand`'s standard generator has, and a vector of noise is
//! seen after it was added, rounded and divided. See docs/decisions/0020.

use crate::noise::NoiseRng;
use chacha20::ChaCha12Rng;
use chacha20::rand_core::{Rng as _, SeedableRng as _};
use std::sync::OnceLock;

/// Numbers in a block.
const BLOCK: usize = 512;
/// Where the tail begins.
const R: f64 = 3.654_152_885_361_009;

/// A vector of standard normal numbers, however it is cut. Nothing beyond 12.3 ever comes.
pub(crate) struct Normals {
    words: ChaCha12Rng,
    buffer: [u8; 8 * BLOCK],
    draws: [f64; BLOCK],
    /// Where the draws of this block begin that nobody has had yet.
    next: usize,
    layers: &'static Layers,
}

impl Normals {
    /// Under a key that the generator gives.
    pub(crate) fn keyed_by(rng: &mut NoiseRng) -> Self {
        let mut key = [0; 32];
        key.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&rng.bits().to_le_bytes()));
        static LAYERS: OnceLock<Layers> = OnceLock::new();
        let layers = LAYERS.get_or_init(Layers::new);
        let words = ChaCha12Rng::from_seed(key);
        Self { words, buffer: [0; 8 * BLOCK], draws: [0.0; BLOCK], next: BLOCK, layers }
    }

    /// The next independent draws: as many as are left of a block, at most `most`.
    pub(crate) fn some(&mut self, most: usize) -> &[f64] {
        if self.next == BLOCK {
            self.fill();
            self.next = 0;
        }
        let some = self.next..BLOCK.min(self.next + most);
        self.next = some.end;
        &self.draws[some]
    }

    /// Draws a block, always a whole one: which words a draw has does not hang on how the vector is cut.
    fn fill(&mut self) {
        self.words.fill_bytes(&mut self.buffer);
        let words = self.buffer.as_chunks().0;
        let Layers { edges, .. } = self.layers;
        let (mut rejected, mut count) = ([0u16; BLOCK], 0);
        for (place, (draw, word)) in self.draws.iter_mut().zip(words).enumerate() {
            let bits = u64::from_le_bytes(*word);
            let layer = layer(bits);
            *draw = signed(bits) * edges[layer];
            rejected[count] = place as u16;
            count += usize::from(draw.abs() >= edges[layer + 1]);
        }
        for &place in &rejected[..count] {
            let place = usize::from(place);
            self.draws[place] = self.layers.settle(u64::from_le_bytes(words[place]), &mut self.words);
        }
    }
}

/// The ziggurat: layers of equal area under exp(-x²/2), the lowest first.
struct Layers {
    /// How far each reaches; the lowest as if its tail were a rectangle too. One more, 0, ends the list.
    edges: [f64; LAYERS + 1],
    /// exp(-x²/2) at the edges.
    heights: [f64; LAYERS + 1],
}

const LAYERS: usize = 256;

impl Layers {
    fn new() -> Self {
        let tail = libm::sqrt(std::f64::consts::FRAC_PI_2) * libm::erfc(R / std::f64::consts::SQRT_2);
        let area = R * density(R) + tail;
        let mut edges = [0.0; LAYERS + 1];
        (edges[0], edges[1]) = (area / density(R), R);
        for i in 2..LAYERS {
            edges[i] = libm::sqrt(-2.0 * libm::log(area / edges[i - 1] + density(edges[i - 1])));
        }
        Self { edges, heights: edges.map(density) }
    }

    /// Goes on where `bits` chose a place that is not inside the next layer.
    #[cold]
    fn settle(&self, mut bits: u64, words: &mut ChaCha12Rng) -> f64 {
        loop {
            let layer = layer(bits);
            let draw = signed(bits) * self.edges[layer];
            if draw.abs() < self.edges[layer + 1] {
                return draw;
            }
            if layer == 0 {
                return beyond(words).copysign(draw);
            }
            let (low, high) = (self.heights[layer], self.heights[layer + 1]);
            if low + (high - low) * above_zero(words.next_u64()) < density(draw) {
                return draw;
            }
            bits = words.next_u64();
        }
    }
}

/// A draw from the tail.
fn beyond(words: &mut ChaCha12Rng) -> f64 {
    loop {
        let x = -libm::log(above_zero(words.next_u64())) / R;
        let y = -libm::log(above_zero(words.next_u64()));
        if 2.0 * y >= x * x {
            return R + x;
        }
    }
}

fn density(x: f64) -> f64 {
    libm::exp(-x * x / 2.0)
}

fn layer(bits: u64) -> usize {
    (bits % LAYERS as u64) as usize
}

/// The upper 52 bits as one of as many equidistant numbers from -1 to below 1.
fn signed(bits: u64) -> f64 {
    // As the fraction of a number from 2 to below 4.
    f64::from_bits((bits >> 12) | 0x4000_0000_0000_0000) - 3.0
}

/// The upper 52 bits as the middle of one of as many intervals from 0 to 1.
fn above_zero(bits: u64) -> f64 {
    f64::from_bits((bits >> 12) | 0x3ff0_0000_0000_0000) - (1.0 - f64::EPSILON / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_have_one_area_and_reach_the_top() {
        let Layers { edges, heights } = Layers::new();
        let tail = libm::sqrt(std::f64::consts::FRAC_PI_2) * libm::erfc(R / std::f64::consts::SQRT_2);
        let area = edges[0] * heights[1];
        assert!((area / (edges[1] * heights[1] + tail) - 1.0).abs() < 1e-15);
        for i in 1..LAYERS {
            assert!(edges[i + 1] < edges[i]);
            // The last one closes: R is the one number for which it does.
            assert!((edges[i] * (heights[i + 1] - heights[i]) / area - 1.0).abs() < 1e-11, "layer {i}");
        }
        assert_eq!((edges[LAYERS], heights[LAYERS]), (0.0, 1.0));
    }

    #[test]
    fn uniform_numbers_have_their_range() {
        assert_eq!((signed(0), signed(u64::MAX)), (-1.0, 1.0 - 2f64.powi(-51)));
        assert_eq!((above_zero(0), above_zero(u64::MAX)), (2f64.powi(-53), 1.0 - 2f64.powi(-53)));
        assert!((1..1000).all(|i| signed(i << 12) > signed((i - 1) << 12)));
    }

    /// Moments and tails of ten million draws, each within six standard deviations.
    #[test]
    fn draws_are_standard_normal() {
        let mut normals = Normals::keyed_by(&mut NoiseRng::seeded_for_tests(11));
        let (mut moments, mut beyond, mut negative) = ([0.0; 4], [0u32; 4], 0u32);
        let blocks = 20_000;
        for _ in 0..blocks {
            for &draw in normals.some(BLOCK) {
                let mut power = 1.0;
                for moment in &mut moments {
                    power *= draw;
                    *moment += power;
                }
                negative += u32::from(draw < 0.0);
                for (count, bound) in beyond.iter_mut().zip([1.0, 3.0, R, 4.5]) {
                    *count += u32::from(draw.abs() > bound);
                }
            }
        }
        let n = (blocks * BLOCK) as f64;
        // Of x, x², x³, x⁴: variances 1, 2, 15, 96.
        for ((moment, wanted), variance) in
            moments.iter().zip([0.0, 1.0, 0.0, 3.0]).zip([1.0f64, 2.0, 15.0, 96.0])
        {
            assert!((moment / n - wanted).abs() < 6.0 * (variance / n).sqrt(), "{moments:?}");
        }
        for (count, bound) in beyond.into_iter().zip([1.0, 3.0, R, 4.5]) {
            let wanted = n * libm::erfc(bound / std::f64::consts::SQRT_2);
            assert!((f64::from(count) - wanted).abs() < 6.0 * wanted.sqrt(), "{bound}: {count} {wanted}");
        }
        assert!((f64::from(negative) - n / 2.0).abs() < 3.0 * n.sqrt());
    }

    #[test]
    fn it_does_not_matter_how_a_vector_is_cut() {
        let vector = |sizes: &[usize]| {
            let mut normals = Normals::keyed_by(&mut NoiseRng::seeded_for_tests(13));
            let (mut draws, mut sizes) = (vec![], sizes.iter().cycle());
            while draws.len() < 2000 {
                let some = normals.some(*sizes.next().unwrap());
                assert!(!some.is_empty());
                draws.extend_from_slice(some);
            }
            draws.truncate(2000);
            draws
        };
        let whole = vector(&[BLOCK]);
        for sizes in [&[1][..], &[7, 1, 511], &[512, 3], &[5000]] {
            assert_eq!(vector(sizes), whole, "{sizes:?}");
        }
    }

    #[test]
    fn each_vector_has_a_key_of_its_own() {
        let mut rng = NoiseRng::seeded_for_tests(12);
        let mut vector = || {
            let mut normals = Normals::keyed_by(&mut rng);
            normals.some(7).to_vec()
        };
        let (one, two) = (vector(), vector());
        assert!(one.iter().zip(two).all(|(a, b)| *a != b));
        assert_eq!(rng.words_drawn(), 8, "four words a key");
    }
}
