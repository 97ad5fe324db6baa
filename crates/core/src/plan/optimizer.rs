//! How a gradient becomes a step.

use serde::{Deserialize, Serialize};

/// A client's optimiser; its state starts anew in each round. Step size, momentum and weight decay are the plan's.
///
/// The formulas are those of PyTorch's optimisers of these names, the defaults those of the papers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Optimizer {
    /// Stochastic gradient descent with the plan's `momentum`; `weight_decay` adds that part of the weights to the
    /// gradient.
    Sgd {},
    /// Adam (Kingma and Ba 2015); `weight_decay` adds that part of the weights to the gradient.
    Adam {
        /// Decay of the mean of gradients, β₁.
        #[serde(default = "beta1")]
        beta1: f64,
        /// Decay of the mean of squares, β₂.
        #[serde(default = "beta2")]
        beta2: f64,
        /// Added to the root of the mean of squares, ε.
        #[serde(default = "epsilon")]
        epsilon: f64,
    },
    /// AdamW (Loshchilov and Hutter 2019): Adam whose `weight_decay` shrinks the weights themselves, in step with the
    /// learning rate.
    AdamW {
        /// Decay of the mean of gradients, β₁.
        #[serde(default = "beta1")]
        beta1: f64,
        /// Decay of the mean of squares, β₂.
        #[serde(default = "beta2")]
        beta2: f64,
        /// Added to the root of the mean of squares, ε.
        #[serde(default = "epsilon")]
        epsilon: f64,
    },
}

/// What AdamW decays by where the plan does not say: PyTorch's default.
const ADAMW_WEIGHT_DECAY: f64 = 0.01;

fn beta1() -> f64 {
    0.9
}

fn beta2() -> f64 {
    0.999
}

fn epsilon() -> f64 {
    1e-8
}

impl Default for Optimizer {
    fn default() -> Self {
        Self::Sgd {}
    }
}

impl Optimizer {
    /// Whether it is the one that a plan without a word on it has.
    pub(super) fn is_sgd(&self) -> bool {
        *self == Self::default()
    }

    /// Its name in a job file.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sgd {} => "sgd",
            Self::Adam { .. } => "adam",
            Self::AdamW { .. } => "adamw",
        }
    }

    /// The weight decay of a plan that does not say.
    pub fn usual_weight_decay(&self) -> f64 {
        match self {
            Self::AdamW { .. } => ADAMW_WEIGHT_DECAY,
            Self::Sgd {} | Self::Adam { .. } => 0.0,
        }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// A sentence that says which number is wrong.
    pub fn validate(&self) -> Result<(), String> {
        let (Self::Adam { beta1, beta2, epsilon } | Self::AdamW { beta1, beta2, epsilon }) = *self else {
            return Ok(());
        };
        for (name, beta) in [("beta1", beta1), ("beta2", beta2)] {
            if !(0.0..1.0).contains(&beta) {
                return Err(format!("{name} of {} must be at least 0 and below 1, not {beta}", self.name()));
            }
        }
        // State and weights are f32: a smaller one would vanish, and a gradient of zero divide zero by zero.
        if !(epsilon.is_finite() && epsilon >= 1e-30) {
            return Err(format!(
                "epsilon of {} must be a number of at least 1e-30, not {epsilon}",
                self.name()
            ));
        }
        Ok(())
    }
}
