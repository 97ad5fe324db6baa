//! Book-keeping (Bu et al. 2023, arXiv 2210.00038): from one backward pass the norm of each example's gradient, and then the
//! sum of all gradients, each scaled, without a second one.

use super::formula::Gradient;
use super::{Role, Tape};
use crate::nn::Parameter;
use crate::nn::pass::{Operation, Use};
use crate::nn::weights::Weights;
use std::collections::BTreeSet;
use tch::{TchError, Tensor};

/// What a tape leaves to compute weighted sums from.
#[derive(Debug)]
pub(crate) struct Books {
    entries: Vec<Entry>,
    squared_norms: Tensor,
}

/// The gradients of a parameter, and of the bias that was added wherever it was used, if its own are part of them.
#[derive(Debug)]
struct Entry {
    parameter: Parameter,
    bias: Option<Parameter>,
    gradient: Gradient,
}

/// All that is on a tape. A matrix and its bias are one entry where that saves a look at the gradients.
fn entries(tape: &Tape, weights: &Weights) -> Result<Vec<Entry>, TchError> {
    let parameters = tape.parameters();
    let (mut entries, mut joined) = (Vec::new(), BTreeSet::new());
    for (&parameter, uses) in &parameters {
        let mut gradient = Gradient::of(tape.examples, uses, weights.get(parameter))?;
        let bias = uses[0].0.bias.filter(|bias| {
            let others = &parameters[bias];
            let alike = uses.iter().zip(others).all(|(&(used, _, role), &(same, _, other))| {
                std::ptr::eq(used, same) && (role, other) == (Role::Weight, Role::Bias)
            });
            alike && uses.len() == others.len() && gradient.joins_bias()
        });
        joined.extend(bias);
        entries.push(Entry { parameter, bias, gradient });
    }
    entries.retain(|entry| !joined.contains(&entry.parameter));
    Ok(entries)
}

impl Books {
    /// Norms, and what weighted sums need.
    pub(crate) fn of(tape: Tape, weights: &Weights) -> Result<Self, TchError> {
        let _no_graph = tch::no_grad_guard();
        let mut norms = None;
        let mut entries = entries(&tape, weights)?;
        for entry in &mut entries {
            add(&mut norms, entry.gradient.squared_norms(true)?)?;
        }
        Ok(Self { entries, squared_norms: norms.expect("a part that is trained has parameters") })
    }

    /// The squared L2 norm of each example's gradient, f64, shape (examples).
    pub(crate) fn squared_norms(&self) -> &Tensor {
        &self.squared_norms
    }

    /// The books of the examples at these places alone. What the others came to is in none of it.
    pub(crate) fn of_some(self, places: &[i64]) -> Result<Self, TchError> {
        let _no_graph = tch::no_grad_guard();
        let places = Tensor::f_from_slice(places)?.f_to_device(self.squared_norms.device())?;
        let some = |entry: Entry| Ok(Entry { gradient: entry.gradient.of_some(&places)?, ..entry });
        let entries = self.entries.into_iter().map(some).collect::<Result<_, TchError>>()?;
        Ok(Self { entries, squared_norms: self.squared_norms.f_index_select(0, &places)? })
    }

    /// Σ cᵢ·gᵢ over the examples for c of shape (examples): flat parts that make up all that is trained, in the layout's order.
    pub(crate) fn weighted_sums(&self, factors: &Tensor) -> Result<Vec<Tensor>, TchError> {
        let _no_graph = tch::no_grad_guard();
        let mut sums = Vec::new();
        for Entry { parameter, bias, gradient } in &self.entries {
            let (sum, of_bias) = gradient.weighted_sums(factors)?;
            sums.push((*parameter, sum));
            sums.extend(bias.zip(of_bias));
        }
        sums.sort_by_key(|(parameter, _)| *parameter);
        Ok(sums.into_iter().map(|(_, sum)| sum).collect())
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
        for mut entry in entries(&tape, weights)? {
            add(&mut norms, entry.gradient.squared_norms(false)?)?;
        }
        let squared_norms = norms.expect("a part that is trained has parameters");
        Ok(Self { surrogate: tape.surrogate, squared_norms })
    }

    /// As of [`Books::squared_norms`].
    pub(crate) fn squared_norms(&self) -> &Tensor {
        &self.squared_norms
    }

    /// As of [`Books::weighted_sums`] in one part, by autograd.
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
    /// Points in time (places of a picture, tokens) that a sum goes over, at most, to a single value of a parameter.
    pub(crate) times: i64,
}

impl Footprint {
    /// Of one example; the tape is of one.
    pub(crate) fn of(tape: &Tape, weights: &Weights) -> Result<Self, TchError> {
        let _no_graph = tch::no_grad_guard();
        let mut found = Self { tape: tape.values_held(), books: 0, passing: 0, times: 1 };
        for Entry { gradient, .. } in entries(tape, weights)? {
            let (kept, passing) = gradient.values();
            found.books += kept;
            found.passing = found.passing.max(passing);
        }
        for (parameter, uses) in tape.parameters() {
            let size = weights.get(parameter).size();
            // Of each use, and of all that are laid behind each other.
            let times = |(used, output, role): &(&Use, &Tensor, Role)| {
                let width = match (role, used.operation) {
                    (Role::Weight, Operation::Linear | Operation::Conv2d { .. }) => size[0],
                    (Role::Weight, Operation::Embedding) => size[1],
                    _ => size.iter().product(),
                };
                output.numel() as i64 / width.max(1)
            };
            found.times = found.times.max(uses.iter().map(times).sum());
        }
        Ok(found)
    }
}
