//! Models that are a `torch.nn.Sequential`.

use super::Activation;
use super::initial::{self, Start, Tensor};
use super::within;
use crate::limits::MAX_KERNEL;
use serde::{Deserialize, Serialize};

/// One member of a `torch.nn.Sequential`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// `Linear(inputs, outputs)`.
    Linear {
        /// Width of the input.
        inputs: usize,
        /// Width of the output.
        outputs: usize,
    },
    /// `Conv2d(inputs, outputs, kernel, stride, padding)`.
    Conv2d {
        /// Channels that go in.
        inputs: usize,
        /// Channels that come out.
        outputs: usize,
        /// Its height and width.
        kernel: usize,
        /// Picture elements from one place to the next, both ways.
        stride: usize,
        /// Zeros around the picture, both ways.
        padding: usize,
    },
    /// `GroupNorm(groups, channels)`.
    GroupNorm {
        /// Channels that are normalised together are `channels / groups`.
        groups: usize,
        /// Channels of the picture.
        channels: usize,
    },
    /// `ReLU()`, `Tanh()` or `GELU()`.
    Activation(Activation),
    /// `MaxPool2d(kernel, stride)` or `AvgPool2d(kernel, stride)`.
    Pool(Pool),
    /// `Flatten()`.
    Flatten,
}

/// Pooling of neighbouring picture elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// What becomes of neighbours.
    #[serde(default)]
    pub kind: PoolKind,
    /// Height and width of a neighbourhood.
    pub kernel: usize,
    /// Picture elements from one to the next; absent: as `kernel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stride: Option<usize>,
}

/// What becomes of neighbouring picture elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolKind {
    /// The largest stays.
    #[default]
    Max,
    /// Their mean stays.
    Average,
}

impl Pool {
    /// Picture elements from one neighbourhood to the next.
    pub fn stride(&self) -> usize {
        self.stride.unwrap_or(self.kernel)
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        within("pool: kernel", self.kernel, MAX_KERNEL)?;
        within("pool: stride", self.stride(), MAX_KERNEL)
    }
}

/// What stands before the names of the parameters of a sequence's layer `place`: a `Sequential`'s number and a dot, or
/// nothing if the layer is the whole model.
pub fn prefix(layers: &[Layer], place: usize) -> String {
    if layers.len() == 1 { String::new() } else { format!("{place}.") }
}

pub(super) fn tensors(layers: &[Layer]) -> Vec<Tensor> {
    let of = |(place, layer): (usize, &Layer)| {
        let prefix = &prefix(layers, place);
        match *layer {
            Layer::Linear { inputs, outputs } => initial::linear(prefix, inputs, outputs).to_vec(),
            Layer::Conv2d { inputs, outputs, kernel, .. } => {
                let start = Start::fan_in(inputs * kernel * kernel);
                vec![
                    Tensor::new(format!("{prefix}weight"), &[outputs, inputs, kernel, kernel], start),
                    Tensor::new(format!("{prefix}bias"), &[outputs], start),
                ]
            }
            Layer::GroupNorm { channels, .. } => initial::norm(prefix, channels).to_vec(),
            Layer::Activation(_) | Layer::Pool(_) | Layer::Flatten => Vec::new(),
        }
    };
    layers.iter().enumerate().flat_map(of).collect()
}
