//! The stream of noise, one round after the other, and its durable state.

use super::{BltError, BltMechanism, FRACTION_BITS, ONE, Parameters};
use crate::noise::NoiseRng;
use std::fmt;
use undertone_core::digest::Digest;

/// The noise of a run between two rounds: part of the durable state of the job, to be saved in the transaction that
/// commits a round's noised bytes. The buffers are secret. Not printed; cannot be cloned, because two rounds from one
/// state would be two releases of one round.
pub struct BltNoise {
    mechanism: BltMechanism,
    /// Rounds that were released.
    round: u32,
    /// S, in fine units: one run of `values` for each parameter pair.
    buffers: Vec<i64>,
}

/// First bytes of a saved state; the last one is the version.
const MAGIC: &[u8; 8] = b"utblt\0\0\x01";
const HEADER: usize = 8 + 32 + 4;
const DIGEST: usize = 32;
/// A buffer beyond this needs noise beyond a thousand standard deviations.
const MAX_BUFFER: u64 = 1 << 60;

impl BltNoise {
    /// Before the first round.
    pub fn start(mechanism: BltMechanism) -> Self {
        let buffers = vec![0; mechanism.parameters().buffers() * mechanism.values()];
        Self { mechanism, round: 0, buffers }
    }

    /// The mechanism.
    pub fn mechanism(&self) -> &BltMechanism {
        &self.mechanism
    }

    /// Rounds that were given noise.
    pub fn round(&self) -> u32 {
        self.round
    }

    /// Adds the next round's noise to `units`, whose values are integers on the grid, and gives the state after it. A
    /// draw is below 2^61.
    ///
    /// # Errors
    /// [`BltError`]; `units` must then be thrown away, and the state is gone: go on from the saved one, or not at all.
    pub fn add_to(self, units: &mut [i64], rng: &mut NoiseRng) -> Result<Self, BltError> {
        let mut round = self.next_round()?;
        round.add_to(units, rng)?;
        round.finish()
    }

    /// Begins the next round, whose values come in parts.
    ///
    /// # Errors
    /// [`BltError::Finished`] if there is none.
    pub fn next_round(self) -> Result<BltRound, BltError> {
        if self.round == self.mechanism.rounds() {
            return Err(BltError::Finished(self.round));
        }
        Ok(BltRound { noise: self, done: 0 })
    }

    /// The state as bytes, to be read back by [`BltNoise::from_bytes`]: header, buffers, digest.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + 8 * self.buffers.len() + DIGEST);
        bytes.extend(MAGIC);
        bytes.extend(self.mechanism.digest().as_bytes());
        bytes.extend(self.round.to_le_bytes());
        bytes.extend(self.buffers.iter().flat_map(|s| s.to_le_bytes()));
        let digest = Digest::of(&bytes);
        bytes.extend(digest.as_bytes());
        bytes
    }

    /// The state that was saved, under the mechanism that it was saved under.
    ///
    /// # Errors
    /// [`BltError::State`] if it is damaged, cut off, of another version or of another mechanism (another clip norm or
    /// model among them). Then the run cannot go on: without its buffers, noise would no longer cancel and a fresh start
    /// would be a second mechanism over the same clients, with a price of its own.
    pub fn from_bytes(mechanism: BltMechanism, bytes: &[u8]) -> Result<Self, BltError> {
        let len = mechanism.parameters().buffers() * mechanism.values();
        let body = bytes.len().checked_sub(DIGEST).ok_or(BltError::State("is cut off"))?;
        if bytes.get(..8) != Some(MAGIC) {
            return Err(BltError::State("is not one, or of another version"));
        }
        if Digest::of(&bytes[..body]).as_bytes()[..] != bytes[body..] {
            return Err(BltError::State("is damaged"));
        }
        if bytes.get(8..40) != Some(&mechanism.digest().as_bytes()[..]) {
            return Err(BltError::State("belongs to another mechanism"));
        }
        if body != HEADER + 8 * len {
            return Err(BltError::State("has buffers of another size"));
        }
        let round = u32::from_le_bytes(bytes[40..HEADER].try_into().expect("four bytes"));
        if round > mechanism.rounds() {
            return Err(BltError::State("is past its last round"));
        }
        let word = |chunk: &[u8]| i64::from_le_bytes(chunk.try_into().expect("eight bytes"));
        let buffers = bytes[HEADER..body].chunks_exact(8).map(word).collect();
        Ok(Self { mechanism, round, buffers })
    }
}

impl fmt::Debug for BltNoise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BltNoise(after round {} of {})", self.round, self.mechanism.rounds())
    }
}

/// A round under way: its values come in parts, one behind the other.
#[derive(Debug)]
pub struct BltRound {
    noise: BltNoise,
    /// Values done.
    done: usize,
}

impl BltRound {
    /// Adds the round's noise to the next values. How they are cut changes nothing.
    ///
    /// # Errors
    /// [`BltError`]; then the round and the state are gone: go on from the saved one, or not at all.
    pub fn add_to(&mut self, units: &mut [i64], rng: &mut NoiseRng) -> Result<(), BltError> {
        let BltNoise { mechanism, buffers, .. } = &mut self.noise;
        let (values, start) = (mechanism.values(), self.done);
        if start + units.len() > values {
            return Err(BltError::Length { found: start + units.len(), wanted: values });
        }
        let noise = *mechanism.noise();
        let fine_bits = mechanism.fine_bits();
        let half = (1i64 << fine_bits) >> 1;
        for (i, unit) in units.iter_mut().enumerate() {
            let mut states = buffers[start + i..].iter_mut().step_by(values);
            let correlated = step(mechanism.parameters(), &mut states, |taken| noise.sample(rng) - taken)?;
            *unit += (correlated + half) >> fine_bits;
        }
        self.done += units.len();
        Ok(())
    }

    /// The state after the round.
    ///
    /// # Errors
    /// [`BltError::Length`] if values are missing.
    pub fn finish(mut self) -> Result<BltNoise, BltError> {
        let wanted = self.noise.mechanism.values();
        if self.done != wanted {
            return Err(BltError::Length { found: self.done, wanted });
        }
        self.noise.round += 1;
        Ok(self.noise)
    }
}

/// One round of one value: takes back r = round(Σ ω·S), lets `noise` answer with ẑ, and moves S ← round(θ·S) + ẑ.
/// (jax_privacy's Algorithm 3 of BLTs, in integers.)
#[inline]
fn step<'a>(
    parameters: &Parameters,
    states: &mut impl Iterator<Item = &'a mut i64>,
    noise: impl FnOnce(i64) -> i64,
) -> Result<i64, BltError> {
    const HALF: i128 = ONE as i128 / 2;
    let mut all: [Option<&mut i64>; super::MAX_BUFFERS] = std::array::from_fn(|_| states.next());
    let mut taken = HALF;
    for (state, &omega) in all.iter().flatten().zip(&parameters.omega) {
        taken += i128::from(omega) * i128::from(**state);
    }
    // Σω ≤ 1: no larger than the largest buffer.
    let correlated = noise((taken >> FRACTION_BITS) as i64);
    for (state, &theta) in all.iter_mut().flatten().zip(&parameters.theta) {
        let kept = ((i128::from(theta) * i128::from(**state) + HALF) >> FRACTION_BITS) as i64;
        let moved = kept + correlated;
        if moved.unsigned_abs() > MAX_BUFFER {
            return Err(BltError::Overflow);
        }
        **state = moved;
    }
    Ok(correlated)
}

#[cfg(test)]
mod tests;
