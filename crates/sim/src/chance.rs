//! The one source of chance of a run.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

/// A generator that a seed determines.
pub(crate) struct Chance(ChaCha20Rng);

impl Chance {
    pub(crate) fn of(seed: u64) -> Self {
        Self(ChaCha20Rng::seed_from_u64(seed))
    }

    /// 64 bits.
    pub(crate) fn word(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// 0 to `bound - 1`; 0 for a bound of 0. The bias of a remainder is of no matter here.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.word() % bound.max(1)
    }

    /// `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// Whether something that happens `rate` times in ten thousand happens now.
    pub(crate) fn hits(&mut self, rate: u32) -> bool {
        self.below(10_000) < u64::from(rate)
    }

    /// One of some.
    pub(crate) fn pick<T: Copy>(&mut self, some: &[T]) -> T {
        some[self.below(some.len() as u64) as usize]
    }

    /// The generator, for machines that draw from it.
    pub(crate) fn generator(&mut self) -> &mut ChaCha20Rng {
        &mut self.0
    }
}
