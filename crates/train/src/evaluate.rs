//! How good a model is on a client's rows.

use crate::failure::{Failure, Stop};
use crate::model::Network;
use crate::rows::Rows;
use tch::{Kind, Reduction, no_grad_guard};
use undertone_core::trainer::{Metrics, TrainerError};

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
