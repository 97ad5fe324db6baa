//! Client level, local trust: each canary is a client by itself, and a coin says which of two neighbouring updates it sends
//! in every round. Who observes sees its messages, as the coordinator does, and guesses which.
//!
//! Clients draw their noise apart, so that the guesses about all count as those of one run. A message has one value: more
//! would carry noise alone. It is clipped, rounded and noised by the client's own functions, or is the noise that a client
//! with nothing to say sends, where that is the neighbour.

use super::design::AuditError;
use super::subject::{Two, clip_norm, refused};
use crate::clip::{RawUpdate, clip};
use crate::noise::NoiseRng;
use crate::resolve::{ClientLocal, ResolvedContract};
use undertone_core::fixed::Grid;

/// Scores from the messages of the clients.
pub(super) fn sent(
    contract: &ResolvedContract,
    terms: ClientLocal<'_>,
    grid: Grid,
    rounds: u32,
    included: &[bool],
    noise: &mut NoiseRng,
) -> Result<Vec<f64>, AuditError> {
    let mechanism = terms.noise(grid).map_err(|e| refused("noise")(&e))?;
    let two = Two::of(contract)?;
    let score = |&included: &bool| {
        let mut score = 0.0;
        for _ in 0..rounds {
            let message = match two.hand_in(included, 1, 0) {
                Some(raw) => {
                    let clipped = clip(RawUpdate::new(raw), mechanism.clip_norm())
                        .map_err(|e| refused("clipping")(&e))?;
                    mechanism.privatise(&clipped, noise).map_err(|e| refused("noise")(&e))?
                }
                None => mechanism.absent(1, noise),
            };
            score += f64::from(message.into_vector().units()[0]);
        }
        Ok(score)
    };
    included.iter().map(score).collect()
}

/// Scores from the updates themselves, as they would leave without noise.
pub(super) fn unnoised(
    contract: &ResolvedContract,
    grid: Grid,
    rounds: u32,
    included: &[bool],
) -> Result<Vec<f64>, AuditError> {
    let (two, bound) = (Two::of(contract)?, clip_norm(contract)?);
    let score = |&included: &bool| {
        let Some(raw) = two.hand_in(included, 1, 0) else { return Ok(0.0) };
        let clipped = clip(RawUpdate::new(raw), bound).map_err(|e| refused("clipping")(&e))?;
        let update = clipped.to_grid(grid).map_err(|e| refused("grid")(&e))?;
        Ok(f64::from(rounds) * f64::from(update.units()[0]))
    };
    included.iter().map(score).collect()
}
