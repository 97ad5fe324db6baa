//! One walk through a model.

use super::Parameter;
use super::weights::Weights;
use tch::{Kind, TchError, Tensor};
use undertone_core::plan::Precision;

/// Reaches a model's parameters while it computes.
///
/// A recording pass keeps, for each use of a trained parameter, what went in and what came out. From these and the
/// gradients of the outputs, every example's own gradient (or its norm alone) follows by a formula of the operation
/// (book-keeping: Bu et al. 2023, arXiv 2210.00038, section 3).
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    weights: &'a Weights,
    /// Whether values are dropped where the model has dropout.
    training: bool,
    uses: Option<Vec<Use>>,
}

/// One use of parameters.
#[derive(Debug)]
pub(crate) struct Use {
    /// What was done.
    pub(crate) operation: Operation,
    /// The parameter that the input met, if it is trained.
    pub(crate) weight: Option<Parameter>,
    /// The one that was added, if it is trained.
    pub(crate) bias: Option<Parameter>,
    /// What went in.
    pub(crate) input: Tensor,
    /// What came out. Autograd gives the gradient of whatever is computed from it.
    pub(crate) output: Tensor,
}

/// What is done with parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Operation {
    /// y = x·Wᵀ + b over the last dimension; W has shape (outputs, inputs).
    Linear,
    /// Correlation of x, shape (examples, channels, height, width), with W, shape (outputs, channels, k, k), plus b.
    Conv2d {
        /// Picture elements from one place to the next, both ways.
        stride: i64,
        /// Zeros around the picture, both ways.
        padding: i64,
    },
    /// Rows of W, shape (vocabulary, width), at the places x.
    Embedding,
    /// y = z·w + b, channel by channel, for the normalised values z of x; w and b have shape (channels).
    Normalisation(Normalisation),
    /// y = x + b, b broadcast over examples (and over what else it lacks in front).
    Shift,
}

/// How values are normalised: to mean 0 and variance 1, with `epsilon` added to the variance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Normalisation {
    /// Over the last dimension, which is that of the channels (Ba et al. 2016).
    Layer {
        /// See above.
        epsilon: f64,
    },
    /// Over as many groups of channels, which are the second dimension, of each example (Wu and He 2018).
    Group {
        /// How many.
        groups: i64,
        /// See above.
        epsilon: f64,
    },
}

impl Normalisation {
    /// z·w + b for the normalised values z of `x`, or z alone.
    pub(crate) fn of(self, x: &Tensor, scale: Option<(&Tensor, &Tensor)>) -> Result<Tensor, TchError> {
        let (w, b) = scale.unzip();
        match self {
            Self::Layer { epsilon } => x.f_layer_norm(&x.size()[x.dim() - 1..], w, b, epsilon, true),
            Self::Group { groups, epsilon } => x.f_group_norm(groups, w, b, epsilon, false),
        }
    }

    /// The dimension of the channels in values of so many.
    pub(crate) fn channel(self, dimensions: usize) -> i64 {
        match self {
            Self::Layer { .. } => dimensions as i64 - 1,
            Self::Group { .. } => 1,
        }
    }
}

impl<'a> Pass<'a> {
    /// A pass through a finished model.
    pub(crate) fn plain(weights: &'a Weights) -> Self {
        Self { weights, training: false, uses: None }
    }

    /// A pass in training.
    pub(crate) fn training(weights: &'a Weights) -> Self {
        Self { weights, training: true, uses: None }
    }

    /// A pass in training that keeps the books.
    pub(crate) fn recording(weights: &'a Weights) -> Self {
        Self { weights, training: true, uses: Some(Vec::new()) }
    }

    /// Whether this is a pass in training.
    pub(crate) fn trains(&self) -> bool {
        self.training
    }

    /// The values of these parameters, for an operation of libtorch's own that has no books; `None` in a recording pass.
    pub(crate) fn unrecorded(
        &self,
        parameters: impl IntoIterator<Item = Parameter>,
    ) -> Option<Vec<&'a Tensor>> {
        match self.uses {
            Some(_) => None,
            None => Some(parameters.into_iter().map(|p| self.weights.get(p)).collect()),
        }
    }

    /// Drops this part of the values in training, and scales up the others (Srivastava et al. 2014).
    pub(crate) fn dropout(&self, x: &Tensor, part: f64) -> Result<Tensor, TchError> {
        match self.training && part > 0.0 {
            true => x.f_dropout(part, true),
            false => Ok(x.shallow_clone()),
        }
    }

    /// A parameter's values, behind the books' back.
    #[cfg(test)]
    pub(crate) fn value(&self, parameter: Parameter) -> &Tensor {
        self.weights.get(parameter)
    }

    /// What was recorded.
    pub(crate) fn uses(self) -> Vec<Use> {
        self.uses.unwrap_or_default()
    }

    /// Over the last dimension of `x`: x·Wᵀ + b.
    pub(crate) fn linear(
        &mut self,
        x: &Tensor,
        weight: Parameter,
        bias: Option<Parameter>,
    ) -> Result<Tensor, TchError> {
        let (w, b) = (self.weights.get(weight), bias.map(|b| self.weights.get(b)));
        let y = self.product(x, w, b, |x, w, b| x.f_linear(w, b))?;
        self.used(Operation::Linear, Some(weight), bias, || Ok(x.shallow_clone()), y)
    }

    /// A product with weights in the precision that they are computed in; it goes in and comes out as f32.
    fn product(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        product: impl FnOnce(&Tensor, &Tensor, Option<&Tensor>) -> Result<Tensor, TchError>,
    ) -> Result<Tensor, TchError> {
        match self.weights.precision() {
            Precision::F32 => product(x, weight, bias),
            Precision::Bf16 => {
                let half = |t: &Tensor| t.f_to_kind(Kind::BFloat16);
                let bias = bias.map(half).transpose()?;
                product(&half(x)?, &half(weight)?, bias.as_ref())?.f_to_kind(x.kind())
            }
        }
    }

    /// Keeps a use, and lets autograd follow what came out from here on.
    fn used(
        &mut self,
        operation: Operation,
        weight: Option<Parameter>,
        bias: Option<Parameter>,
        input: impl FnOnce() -> Result<Tensor, TchError>,
        mut output: Tensor,
    ) -> Result<Tensor, TchError> {
        let Some(uses) = &mut self.uses else { return Ok(output) };
        let weight = weight.filter(|p| self.weights.trains(*p));
        let bias = bias.filter(|p| self.weights.trains(*p));
        if weight.is_none() && bias.is_none() {
            return Ok(output);
        }
        if !output.requires_grad() {
            output = output.f_requires_grad_(true)?;
        }
        uses.push(Use {
            operation,
            weight,
            bias,
            input: input()?.f_detach()?,
            output: output.shallow_clone(),
        });
        Ok(output)
    }
}

/// The further operations: each is the plain libtorch call, and what it is in terms of [`Operation`].
impl Pass<'_> {
    /// See [`Operation::Conv2d`].
    pub(crate) fn conv2d(
        &mut self,
        x: &Tensor,
        weight: Parameter,
        bias: Option<Parameter>,
        stride: i64,
        padding: i64,
    ) -> Result<Tensor, TchError> {
        let (w, b) = (self.weights.get(weight), bias.map(|b| self.weights.get(b)));
        let y = self
            .product(x, w, b, |x, w, b| x.f_conv2d(w, b, [stride, stride], [padding, padding], [1, 1], 1))?;
        self.used(Operation::Conv2d { stride, padding }, Some(weight), bias, || Ok(x.shallow_clone()), y)
    }

    /// Rows of `weight` at `places` (i64).
    pub(crate) fn embedding(&mut self, places: &Tensor, weight: Parameter) -> Result<Tensor, TchError> {
        let y = Tensor::f_embedding(self.weights.get(weight), places, -1, false, false)?;
        self.used(Operation::Embedding, Some(weight), None, || Ok(places.shallow_clone()), y)
    }

    /// Layer normalisation (Ba et al. 2016) over the last dimension.
    pub(crate) fn layer_norm(
        &mut self,
        x: &Tensor,
        weight: Parameter,
        bias: Parameter,
        epsilon: f64,
    ) -> Result<Tensor, TchError> {
        self.normalised(Normalisation::Layer { epsilon }, x, weight, bias)
    }

    /// Group normalisation (Wu and He 2018) of x, shape (examples, channels, …): each example by itself.
    pub(crate) fn group_norm(
        &mut self,
        x: &Tensor,
        groups: i64,
        weight: Parameter,
        bias: Parameter,
        epsilon: f64,
    ) -> Result<Tensor, TchError> {
        self.normalised(Normalisation::Group { groups, epsilon }, x, weight, bias)
    }

    fn normalised(
        &mut self,
        how: Normalisation,
        x: &Tensor,
        weight: Parameter,
        bias: Parameter,
    ) -> Result<Tensor, TchError> {
        let y = how.of(x, Some((self.weights.get(weight), self.weights.get(bias))))?;
        self.used(Operation::Normalisation(how), Some(weight), Some(bias), || Ok(x.shallow_clone()), y)
    }

    /// x + b, the same for every example: positions of a sequence, say.
    pub(crate) fn shift(&mut self, x: &Tensor, bias: Parameter) -> Result<Tensor, TchError> {
        let y = x.f_add(self.weights.get(bias))?;
        // Its gradient needs nothing of what went in.
        let nothing = || Tensor::f_zeros([0], (y.kind(), y.device()));
        self.used(Operation::Shift, None, Some(bias), nothing, y.shallow_clone())
    }
}
