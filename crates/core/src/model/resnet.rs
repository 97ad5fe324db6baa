//! ResNet-18 (He et al. 2016) with group normalisation.
//!
//! ```python
//! model = torchvision.models.resnet18(num_classes=outputs, norm_layer=lambda c: torch.nn.GroupNorm(groups, c))
//! # stem = "small", and pictures of other than three channels:
//! model.conv1 = torch.nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False)
//! model.maxpool = torch.nn.Identity()
//! ```
//! torchvision's names stay, so `bn1` and its like are group normalisations. With another `width` every 64, 128, 256 and
//! 512 of it is `width` times 1, 2, 4 and 8.

use super::cnn::Picture;
use super::initial::{self, Start, Tensor};
use super::norm::{self, DEFAULT_GROUPS};
use super::{Input, Norm, Shape, within};
use crate::limits::MAX_WIDTH;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Eighteen layers in four stages of two residual blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resnet18 {
    /// How it begins.
    #[serde(default)]
    pub stem: Stem,
    /// Channels of the first stage; each further stage has twice as many as the one before.
    #[serde(default = "width")]
    pub width: usize,
    /// Normalisation behind each convolution.
    #[serde(default)]
    pub norm: Norm,
    /// Groups of the normalisation.
    #[serde(default = "groups")]
    pub groups: usize,
    /// Seed of the initial weights.
    #[serde(default)]
    pub seed: u64,
}

fn width() -> usize {
    64
}

fn groups() -> usize {
    DEFAULT_GROUPS
}

/// How a residual network begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stem {
    /// A 3x3 convolution that keeps the size: for small pictures.
    #[default]
    Small,
    /// A 7x7 convolution and a pooling, which leave a quarter of height and width: for pictures of 100 elements and more.
    Large,
}

/// Two 3x3 convolutions beside a way around them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResidualBlock {
    /// What stands before the names of its parameters.
    pub prefix: String,
    /// Channels that go in.
    pub inputs: usize,
    /// Channels that come out.
    pub outputs: usize,
    /// Stride of the first convolution.
    pub stride: usize,
}

impl ResidualBlock {
    /// Whether the way around needs a convolution to come to the same size.
    pub fn changes_size(&self) -> bool {
        self.stride != 1 || self.inputs != self.outputs
    }
}

impl Stem {
    /// Kernel, stride and padding of the first convolution.
    pub fn convolution(self) -> (usize, usize, usize) {
        match self {
            Self::Small => (3, 1, 1),
            Self::Large => (7, 2, 3),
        }
    }
}

impl Resnet18 {
    pub(super) fn validate(&self) -> Result<(), String> {
        within("width", self.width, MAX_WIDTH / 8)?;
        norm::check_groups(self.groups, self.width)
    }

    /// The residual blocks in order.
    pub fn blocks(&self) -> Vec<ResidualBlock> {
        let mut inputs = self.width;
        let mut blocks = Vec::new();
        for stage in 0..4 {
            let outputs = self.width << stage;
            for place in 0..2 {
                let prefix = format!("layer{}.{place}.", stage + 1);
                let stride = if stage > 0 && place == 0 { 2 } else { 1 };
                blocks.push(ResidualBlock { prefix, inputs, outputs, stride });
                inputs = outputs;
            }
        }
        blocks
    }

    pub(super) fn tensors(&self, shape: &Shape) -> Result<Vec<Tensor>, String> {
        let Input::Image { channels, height, width } = shape.input else {
            return Err(format!(
                "resnet18 looks at pictures, this data has {}: use kind = \"mlp\", \"transformer\", \"lstm\" or \"gru\"",
                shape.input
            ));
        };
        Picture { channels: self.width, height, width }.check()?;
        let mut tensors = vec![convolution("conv1.", channels, self.width, self.stem.convolution().0)];
        tensors.extend(initial::norm("bn1.", self.width));
        for block in self.blocks() {
            let ResidualBlock { prefix, inputs, outputs, .. } = &block;
            tensors.push(convolution(&format!("{prefix}conv1."), *inputs, *outputs, 3));
            tensors.extend(initial::norm(&format!("{prefix}bn1."), *outputs));
            tensors.push(convolution(&format!("{prefix}conv2."), *outputs, *outputs, 3));
            tensors.extend(initial::norm(&format!("{prefix}bn2."), *outputs));
            if block.changes_size() {
                tensors.push(convolution(&format!("{prefix}downsample.0."), *inputs, *outputs, 1));
                tensors.extend(initial::norm(&format!("{prefix}downsample.1."), *outputs));
            }
        }
        tensors.extend(initial::linear("fc.", 8 * self.width, shape.outputs()));
        Ok(tensors)
    }
}

/// A convolution without bias, drawn as torchvision draws it: normal, He et al. 2015 by the fan out.
fn convolution(prefix: &str, inputs: usize, outputs: usize, kernel: usize) -> Tensor {
    let deviation = libm::sqrt(2.0 / (outputs * kernel * kernel) as f64);
    Tensor::new(format!("{prefix}weight"), &[outputs, inputs, kernel, kernel], Start::Normal(deviation))
}

impl fmt::Display for Resnet18 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ResNet-18 with group normalisation")?;
        if self.width != width() {
            write!(f, ", {} channels wide", self.width)?;
        }
        Ok(())
    }
}
