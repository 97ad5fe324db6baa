//! A transformer encoder (Vaswani et al. 2017; normalisation first, Xiong et al. 2020).
//!
//! ```python
//! class Transformer(torch.nn.Module):
//!     def __init__(self):
//!         self.embedding = Embedding(vocabulary, width)                # of texts
//!         self.embedding = Linear(features, width)                     # of series
//!         self.embedding = Linear(features, width, bias=False)         # of rows
//!         self.position = Embedding(places, width)                     # with pooling = "class" one place more, the first
//!         layer = TransformerEncoderLayer(width, heads, feed_forward, dropout, activation, batch_first=True, norm_first=True)
//!         self.encoder = TransformerEncoder(layer, layers, LayerNorm(width))
//!         self.head = Linear(width, outputs)
//!     def forward(self, x):
//!         padding = x == 0; padding[:, 0] = False                      # of texts
//!         x = x[:, None] * columns                                     # of rows; columns[c, f] = 1 if column c gives feature f
//!         x = self.embedding(x)
//!         x = torch.cat([torch.zeros_like(x[:, :1]), x], 1)            # with pooling = "class"; nothing of it is padding
//!         x = self.encoder(x + self.position.weight, src_key_padding_mask=padding)
//!         x = (x * ~padding[..., None]).sum(1) / (~padding).sum(1, True)  # pooling = "mean"
//!         x = x[:, 0]                                                  # pooling = "class"
//!         return self.head(x)
//! ```
//! A row is one token a column, as in the FT-Transformer (Gorishniy et al. 2021, section 3.3): each column's features have
//! weights of their own, and its place's embedding is its bias. The class token is its place's embedding.

use super::initial::{self, Start, Tensor};
use super::{Activation, Input, Shape, check_dropout, is_zero, within};
use crate::limits::{MAX_ACTIVATIONS, MAX_ATTENDED, MAX_HIDDEN_LAYERS, MAX_WIDTH};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Layers of attention over tokens, steps or columns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transformer {
    /// Width of a token.
    pub width: usize,
    /// Heads of the attention, each `width / heads` wide.
    pub heads: usize,
    /// Layers, one over the other.
    pub layers: usize,
    /// Width of the perceptron in each layer; absent: four times `width`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feed_forward: Option<usize>,
    /// The perceptrons' activation.
    #[serde(default)]
    pub activation: Activation,
    /// What the head reads.
    #[serde(default)]
    pub pooling: Pooling,
    /// The part of the values that training drops.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropout: f64,
    /// Seed of the initial weights.
    #[serde(default)]
    pub seed: u64,
}

/// What the head of a transformer reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The mean over all places that are not padding.
    #[default]
    Mean,
    /// A token of its own, before all others.
    Class,
}

impl Transformer {
    pub(super) fn validate(&self) -> Result<(), String> {
        within("width", self.width, MAX_WIDTH)?;
        within("layers", self.layers, MAX_HIDDEN_LAYERS)?;
        within("feed_forward", self.feed_forward(), 4 * MAX_WIDTH)?;
        if self.heads == 0 || !self.width.is_multiple_of(self.heads) {
            return Err(format!(
                "heads = {} does not divide width = {}: choose a number that does",
                self.heads, self.width
            ));
        }
        if self.activation == Activation::Tanh {
            return Err("a transformer's activation is \"relu\" or \"gelu\", not \"tanh\"".into());
        }
        check_dropout(self.dropout)
    }

    /// Width of the perceptrons.
    pub fn feed_forward(&self) -> usize {
        self.feed_forward.unwrap_or(4 * self.width)
    }

    pub(super) fn tensors(&self, shape: &Shape) -> Result<Vec<Tensor>, String> {
        let width = self.width;
        let mut tensors = Vec::new();
        let mut position = Start::Normal(1.0);
        let places = match &shape.input {
            Input::Tokens { length, vocabulary } => {
                tensors.push(initial::embedding("embedding.", *vocabulary, width));
                *length
            }
            Input::Series { steps, features } => {
                tensors.extend(initial::linear("embedding.", *features, width));
                *steps
            }
            Input::Features { columns } => {
                let features = shape.input.len();
                if features.checked_mul(columns.len()).is_none_or(|n| n > MAX_ACTIVATIONS) {
                    return Err(format!(
                        "a transformer over {} columns of {features} features needs more than {MAX_ACTIVATIONS} values for one \
                         example: use kind = \"mlp\"",
                        columns.len()
                    ));
                }
                // Weights and biases of columns begin alike (Gorishniy et al. 2021).
                position = Start::fan_in(width);
                tensors.push(Tensor::new("embedding.weight".into(), &[width, features], position));
                columns.len()
            }
            Input::Image { .. } => {
                return Err(format!(
                    "a transformer reads texts, series or rows, this data has {}: use kind = \"cnn\" or \"resnet18\"",
                    shape.input
                ));
            }
        };
        let places = places + usize::from(self.pooling == Pooling::Class);
        if places > MAX_ATTENDED {
            return Err(format!(
                "a transformer compares at most {MAX_ATTENDED} places with each other, this data has {}",
                shape.input
            ));
        }
        tensors.push(Tensor::new("position.weight".into(), &[places, width], position));
        for layer in 0..self.layers {
            tensors.extend(self.layer(&format!("encoder.layers.{layer}.")));
        }
        tensors.extend(initial::norm("encoder.norm.", width));
        tensors.extend(initial::linear("head.", width, shape.outputs()));
        Ok(tensors)
    }

    /// A `TransformerEncoderLayer`. `MultiheadAttention` draws its weights after Glorot and Bengio 2010 and begins with
    /// biases of zero.
    fn layer(&self, prefix: &str) -> Vec<Tensor> {
        let (width, wide) = (self.width, self.feed_forward());
        let attention = |name: &str| format!("{prefix}self_attn.{name}");
        let glorot = Start::Uniform((6.0 / (4 * width) as f32).sqrt());
        let mut tensors = vec![
            Tensor::new(attention("in_proj_weight"), &[3 * width, width], glorot),
            Tensor::new(attention("in_proj_bias"), &[3 * width], Start::Constant(0.0)),
            Tensor::new(attention("out_proj.weight"), &[width, width], Start::fan_in(width)),
            Tensor::new(attention("out_proj.bias"), &[width], Start::Constant(0.0)),
        ];
        tensors.extend(initial::linear(&format!("{prefix}linear1."), width, wide));
        tensors.extend(initial::linear(&format!("{prefix}linear2."), wide, width));
        tensors.extend(initial::norm(&format!("{prefix}norm1."), width));
        tensors.extend(initial::norm(&format!("{prefix}norm2."), width));
        tensors
    }
}

impl fmt::Display for Transformer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.layers == 1 { "" } else { "s" };
        write!(
            f,
            "transformer with {} layer{plural} of width {}, {} heads",
            self.layers, self.width, self.heads
        )
    }
}
