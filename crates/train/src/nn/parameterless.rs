//! What stands between parameters: arithmetic of each example by itself.

use tch::{TchError, Tensor};
use undertone_core::model::{Activation, Pool, PoolKind};

/// The activation of each value.
pub(crate) fn activate(activation: Activation, x: &Tensor) -> Result<Tensor, TchError> {
    match activation {
        Activation::Relu => x.f_relu(),
        Activation::Tanh => x.f_tanh(),
        Activation::Gelu => x.f_gelu("none"),
    }
}

/// Pools pictures, shape (examples, channels, height, width).
pub(crate) fn pool(pool: &Pool, x: &Tensor) -> Result<Tensor, TchError> {
    let (kernel, stride) = (pool.kernel as i64, pool.stride() as i64);
    let (kernel, stride) = ([kernel, kernel], [stride, stride]);
    match pool.kind {
        PoolKind::Max => x.f_max_pool2d(kernel, stride, [0, 0], [1, 1], false),
        PoolKind::Average => x.f_avg_pool2d(kernel, stride, [0, 0], false, true, None),
    }
}

/// Which places of texts, i64 of shape (examples, places), hold a token and no padding. The first always counts, so that
/// an empty text has something to be read.
pub(crate) fn tokens_present(texts: &Tensor) -> Result<Tensor, TchError> {
    let first = Tensor::f_arange(texts.size()[1], (tch::Kind::Int64, texts.device()))?.f_eq(0i64)?;
    texts.f_ne(0i64)?.f_logical_or(&first)
}
