//! The built-in models: what tensors they have, and their seeded initial values.
//!
//! Tensor names are PyTorch's: `logistic` is a `torch.nn.Linear`, `mlp` a `torch.nn.Sequential` of
//! `Linear, activation, Linear, …`, so `load_state_dict` opens a saved model as it is.

use crate::layout::{LayoutError, ModelLayout, TensorSpec};
use crate::limits::{MAX_HIDDEN_LAYERS, MAX_WIDTH};
use rand::RngExt as _;
use rand::SeedableRng as _;
use rand_chacha::ChaCha20Rng;
use serde::{Deserialize, Serialize};

/// A model, as the job names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum ModelSpec {
    /// One linear layer: logistic (two classes) or softmax regression. Starts at zero.
    Logistic {},
    /// A perceptron with hidden layers.
    Mlp {
        /// Widths of the hidden layers.
        hidden: Vec<usize>,
        /// What stands between the layers.
        #[serde(default)]
        activation: Activation,
        /// Seed of the initial weights.
        #[serde(default)]
        seed: u64,
    },
}

/// The nonlinearity between layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// max(0, x)
    #[default]
    Relu,
    /// tanh(x): bounded activations do well under per-example clipping (Papernot et al. 2021).
    Tanh,
}

/// One linear layer of a built-in model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearLayer {
    /// The prefix of its tensors' names: `""` or for example `"0."`.
    pub prefix: String,
    /// Width of the input.
    pub inputs: usize,
    /// Width of the output.
    pub outputs: usize,
}

impl ModelSpec {
    /// Checks the parts that a type cannot.
    ///
    /// # Errors
    /// A sentence that says which number is wrong.
    pub fn validate(&self) -> Result<(), String> {
        match self {
            Self::Logistic {} => Ok(()),
            Self::Mlp { hidden, .. } => {
                if hidden.is_empty() || hidden.len() > MAX_HIDDEN_LAYERS {
                    Err(format!("an mlp needs 1 to {MAX_HIDDEN_LAYERS} hidden layers, not {}", hidden.len()))
                } else if let Some(w) = hidden.iter().find(|&&w| w == 0 || w > MAX_WIDTH) {
                    Err(format!("a hidden layer is 1 to {MAX_WIDTH} wide, not {w}"))
                } else {
                    Ok(())
                }
            }
        }
    }

    /// The linear layers from input to output.
    pub fn layers(&self, inputs: usize, outputs: usize) -> Vec<LinearLayer> {
        match self {
            Self::Logistic {} => vec![LinearLayer { prefix: String::new(), inputs, outputs }],
            Self::Mlp { hidden, .. } => {
                let widths: Vec<usize> =
                    std::iter::once(inputs).chain(hidden.iter().copied()).chain([outputs]).collect();
                widths
                    .windows(2)
                    .enumerate()
                    // In a Sequential the activations take the odd places.
                    .map(|(i, w)| LinearLayer { prefix: format!("{}.", 2 * i), inputs: w[0], outputs: w[1] })
                    .collect()
            }
        }
    }

    /// The model's tensors for this many inputs and outputs.
    ///
    /// # Errors
    /// [`LayoutError::TooLarge`].
    pub fn layout(&self, inputs: usize, outputs: usize) -> Result<ModelLayout, LayoutError> {
        ModelLayout::new(
            self.layers(inputs, outputs)
                .into_iter()
                .flat_map(|l| {
                    [
                        TensorSpec { name: format!("{}weight", l.prefix), shape: vec![l.outputs, l.inputs] },
                        TensorSpec { name: format!("{}bias", l.prefix), shape: vec![l.outputs] },
                    ]
                })
                .collect(),
        )
    }

    /// The values to start from: the same bits on every machine for the same seed.
    ///
    /// An `mlp` draws each layer's weights and biases uniformly from ±1/√inputs, which is what PyTorch's
    /// `Linear` does by default (He et al. 2015 with a = √5).
    pub fn initial_values(&self, inputs: usize, outputs: usize) -> Vec<f32> {
        self.initial_stream(inputs, outputs).collect()
    }

    /// [`initial_values`](Self::initial_values) one by one, for a model that memory does not hold.
    pub fn initial_stream(&self, inputs: usize, outputs: usize) -> Box<dyn Iterator<Item = f32> + Send> {
        match self {
            Self::Logistic {} => Box::new(std::iter::repeat_n(0.0, outputs * inputs + outputs)),
            Self::Mlp { seed, .. } => {
                let mut rng = ChaCha20Rng::seed_from_u64(*seed);
                let layers = self.layers(inputs, outputs).into_iter();
                let bounds = layers.flat_map(|l| {
                    let bound = 1.0 / (l.inputs as f32).sqrt();
                    std::iter::repeat_n(bound, l.outputs * l.inputs + l.outputs)
                });
                Box::new(bounds.map(move |bound| rng.random_range(-bound..=bound)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_a_sequential() {
        let mlp = ModelSpec::Mlp { hidden: vec![10], activation: Activation::Relu, seed: 3 };
        let layout = mlp.layout(20, 1).unwrap();
        let names: Vec<_> = layout.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["0.weight", "0.bias", "2.weight", "2.bias"]);
        assert_eq!(layout.len(), 20 * 10 + 10 + 10 + 1);
        let values = mlp.initial_values(20, 1);
        assert_eq!(values.len(), layout.len());
        assert_eq!(values, mlp.initial_values(20, 1));
        assert!(values.iter().all(|v| v.abs() <= 1.0 / 10f32.sqrt()));
        let other = ModelSpec::Mlp { hidden: vec![10], activation: Activation::Relu, seed: 4 };
        assert_ne!(values, other.initial_values(20, 1));
    }
}
