//! Book-keeping (Bu et al. 2023, arXiv 2210.00038): from one backward pass the norm of each example's gradient, and then the
//! sum of all gradients, each scaled, without a second one.

use super::Tape;
use super::formula::Gradient;
use crate::nn::weights::Weights;
use tch::{TchError, Tensor};

/// What a tape leaves to compute weighted sums from.
#[derive(Debug)]
pub(crate) struct Books {
    /// In the layout's order.
    gradients: Vec<Gradient>,
    squared_norms: Tensor,
}

impl Books {
    /// Norms, and what weighted sums need.
    pub(crate) fn of(tape: Tape, weights: &Weights) -> Result<Self, TchError> {
        let _no_graph = tch::no_grad_guard();
        let mut norms = None;
        let mut gradients = Vec::new();
        for (parameter, uses) in tape.parameters() {
            let gradient = Gradient::of(tape.examples, &uses, weights.get(parameter))?;
            let (squared, gradient) = gradient.squared_norms(true)?;
            add(&mut norms, squared)?;
            gradients.push(gradient);
        }
        Ok(Self { gradients, squared_norms: norms.expect("a part that is trained has parameters") })
    }

    /// The squared L2 norm of each example's gradient, f64, shape (examples).
    pub(crate) fn squared_norms(&self) -> &Tensor {
        &self.squared_norms
    }

    /// Σ cᵢ·gᵢ over the examples for c of shape (examples): flat over what is trained.
    pub(crate) fn weighted_sum(&self, factors: &Tensor) -> Result<Tensor, TchError> {
        let _no_graph = tch::no_grad_guard();
        let parts: Result<Vec<Tensor>, TchError> =
            self.gradients.iter().map(|g| g.weighted_sum(factors)).collect();
        Tensor::f_cat(&parts?, 0)
    }
}

/// The ghost of it: norms alone, of a tape whose graph is kept, and then a second backward pass of the scaled losses. Nothing
/// is held for a weighted sum, at the price of that pass.
#[derive(Debug)]
pub(crate) struct Ghost {
    surrogate: Tensor,
    squared_norms: Tensor,
}

impl Ghost {
    /// The norms. The tape was recorded with its graph kept, over weights that are [followed](Weights::followed).
    pub(crate) fn of(tape: Tape, weights: &Weights) -> Result<Self, TchError> {
        let _no_graph = tch::no_grad_guard();
        let mut norms = None;
        for (parameter, uses) in tape.parameters() {
            let gradient = Gradient::of(tape.examples, &uses, weights.get(parameter))?;
            add(&mut norms, gradient.squared_norms(false)?.0)?;
        }
        let squared_norms = norms.expect("a part that is trained has parameters");
        Ok(Self { surrogate: tape.surrogate, squared_norms })
    }

    /// As of [`Books::squared_norms`].
    pub(crate) fn squared_norms(&self) -> &Tensor {
        &self.squared_norms
    }

    /// As of [`Books::weighted_sum`], by autograd.
    pub(crate) fn weighted_sum(self, factors: &Tensor, weights: &Weights) -> Result<Tensor, TchError> {
        weights.gradient(&self.surrogate.f_dot(factors)?)
    }
}

fn add(sum: &mut Option<Tensor>, more: Tensor) -> Result<(), TchError> {
    *sum = Some(match sum.take() {
        Some(sum) => sum.f_add(&more)?,
        None => more,
    });
    Ok(())
}

/// What the two hold, counted on a tape of one example.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Footprint {
    /// Values on the tape.
    pub(crate) tape: i64,
    /// Values that book-keeping keeps beside it until the weighted sums.
    pub(crate) books: i64,
    /// The most that the norms of one parameter take in passing.
    pub(crate) passing: i64,
    /// Points in time that one product sums over, at most.
    pub(crate) times: i64,
}

impl Footprint {
    /// Of one example; the tape is of one.
    pub(crate) fn of(tape: &Tape, weights: &Weights) -> Result<Self, TchError> {
        let _no_graph = tch::no_grad_guard();
        let mut found = Self { tape: tape.values_held(), books: 0, passing: 0, times: 1 };
        for (parameter, uses) in tape.parameters() {
            let gradient = Gradient::of(tape.examples, &uses, weights.get(parameter))?;
            let (kept, passing) = gradient.values();
            found.books += kept;
            found.passing = found.passing.max(passing);
            if let Gradient::Outer(outer) = &gradient {
                found.times = found.times.max(outer.times());
            }
        }
        Ok(found)
    }
}
