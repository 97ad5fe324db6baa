//! Where noise comes from: a generator that cannot be seeded in a release build.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
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
pub struct NoiseRng(ChaCha20Rng);

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
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|e| NoRandomness(e.to_string()))?;
        Ok(Self(ChaCha20Rng::from_seed(key)))
    }

    /// The same noise each time, for tests; does not exist in a release build.
    #[cfg(any(test, feature = "seeded-noise"))]
    pub fn seeded_for_tests(seed: u64) -> Self {
        Self(ChaCha20Rng::seed_from_u64(seed))
    }

    /// 64 uniform bits.
    #[inline]
    pub(crate) fn bits(&mut self) -> u64 {
        self.0.next_u64()
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

    /// Uniform in 0..`bound`, exactly.
    ///
    /// # Panics
    /// If `bound` is zero (debug builds).
    #[inline]
    pub(crate) fn below_wide(&mut self, bound: u128) -> u128 {
        if let Ok(narrow) = u64::try_from(bound) {
            return u128::from(self.below(narrow));
        }
        let mask = u128::MAX >> (bound - 1).leading_zeros();
        loop {
            let draw = ((u128::from(self.bits()) << 64) | u128::from(self.bits())) & mask;
            if draw < bound {
                return draw;
            }
        }
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
        // A wide bound of 3·2^100: each third is as likely, and the low bits are not stuck.
        let mut hits = [0u32; 3];
        let mut low = 0;
        for _ in 0..30_000 {
            let draw = rng.below_wide(3 << 100);
            hits[(draw >> 100) as usize] += 1;
            low |= draw as u64;
        }
        assert!(hits.iter().all(|&h| h.abs_diff(10_000) < 600), "{hits:?}");
        assert_eq!(low, u64::MAX);
    }
}
