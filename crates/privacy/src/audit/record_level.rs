//! Record level: each canary is a row, and rows are spread over clients that each train with DP-SGD by themselves.
//!
//! A row is in one client, and clients draw their noise apart: what each client promises to its rows, all promise together
//! (parallel composition), so that the canaries of all count as those of one run. A client's gradient has a coordinate
//! for each of its rows. Who observes sees every step's noised gradient, which is more than the coordinator sees, and not
//! the batches.

use super::design::AuditError;
use super::subject::{canary, clip_norm, refused};
use crate::clip::clip_example_to_grid;
use crate::dp_sgd::{GradientMechanism, poisson_batch};
use crate::noise::NoiseRng;
use crate::resolve::ResolvedContract;
use undertone_core::trainer::RecordPrivacy;

/// Rows of a client, in or out: work grows with the square.
const ROWS: usize = 256;

/// Scores from the noised gradients of the job.
pub(super) fn noised(
    contract: &ResolvedContract,
    rounds: u32,
    included: &[bool],
    noise: &mut NoiseRng,
) -> Result<Vec<f64>, AuditError> {
    let clip_norm = clip_norm(contract)?;
    let privacy = privacy(contract)?;
    let mechanism = GradientMechanism::new(&privacy).map_err(|e| refused("noise")(&e))?;
    let mut scores = Vec::with_capacity(included.len());
    for rows in included.chunks(ROWS) {
        let gradients = gradients(rows, clip_norm);
        let mut client = vec![0.0; rows.len()];
        for _ in 0..steps(contract, rounds) {
            let batch: Vec<usize> =
                poisson_batch(gradients.len(), privacy.sampling_rate, || noise.bits()).collect();
            let mut sum = mechanism.empty_sum(rows.len());
            batch.iter().for_each(|&row| sum.add(&gradients[row]));
            let step = sum.noised(noise);
            client.iter_mut().zip(step.mean()).for_each(|(score, mean)| *score += mean * clip_norm);
        }
        scores.extend(client);
    }
    Ok(scores)
}

/// Scores from the plain sums that a job without noise would step by.
pub(super) fn summed(
    contract: &ResolvedContract,
    rounds: u32,
    included: &[bool],
    sampling: &mut NoiseRng,
) -> Result<Vec<f64>, AuditError> {
    let clip_norm = clip_norm(contract)?;
    let privacy = privacy(contract)?;
    let grid = GradientMechanism::new(&privacy).map_err(|e| refused("noise")(&e))?.grid();
    let mut scores = Vec::with_capacity(included.len());
    for rows in included.chunks(ROWS) {
        let gradients = gradients(rows, clip_norm);
        let mut sum = vec![0; rows.len()];
        for _ in 0..steps(contract, rounds) {
            for row in poisson_batch(gradients.len(), privacy.sampling_rate, || sampling.bits()) {
                clip_example_to_grid(&gradients[row], clip_norm, grid, &mut sum)
                    .map_err(|e| refused("clipping")(&e))?;
            }
        }
        scores.extend(sum.iter().map(|&units| units as f64));
    }
    Ok(scores)
}

/// The gradients of the rows that are there, the same in every step.
fn gradients(included: &[bool], clip_norm: f64) -> Vec<Vec<f32>> {
    let rows = included.iter().enumerate().filter(|(_, included)| **included);
    rows.map(|(coordinate, _)| canary(included.len(), coordinate, clip_norm)).collect()
}

fn privacy(contract: &ResolvedContract) -> Result<RecordPrivacy, AuditError> {
    contract.record_privacy(ROWS as u64).ok_or(AuditError::NoPromise)
}

fn steps(contract: &ResolvedContract, rounds: u32) -> u64 {
    u64::from(rounds) * u64::from(contract.charge())
}
