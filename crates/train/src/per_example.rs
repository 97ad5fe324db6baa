//! The gradient of each example's own loss, for DP-SGD: materialised, or as little of it as its norm needs.
//!
//! One backward pass serves all examples (Goodfellow 2015): autograd gives the gradients of what each operation put out, and
//! the rest follows from what went in, by a formula of the operation. Read in this order: [`formula`] has what each operation
//! leaves of a parameter's gradients, `outer` the gradients that are products; [`books`] puts the parameters together
//! to norms and to weighted sums (book-keeping: Bu et al. 2023, arXiv 2210.00038); [`mixing`] checks what all of this
//! presumes, that no example's output depends on another.

pub(crate) mod books;
mod formula;
pub(crate) mod mixing;
mod outer;

use crate::failure::Failure;
use crate::nn::pass::Use;
use crate::nn::weights::Weights;
use crate::nn::{Network, Parameter};
use formula::Gradient;
use std::collections::BTreeMap;
use tch::{Kind, Reduction, TchError, Tensor};

/// What one pass forward and one back to the operations' outputs leave.
#[derive(Debug)]
pub(crate) struct Tape {
    /// How many examples; what went through the model is [`views`](Self::record) times as many rows.
    examples: i64,
    /// The model's outputs, each multiplied with the gradient of its example's loss and summed over outputs and views: an
    /// example's gradient is the gradient of its sum.
    surrogate: Tensor,
    uses: Vec<(Use, Tensor)>,
}

impl Tape {
    /// Passes `x` through, of which `views` consecutive rows are one example, whose gradient is their mean; `truth` has one
    /// entry an example. With `keep_graph` another backward pass may follow.
    pub(crate) fn record(
        network: &Network,
        weights: &Weights,
        x: &Tensor,
        truth: &Tensor,
        views: i64,
        keep_graph: bool,
    ) -> Result<Self, TchError> {
        let (logits, uses) = network.record(weights, x)?;
        let surrogate = surrogate(network, &logits, truth, views)?;
        let outputs: Vec<&Tensor> = uses.iter().map(|used| &used.output).collect();
        let loss = surrogate.f_sum(None::<Kind>)?;
        // An example's gradients are those of its own loss, since no operation mixes examples.
        let gradients = Tensor::f_run_backward(&[loss], &outputs, keep_graph, false)?;
        Ok(Self { examples: truth.size()[0], surrogate, uses: uses.into_iter().zip(gradients).collect() })
    }

    /// The parameters that were used, each with all its uses.
    fn parameters(&self) -> BTreeMap<Parameter, Vec<(&Use, &Tensor, Role)>> {
        let mut found: BTreeMap<Parameter, Vec<_>> = BTreeMap::new();
        for (used, output) in &self.uses {
            for (parameter, role) in [(used.weight, Role::Weight), (used.bias, Role::Bias)] {
                if let Some(parameter) = parameter {
                    found.entry(parameter).or_default().push((used, output, role));
                }
            }
        }
        found
    }

    /// Whether the tape has all parameters that are trained: one that a module reaches on its own has no formula.
    pub(crate) fn is_complete(&self, weights: &Weights) -> bool {
        let parameters = self.parameters();
        weights.trained().all(|p| parameters.contains_key(&p))
    }

    /// Values held for one row of `x`, roughly: what went in and out of each operation, and the gradients.
    pub(crate) fn values_held(&self) -> i64 {
        let rows = |t: &Tensor| (t.numel() as i64) / t.size().first().copied().unwrap_or(1).max(1);
        self.uses.iter().map(|(used, _)| rows(&used.input) + 3 * rows(&used.output)).sum()
    }
}

/// What a parameter is to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Weight,
    Bias,
}

/// The products of the logits with the gradients of the losses with respect to them, summed over outputs and views: shape
/// (examples).
fn surrogate(network: &Network, logits: &Tensor, truth: &Tensor, views: i64) -> Result<Tensor, TchError> {
    let truth = match views {
        1 => truth.shallow_clone(),
        _ => truth.f_repeat_interleave_self_int(views, 0, None::<i64>)?,
    };
    let mut seed = network.objective().logit_gradients(&logits.f_detach()?, &truth)?;
    if views > 1 {
        seed = seed.f_div_scalar(views as f64)?;
    }
    let examples = logits.size()[0] / views;
    logits.f_mul(&seed)?.f_reshape([examples, -1])?.f_sum_dim_intlist(1, false, None::<Kind>)
}

/// One gradient an example, in parts that make up the flat vector: for each parameter that is trained shape (examples, values), in the
/// layout's order.
pub(crate) fn gradients(
    network: &Network,
    weights: &Weights,
    x: &Tensor,
    truth: &Tensor,
    views: i64,
) -> Result<Vec<Tensor>, TchError> {
    let examples = truth.size()[0];
    if examples == 0 {
        let values = weights.trained().map(|p| weights.get(p).numel() as i64);
        return values.map(|n| Tensor::f_zeros([0, n], (x.kind(), x.device()))).collect();
    }
    let tape = Tape::record(network, weights, x, truth, views, false)?;
    let _no_graph = tch::no_grad_guard();
    let parameters = tape.parameters().into_iter();
    parameters
        .map(|(parameter, uses)| Gradient::of(examples, &uses, weights.get(parameter))?.materialised())
        .collect()
}

/// The same in one part, shape (examples, parameters that are trained).
#[cfg(test)]
pub(crate) fn joined_gradients(
    network: &Network,
    weights: &Weights,
    x: &Tensor,
    truth: &Tensor,
    views: i64,
) -> Result<Tensor, TchError> {
    Tensor::f_cat(&gradients(network, weights, x, truth, views)?, 1)
}

/// The same in one part, for modules that keep no tape: one example after the other, by autograd. The weights are
/// [followed](Weights::followed).
pub(crate) fn one_by_one(
    network: &Network,
    weights: &Weights,
    x: &Tensor,
    truth: &Tensor,
    views: i64,
) -> Result<Tensor, Failure> {
    let rows = (0..truth.size()[0]).map(|i| {
        let x = x.f_narrow(0, i * views, views)?;
        let truth = truth.f_narrow(0, i, 1)?.f_expand([views], false)?;
        Ok(weights.gradient(&network.training_loss(weights, &x, &truth, Reduction::Mean)?)?)
    });
    Ok(Tensor::f_stack(&rows.collect::<Result<Vec<_>, Failure>>()?, 0)?)
}

#[cfg(test)]
mod tests;
