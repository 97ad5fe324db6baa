//! FedNova: clients that made more local steps do not pull harder (Wang et al. 2020, "Tackling the objective
//! inconsistency problem in heterogeneous federated optimization").

use super::integer_weights::IntegerWeights;
use super::weighted_mean::checked_weights;
use super::{Aggregate, Rows, RuleError, Tiling};
use crate::limits::MAX_LOCAL_STEPS;
use serde::{Deserialize, Serialize};

/// How clients step: what one step leaves behind in the update.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum LocalSolver {
    /// Plain SGD: each step counts one.
    Sgd {},
    /// SGD with momentum.
    Momentum {
        /// ρ, 0 to below 1.
        momentum: f64,
    },
    /// SGD on the loss with FedProx's term.
    Proximal {
        /// The local learning rate times the term's coefficient, ημ, above 0 and below 1.
        pull: f64,
    },
}

impl LocalSolver {
    /// Checks the numbers.
    ///
    /// # Errors
    /// A sentence that says which number is wrong.
    pub fn validate(&self) -> Result<(), String> {
        match *self {
            Self::Momentum { momentum } if !(0.0..1.0).contains(&momentum) => {
                Err(format!("momentum of the local solver must be at least 0 and below 1, not {momentum}"))
            }
            Self::Proximal { pull } if !(pull > 0.0 && pull < 1.0) => Err(format!(
                "pull of the local solver (learning rate times proximal coefficient) must be above 0 and below 1, \
                 not {pull}"
            )),
            _ => Ok(()),
        }
    }

    /// ‖a‖₁, what `steps` local steps sum to (their section 4.1): the steps themselves for plain SGD,
    /// (τ - ρ·(1-ρ^τ)/(1-ρ)) / (1-ρ) with momentum, (1-(1-ημ)^τ) / ημ with the proximal term.
    pub fn normaliser(&self, steps: u32) -> f64 {
        let tau = f64::from(steps);
        match *self {
            Self::Sgd {} => tau,
            Self::Momentum { momentum: rho } => {
                (tau - rho * (1.0 - power(rho, steps)) / (1.0 - rho)) / (1.0 - rho)
            }
            Self::Proximal { pull } => (1.0 - power(1.0 - pull, steps)) / pull,
        }
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

/// τ_eff · Σ pᵢ·uᵢ/‖aᵢ‖₁ with τ_eff = Σ pᵢ·‖aᵢ‖₁, where pᵢ is the client's share of the weight and aᵢ follows from
/// `steps[i]`, its local steps. If all made as many, this is the weighted mean.
///
/// # Errors
/// [`RuleError::Refused`] if the steps are not one positive number for each update, or the solver is not valid.
pub fn aggregate(
    rows: &dyn Rows,
    tiling: Tiling,
    solver: &LocalSolver,
    steps: &[u32],
) -> Result<Aggregate, RuleError> {
    solver.validate().map_err(RuleError::Refused)?;
    if steps.len() != rows.rows() {
        let text = format!("there are {} numbers of local steps for {} updates", steps.len(), rows.rows());
        return Err(RuleError::Refused(text));
    }
    if let Some(row) = steps.iter().position(|steps| !(1..=MAX_LOCAL_STEPS).contains(steps)) {
        let text =
            format!("update {row} is of {} local steps, which must be 1 to {MAX_LOCAL_STEPS}", steps[row]);
        return Err(RuleError::Refused(text));
    }
    let (weights, total) = checked_weights(rows)?;
    let share = |weight: u32| f64::from(weight) / total as f64;
    let normalisers: Vec<f64> = steps.iter().map(|&steps| solver.normaliser(steps)).collect();
    let efforts: Vec<f64> = weights.iter().zip(&normalisers).map(|(&w, a)| share(w) * a).collect();
    let effective = super::integer_weights::sum(&efforts);
    let pull = weights.iter().zip(&normalisers).map(|(&w, a)| share(w) * effective / a);
    let units = IntegerWeights::of(&Vec::from_iter(pull)).sums(rows, tiling)?;
    Ok(Aggregate::Real { units })
}
