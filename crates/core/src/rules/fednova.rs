//! FedNova: clients that made more local steps do not pull harder (Wang et al. 2020, "Tackling the objective
//! inconsistency problem in heterogeneous federated optimization", section 4).
//!
//! The step is τ_eff · Σ pᵢ·uᵢ/‖aᵢ‖₁ with τ_eff = Σ pᵢ·‖aᵢ‖₁, where pᵢ is the client's share of the weight and ‖aᵢ‖₁ what
//! its local steps sum to. Each client sends uᵢ·‖a‖₁/‖aᵢ‖₁, its update as if it had made the most steps that the job
//! allows (‖a‖₁ are those), which loses no precision on the grid; beside it goes the number of its steps. The
//! coordinator sums both exactly, and multiplies the mean by τ_eff/‖a‖₁.

use super::rescale::RescaleError;
use crate::limits::MAX_LOCAL_STEPS;
use crate::plan::{LocalWork, Optimizer, Over, TrainPlan};
use serde::{Deserialize, Serialize};

/// FedNova as a job names it; how clients step follows from the training plan.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FedNova {
    /// Most local steps that a client may make in a round, 1 to [`MAX_LOCAL_STEPS`]. One that would make more takes no part.
    pub max_steps: u32,
}

/// FedNova with the plan's steps: what [`FedNova::resolve`] gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normalisation {
    solver: LocalSolver,
    max_steps: u32,
}

/// How clients step: what one step leaves behind in the update.
#[derive(Debug, Clone, Copy, PartialEq)]
enum LocalSolver {
    /// Plain SGD: each step counts one.
    Sgd,
    /// SGD with momentum ρ, 0 to below 1.
    Momentum(f64),
    /// SGD on the loss with FedProx's term: the local learning rate times the term's coefficient, ημ, 0 to below 1.
    Proximal(f64),
}

/// Fraction bits of ‖a‖₁ in the exact sum. A million steps are at most 2^39 of plain momentum: 2^55 units.
const EFFORT_BITS: u32 = 16;

impl FedNova {
    /// Checks the number, and that the plan is one for which FedNova is defined and does something.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what would be right.
    pub fn resolve(&self, plan: &TrainPlan) -> Result<Normalisation, String> {
        let max_steps = self.max_steps;
        if !(1..=MAX_LOCAL_STEPS).contains(&max_steps) {
            return Err(format!("max_steps of fednova must be 1 to {MAX_LOCAL_STEPS}, not {max_steps}"));
        }
        let all_alike = match (plan.work(), plan.batch_size) {
            (LocalWork::Steps(_), _) => Some("local_steps"),
            (LocalWork::Epochs(_), None) => Some("local_epochs and no batch_size"),
            (LocalWork::Epochs(_), Some(_)) => None,
        };
        if let Some(what) = all_alike {
            return Err(format!(
                "fednova changes nothing here: with {what} all clients make as many steps; give local_epochs and batch_size, \
                 or leave fednova out"
            ));
        }
        if plan.optimizer != Optimizer::default() || plan.weight_decay() > 0.0 {
            return Err("fednova knows what the steps of sgd without weight_decay sum to: leave optimizer and weight_decay \
                        out, or leave fednova out"
                .into());
        }
        if plan.schedule.is_some_and(|s| s.over() == Over::Round || plan.proximal > 0.0) {
            return Err("fednova knows what steps of one size sum to: give the schedule over = \"job\" and no proximal term, or \
                        leave fednova out"
                .into());
        }
        let pull = plan.learning_rate * plan.proximal;
        let solver = match (plan.momentum > 0.0, plan.proximal > 0.0) {
            (false, false) => LocalSolver::Sgd,
            (true, false) => LocalSolver::Momentum(plan.momentum),
            (false, true) if pull < 1.0 => LocalSolver::Proximal(pull),
            (false, true) => {
                return Err(format!(
                    "fednova needs learning_rate times proximal below 1, not {pull}: steps would overshoot the model that they \
                     are to stay near"
                ));
            }
            (true, true) => {
                return Err("fednova knows what steps with momentum or with the proximal term sum to, not with both: \
                            leave one out"
                    .into());
            }
        };
        Ok(Normalisation { solver, max_steps })
    }
}

impl Normalisation {
    /// Most local steps.
    pub fn max_steps(&self) -> u32 {
        self.max_steps
    }

    /// What a client that made so many steps multiplies its update by.
    ///
    /// # Errors
    /// [`RescaleError::Steps`].
    pub(super) fn factor(&self, steps: u64) -> Result<f64, RescaleError> {
        match u32::try_from(steps).ok().filter(|steps| (1..=self.max_steps).contains(steps)) {
            Some(steps) => Ok(self.normaliser(self.max_steps) / self.normaliser(steps)),
            None => Err(RescaleError::Steps { steps, max_steps: self.max_steps }),
        }
    }

    /// ‖a‖₁, what `steps` local steps sum to (their section 4.1): the steps themselves for plain SGD,
    /// (τ - ρ·(1-ρ^τ)/(1-ρ)) / (1-ρ) with momentum, (1-(1-ημ)^τ) / ημ with the proximal term.
    pub fn normaliser(&self, steps: u32) -> f64 {
        let tau = f64::from(steps);
        match self.solver {
            LocalSolver::Sgd => tau,
            LocalSolver::Momentum(rho) => (tau - rho * (1.0 - power(rho, steps)) / (1.0 - rho)) / (1.0 - rho),
            LocalSolver::Proximal(pull) => (1.0 - power(1.0 - pull, steps)) / pull,
        }
    }

    /// ‖a‖₁ on the grid of the sum.
    pub(super) fn effort(&self, steps: u32) -> u64 {
        (self.normaliser(steps) * f64::from(1u32 << EFFORT_BITS)).round() as u64
    }

    /// τ_eff/‖a‖₁, where Σ wᵢ·[`effort`](Self::effort) is `efforts` and Σ wᵢ is `weight`.
    pub(super) fn effective(&self, efforts: u128, weight: u64) -> f64 {
        let effective = efforts as f64 / (weight as f64 * f64::from(1u32 << EFFORT_BITS));
        effective / self.normaliser(self.max_steps)
    }
}

/// A power by repeated squaring: multiplications only, the same bits everywhere.
fn power(mut base: f64, mut exponent: u32) -> f64 {
    let mut result = 1.0;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result *= base;
        }
        base *= base;
        exponent >>= 1;
    }
    result
}
