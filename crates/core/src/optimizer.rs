//! Server optimisers: how a mean update moves the global model.
//!
//! The arithmetic is f64 with + - * / and square roots, and each result is rounded to f32 once: the same bits everywhere.

mod state;

#[cfg(test)]
mod tests;

pub use state::{OptimizerState, StateError};

use serde::{Deserialize, Serialize};

/// A server optimiser (Reddi et al. 2021, "Adaptive federated optimization", call this ServerOpt). Δ is the mean update.
///
/// The adaptive ones are the paper's algorithm 2: momentum m ← β₁·m + (1-β₁)·Δ, weights += η·m / (√v + τ), each with
/// its own v, which begins at τ². There is no correction of the bias, as there is none in the paper. The learning rate
/// must be given: the paper tunes it for each task, between 10^-3 and 10.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum ServerOptimizer {
    /// weights += η·Δ. With 1.0 this is federated averaging (McMahan et al. 2017).
    Sgd {
        /// Server learning rate η.
        #[serde(default = "one")]
        learning_rate: f64,
    },
    /// FedAvgM (Hsu, Qi, Brown 2019): m ← momentum·m + Δ, weights += η·m.
    Momentum {
        /// Server learning rate η.
        #[serde(default = "one")]
        learning_rate: f64,
        /// How much of the last step is kept.
        #[serde(default = "nine_tenths")]
        momentum: f64,
    },
    /// FedAdam: v ← β₂·v + (1-β₂)·Δ².
    Adam {
        /// Server learning rate η.
        learning_rate: f64,
        /// Decay of the momentum, β₁.
        #[serde(default = "nine_tenths")]
        beta1: f64,
        /// Decay of the second moment, β₂.
        #[serde(default = "ninety_nine_hundredths")]
        beta2: f64,
        /// Degree of adaptivity τ: the smaller, the more.
        #[serde(default = "thousandth")]
        tau: f64,
    },
    /// FedYogi: v ← v - (1-β₂)·Δ²·sign(v - Δ²).
    Yogi {
        /// Server learning rate η.
        learning_rate: f64,
        /// Decay of the momentum, β₁.
        #[serde(default = "nine_tenths")]
        beta1: f64,
        /// Decay of the second moment, β₂.
        #[serde(default = "ninety_nine_hundredths")]
        beta2: f64,
        /// Degree of adaptivity τ: the smaller, the more.
        #[serde(default = "thousandth")]
        tau: f64,
    },
    /// FedAdagrad: v ← v + Δ². The paper runs it without momentum.
    Adagrad {
        /// Server learning rate η.
        learning_rate: f64,
        /// Decay of the momentum, β₁.
        #[serde(default)]
        beta1: f64,
        /// Degree of adaptivity τ: the smaller, the more.
        #[serde(default = "thousandth")]
        tau: f64,
    },
}

fn one() -> f64 {
    1.0
}

fn nine_tenths() -> f64 {
    0.9
}

fn ninety_nine_hundredths() -> f64 {
    0.99
}

fn thousandth() -> f64 {
    1e-3
}

impl Default for ServerOptimizer {
    fn default() -> Self {
        Self::Sgd { learning_rate: 1.0 }
    }
}

impl ServerOptimizer {
    /// Checks the numbers.
    ///
    /// # Errors
    /// A sentence that says which number is wrong.
    pub fn validate(&self) -> Result<(), String> {
        let (learning_rate, decays, tau) = match *self {
            Self::Sgd { learning_rate } => (learning_rate, vec![], None),
            Self::Momentum { learning_rate, momentum } => (learning_rate, vec![("momentum", momentum)], None),
            Self::Adam { learning_rate, beta1, beta2, tau }
            | Self::Yogi { learning_rate, beta1, beta2, tau } => {
                (learning_rate, vec![("beta1", beta1), ("beta2", beta2)], Some(tau))
            }
            Self::Adagrad { learning_rate, beta1, tau } => (learning_rate, vec![("beta1", beta1)], Some(tau)),
        };
        for (name, value) in [("learning_rate", Some(learning_rate)), ("tau", tau)] {
            if let Some(value) = value.filter(|value| !(value.is_finite() && *value > 0.0)) {
                return Err(format!("the server's {name} must be a positive number, not {value}"));
            }
        }
        for (name, value) in decays {
            if !(0.0..1.0).contains(&value) {
                return Err(format!("the server's {name} must be at least 0 and below 1, not {value}"));
            }
        }
        Ok(())
    }

    /// Whether something must be kept from round to round; without it the state is only its name and length.
    pub fn keeps_state(&self) -> bool {
        !matches!(self, Self::Sgd { .. })
    }

    /// The state before the first round, for a model of `len` values.
    pub fn start(&self, len: usize) -> OptimizerState {
        OptimizerState::zero(self, len)
    }

    /// Moves `weights` by `mean`, and `state` along. The two belong together: whoever stores the new weights stores
    /// the new state with them, and a round that is done again begins with the old state.
    ///
    /// # Errors
    /// [`StateError`] if the state is of another optimiser or another model; nothing is moved then.
    ///
    /// # Panics
    /// If the lengths of weights and mean differ.
    pub fn apply(
        &self,
        state: &mut OptimizerState,
        weights: &mut [f32],
        mean: impl ExactSizeIterator<Item = f64>,
    ) -> Result<(), StateError> {
        state.check(self, weights.len())?;
        self.round(state).part(weights, mean);
        Ok(())
    }

    /// Begins a round whose weights come in parts, for a model of the state's length.
    pub fn round<'a>(&'a self, state: &'a mut OptimizerState) -> ServerRound<'a> {
        state.rounds += 1;
        ServerRound { optimizer: self, state, done: 0 }
    }
}

/// A server optimiser's round under way: weights come in parts, one behind the other. How they are cut changes nothing.
#[derive(Debug)]
pub struct ServerRound<'a> {
    optimizer: &'a ServerOptimizer,
    state: &'a mut OptimizerState,
    /// Weights done.
    done: usize,
}

impl ServerRound<'_> {
    /// Moves the next weights by their mean.
    ///
    /// # Panics
    /// If the lengths of weights and mean differ, or the state is of a shorter model.
    pub fn part(&mut self, weights: &mut [f32], mean: impl ExactSizeIterator<Item = f64>) {
        assert_eq!(weights.len(), mean.len(), "mean and weights differ in length");
        let range = self.done..self.done + weights.len();
        self.done = range.end;
        // Moments that are not kept are empty.
        let of = |moments: &'_ mut Vec<f32>| if moments.is_empty() { 0..0 } else { range.clone() };
        let (first, second) = (&mut self.state.first, &mut self.state.second);
        let (of_first, of_second) = (of(first), of(second));
        let (first, second) = (&mut first[of_first], &mut second[of_second]);
        match *self.optimizer {
            ServerOptimizer::Sgd { learning_rate } => {
                for (w, delta) in weights.iter_mut().zip(mean) {
                    *w = (f64::from(*w) + learning_rate * delta) as f32;
                }
            }
            ServerOptimizer::Momentum { learning_rate, momentum } => {
                for ((w, m), delta) in weights.iter_mut().zip(first).zip(mean) {
                    let moved = momentum * f64::from(*m) + delta;
                    *m = moved as f32;
                    *w = (f64::from(*w) + learning_rate * moved) as f32;
                }
            }
            ServerOptimizer::Adam { learning_rate, beta1, beta2, tau } => {
                adapt(weights, mean, (first, second), (learning_rate, beta1, tau), |v, square| {
                    beta2 * v + (1.0 - beta2) * square
                });
            }
            ServerOptimizer::Yogi { learning_rate, beta1, beta2, tau } => {
                adapt(weights, mean, (first, second), (learning_rate, beta1, tau), |v, square| {
                    let step = (1.0 - beta2) * square;
                    if v > square {
                        v - step
                    } else if v < square {
                        v + step
                    } else {
                        v
                    }
                });
            }
            ServerOptimizer::Adagrad { learning_rate, beta1, tau } => {
                adapt(weights, mean, (first, second), (learning_rate, beta1, tau), |v, square| v + square);
            }
        }
    }
}

/// Algorithm 2 of the paper with `second` as its line for v. The step is made with the unrounded moments.
fn adapt(
    weights: &mut [f32],
    mean: impl Iterator<Item = f64>,
    (first, second): (&mut [f32], &mut [f32]),
    (learning_rate, beta1, tau): (f64, f64, f64),
    moment: impl Fn(f64, f64) -> f64,
) {
    for (((w, m), v), delta) in weights.iter_mut().zip(first).zip(second).zip(mean) {
        let momentum = beta1 * f64::from(*m) + (1.0 - beta1) * delta;
        let variance = moment(f64::from(*v), delta * delta);
        (*m, *v) = (momentum as f32, variance as f32);
        *w = (f64::from(*w) + learning_rate * momentum / (variance.sqrt() + tau)) as f32;
    }
}
