//! Client level: each canary is a client of one large cohort, and sends the same update in every round.
//!
//! Included canaries take the path of an update: clipped and rounded as the client does, checked and folded as the
//! coordinator does, released from a ledger entry of the round. The cohort's public size is the number of canaries,
//! included or not, so that the divisor tells nothing.

use super::design::AuditError;
use super::subject::{canary, clip_norm, refused};
use crate::clip::{RawUpdate, check_norm, clip};
use crate::ledger::Ledger;
use crate::ledger::population::{Budgets, Totals};
use crate::noise::NoiseRng;
use crate::release::Carried;
use crate::release::release;
use crate::resolve::ResolvedContract;
use undertone_core::aggregate::IntegerSum;
use undertone_core::digest::Digest;
use undertone_core::fixed::Grid;
use undertone_core::id::{Attempt, AttemptKey, JobId, Round};

/// Scores from the releases of the job.
pub(super) fn released(
    contract: &ResolvedContract,
    grid: Grid,
    rounds: u32,
    included: &[bool],
    noise: &mut NoiseRng,
) -> Result<Vec<f64>, AuditError> {
    let clip_norm = clip_norm(contract)?;
    // Clients send the same in every round, so that the sum is the same; noise and ledger entry are not.
    let sum = fold(clip_norm, grid, included)?;
    let job = JobId::new("audit").map_err(|e| refused("job id")(&e))?;
    let population = Totals::new(Budgets::default());
    let mut ledger = Ledger::default();
    let mut scores = vec![0.0; included.len()];
    let mut carried = Carried::default();
    for round in 1..=rounds {
        let key = AttemptKey { job: job.clone(), round: Round(round), attempt: Attempt(1) };
        let reserved =
            ledger.reserve(key, contract, &population).map_err(|e| refused("privacy ledger")(&e))?;
        let entry =
            reserved.sampled(Digest::of(b"the canaries")).map_err(|e| refused("privacy ledger")(&e))?;
        for line in [reserved, entry.clone()] {
            ledger.apply(line).map_err(|e| refused("privacy ledger")(&e))?;
        }
        let (released, next) = release(sum.clone(), contract, &entry, included.len() as u32, carried, noise)
            .map_err(|e| refused("release")(&e))?;
        carried = next;
        scores.iter_mut().zip(released.mean()).for_each(|(score, mean)| *score += mean * clip_norm);
    }
    Ok(scores)
}

/// Scores from the plain means that a job without noise would give out.
pub(super) fn summed(
    contract: &ResolvedContract,
    grid: Grid,
    rounds: u32,
    included: &[bool],
) -> Result<Vec<f64>, AuditError> {
    let clip_norm = clip_norm(contract)?;
    let sum = fold(clip_norm, grid, included)?;
    let weight = f64::from(rounds) * clip_norm / (grid.units_per_one() * included.len() as f64);
    Ok(sum.units().iter().map(|&units| units as f64 * weight).collect())
}

/// The path of an update, up to the sum.
fn fold(clip_norm: f64, grid: Grid, included: &[bool]) -> Result<IntegerSum, AuditError> {
    let len = included.len();
    let mut sum = IntegerSum::zero(grid, len);
    for (coordinate, _) in included.iter().enumerate().filter(|(_, included)| **included) {
        let raw = RawUpdate::new(canary(len, coordinate, clip_norm));
        let clipped = clip(raw, clip_norm).map_err(|e| refused("clipping")(&e))?;
        let update = clipped.to_grid(grid).map_err(|e| refused("grid")(&e))?;
        check_norm(update.units(), grid, clip_norm).map_err(|e| refused("norm check")(&e))?;
        sum.fold(update.units(), 1).map_err(|e| refused("sum")(&e))?;
    }
    Ok(sum)
}
