//! The transformer encoder.

use super::parameterless::{activate, tokens_present};
use super::pass::Pass;
use super::{Module, NORM_EPSILON, Names, Parameter};
use tch::{Kind, TchError, Tensor};
use undertone_core::model::{self, Activation, Pooling};
use undertone_core::shape::{Input, Shape};

/// An embedding, layers of attention, and a linear layer over what is pooled.
#[derive(Debug)]
pub(crate) struct Transformer {
    embedding: Embedding,
    position: Parameter,
    layers: Vec<EncoderLayer>,
    norm: (Parameter, Parameter),
    pooling: Pooling,
    dropout: f64,
    head: (Parameter, Parameter),
}

/// How an example becomes places of the model's width.
#[derive(Debug)]
enum Embedding {
    /// A row of the table for each token.
    Tokens { table: Parameter },
    /// A linear layer at each step.
    Steps { weight: Parameter, bias: Parameter },
    /// A linear layer for each column.
    Columns {
        /// The weights of all columns, shape (width, features).
        weight: Parameter,
        /// Which features are a column's: how many each column has.
        widths: Vec<usize>,
    },
}

/// Attention and a perceptron, each beside a way around, each normalised first.
#[derive(Debug)]
struct EncoderLayer {
    heads: i64,
    activation: Activation,
    dropout: f64,
    /// Of queries, keys and values, one behind the other.
    attention: (Parameter, Parameter),
    attention_out: (Parameter, Parameter),
    wide: (Parameter, Parameter),
    narrow: (Parameter, Parameter),
    attention_norm: (Parameter, Parameter),
    perceptron_norm: (Parameter, Parameter),
}

impl Transformer {
    /// The modules of a spec.
    pub(crate) fn new(spec: &model::Transformer, shape: &Shape, names: &Names<'_>) -> Self {
        let pair = |name: &str| (names.get(&format!("{name}weight")), names.get(&format!("{name}bias")));
        let embedding = match &shape.input {
            Input::Tokens { .. } => Embedding::Tokens { table: names.get("embedding.weight") },
            Input::Features { columns } => {
                Embedding::Columns { weight: names.get("embedding.weight"), widths: columns.clone() }
            }
            Input::Series { .. } | Input::Image { .. } => {
                let (weight, bias) = pair("embedding.");
                Embedding::Steps { weight, bias }
            }
        };
        let layer = |i: usize| {
            let pair = |name: &str| pair(&format!("encoder.layers.{i}.{name}"));
            EncoderLayer {
                heads: spec.heads as i64,
                activation: spec.activation,
                dropout: spec.dropout,
                attention: pair("self_attn.in_proj_"),
                attention_out: pair("self_attn.out_proj."),
                wide: pair("linear1."),
                narrow: pair("linear2."),
                attention_norm: pair("norm1."),
                perceptron_norm: pair("norm2."),
            }
        };
        Self {
            embedding,
            position: names.get("position.weight"),
            layers: (0..spec.layers).map(layer).collect(),
            norm: pair("encoder.norm."),
            pooling: spec.pooling,
            dropout: spec.dropout,
            head: pair("head."),
        }
    }
}

impl Embedding {
    /// Shape (examples, places, width), and which places are not padding where some may be: shape (examples, places).
    fn forward(&self, pass: &mut Pass<'_>, x: &Tensor) -> Result<(Tensor, Option<Tensor>), TchError> {
        match self {
            Self::Tokens { table } => Ok((pass.embedding(x, *table)?, Some(tokens_present(x)?))),
            Self::Steps { weight, bias } => Ok((pass.linear(x, *weight, Some(*bias))?, None)),
            Self::Columns { weight, widths } => {
                // Each column sees its own features and zeros, so that one linear layer is a layer of each column's own.
                let columns: Vec<i64> =
                    widths.iter().zip(0..).flat_map(|(&n, column)| std::iter::repeat_n(column, n)).collect();
                let mask = Tensor::f_from_slice(&columns)?
                    .f_to_device(x.device())?
                    .f_one_hot(widths.len() as i64)?
                    .f_transpose(0, 1)?
                    .f_to_kind(x.kind())?;
                Ok((pass.linear(&x.f_unsqueeze(1)?.f_mul(&mask)?, *weight, None)?, None))
            }
        }
    }
}

impl EncoderLayer {
    /// Attention of each place to all that are present.
    fn attend(&self, pass: &mut Pass<'_>, x: &Tensor, present: Option<&Tensor>) -> Result<Tensor, TchError> {
        let [examples, places, width] = [x.size()[0], x.size()[1], x.size()[2]];
        let all = pass.linear(x, self.attention.0, Some(self.attention.1))?;
        let all =
            all.f_view([examples, places, 3, self.heads, width / self.heads])?.f_permute([2, 0, 3, 1, 4])?;
        // Unbound at once: three selections would each have a gradient as large as all of it.
        let all = all.f_unbind(0)?;
        let (query, key, value) = (&all[0], &all[1], &all[2]);
        let dropout = if pass.trains() { self.dropout } else { 0.0 };
        let seen =
            Tensor::f_scaled_dot_product_attention(query, key, value, present, dropout, false, None, false)?;
        let seen = seen.f_transpose(1, 2)?.f_reshape([examples, places, width])?;
        pass.linear(&seen, self.attention_out.0, Some(self.attention_out.1))
    }

    fn forward(&self, pass: &mut Pass<'_>, x: &Tensor, present: Option<&Tensor>) -> Result<Tensor, TchError> {
        let normal = pass.layer_norm(x, self.attention_norm.0, self.attention_norm.1, NORM_EPSILON)?;
        let attended = self.attend(pass, &normal, present)?;
        let x = x.f_add(&pass.dropout(&attended, self.dropout)?)?;
        let normal = pass.layer_norm(&x, self.perceptron_norm.0, self.perceptron_norm.1, NORM_EPSILON)?;
        let wide = activate(self.activation, &pass.linear(&normal, self.wide.0, Some(self.wide.1))?)?;
        let wide = pass.dropout(&wide, self.dropout)?;
        let narrow = pass.linear(&wide, self.narrow.0, Some(self.narrow.1))?;
        x.f_add(&pass.dropout(&narrow, self.dropout)?)
    }
}

impl Module for Transformer {
    fn forward(&self, pass: &mut Pass<'_>, x: &Tensor) -> Result<Tensor, TchError> {
        let (mut x, mut present) = self.embedding.forward(pass, x)?;
        if self.pooling == Pooling::Class {
            let [examples, width] = [x.size()[0], x.size()[2]];
            let first = Tensor::f_zeros([examples, 1, width], (x.kind(), x.device()))?;
            x = Tensor::f_cat(&[first, x], 1)?;
            if let Some(others) = present {
                let first = Tensor::f_ones([examples, 1], (Kind::Bool, x.device()))?;
                present = Some(Tensor::f_cat(&[first, others], 1)?);
            }
        }
        x = pass.shift(&x, self.position)?;
        x = pass.dropout(&x, self.dropout)?;
        // The same for all heads and all places that look.
        let mask = present.as_ref().map(|p| p.f_unsqueeze(1)?.f_unsqueeze(1)).transpose()?;
        for layer in &self.layers {
            x = layer.forward(pass, &x, mask.as_ref())?;
        }
        x = pass.layer_norm(&x, self.norm.0, self.norm.1, NORM_EPSILON)?;
        let pooled = match (self.pooling, present) {
            (Pooling::Class, _) => x.f_select(1, 0)?,
            (Pooling::Mean, None) => x.f_mean_dim([1i64].as_slice(), false, None::<Kind>)?,
            (Pooling::Mean, Some(present)) => {
                let present = present.f_to_kind(x.kind())?.f_unsqueeze(2)?;
                let sum = x.f_mul(&present)?.f_sum_dim_intlist([1i64].as_slice(), false, None::<Kind>)?;
                sum.f_div(&present.f_sum_dim_intlist([1i64].as_slice(), false, None::<Kind>)?)?
            }
        };
        pass.linear(&pooled, self.head.0, Some(self.head.1))
    }
}
