//! Server optimisers: how a mean update moves the global model.

use serde::{Deserialize, Serialize};

/// A server optimiser (Reddi et al. 2021 call this ServerOpt).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum ServerOptimizer {
    /// weights += learning_rate · mean. With 1.0 this is federated averaging (McMahan et al. 2017).
    Sgd {
        /// Server learning rate.
        #[serde(default = "one")]
        learning_rate: f64,
    },
}

fn one() -> f64 {
    1.0
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
        let Self::Sgd { learning_rate } = self;
        if learning_rate.is_finite() && *learning_rate > 0.0 {
            Ok(())
        } else {
            Err(format!("the server's learning_rate must be a positive number, not {learning_rate}"))
        }
    }

    /// Moves `weights` by `mean`. The arithmetic is f64, rounded once: the same bits everywhere.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn apply(&self, weights: &mut [f32], mean: impl ExactSizeIterator<Item = f64>) {
        assert_eq!(weights.len(), mean.len(), "mean and weights differ in length");
        let Self::Sgd { learning_rate } = self;
        for (w, m) in weights.iter_mut().zip(mean) {
            *w = (f64::from(*w) + learning_rate * m) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sgd_moves_by_the_mean() {
        let mut w = [1.0, -1.0];
        ServerOptimizer::Sgd { learning_rate: 0.5 }.apply(&mut w, [2.0, 4.0].into_iter());
        assert_eq!(w, [2.0, 1.0]);
        assert!(ServerOptimizer::Sgd { learning_rate: f64::NAN }.validate().is_err());
    }
}
