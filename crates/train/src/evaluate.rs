//! How good a model is on a client's rows.

use crate::failure::{Failure, Stop};
use crate::memory::MicroBatch;
use crate::nn::Network;
use crate::nn::weights::Weights;
use crate::rows::Rows;
use tch::{Kind, Reduction, TchError, Tensor, no_grad_guard};
use undertone_core::trainer::{BoundedSums, LOSS_UNITS, Metrics, TrainerError};

/// Rows that are looked at together: bounds memory.
const CHUNK_ROWS: usize = 8192;

/// Mean loss of `weights` on all rows, and the accuracy or, of numbers, the mean absolute error.
pub(crate) fn evaluate(
    network: &Network,
    rows: &Rows,
    weights: &[f32],
    stop: &Stop,
) -> Result<Metrics, Failure> {
    let _no_graph = no_grad_guard();
    let tensors = Weights::whole(network.layout(), &network.load(weights, rows.device())?)?;
    let objective = network.objective();
    let (mut loss, mut right, mut error) = (0.0, 0, 0.0);
    let mut micro = MicroBatch::new(CHUNK_ROWS);
    let mut start = 0;
    while start < rows.len() {
        stop.check()?;
        let (measured, of_them, right_of_them, error_of_them) = micro.run(rows.len() - start, |most| {
            let (x, y) = rows.range(start, most)?;
            let logits = network.forward(&tensors, &x)?;
            let loss = objective.loss(&logits.f_to_kind(Kind::Double)?, &y, Reduction::Sum)?;
            let (right, error) = match rows.unit() {
                None => (objective.right(&logits, &y)?, 0.0),
                Some(unit) => (0, unit * absolute_error(&logits, &y)?),
            };
            Ok((most, loss.f_double_value(&[])?, right, error))
        })?;
        start += measured;
        loss += of_them;
        right += right_of_them;
        error += error_of_them;
    }
    let n = rows.len() as f64;
    if !(loss.is_finite() && error.is_finite()) {
        return Err(TrainerError::Numerical(format!("the model's loss on this data is {loss}")).into());
    }
    Ok(Metrics {
        loss: loss / n,
        accuracy: rows.unit().is_none().then_some(right as f64 / n),
        mean_absolute_error: rows.unit().map(|_| error / n),
        rows: rows.len() as u64,
    })
}

/// The sum of the distances between predicted and true numbers.
fn absolute_error(predicted: &Tensor, truth: &Tensor) -> Result<f64, TchError> {
    predicted.f_squeeze_dim(1)?.f_sub(truth)?.f_abs()?.f_sum(Kind::Double)?.f_double_value(&[])
}

/// The sums of `weights` on all rows, each row's part bounded: a loss that is no number, or beyond `max_loss`, counts as
/// `max_loss`. Integers: a row more or less moves them by its own part and by nothing else.
pub(crate) fn evaluate_bounded(
    network: &Network,
    rows: &Rows,
    weights: &[f32],
    max_loss: f64,
    stop: &Stop,
) -> Result<BoundedSums, Failure> {
    let _no_graph = no_grad_guard();
    let tensors = Weights::whole(network.layout(), &network.load(weights, rows.device())?)?;
    let objective = network.objective();
    let (mut loss_units, mut right) = (0, 0);
    let mut micro = MicroBatch::new(CHUNK_ROWS);
    let mut start = 0;
    while start < rows.len() {
        stop.check()?;
        let (measured, of_them, right_of_them) = micro.run(rows.len() - start, |most| {
            let (x, y) = rows.range(start, most)?;
            let logits = network.forward(&tensors, &x)?;
            let losses = objective.loss(&logits.f_to_kind(Kind::Double)?, &y, Reduction::None)?;
            let units = losses
                .f_nan_to_num(max_loss, max_loss, 0.0)?
                .f_clamp(0.0, max_loss)?
                .f_mul_scalar(LOSS_UNITS as f64 / max_loss)?
                .f_round()?
                .f_clamp(0.0, LOSS_UNITS as f64)?;
            let units = units.f_to_kind(Kind::Int64)?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
            Ok((most, units, objective.right(&logits, &y)?))
        })?;
        start += measured;
        loss_units += of_them;
        right += right_of_them;
    }
    let right = rows.unit().is_none().then_some(right);
    Ok(BoundedSums { rows: rows.len() as u64, right, loss_units: loss_units as u64 })
}

/// Mean loss on the rows at these places, of weights that are on the device already.
pub(crate) fn mean_loss(
    network: &Network,
    tensors: &Weights,
    rows: &Rows,
    places: &[i64],
    stop: &Stop,
) -> Result<f64, Failure> {
    let _no_graph = no_grad_guard();
    let mut loss = 0.0;
    let mut micro = MicroBatch::new(CHUNK_ROWS);
    let mut start = 0;
    while start < places.len() {
        stop.check()?;
        let (measured, of_them) = micro.run(places.len() - start, |most| {
            let (x, y) = rows.select(&places[start..start + most])?;
            let logits = network.forward(tensors, &x)?.f_to_kind(Kind::Double)?;
            Ok((most, network.objective().loss(&logits, &y, Reduction::Sum)?.f_double_value(&[])?))
        })?;
        start += measured;
        loss += of_them;
    }
    Ok(loss / places.len() as f64)
}
