//! What is audited: a job's own path to its releases, or, as the positive control, the same path without the noise.

use super::design::AuditError;
use super::drawn_cohorts::{self, Draw};
use super::{client_level, local_messages, record_level};
use crate::noise::NoiseRng;
use crate::resolve::{ResolvedContract, Terms};
use crate::sensitivity::Adjacency;
use undertone_core::fixed::Grid;

/// Gives out what an observer of all releases sees of each canary.
pub trait Subject {
    /// Runs `rounds` rounds with the canaries that are `included`; a score for each canary, included or not: the higher,
    /// the likelier it is.
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
            Terms::ClientCentral(_) => match Draw::of(contract) {
                Some(draw) => drawn_cohorts::released(contract, draw, *grid, rounds, included, noise),
                None => client_level::released(contract, *grid, rounds, included, noise),
            },
            Terms::RecordLocal(_) => record_level::noised(contract, rounds, included, noise),
            Terms::ClientLocal(terms) => {
                local_messages::sent(contract, terms, *grid, rounds, included, noise)
            }
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
    /// The control of [`JobUnderAudit`]; `sampling` draws batches and cohorts only.
    pub fn new(contract: &'a ResolvedContract, grid: Grid, sampling: NoiseRng) -> Self {
        Self { contract, grid, sampling }
    }
}

impl Subject for WithoutNoise<'_> {
    fn scores(&mut self, rounds: u32, included: &[bool]) -> Result<Vec<f64>, AuditError> {
        let Self { contract, grid, sampling } = self;
        match contract.terms() {
            Terms::ClientCentral(_) => match Draw::of(contract) {
                Some(draw) => drawn_cohorts::summed(contract, draw, *grid, rounds, included, sampling),
                None => client_level::summed(contract, *grid, rounds, included),
            },
            Terms::RecordLocal(_) => record_level::summed(contract, rounds, included, sampling),
            Terms::ClientLocal(_) => local_messages::unnoised(contract, *grid, rounds, included),
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

/// The two neighbours that a client-level canary's coin decides between: its update, or what the contract's adjacency puts
/// in its place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Two {
    clip_norm: f64,
    adjacency: Adjacency,
}

impl Two {
    pub(super) fn of(contract: &ResolvedContract) -> Result<Self, AuditError> {
        let adjacency = contract.adjacency().ok_or(AuditError::NoPromise)?;
        Ok(Self { clip_norm: clip_norm(contract)?, adjacency })
    }

    /// What training gave to a canary with this coin: [`canary`], or else nothing, or where neighbours replace a client
    /// the opposite, as far away as may be.
    pub(super) fn hand_in(&self, included: bool, len: usize, coordinate: usize) -> Option<Vec<f32>> {
        match (included, self.adjacency) {
            (true, _) => Some(canary(len, coordinate, self.clip_norm)),
            (false, Adjacency::ReplaceOne) => Some(canary(len, coordinate, -self.clip_norm)),
            (false, Adjacency::AddRemove) => None,
        }
    }
}

/// The clip norm of a contract that promises something.
pub(super) fn clip_norm(contract: &ResolvedContract) -> Result<f64, AuditError> {
    contract.contract().clip_norm().ok_or(AuditError::NoPromise)
}
