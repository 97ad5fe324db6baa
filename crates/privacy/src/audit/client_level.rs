//! Client level, everyone or a fixed number asked: each canary is a client of one large cohort, and sends the same update
//! in every round.
//!
//! Included canaries take the path of an update: clipped and rounded as the client does, checked and folded as the
//! coordinator does, released from a ledger entry of the round. Where neighbours replace a client, those that are not
//! included send the opposite. The cohort's public size is the number of canaries, included or not, so that the divisor
//! tells nothing.

use super::design::AuditError;
use super::subject::{Two, clip_norm, refused};
use crate::clip::{RawUpdate, check_norm, clip};
use crate::ledger::population::{Budgets, Totals};
use crate::ledger::{Ledger, LedgerEntry};
use crate::noise::NoiseRng;
use crate::release::Carried;
use crate::release::release;
use crate::resolve::ResolvedContract;
use undertone_core::aggregate::IntegerSum;
use undertone_core::digest::Digest;
use undertone_core::fixed::{FixedVector, Grid};
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
    let sum = fold(contract, grid, included)?;
    let mut scores = vec![0.0; included.len()];
    let mut carried = Carried::default();
    for round in 1..=rounds {
        let entry = attempt(contract, round)?;
        // A client takes part as often as it may, as early as it may.
        let takes_part = contract.participation().is_none_or(|rule| {
            (round - 1).is_multiple_of(rule.separation()) && (round - 1) / rule.separation() < rule.limit()
        });
        let sum = if takes_part { sum.clone() } else { IntegerSum::zero(grid, included.len()) };
        let (released, next) = release(sum, contract, &entry, included.len() as u32, carried, noise)
            .map_err(|e| refused("release")(&e))?;
        // A clip norm that moves is held where it began: what is attacked is the noise of the updates.
        carried = Carried { clip: None, ..next };
        if !takes_part {
            continue;
        }
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
    let sum = fold(contract, grid, included)?;
    let weight = f64::from(rounds) * clip_norm(contract)? / (grid.units_per_one() * included.len() as f64);
    Ok(sum.units().iter().map(|&units| units as f64 * weight).collect())
}

/// The ledger entry that a round's release asks for, on a page of its own: ε of all rounds is what the design claims.
pub(super) fn attempt(contract: &ResolvedContract, round: u32) -> Result<LedgerEntry, AuditError> {
    let job = JobId::new("audit").map_err(|e| refused("job id")(&e))?;
    let key = AttemptKey { job, round: Round(round), attempt: Attempt(1) };
    let population = Totals::new(Budgets::default());
    let reserved = Ledger::default().reserve(key, contract, &population);
    let reserved = reserved.map_err(|e| refused("privacy ledger")(&e))?;
    reserved.sampled(Digest::of(b"the canaries")).map_err(|e| refused("privacy ledger")(&e))
}

/// The path of an update in the client, and the coordinator's check.
pub(super) fn update(
    raw: Vec<f32>,
    contract: &ResolvedContract,
    grid: Grid,
) -> Result<FixedVector, AuditError> {
    let clip_norm = clip_norm(contract)?;
    let clipped = clip(RawUpdate::new(raw), clip_norm).map_err(|e| refused("clipping")(&e))?;
    let update = clipped.to_grid(grid).map_err(|e| refused("grid")(&e))?;
    check_norm(update.units(), grid, clip_norm).map_err(|e| refused("norm check")(&e))?;
    Ok(update)
}

fn fold(contract: &ResolvedContract, grid: Grid, included: &[bool]) -> Result<IntegerSum, AuditError> {
    let (two, len) = (Two::of(contract)?, included.len());
    let mut sum = IntegerSum::zero(grid, len);
    for (coordinate, &included) in included.iter().enumerate() {
        if let Some(raw) = two.hand_in(included, len, coordinate) {
            let update = update(raw, contract, grid)?;
            // Whoever may count more does.
            sum.fold(update.units(), contract.full_weight()).map_err(|e| refused("sum")(&e))?;
        }
    }
    Ok(sum)
}
