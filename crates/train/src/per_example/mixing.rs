//! Whether one example's output depends on another's input.

use crate::nn::Network;
use crate::nn::weights::Weights;
use tch::{Kind, TchError, Tensor};

/// Changes one of three examples and looks at what comes out for the others: batch normalisation, say, lets it through. A
/// module that mixes examples has no gradient of a single one, and clipping would bound nothing.
///
/// `x` is of one row and gives shape and kind; its values do not matter. The examples are of zeros, the changed one of ones
/// (of tokens: token 1).
pub(crate) fn mixes_examples(network: &Network, weights: &Weights, x: &Tensor) -> Result<bool, TchError> {
    let _no_graph = tch::no_grad_guard();
    let (zero, one) = (x.f_zeros_like()?, x.f_ones_like()?);
    let same = Tensor::f_cat(&[&zero, &zero, &zero], 0)?;
    let changed = Tensor::f_cat(&[&zero, &one, &zero], 0)?;
    let others = Tensor::f_from_slice(&[0i64, 2])?.f_to_device(x.device())?;
    let of = |x: &Tensor| network.forward(weights, x)?.f_index_select(0, &others);
    let (before, after) = (of(&same)?, of(&changed)?);
    // What is not a number is no evidence; training finds it.
    let scale = before.f_abs()?.f_max()?.f_double_value(&[])?.max(1e-3);
    let difference = after.f_sub(&before)?.f_abs()?.f_to_kind(Kind::Double)?.f_max()?.f_double_value(&[])?;
    Ok(difference > 1e-5 * scale)
}
