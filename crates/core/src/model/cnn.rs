//! A small convolutional network.
//!
//! ```python
//! torch.nn.Sequential(
//!     # each block; with `norm` a GroupNorm(groups, channels) before the activation, without `pool` none
//!     Conv2d(inputs, channels, kernel, stride, padding), Tanh(), MaxPool2d(kernel, stride),
//!     …,
//!     Flatten(),
//!     # each of `hidden`
//!     Linear(inputs, width), Tanh(),
//!     …,
//!     Linear(inputs, outputs),
//! )
//! ```

use super::norm::{self, DEFAULT_GROUPS};
use super::{Activation, Input, Layer, Norm, Pool, Shape, numbers, one, within};
use crate::limits::{MAX_ACTIVATIONS, MAX_HIDDEN_LAYERS, MAX_KERNEL, MAX_WIDTH};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Blocks of convolutions, then linear layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cnn {
    /// The convolutions.
    pub blocks: Vec<Block>,
    /// Widths of the hidden linear layers behind them.
    #[serde(default)]
    pub hidden: Vec<usize>,
    /// What stands behind each convolution and hidden layer.
    #[serde(default)]
    pub activation: Activation,
    /// Normalisation behind each convolution; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm: Option<Norm>,
    /// Groups of the normalisation; absent: 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<usize>,
    /// Seed of the initial weights.
    #[serde(default)]
    pub seed: u64,
}

/// A convolution and what follows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// Channels that come out.
    pub channels: usize,
    /// Height and width of the kernel.
    pub kernel: usize,
    /// Picture elements from one place to the next, both ways.
    #[serde(default = "one")]
    pub stride: usize,
    /// Zeros around the picture, both ways.
    #[serde(default)]
    pub padding: usize,
    /// Pooling behind the activation; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Pool>,
}

impl Cnn {
    pub(super) fn validate(&self) -> Result<(), String> {
        within("the number of a cnn's blocks", self.blocks.len(), MAX_HIDDEN_LAYERS)?;
        for (i, block) in self.blocks.iter().enumerate() {
            block.validate().and_then(|()| self.check_norm(block)).map_err(|e| in_block(i, &e))?;
        }
        if self.hidden.len() > MAX_HIDDEN_LAYERS {
            return Err(format!(
                "a cnn has at most {MAX_HIDDEN_LAYERS} hidden layers, not {}",
                self.hidden.len()
            ));
        }
        self.hidden.iter().try_for_each(|&w| within("the width of a hidden layer", w, MAX_WIDTH))
    }

    fn check_norm(&self, block: &Block) -> Result<(), String> {
        match (self.norm, self.groups) {
            (None, None) => Ok(()),
            (None, Some(_)) => Err("groups belongs to norm = \"group\": add it, or leave out groups".into()),
            (Some(Norm::Group), _) => norm::check_groups(self.group_count(), block.channels),
        }
    }

    fn group_count(&self) -> usize {
        self.groups.unwrap_or(DEFAULT_GROUPS)
    }

    /// The members of the `Sequential`.
    pub(super) fn layers(&self, shape: &Shape) -> Result<Vec<Layer>, String> {
        let Input::Image { channels, height, width } = shape.input else {
            return Err(format!(
                "a cnn looks at pictures, this data has {}: use kind = \"mlp\", \"transformer\", \"lstm\" or \"gru\"",
                shape.input
            ));
        };
        let mut layers = Vec::new();
        let mut picture = Picture { channels, height, width };
        for (i, block) in self.blocks.iter().enumerate() {
            let inputs = picture.channels;
            let Block { channels: outputs, kernel, stride, padding, pool } = block.clone();
            picture = picture.slid(kernel, stride, padding).map_err(|e| in_block(i, &e))?;
            picture.channels = outputs;
            layers.push(Layer::Conv2d { inputs, outputs, kernel, stride, padding });
            if self.norm.is_some() {
                layers.push(Layer::GroupNorm { groups: self.group_count(), channels: outputs });
            }
            layers.push(Layer::Activation(self.activation));
            picture.check().map_err(|e| in_block(i, &e))?;
            if let Some(pool) = pool {
                picture = picture
                    .slid(pool.kernel, pool.stride(), 0)
                    .map_err(|e| in_block(i, &format!("pool: {e}")))?;
                layers.push(Layer::Pool(pool));
            }
        }
        layers.push(Layer::Flatten);
        let mut inputs = picture.check()?;
        for &outputs in &self.hidden {
            layers.extend([Layer::Linear { inputs, outputs }, Layer::Activation(self.activation)]);
            inputs = outputs;
        }
        layers.push(Layer::Linear { inputs, outputs: shape.outputs() });
        Ok(layers)
    }
}

impl Block {
    fn validate(&self) -> Result<(), String> {
        within("channels", self.channels, MAX_WIDTH)?;
        within("kernel", self.kernel, MAX_KERNEL)?;
        within("stride", self.stride, MAX_KERNEL)?;
        if self.padding >= self.kernel {
            return Err(format!("padding must be below kernel = {}, not {}", self.kernel, self.padding));
        }
        self.pool.as_ref().map_or(Ok(()), Pool::validate)
    }
}

fn in_block(place: usize, problem: &str) -> String {
    format!("block {} of the cnn: {problem}", place + 1)
}

/// The size of what a layer puts out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Picture {
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
}

impl Picture {
    /// What is left when a kernel slides over it.
    fn slid(self, kernel: usize, stride: usize, padding: usize) -> Result<Self, String> {
        let places = |size: usize| match (size + 2 * padding).checked_sub(kernel) {
            Some(room) => Ok(room / stride + 1),
            None => Err(format!(
                "a kernel of {kernel} does not fit into {}x{} with padding {padding}: make it smaller, or the strides before it",
                self.height, self.width
            )),
        };
        Ok(Self { channels: self.channels, height: places(self.height)?, width: places(self.width)? })
    }

    /// The number of its values, if memory can hold them.
    pub(super) fn check(self) -> Result<usize, String> {
        let Self { channels, height, width } = self;
        let values = channels.checked_mul(height).and_then(|n| n.checked_mul(width));
        values.filter(|n| *n <= MAX_ACTIVATIONS).ok_or_else(|| {
            format!("{channels} channels of {height}x{width} are more than {MAX_ACTIVATIONS} values of one example")
        })
    }
}

impl fmt::Display for Cnn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let channels: Vec<usize> = self.blocks.iter().map(|b| b.channels).collect();
        write!(f, "convolutional network with {} channels", numbers(&channels))?;
        if !self.hidden.is_empty() {
            write!(f, " and {} hidden", numbers(&self.hidden))?;
        }
        Ok(())
    }
}
