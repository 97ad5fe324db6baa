//! The kind of promise as a type: the evidence that each mechanism asks for.

use super::{Promised, ResolvedContract};
use crate::adaptive_clip::ClipState;
use crate::blt::{BltError, BltMechanism};
use crate::clip::BoundError;
use crate::contract::CentralMechanism;
use crate::discrete_gaussian::DiscreteGaussian;
use crate::local::{LocalError, LocalNoise};
use crate::sensitivity::L2Sensitivity;
use undertone_core::fixed::Grid;

/// The kind of promise of a [`ResolvedContract`].
#[derive(Debug, Clone, Copy)]
pub enum Terms<'a> {
    /// `unit = "none"`.
    NoPromise(NoPromise<'a>),
    /// `unit = "record"`, `trust = "local"`.
    RecordLocal(RecordLocal<'a>),
    /// `unit = "client"`, `trust = "central"`.
    ClientCentral(ClientCentral<'a>),
    /// `unit = "client"`, `trust = "local"`.
    ClientLocal(ClientLocal<'a>),
}

/// Evidence that a contract promises nothing.
#[derive(Debug, Clone, Copy)]
pub struct NoPromise<'a> {
    pub(crate) contract: &'a ResolvedContract,
}

/// Evidence that updates were made private before they left the clients.
#[derive(Debug, Clone, Copy)]
pub struct RecordLocal<'a> {
    pub(crate) contract: &'a ResolvedContract,
}

/// Evidence that the coordinator must add the noise.
#[derive(Debug, Clone, Copy)]
pub struct ClientCentral<'a> {
    pub(crate) contract: &'a ResolvedContract,
    pub(crate) promise: &'a Promised,
}

impl ClientCentral<'_> {
    /// How the noise is drawn.
    pub fn mechanism(&self) -> CentralMechanism {
        self.contract.contract().mechanism().unwrap_or_default()
    }

    /// The clip norm of a round: the contract's, or where it moves what `state` says, within the contract's clamps.
    pub(crate) fn clip_norm(&self, state: Option<&ClipState>) -> f64 {
        match (self.contract.contract().adaptive_clip(), state) {
            (Some(rule), Some(state)) => rule.clamp(state.clip_norm()),
            _ => self.promise.clip_norm,
        }
    }

    /// The noise of the sum in sensitivities: more than the contract's where a count takes its share.
    pub(crate) fn update_noise(&self) -> f64 {
        self.promise.update_noise
    }

    /// How far two neighbours can be apart in a sum of updates within `clip_norm`, in units of `grid`.
    pub(crate) fn sensitivity(&self, clip_norm: f64, grid: Grid) -> Result<L2Sensitivity, BoundError> {
        let one = L2Sensitivity::of_clipped(clip_norm, grid, self.promise.adjacency)?;
        Ok(one.times(self.contract.full_weight()))
    }

    /// Whether the noise of every round can be drawn, for sums of `values` values on `grid`, whatever the clip norm comes to.
    ///
    /// # Errors
    /// [`BltError`], which says which number does not fit.
    pub fn check_noise(&self, grid: Grid, values: usize) -> Result<(), BltError> {
        self.correlated_noise(grid, values)?;
        let norms = match self.contract.contract().adaptive_clip() {
            Some(rule) => vec![rule.clamp(0.0), rule.max()],
            None => vec![self.promise.clip_norm],
        };
        for norm in norms {
            DiscreteGaussian::for_sensitivity(self.update_noise(), self.sensitivity(norm, grid)?)?;
        }
        Ok(())
    }

    /// The correlated noise of the whole run, for sums of `values` values on `grid`; `None` under another mechanism.
    ///
    /// # Errors
    /// [`BltError`] if clip norm or noise does not suit the grid.
    pub fn correlated_noise(&self, grid: Grid, values: usize) -> Result<Option<BltMechanism>, BltError> {
        let Some(correlated) = &self.promise.correlated else { return Ok(None) };
        let sensitivity = self.sensitivity(self.promise.clip_norm, grid)?;
        BltMechanism::new(
            correlated.parameters.clone(),
            self.contract.schedule().rounds,
            correlated.participation,
            self.promise.noise_multiplier,
            sensitivity,
            values,
        )
        .map(Some)
    }
}

/// Evidence that each client must add all the noise to its own update.
#[derive(Debug, Clone, Copy)]
pub struct ClientLocal<'a> {
    pub(crate) contract: &'a ResolvedContract,
    pub(super) promise: &'a Promised,
}

impl ClientLocal<'_> {
    /// The mechanism of one client, for messages on `grid`.
    ///
    /// # Errors
    /// [`LocalError`] if clip norm or noise does not suit the grid or the wire.
    pub fn noise(&self, grid: Grid) -> Result<LocalNoise, LocalError> {
        let p = self.promise;
        LocalNoise::new(p.clip_norm, p.noise_multiplier, p.adjacency, grid)
    }
}
