//! The built-in models: what tensors they have, and their seeded initial values.
//!
//! Each kind has a file, which begins with the `torch.nn` module that it is: tensor names are PyTorch's, so
//! `load_state_dict` opens a saved model as it is. Initial values are drawn as PyTorch draws them by default, but from a
//! generator of our own: the same bits on every machine for the same seed.

mod cnn;
mod initial;
mod norm;
mod perceptron;
mod recurrent;
mod resnet;
mod sequential;
mod transformer;

pub use cnn::{Block, Cnn};
pub use norm::Norm;
pub use recurrent::{Cell, Recurrent};
pub use resnet::{ResidualBlock, Resnet18, Stem};
pub use sequential::{Layer, Pool, PoolKind, prefix};
pub use transformer::{Pooling, Transformer};

use crate::layout::{LayoutError, ModelLayout, TensorSpec};
use crate::model_external::{self, ExternalTensor};
use crate::shape::{Input, Shape, Target};
use crate::torchscript::{Exported, TorchScript};
use initial::{Draws, Tensor};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A model, as the job names it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum ModelSpec {
    /// One linear layer for classes: logistic (two classes) or softmax regression. Starts at zero.
    Logistic {},
    /// One linear layer for a number: linear regression. Starts at zero.
    Linear {},
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
    /// A small convolutional network for pictures.
    Cnn(Cnn),
    /// ResNet-18 with group normalisation, for pictures.
    Resnet18(Resnet18),
    /// Long short-term memory over a series or a text.
    Lstm(Recurrent),
    /// Gated recurrent units over a series or a text.
    Gru(Recurrent),
    /// A transformer encoder over a text, a series, or the columns of a row.
    Transformer(Transformer),
    /// A TorchScript file, which trains on libtorch without Python.
    Torchscript(TorchScript),
    /// Tensors that only the clients' own training programs know what to do with.
    External {
        /// The tensors in order.
        tensors: Vec<ExternalTensor>,
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
    /// x·Φ(x), Φ the normal distribution's (Hendrycks and Gimpel 2016): usual in transformers.
    Gelu,
}

impl ModelSpec {
    /// Checks what can be said without the data.
    ///
    /// # Errors
    /// A sentence that says which number is wrong.
    pub fn validate(&self) -> Result<(), String> {
        match self {
            Self::Logistic {} | Self::Linear {} => Ok(()),
            Self::Mlp { hidden, .. } => perceptron::validate(hidden),
            Self::Cnn(cnn) => cnn.validate(),
            Self::Resnet18(resnet) => resnet.validate(),
            Self::Lstm(recurrent) | Self::Gru(recurrent) => recurrent.validate(),
            Self::Transformer(transformer) => transformer.validate(),
            Self::Torchscript(module) => module.validate(),
            Self::External { tensors, .. } => model_external::validate(tensors),
        }
    }

    /// Checks that this kind of model can read data of this shape and predict its target.
    ///
    /// # Errors
    /// A sentence that says what does not go together, and which kind would do.
    pub fn fits(&self, shape: &Shape) -> Result<(), String> {
        match self {
            Self::External { .. } | Self::Torchscript(_) => self.validate(),
            _ => self.tensors(shape).map(drop),
        }
    }

    /// The TorchScript file that the model is, once it is known by its digest.
    pub fn exported(&self) -> Option<&Exported> {
        match self {
            Self::Torchscript(module) => module.exported(),
            _ => None,
        }
    }

    /// Whether a job must name the values that it begins with, as no seed gives them.
    pub fn needs_initial(&self) -> bool {
        matches!(self, Self::Torchscript(_))
    }

    /// Whether only a client's own training program can train and measure it.
    pub fn is_external(&self) -> bool {
        matches!(self, Self::External { .. })
    }

    /// Whether training leaves out parts of it at random.
    pub fn drops_out(&self) -> bool {
        match self {
            Self::Lstm(recurrent) | Self::Gru(recurrent) => recurrent.dropout > 0.0,
            Self::Transformer(transformer) => transformer.dropout > 0.0,
            _ => false,
        }
    }

    /// The layers, one after another, of a model that is nothing else; their parameters are named by [`prefix`].
    ///
    /// # Errors
    /// See [`fits`](Self::fits).
    pub fn sequence(&self, shape: &Shape) -> Option<Result<Vec<Layer>, String>> {
        Some(match self {
            Self::Logistic {} => perceptron::logistic(shape),
            Self::Linear {} => perceptron::linear(shape),
            Self::Mlp { hidden, activation, .. } => perceptron::layers(hidden, *activation, shape),
            Self::Cnn(cnn) => cnn.layers(shape),
            Self::Resnet18(_)
            | Self::Lstm(_)
            | Self::Gru(_)
            | Self::Transformer(_)
            | Self::Torchscript(_)
            | Self::External { .. } => return None,
        })
    }

    /// The tensors with how they begin, in the layout's order.
    fn tensors(&self, shape: &Shape) -> Result<Vec<Tensor>, String> {
        self.validate()?;
        match self {
            Self::Logistic {} | Self::Linear {} | Self::Mlp { .. } | Self::Cnn(_) => {
                let layers = self.sequence(shape).expect("these are sequences")?;
                let mut tensors = sequential::tensors(&layers);
                if let Self::Logistic {} | Self::Linear {} = self {
                    // The loss is convex: from zero it goes straight down, whatever the seed.
                    tensors = tensors.into_iter().map(Tensor::zero).collect();
                }
                Ok(tensors)
            }
            Self::Resnet18(resnet) => resnet.tensors(shape),
            Self::Lstm(recurrent) => recurrent.tensors(Cell::Lstm, shape),
            Self::Gru(recurrent) => recurrent.tensors(Cell::Gru, shape),
            Self::Transformer(transformer) => transformer.tensors(shape),
            Self::External { .. } | Self::Torchscript(_) => {
                unreachable!("such a model's tensors are its own list")
            }
        }
    }

    /// The model's tensors for data of this shape.
    ///
    /// # Errors
    /// [`LayoutError::Unfit`] if this kind of model cannot read such data (see [`fits`](Self::fits));
    /// [`LayoutError::TooLarge`].
    pub fn layout(&self, shape: &Shape) -> Result<ModelLayout, LayoutError> {
        match self {
            Self::External { tensors, .. } => return model_external::layout(tensors),
            Self::Torchscript(module) => return module.layout(),
            _ => {}
        }
        let tensors = self.tensors(shape).map_err(LayoutError::Unfit)?;
        ModelLayout::new(tensors.into_iter().map(|t| TensorSpec { name: t.name, shape: t.shape }).collect())
    }

    /// The values to start from: the same bits on every machine for the same seed.
    ///
    /// # Panics
    /// If the model has no [`layout`](Self::layout) for this shape, or [needs](Self::needs_initial) a file of values.
    pub fn initial_values(&self, shape: &Shape) -> Vec<f32> {
        self.initial_stream(shape).collect()
    }

    /// [`initial_values`](Self::initial_values) one by one, for a model that memory does not hold.
    ///
    /// # Panics
    /// If the model has no [`layout`](Self::layout) for this shape, or [needs](Self::needs_initial) a file of values.
    pub fn initial_stream(&self, shape: &Shape) -> Box<dyn Iterator<Item = f32> + Send> {
        if let Self::External { tensors, seed } = self {
            return model_external::initial_stream(tensors, *seed);
        }
        assert!(!self.needs_initial(), "a TorchScript module has no seed: the job names a file of values");
        let tensors = self.tensors(shape).expect("a model that has a layout");
        let mut draws = Draws::new(self.seed().unwrap_or_default());
        let starts = tensors.into_iter().flat_map(|t| std::iter::repeat_n(t.start, t.len()));
        Box::new(starts.map(move |start| draws.next(start)))
    }

    /// The seed of the initial values, of a model that draws them.
    pub fn seed(&self) -> Option<u64> {
        self.clone().seed_mut().copied()
    }

    /// See [`seed`](Self::seed).
    pub fn seed_mut(&mut self) -> Option<&mut u64> {
        match self {
            Self::Logistic {} | Self::Linear {} | Self::Torchscript(_) => None,
            Self::Mlp { seed, .. } | Self::External { seed, .. } => Some(seed),
            Self::Cnn(cnn) => Some(&mut cnn.seed),
            Self::Resnet18(resnet) => Some(&mut resnet.seed),
            Self::Lstm(recurrent) | Self::Gru(recurrent) => Some(&mut recurrent.seed),
            Self::Transformer(transformer) => Some(&mut transformer.seed),
        }
    }
}

/// In words, for people.
impl fmt::Display for ModelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Logistic {} => write!(f, "logistic regression"),
            Self::Linear {} => write!(f, "linear regression"),
            Self::Mlp { hidden, .. } => write!(f, "perceptron with {} hidden", numbers(hidden)),
            Self::Cnn(cnn) => write!(f, "{cnn}"),
            Self::Resnet18(resnet) => write!(f, "{resnet}"),
            Self::Lstm(recurrent) => write!(f, "LSTM with {recurrent}"),
            Self::Gru(recurrent) => write!(f, "GRU with {recurrent}"),
            Self::Transformer(transformer) => write!(f, "{transformer}"),
            Self::Torchscript(module) => write!(f, "{module}"),
            Self::External { tensors, .. } => {
                write!(f, "external model of {} tensors (clients' own programs)", tensors.len())
            }
        }
    }
}

/// Numbers in a row.
fn numbers(numbers: &[usize]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Checks a number of the job file.
fn within(what: &str, number: usize, most: usize) -> Result<(), String> {
    match number {
        n if (1..=most).contains(&n) => Ok(()),
        n => Err(format!("{what} must be 1 to {most}, not {n}")),
    }
}

/// Checks the probability with which values are dropped.
fn check_dropout(dropout: f64) -> Result<(), String> {
    match dropout {
        p if (0.0..1.0).contains(&p) => Ok(()),
        p => Err(format!("dropout must be at least 0 and below 1, not {p}")),
    }
}

fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

fn one() -> usize {
    1
}

#[cfg(test)]
mod tests;
