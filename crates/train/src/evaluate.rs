//! How good a model is on a client's rows.

use crate::failure::{Failure, Stop};
use crate::model::Network;
use crate::rows::Rows;
use tch::{Kind, Reduction, no_grad_guard};
use undertone_core::trainer::{BoundedSums, LOSS_UNITS, Metrics, TrainerError};

/// Rows that are looked at together: bounds memory.
const CHUNK_ROWS: usize = 8192;

/// Mean cross-entropy and accuracy of `weights` on all rows.
pub(crate) fn evaluate(
    network: &Network,
    rows: &Rows,
    weights: &[f32],
    stop: &Stop,
) -> Result<Metrics, Failure> {
    let _no_graph = no_grad_guard();
    let flat = network.load(weights, rows.device())?;
    let (mut loss, mut right) = (0.0, 0);
    for start in (0..rows.len()).step_by(CHUNK_ROWS) {
        stop.check()?;
        let (x, y) = rows.range(start, CHUNK_ROWS.min(rows.len() - start))?;
        let (_, logits) = network.forward(&flat, &x)?;
        loss += network.loss(&logits.f_to_kind(Kind::Double)?, &y, Reduction::Sum)?.f_double_value(&[])?;
        right += network.predictions(&logits)?.f_eq_tensor(&y)?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
    }
    let n = rows.len() as f64;
    if !loss.is_finite() {
        return Err(TrainerError::Numerical(format!("the model's loss on this data is {loss}")).into());
    }
    Ok(Metrics { loss: loss / n, accuracy: right as f64 / n, rows: rows.len() as u64 })
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
    let flat = network.load(weights, rows.device())?;
    let (mut loss_units, mut right) = (0, 0);
    for start in (0..rows.len()).step_by(CHUNK_ROWS) {
        stop.check()?;
        let (x, y) = rows.range(start, CHUNK_ROWS.min(rows.len() - start))?;
        let (_, logits) = network.forward(&flat, &x)?;
        let losses = network.loss(&logits.f_to_kind(Kind::Double)?, &y, Reduction::None)?;
        let units = losses
            .f_nan_to_num(max_loss, max_loss, 0.0)?
            .f_clamp(0.0, max_loss)?
            .f_mul_scalar(LOSS_UNITS as f64 / max_loss)?
            .f_round()?
            .f_clamp(0.0, LOSS_UNITS as f64)?;
        loss_units += units.f_to_kind(Kind::Int64)?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
        right += network.predictions(&logits)?.f_eq_tensor(&y)?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
    }
    Ok(BoundedSums { rows: rows.len() as u64, right: right as u64, loss_units: loss_units as u64 })
}
