//! LSTM (Hochreiter and Schmidhuber 1997) and GRU (Cho et al. 2014), the last state read by a linear layer.
//!
//! ```python
//! class Recurrent(torch.nn.Module):
//!     def __init__(self):
//!         self.embedding = Embedding(vocabulary, embedding)       # of texts
//!         self.rnn = LSTM(inputs, hidden, layers, batch_first=True, dropout=dropout)  # or GRU
//!         self.head = Linear(hidden, outputs)
//!     def forward(self, x):
//!         last = (x != 0).int().mul(torch.arange(x.shape[1])).argmax(1)  # of texts: their last token; else the last step
//!         return self.head(self.rnn(self.embedding(x))[0][torch.arange(len(x)), last])
//! ```

use super::initial::{self, Start, Tensor};
use super::{Input, Shape, check_dropout, is_zero, one, within};
use crate::limits::{MAX_ACTIVATIONS, MAX_HIDDEN_LAYERS, MAX_WIDTH};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Recurrent layers over a series or a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recurrent {
    /// Width of the state.
    pub hidden: usize,
    /// Layers, one over the other.
    #[serde(default = "one")]
    pub layers: usize,
    /// Width of a token's embedding, of texts only; absent: as `hidden`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding: Option<usize>,
    /// The part of the values that training drops between layers.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropout: f64,
    /// Seed of the initial weights.
    #[serde(default)]
    pub seed: u64,
}

/// What a layer computes at each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// Long short-term memory.
    Lstm,
    /// Gated recurrent unit.
    Gru,
}

impl Cell {
    /// Blocks of `hidden` rows in its weights: input, forget, cell and output gate; reset, update and new gate.
    pub fn gates(self) -> usize {
        match self {
            Self::Lstm => 4,
            Self::Gru => 3,
        }
    }
}

impl Recurrent {
    pub(super) fn validate(&self) -> Result<(), String> {
        within("hidden", self.hidden, MAX_WIDTH)?;
        within("layers", self.layers, MAX_HIDDEN_LAYERS)?;
        self.embedding.map_or(Ok(()), |width| within("embedding", width, MAX_WIDTH))?;
        if self.layers == 1 && self.dropout != 0.0 {
            return Err("dropout stands between layers, and there is one: set layers, or leave it out".into());
        }
        check_dropout(self.dropout)
    }

    pub(super) fn tensors(&self, cell: Cell, shape: &Shape) -> Result<Vec<Tensor>, String> {
        let name = match cell {
            Cell::Lstm => "an lstm",
            Cell::Gru => "a gru",
        };
        let mut tensors = Vec::new();
        let (mut inputs, steps) = match shape.input {
            Input::Series { .. } if self.embedding.is_some() => {
                return Err(format!(
                    "embedding belongs to texts, this data has {}: leave it out",
                    shape.input
                ));
            }
            Input::Series { steps, features } => (features, steps),
            Input::Tokens { length, vocabulary } => {
                let width = self.embedding.unwrap_or(self.hidden);
                tensors.push(initial::embedding("embedding.", vocabulary, width));
                (width, length)
            }
            Input::Features { .. } | Input::Image { .. } => {
                return Err(format!(
                    "{name} reads a series or a text, this data has {}: use kind = \"mlp\", or for pictures \"cnn\"",
                    shape.input
                ));
            }
        };
        let gates = cell.gates() * self.hidden;
        if steps.checked_mul(gates).is_none_or(|n| n > MAX_ACTIVATIONS) {
            return Err(format!(
                "{steps} steps of {gates} gates are more than {MAX_ACTIVATIONS} values of one example"
            ));
        }
        let start = Start::fan_in(self.hidden);
        for layer in 0..self.layers {
            tensors.extend([
                Tensor::new(format!("rnn.weight_ih_l{layer}"), &[gates, inputs], start),
                Tensor::new(format!("rnn.weight_hh_l{layer}"), &[gates, self.hidden], start),
                Tensor::new(format!("rnn.bias_ih_l{layer}"), &[gates], start),
                Tensor::new(format!("rnn.bias_hh_l{layer}"), &[gates], start),
            ]);
            inputs = self.hidden;
        }
        tensors.extend(initial::linear("head.", self.hidden, shape.outputs()));
        Ok(tensors)
    }
}

impl fmt::Display for Recurrent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.layers == 1 { "" } else { "s" };
        write!(f, "{} layer{plural} of {} units", self.layers, self.hidden)
    }
}
