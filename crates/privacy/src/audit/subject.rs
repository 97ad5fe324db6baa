//! What is audited: a job's own path to its releases, or, as the positive control, the same path without the noise.

use super::design::AuditError;
use super::{client_level, record_level};
use crate::noise::NoiseRng;
use crate::resolve::{ResolvedContract, Terms};
use undertone_core::fixed::Grid;

/// Gives out what an observer of all releases sees of each canary.
pub trait Subject {
    /// Runs `rounds` rounds with the canaries that are `included`; a score for each canary, included or not: the sum over
    /// rounds of ⟨release, canary⟩.
    ///
    /// # Errors
    /// [`AuditError`] if the job promises nothing, or a step of it refuses.
    fn scores(&mut self, rounds: u32, included: &[bool]) -> Result<Vec<f64>, AuditError>;
}

/// A job: its contract, its grid, the functions that it uses, noise from the operating system.
#[derive(Debug)]
pub struct JobUnderAudit<'a> {
    contract: &'a ResolvedContract,
    grid: Grid,
    noise: NoiseRng,
}

impl<'a> JobUnderAudit<'a> {
    /// The job of a contract whose updates travel on `grid`.
    pub fn new(contract: &'a ResolvedContract, grid: Grid, noise: NoiseRng) -> Self {
        Self { contract, grid, noise }
    }
}

impl Subject for JobUnderAudit<'_> {
    fn scores(&mut self, rounds: u32, included: &[bool]) -> Result<Vec<f64>, AuditError> {
        let Self { contract, grid, noise } = self;
        match contract.terms() {
            Terms::ClientCentral(_) => client_level::released(contract, *grid, rounds, included, noise),
            Terms::RecordLocal(_) => record_level::noised(contract, rounds, included, noise),
            Terms::ClientLocal(_) => Err(AuditError::NotCovered),
            Terms::NoPromise(_) => Err(AuditError::NoPromise),
        }
    }
}

/// A job whose noise was forgotten. It is put together from pieces: no [`Releasable`](crate::release::Releasable) and no
/// [`NoisedGradient`](crate::dp_sgd::NoisedGradient) comes out of it, and nothing but scores does.
#[derive(Debug)]
pub struct WithoutNoise<'a> {
    contract: &'a ResolvedContract,
    grid: Grid,
    sampling: NoiseRng,
}

impl<'a> WithoutNoise<'a> {
    /// The control of [`JobUnderAudit`]; `sampling` draws batches only.
    pub fn new(contract: &'a ResolvedContract, grid: Grid, sampling: NoiseRng) -> Self {
        Self { contract, grid, sampling }
    }
}

impl Subject for WithoutNoise<'_> {
    fn scores(&mut self, rounds: u32, included: &[bool]) -> Result<Vec<f64>, AuditError> {
        let Self { contract, grid, sampling } = self;
        match contract.terms() {
            Terms::ClientCentral(_) => client_level::summed(contract, *grid, rounds, included),
            Terms::RecordLocal(_) => record_level::summed(contract, rounds, included, sampling),
            Terms::ClientLocal(_) => Err(AuditError::NotCovered),
            Terms::NoPromise(_) => Err(AuditError::NoPromise),
        }
    }
}

/// A refusal of a step of the job.
pub(super) fn refused(step: &'static str) -> impl Fn(&dyn std::fmt::Display) -> AuditError {
    move |reason| AuditError::Refused { step, reason: reason.to_string() }
}

/// A canary before clipping: twice the clip norm on a coordinate of its own, so that clipping has work to do.
pub(super) fn canary(len: usize, coordinate: usize, clip_norm: f64) -> Vec<f32> {
    let mut values = vec![0.0; len];
    values[coordinate] = (2.0 * clip_norm) as f32;
    values
}

/// The clip norm of a contract that promises something.
pub(super) fn clip_norm(contract: &ResolvedContract) -> Result<f64, AuditError> {
    contract.contract().clip_norm().ok_or(AuditError::NoPromise)
}
