//! Local differential privacy: a client adds all the noise to its own update before it leaves.
//!
//! The claim holds against everyone, the coordinator included, and for whatever the client has: its one message a round
//! is the unit. The price is that the noise on the sum of n messages is √n times one client's, which drowns a model of
//! more than some thousand values. The weight, metrics and counts that travel beside an update are *not* covered: under
//! this trust model weights are uniform and nothing else leaves.
//!
//! The guarantee of one message is that of a Gaussian with μ = 1/noise multiplier; over rounds they compose.

use crate::clip::{BoundError, ClippedUpdate};
use crate::discrete_gaussian::{DiscreteGaussian, NoiseError};
use crate::noise::NoiseRng;
use crate::sensitivity::{Adjacency, L2Sensitivity};
use std::fmt;
use undertone_core::fixed::{FixedVector, Grid, MAX_FIXED};

/// The mechanism of one client.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LocalNoise {
    clip_norm: f64,
    grid: Grid,
    sensitivity: L2Sensitivity,
    noise: DiscreteGaussian,
}

/// Why no message is made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LocalError {
    /// The noise or the clip norm does not suit the grid.
    #[error(transparent)]
    Noise(#[from] NoiseError),
    /// The noise does not fit the wire's integers.
    #[error(
        "an update within {clip_norm} with noise of {sigma:.0} units does not fit the {MAX_FIXED} units of the wire: \
         lower fraction_bits or the noise"
    )]
    Range {
        /// The clip norm.
        clip_norm: f64,
        /// Standard deviation of the noise in units.
        sigma: f64,
    },
    /// The update was clipped to another bound than the noise is scaled to.
    #[error("the update is clipped to {found}, the noise is for {wanted}")]
    OtherBound {
        /// Bound of the update.
        found: f64,
        /// Bound of the noise.
        wanted: f64,
    },
}

impl From<BoundError> for LocalError {
    fn from(e: BoundError) -> Self {
        Self::Noise(e.into())
    }
}

impl LocalNoise {
    /// Noise with σ = `noise_multiplier` times the sensitivity of one message: 2·`clip_norm` where any two messages
    /// are neighbours, `clip_norm` where a client's neighbour is its absence (which must then look like
    /// [`LocalNoise::absent`]).
    ///
    /// # Errors
    /// [`LocalError`] if a number does not suit the grid or the wire.
    pub fn new(
        clip_norm: f64,
        noise_multiplier: f64,
        adjacency: Adjacency,
        grid: Grid,
    ) -> Result<Self, LocalError> {
        let sensitivity = L2Sensitivity::of_clipped(clip_norm, grid, adjacency)?;
        let noise = DiscreteGaussian::for_sensitivity(noise_multiplier, sensitivity)?;
        let largest = sensitivity.units() as f64 + CLAMP_DEVIATIONS * noise.sigma();
        if largest > f64::from(MAX_FIXED) {
            return Err(LocalError::Range { clip_norm, sigma: noise.sigma() });
        }
        Ok(Self { clip_norm, grid, sensitivity, noise })
    }

    /// The L2 norm that updates are to be clipped to.
    pub fn clip_norm(&self) -> f64 {
        self.clip_norm
    }

    /// How far one client can move its message.
    pub fn sensitivity(&self) -> L2Sensitivity {
        self.sensitivity
    }

    /// Standard deviation of the noise on each value of one message, in units.
    pub fn sigma(&self) -> f64 {
        self.noise.sigma()
    }

    /// The message: the update on the grid with noise on each value.
    ///
    /// # Errors
    /// [`LocalError::OtherBound`] if the update was clipped to another bound.
    pub fn privatise(
        &self,
        update: &ClippedUpdate,
        rng: &mut NoiseRng,
    ) -> Result<LocallyPrivate, LocalError> {
        if update.bound() != self.clip_norm {
            return Err(LocalError::OtherBound { found: update.bound(), wanted: self.clip_norm });
        }
        let fixed = update.to_grid(self.grid)?;
        Ok(self.noised(fixed.units().iter().map(|&u| i64::from(u)).collect(), rng))
    }

    /// The message of a client that has nothing to say (no rows, diverged training): noise alone. Silence would tell
    /// what noise is to hide.
    pub fn absent(&self, len: usize, rng: &mut NoiseRng) -> LocallyPrivate {
        self.noised(vec![0; len], rng)
    }

    /// The same in units of the grid, rounded up. It may be more than the wire holds in one value.
    pub fn message_bound_units(&self, len: usize) -> u64 {
        (self.message_bound(len) * self.grid.units_per_one()).ceil() as u64
    }

    fn noised(&self, mut units: Vec<i64>, rng: &mut NoiseRng) -> LocallyPrivate {
        self.noise.add_to(&mut units, rng);
        // Clamping after the noise is post-processing; once in 10^15 values it does something.
        let limit = i64::from(MAX_FIXED);
        let units = units.into_iter().map(|u| u.clamp(-limit, limit) as i32).collect();
        LocallyPrivate(FixedVector::from_units(self.grid, units).expect("clamped to what the wire holds"))
    }

    /// A bound on the norm of an honest message of `len` values, for the receiver's check: clip norm plus noise, which
    /// concentrates at σ√len. An honest message exceeds it with a probability below e^-50.
    pub fn message_bound(&self, len: usize) -> f64 {
        let noise = self.noise.sigma() * (libm::sqrt(len as f64) + 10.0);
        self.clip_norm + noise / self.grid.units_per_one()
    }
}

/// Standard deviations of noise that the wire has room for.
const CLAMP_DEVIATIONS: f64 = 8.0;

/// A message with all of its noise: what follows is post-processing.
#[derive(Clone, PartialEq, Eq)]
pub struct LocallyPrivate(FixedVector);

impl LocallyPrivate {
    /// The vector to send.
    pub fn into_vector(self) -> FixedVector {
        self.0
    }
}

impl fmt::Debug for LocallyPrivate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocallyPrivate({} values)", self.0.units().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clip::{RawUpdate, check_norm, clip};

    fn grid() -> Grid {
        Grid::new(16).unwrap()
    }

    fn deviation(message: LocallyPrivate) -> f64 {
        let vector = message.into_vector();
        let sum: f64 = vector.units().iter().map(|&u| f64::from(u).powi(2)).sum();
        (sum / vector.units().len() as f64).sqrt()
    }

    #[test]
    fn replacing_costs_twice_the_noise() {
        let mut rng = NoiseRng::seeded_for_tests(1);
        for (adjacency, factor) in [(Adjacency::AddRemove, 1.0), (Adjacency::ReplaceOne, 2.0)] {
            let noise = LocalNoise::new(0.5, 1.5, adjacency, grid()).unwrap();
            let expected = factor * 1.5 * 0.5 * 65_536.0;
            assert!((noise.sigma() / expected - 1.0).abs() < 1e-6);
            let found = deviation(noise.absent(100_000, &mut rng));
            assert!((found / expected - 1.0).abs() < 0.01, "{found}, not {expected}");
        }
    }

    #[test]
    fn a_message_is_update_plus_fresh_noise_within_the_receivers_bound() {
        let mut rng = NoiseRng::seeded_for_tests(2);
        let noise = LocalNoise::new(1.0, 0.5, Adjacency::ReplaceOne, grid()).unwrap();
        let update = clip(RawUpdate::new(vec![0.01; 10_000]), 1.0).unwrap();
        let messages: Vec<_> = (0..2).map(|_| noise.privatise(&update, &mut rng).unwrap()).collect();
        assert_ne!(messages[0], messages[1]);
        for message in messages {
            let vector = message.into_vector();
            let mean = vector.units().iter().map(|&u| f64::from(u)).sum::<f64>() / 1e4;
            assert!((mean - 655.36).abs() < 5.0 * noise.sigma() / 100.0, "{mean}");
            assert!(check_norm(vector.units(), grid(), noise.message_bound(10_000)).is_ok());
            assert!(check_norm(vector.units(), grid(), noise.message_bound(7_000)).is_err());
            let units = noise.message_bound_units(10_000) as f64;
            assert!((units / 65_536.0 / noise.message_bound(10_000) - 1.0).abs() < 1e-4, "{units}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let of = |clip_norm, z| LocalNoise::new(clip_norm, z, Adjacency::ReplaceOne, grid()).unwrap_err();
        assert!(matches!(of(f64::NAN, 1.0), LocalError::Noise(NoiseError::Bound(_))));
        assert!(matches!(of(1.0, f64::NAN), LocalError::Noise(NoiseError::Sigma(_))));
        assert!(matches!(of(1.0, 2000.0), LocalError::Range { .. }));
        let noise = LocalNoise::new(1.0, 1.0, Adjacency::ReplaceOne, grid()).unwrap();
        let other = clip(RawUpdate::new(vec![0.0; 3]), 2.0).unwrap();
        let e = noise.privatise(&other, &mut NoiseRng::seeded_for_tests(3)).unwrap_err();
        assert_eq!(e, LocalError::OtherBound { found: 2.0, wanted: 1.0 });
    }
}
