//! Recomputing ε from the lines of a ledger alone.

use super::chain::Line;
use super::{DamagedLedger, EntryState, Loss};
use crate::pld::{AccountantError, Adjacency, Composition, Mechanism};
use std::collections::BTreeMap;
use undertone_core::id::JobId;

/// How far the ε that was told may be above the one that is recomputed: bounds of two compositions may cross by a
/// rounding, and what was told is never taken back.
const SLACK: f64 = 1e-3;

/// A job as its lines tell it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Told {
    seq: u64,
    loss: Option<Loss>,
    delta: Option<f64>,
    compositions: u64,
    /// ε of all measurements.
    measured: f64,
    epsilon: Option<f64>,
}

impl Loss {
    /// The ε of so many compositions.
    fn epsilon(&self, compositions: u64, delta: f64) -> Result<f64, AccountantError> {
        // The multiplier counts sensitivities, so that the step between neighbours is one whatever they are.
        let mechanism = match *self {
            Self::Gaussian { noise_multiplier, sampling_rate, .. } => {
                Mechanism::poisson_gaussian(noise_multiplier, sampling_rate)?
            }
            Self::CorrelatedGaussian { noise_multiplier, .. } => {
                Mechanism::poisson_gaussian(noise_multiplier, 1.0)?
            }
            Self::CappedPoissonGaussian { noise_multiplier, sampling_rate, population, cap } => {
                Mechanism::truncated_poisson_gaussian(
                    noise_multiplier,
                    sampling_rate,
                    population.into(),
                    cap.into(),
                )?
            }
        };
        Composition::new(Adjacency::AddRemove).add(mechanism, compositions)?.epsilon_upper(delta)
    }
}

/// Holds the ε that the last line of each job tells against the one that its mechanism, its numbers and the number of its
/// attempts give. That the lines follow from each other is the business of [`Chain`](super::chain::Chain).
///
/// # Errors
/// [`DamagedLedger`] at the first job whose ε does not follow, or whose mechanism changed.
pub fn recompute<'a>(lines: impl IntoIterator<Item = &'a Line>) -> Result<(), DamagedLedger> {
    let mut jobs: BTreeMap<&JobId, Told> = BTreeMap::new();
    for line in lines.into_iter().filter(|line| line.entry.state == EntryState::Reserved) {
        let entry = &line.entry;
        let told = jobs.entry(&entry.key.job).or_insert(Told {
            seq: line.seq,
            loss: entry.loss,
            delta: entry.delta,
            compositions: 0,
            measured: 0.0,
            epsilon: None,
        });
        if (told.loss, told.delta) != (entry.loss, entry.delta) {
            return Err(DamagedLedger { seq: line.seq, problem: "its job's mechanism changed" });
        }
        told.seq = line.seq;
        told.compositions += u64::from(entry.compositions);
        told.measured += entry.metrics.unwrap_or(0.0);
        told.epsilon = entry.epsilon_after;
    }
    for told in jobs.into_values() {
        let follows = match (told.loss, told.delta, told.epsilon) {
            (None, None, None) => true,
            (Some(loss), Some(delta), Some(epsilon)) => {
                loss.epsilon(told.compositions, delta).is_ok_and(|expected| {
                    let expected = expected + told.measured;
                    epsilon >= expected * (1.0 - 1e-9) && epsilon <= expected * (1.0 + SLACK)
                })
            }
            _ => false,
        };
        if !follows {
            return Err(DamagedLedger {
                seq: told.seq, problem: "its ε does not follow from its mechanism"
            });
        }
    }
    Ok(())
}
