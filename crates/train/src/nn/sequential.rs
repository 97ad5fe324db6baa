//! Models that are one layer after another: regressions, the perceptron, the small convolutional network.

use super::parameterless::{activate, pool};
use super::pass::Pass;
use super::{Module, NORM_EPSILON, Names, Parameter};
use tch::{TchError, Tensor};
use undertone_core::model::{self, Activation, Layer, Pool};

/// Layers, each reading what the one before put out.
#[derive(Debug)]
pub(crate) struct Sequential(Vec<Step>);

#[derive(Debug)]
enum Step {
    Linear { weight: Parameter, bias: Parameter },
    Conv2d { weight: Parameter, bias: Parameter, stride: i64, padding: i64 },
    GroupNorm { weight: Parameter, bias: Parameter, groups: i64 },
    Activation(Activation),
    Pool(Pool),
    Flatten,
}

impl Sequential {
    /// The modules of these layers.
    pub(crate) fn new(layers: &[Layer], names: &Names<'_>) -> Self {
        let step = |(place, layer): (usize, &Layer)| {
            let prefix = model::prefix(layers, place);
            let parameter = |name: &str| names.get(&format!("{prefix}{name}"));
            match *layer {
                Layer::Linear { .. } => Step::Linear { weight: parameter("weight"), bias: parameter("bias") },
                Layer::Conv2d { stride, padding, .. } => Step::Conv2d {
                    weight: parameter("weight"),
                    bias: parameter("bias"),
                    stride: stride as i64,
                    padding: padding as i64,
                },
                Layer::GroupNorm { groups, .. } => Step::GroupNorm {
                    weight: parameter("weight"),
                    bias: parameter("bias"),
                    groups: groups as i64,
                },
                Layer::Activation(activation) => Step::Activation(activation),
                Layer::Pool(pool) => Step::Pool(pool),
                Layer::Flatten => Step::Flatten,
            }
        };
        Self(layers.iter().enumerate().map(step).collect())
    }
}

impl Module for Sequential {
    fn forward(&self, pass: &mut Pass<'_>, x: &Tensor) -> Result<Tensor, TchError> {
        let mut x = x.shallow_clone();
        for step in &self.0 {
            x = match step {
                // Pictures and series too are read flat.
                Step::Linear { weight, bias } if x.dim() > 2 => {
                    pass.linear(&x.f_flatten(1, -1)?, *weight, Some(*bias))?
                }
                Step::Linear { weight, bias } => pass.linear(&x, *weight, Some(*bias))?,
                Step::Conv2d { weight, bias, stride, padding } => {
                    pass.conv2d(&x, *weight, Some(*bias), *stride, *padding)?
                }
                Step::GroupNorm { weight, bias, groups } => {
                    pass.group_norm(&x, *groups, *weight, *bias, NORM_EPSILON)?
                }
                Step::Activation(activation) => activate(*activation, &x)?,
                Step::Pool(of) => pool(of, &x)?,
                Step::Flatten => x.f_flatten(1, -1)?,
            };
        }
        Ok(x)
    }
}
