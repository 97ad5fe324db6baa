//! Cohorts whose draw is counted in the accountant's favour.

use crate::pld::{AccountantError, Mechanism};
use undertone_core::cohort::{Cohort, CohortRule};

/// Clients drawn by themselves with a probability, and cut down to a cap: what amplification by sampling rests on,
/// against whoever sees released models and does not know the draw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct CappedDraw {
    pub(super) rate: f64,
    pub(super) population: u32,
    pub(super) cap: u32,
}

impl CappedDraw {
    pub(super) fn of(cohort: &Cohort) -> Option<Self> {
        match cohort.rule() {
            CohortRule::Poisson { rate, population, cap, .. } => Some(Self { rate, population, cap }),
            // A draw of a fixed size is none of these, whatever its size (and everyone is no draw).
            CohortRule::All { .. } | CohortRule::Uniform { .. } | CohortRule::Buffered(_) => None,
        }
    }

    pub(super) fn mechanism(&self, noise_multiplier: f64) -> Result<Mechanism, AccountantError> {
        Mechanism::truncated_poisson_gaussian(
            noise_multiplier,
            self.rate,
            self.population.into(),
            self.cap.into(),
        )
    }
}
