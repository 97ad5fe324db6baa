//! Where noise comes from: a generator that cannot be seeded in a release build.

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng as _, SeedableRng as _};
use std::fmt;

#[cfg(all(feature = "seeded-noise", not(debug_assertions)))]
compile_error!(
    "feature \"seeded-noise\" is for tests: a release build must not be able to predict its noise"
);

/// ChaCha20, keyed by the operating system.
///
/// Mechanisms take this type and not `impl Rng`, so that no other generator can reach them (Mersenne twisters and
/// folded seeds have been shipped as privacy noise elsewhere). It has no seed to choose, cannot be cloned (the same
/// noise twice cancels) and prints nothing of its state.
///
/// ```compile_fail,E0308
/// // Another generator is another type.
/// use chacha20::rand_core::SeedableRng;
/// let noise = undertone_privacy::discrete_gaussian::DiscreteGaussian::new(4.0).unwrap();
/// noise.sample(&mut chacha20::ChaCha20Rng::from_seed([0; 32]));
/// ```
///
/// ```compile_fail,E0599
/// // The same noise twice would cancel.
/// let rng = undertone_privacy::noise::NoiseRng::from_os().unwrap();
/// let twin = rng.clone();
/// ```
#[cfg_attr(
    not(feature = "seeded-noise"),
    doc = "
```compile_fail,E0599
// There is no seed to choose without the feature for tests, which no release build has.
let rng = undertone_privacy::noise::NoiseRng::seeded_for_tests(1);
```"
)]
pub struct NoiseRng {
    generator: ChaCha20Rng,
    /// Drawn in advance: a word at a time costs as much again in calls.
    buffer: [u8; 8 * WORDS],
    /// The word to hand out next; [`WORDS`] if there is none.
    next: usize,
    /// Times that the buffer was filled.
    refills: u64,
}

/// Words in the buffer.
const WORDS: usize = 128;

/// The operating system gave no randomness. There is no other source to fall back on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gave no random bytes ({0}): noise cannot be drawn, so nothing is released")]
pub struct NoRandomness(String);

impl NoiseRng {
    /// A generator with a fresh 256-bit key.
    ///
    /// # Errors
    /// [`NoRandomness`]; never falls back on anything weaker.
    pub fn from_os() -> Result<Self, NoRandomness> {
        Ok(AttemptNoise::from_os()?.begin())
    }

    fn new(generator: ChaCha20Rng) -> Self {
        Self { generator, buffer: [0; 8 * WORDS], next: WORDS, refills: 0 }
    }

    /// The same noise each time, for tests; does not exist in a release build.
    #[cfg(any(test, feature = "seeded-noise"))]
    pub fn seeded_for_tests(seed: u64) -> Self {
        Self::new(ChaCha20Rng::seed_from_u64(seed))
    }

    /// 64-bit words handed out so far: equal inputs but for one client must leave equal counts, or control flow told
    /// them apart. For tests.
    #[cfg(any(test, feature = "seeded-noise"))]
    pub fn words_drawn(&self) -> u64 {
        // Before the first refill the buffer counts as used up.
        (self.refills * WORDS as u64 + self.next as u64) - WORDS as u64
    }

    /// 64 uniform bits.
    #[inline]
    pub(crate) fn bits(&mut self) -> u64 {
        if self.next == WORDS {
            self.refill();
        }
        let at = 8 * self.next;
        self.next += 1;
        u64::from_le_bytes(self.buffer[at..at + 8].try_into().expect("eight bytes"))
    }

    #[cold]
    fn refill(&mut self) {
        self.refills += 1;
        self.generator.fill_bytes(&mut self.buffer);
        self.next = 0;
    }

    /// Uniform in 0..`bound`, exactly: draws beyond the bound are thrown away.
    ///
    /// # Panics
    /// If `bound` is zero (debug builds).
    #[inline]
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        debug_assert!(bound > 0);
        let mask = u64::MAX >> ((bound - 1) | 1).leading_zeros();
        loop {
            let draw = self.bits() & mask;
            if draw < bound {
                return draw;
            }
        }
    }
}

/// The noise of one attempt at a release, which is the same noise however often the disk makes the attempt begin again: what
/// is published at last is what the first try would have given, and no second draw over the same inputs exists anywhere.
///
/// It lives in memory for as long as its attempt and cannot be copied or stored. Whoever draws from it again must throw
/// away what came of the time before, unseen: the same noise over other inputs would cancel.
pub struct AttemptNoise {
    key: [u8; 32],
}

impl AttemptNoise {
    /// A fresh 256-bit key.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn from_os() -> Result<Self, NoRandomness> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|e| NoRandomness(e.to_string()))?;
        Ok(Self { key })
    }

    /// The noise, from its beginning.
    pub fn begin(&self) -> NoiseRng {
        NoiseRng::new(ChaCha20Rng::from_seed(self.key))
    }
}

impl fmt::Debug for AttemptNoise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AttemptNoise")
    }
}

impl fmt::Debug for NoiseRng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NoiseRng")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_generators_never_agree_and_print_nothing() {
        let (mut a, mut b) = (NoiseRng::from_os().unwrap(), NoiseRng::from_os().unwrap());
        assert_ne!([a.bits(), a.bits()], [b.bits(), b.bits()]);
        assert_eq!(format!("{a:?}"), "NoiseRng");
    }

    #[test]
    fn an_attempts_noise_is_its_own_and_the_same_each_time() {
        let (one, other) = (AttemptNoise::from_os().unwrap(), AttemptNoise::from_os().unwrap());
        let words = |noise: &AttemptNoise| -> Vec<u64> {
            let mut rng = noise.begin();
            (0..300).map(|_| rng.bits()).collect()
        };
        assert_eq!(words(&one), words(&one));
        assert_ne!(words(&one), words(&other));
        assert_eq!(format!("{one:?}"), "AttemptNoise");
    }

    #[test]
    fn words_are_counted_as_they_are_handed_out() {
        let mut rng = NoiseRng::seeded_for_tests(3);
        for drawn in 0..300 {
            assert_eq!(rng.words_drawn(), drawn);
            rng.bits();
        }
    }

    #[test]
    fn uniform_draws_reach_every_value_equally() {
        let mut rng = NoiseRng::seeded_for_tests(1);
        for bound in [1u64, 2, 3, 7, 8, 10] {
            let mut hits = vec![0u32; bound as usize];
            for _ in 0..10_000 * bound {
                hits[rng.below(bound) as usize] += 1;
            }
            // 10 000 expected; six standard deviations are below 600.
            assert!(hits.iter().all(|&h| h.abs_diff(10_000) < 600), "{bound}: {hits:?}");
        }
    }
}
