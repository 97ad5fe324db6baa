//! How good a model is on a client's rows.

use crate::failure::{Failure, Stop};
use crate::memory::MicroBatch;
use crate::nn::Network;
use crate::nn::script::Sums;
use crate::nn::weights::Weights;
use crate::rows::Rows;
use tch::{Kind, no_grad_guard};
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
    let tensors = whole(network, weights, rows)?;
    let mut all = Sums::default();
    let mut micro = MicroBatch::new(CHUNK_ROWS);
    let mut start = 0;
    while start < rows.len() {
        stop.check()?;
        let (measured, some) = micro.run(rows.len() - start, |most| {
            let (x, y) = rows.range(start, most)?;
            Ok((most, network.measure(&tensors, &x, &y)?))
        })?;
        start += measured;
        all = all.and(some);
    }
    let n = rows.len() as f64;
    if ![all.loss, all.error.unwrap_or(0.0)].iter().all(|sum| sum.is_finite()) {
        return Err(TrainerError::Numerical(format!("the model's loss on this data is {}", all.loss)).into());
    }
    Ok(Metrics {
        loss: all.loss / n,
        accuracy: all.right.filter(|_| rows.unit().is_none()).map(|right| right as f64 / n),
        mean_absolute_error: rows.unit().zip(all.error).map(|(unit, error)| unit * error / n),
        rows: rows.len() as u64,
    })
}

/// All of a model, on the device of the rows.
fn whole(network: &Network, weights: &[f32], rows: &Rows) -> Result<Weights, Failure> {
    let flat = network.load(weights, rows.device())?;
    Ok(network.weights(&network.layout().whole(), &flat, &flat)?)
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
    let tensors = whole(network, weights, rows)?;
    let (mut loss_units, mut right) = (0, None);
    let mut micro = MicroBatch::new(CHUNK_ROWS);
    let mut start = 0;
    while start < rows.len() {
        stop.check()?;
        let (measured, of_them, right_of_them) = micro.run(rows.len() - start, |most| {
            let (x, y) = rows.range(start, most)?;
            let (losses, right) = network.measure_each(&tensors, &x, &y)?;
            let units = losses
                .f_nan_to_num(max_loss, max_loss, 0.0)?
                .f_clamp(0.0, max_loss)?
                .f_mul_scalar(LOSS_UNITS as f64 / max_loss)?
                .f_round()?
                .f_clamp(0.0, LOSS_UNITS as f64)?;
            let units = units.f_to_kind(Kind::Int64)?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
            Ok((most, units, right))
        })?;
        start += measured;
        loss_units += of_them;
        right = right_of_them.map(|n| n + right.unwrap_or(0));
    }
    let right = right.filter(|_| rows.unit().is_none());
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
            Ok((most, network.measure(tensors, &x, &y)?.loss))
        })?;
        start += measured;
        loss += of_them;
    }
    Ok(loss / places.len() as f64)
}
