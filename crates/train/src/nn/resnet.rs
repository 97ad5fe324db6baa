//! ResNet-18 with group normalisation.

use super::pass::Pass;
use super::{Module, NORM_EPSILON, Names, Parameter};
use tch::{TchError, Tensor};
use undertone_core::model::{ResidualBlock, Resnet18, Stem};

/// A stem, residual blocks, and a linear layer over each channel's mean.
#[derive(Debug)]
pub(crate) struct Resnet {
    stem: Convolution,
    /// Whether a pooling follows the first convolution.
    pooled: bool,
    blocks: Vec<Block>,
    head: (Parameter, Parameter),
}

/// A convolution without bias and the normalisation behind it.
#[derive(Debug)]
struct Convolution {
    weight: Parameter,
    stride: i64,
    padding: i64,
    groups: i64,
    scale: Parameter,
    shift: Parameter,
}

#[derive(Debug)]
struct Block {
    first: Convolution,
    second: Convolution,
    /// The way around, where the size changes.
    around: Option<Convolution>,
}

impl Resnet {
    /// The modules of a spec.
    pub(crate) fn new(spec: &Resnet18, names: &Names<'_>) -> Self {
        let convolution = |weight: &str, norm: &str, stride: usize, padding: usize| Convolution {
            weight: names.get(&format!("{weight}.weight")),
            stride: stride as i64,
            padding: padding as i64,
            groups: spec.groups as i64,
            scale: names.get(&format!("{norm}.weight")),
            shift: names.get(&format!("{norm}.bias")),
        };
        let block = |block: &ResidualBlock| {
            let at = |name: &str| format!("{}{name}", block.prefix);
            Block {
                first: convolution(&at("conv1"), &at("bn1"), block.stride, 1),
                second: convolution(&at("conv2"), &at("bn2"), 1, 1),
                around: block
                    .changes_size()
                    .then(|| convolution(&at("downsample.0"), &at("downsample.1"), block.stride, 0)),
            }
        };
        let (_, stride, padding) = spec.stem.convolution();
        Self {
            stem: convolution("conv1", "bn1", stride, padding),
            pooled: spec.stem == Stem::Large,
            blocks: spec.blocks().iter().map(block).collect(),
            head: (names.get("fc.weight"), names.get("fc.bias")),
        }
    }
}

impl Module for Convolution {
    fn forward(&self, pass: &mut Pass<'_>, x: &Tensor) -> Result<Tensor, TchError> {
        let x = pass.conv2d(x, self.weight, None, self.stride, self.padding)?;
        pass.group_norm(&x, self.groups, self.scale, self.shift, NORM_EPSILON)
    }
}

impl Module for Block {
    fn forward(&self, pass: &mut Pass<'_>, x: &Tensor) -> Result<Tensor, TchError> {
        let through = self.first.forward(pass, x)?.f_relu()?;
        let through = self.second.forward(pass, &through)?;
        match &self.around {
            Some(around) => through.f_add(&around.forward(pass, x)?)?.f_relu(),
            None => through.f_add(x)?.f_relu(),
        }
    }
}

impl Module for Resnet {
    fn forward(&self, pass: &mut Pass<'_>, x: &Tensor) -> Result<Tensor, TchError> {
        let mut x = self.stem.forward(pass, x)?.f_relu()?;
        if self.pooled {
            x = x.f_max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false)?;
        }
        for block in &self.blocks {
            x = block.forward(pass, &x)?;
        }
        let x = x.f_adaptive_avg_pool2d([1, 1])?.f_flatten(1, -1)?;
        pass.linear(&x, self.head.0, Some(self.head.1))
    }
}
