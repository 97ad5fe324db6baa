//! Gradients of a matrix: an example's is Σₜ gₜ·aₜᵀ over the points in time (or places of a picture) at which it was applied.

use super::formula::squares;
use tch::{Kind, TchError, Tensor};

/// The factors of such gradients.
#[derive(Debug)]
pub(super) struct Outer {
    /// What went in, shape (examples, times, inputs).
    inputs: Tensor,
    /// The gradients of what came out, shape (examples, times, outputs).
    outputs: Tensor,
    /// Values of the two that are copies of what the tape holds.
    copied: i64,
    /// Whether the gradients are also of a bias, Σₜ gₜ: it is one more input that is always 1.
    biased: bool,
}

/// Multiplications that a value costs which is written to memory, squared, and read again.
const MEMORY_COST: i64 = 80;
/// Relative error that a norm may have: a part of [`SENSITIVITY_MARGIN`](undertone_privacy::dp_sgd::SENSITIVITY_MARGIN).
const NORM_ERROR: f64 = 1.0 / 256.0;
/// Half the distance from 1 to the next f32.
const UNIT_ROUNDOFF: f64 = 1.0 / (1u32 << 24) as f64;
/// Rounding errors that do not conspire stay below λ·√k·u except with probability 2·exp(-λ²/2) (Higham and Mary 2019).
const LAMBDA: f64 = 8.0;

/// Squared norms of sums of vectors, of whose own squared norms `parts` is the sum: larger ones where the vectors cancel so far that what is
/// left could be the rounding of another sum of them. An error is at most λ·u·√T times what a sum comes to on its way, Σ‖vₜ‖ ≤ √(T·parts).
/// Vectors that are not correlated add up to `parts` itself.
pub(super) fn never_rounding(squared: Tensor, parts: &Tensor, times: i64) -> Result<Tensor, TchError> {
    let error = LAMBDA * UNIT_ROUNDOFF * times as f64 / NORM_ERROR;
    squared.f_maximum(&parts.f_mul_scalar(error.powi(2).min(1.0))?)
}

impl Outer {
    /// From the two factors, of which `copied` values are not on the tape.
    pub(super) fn new(inputs: Tensor, outputs: Tensor, copied: i64) -> Self {
        Self { inputs, outputs, copied, biased: false }
    }

    /// Uses of one matrix, like points in time one behind the other.
    pub(super) fn joined(mut parts: Vec<Self>) -> Result<Self, TchError> {
        if parts.len() == 1 {
            return Ok(parts.remove(0));
        }
        let inputs = Tensor::f_cat(&parts.iter().map(|p| &p.inputs).collect::<Vec<_>>(), 1)?;
        let outputs = Tensor::f_cat(&parts.iter().map(|p| &p.outputs).collect::<Vec<_>>(), 1)?;
        let copied = (inputs.numel() + outputs.numel()) as i64;
        Ok(Self { inputs, outputs, copied, biased: false })
    }

    /// Those of the examples at these places, i64.
    pub(super) fn of_some(self, places: &Tensor) -> Result<Self, TchError> {
        let some = |t: &Tensor| t.f_index_select(0, places);
        Ok(Self { inputs: some(&self.inputs)?, outputs: some(&self.outputs)?, ..self })
    }

    /// Norms and sums are also of a bias from here on.
    pub(super) fn join_bias(&mut self) {
        self.biased = true;
    }

    /// Shape (examples, outputs · inputs), without a bias.
    pub(super) fn materialised(&self) -> Result<Tensor, TchError> {
        self.outputs.f_transpose(1, 2)?.f_matmul(&self.inputs)?.f_flatten(1, -1)
    }

    /// Whether norms cost less by materialising the gradients than by [`Self::squared_norms`]. The products that
    /// materialising takes are not lost, they save those of the weighted sum; what it costs is memory traffic.
    pub(super) fn is_cheaper_whole(&self) -> bool {
        let (times, inputs, outputs) = self.sizes();
        times > 1 && MEMORY_COST * inputs * outputs < times * times * (inputs + outputs)
    }

    /// Values that it holds beyond the tape from the norms to the weighted sum, and those that the norms take beside them.
    pub(super) fn values(&self) -> (i64, i64) {
        let (times, inputs, outputs) = self.sizes();
        let examples = self.inputs.size()[0];
        match self.is_cheaper_whole() {
            true => (examples * inputs * outputs, self.copied + examples * inputs * outputs),
            false => (self.copied, examples * 2 * times * times),
        }
    }

    fn sizes(&self) -> (i64, i64, i64) {
        (self.inputs.size()[1], self.inputs.size()[2], self.outputs.size()[2])
    }

    /// ‖Σₜ gₜ·aₜᵀ‖² = Σₛₜ (aₛ·aₜ)(gₛ·gₜ), f64, without the sum itself (the ghost norm of Li et al. 2022, arXiv 2110.05679,
    /// section 4).
    ///
    /// Where the terms cancel so far that what is left could be rounding, a larger norm is given: clipping to it errs on the
    /// side of the promise. With rounding errors that do not conspire the error of the sum is
    /// λ·u·(√inputs + √outputs)·√(Σₛₜ xₛ²xₜ²) for xₜ = ‖aₜ‖‖gₜ‖, and that root is Σₜ xₜ², the trace. Terms that are not
    /// correlated add up to the trace itself, so this is for gradients that are far below chance.
    ///
    /// Products below the least normal f32, m, may be lost, each of the terms of (aₛ·aₜ) with what it is multiplied with: m·(T² +
    /// inputs·Σₛₜ|gₛ·gₜ| + outputs·Σₛₜ|aₛ·aₜ|) in all, and Σₛₜ|aₛ·aₜ| ≤ (Σₛ‖aₛ‖)² ≤ T·Σₛ‖aₛ‖². As much is added.
    pub(super) fn squared_norms(&self) -> Result<Tensor, TchError> {
        let (times, inputs, outputs) = self.sizes();
        let bias = if self.biased { 1.0 } else { 0.0 };
        if times == 1 {
            return squares(&self.inputs)?.f_add_scalar_(bias)?.f_mul_(&squares(&self.outputs)?);
        }
        let gram = |t: &Tensor| t.f_matmul(&t.f_transpose(1, 2)?);
        let trace_of = |t: &Tensor| t.f_diagonal(0, 1, 2)?.f_sum_dim_intlist(1, false, Kind::Double);
        let (of_inputs, of_outputs) = (gram(&self.inputs)?.f_add_scalar_(bias)?, gram(&self.outputs)?);
        let mut lost = trace_of(&of_outputs)?.f_mul_scalar(inputs as f64 + bias)?;
        lost = lost.f_add(&trace_of(&of_inputs)?.f_mul_scalar(outputs as f64)?)?;
        lost = lost.f_add_scalar(times as f64)?.f_mul_scalar(times as f64 * f64::from(f32::MIN_POSITIVE))?;
        let mut products = of_inputs;
        let products = products.f_mul_(&of_outputs)?;
        let trace = trace_of(&products)?;
        let error = LAMBDA * UNIT_ROUNDOFF * ((inputs as f64 + bias).sqrt() + (outputs as f64).sqrt() + 2.0);
        let sums = products.f_sum_dim_intlist(&[1i64, 2][..], false, Kind::Double)?;
        sums.f_maximum(&trace.f_mul_scalar(error / (2.0 * NORM_ERROR))?)?.f_add_(&lost)
    }

    /// These squared norms of materialised gradients, as [`never_rounding`] has them.
    pub(super) fn never_rounding(&self, squared: Tensor) -> Result<Tensor, TchError> {
        let of_times = |t: &Tensor| t.f_square()?.f_sum_dim_intlist(2, false, Kind::Double);
        let products = of_times(&self.inputs)?.f_mul_(&of_times(&self.outputs)?)?;
        never_rounding(squared, &products.f_sum_dim_intlist(1, false, None::<Kind>)?, self.times())
    }

    /// Σ cᵢ·Gᵢ, flat: one product over all examples and times. And Σ cᵢ·gᵢ of a bias.
    pub(super) fn weighted_sums(&self, factors: &Tensor) -> Result<(Tensor, Option<Tensor>), TchError> {
        let (times, inputs, outputs) = self.sizes();
        let each = factors.f_view([-1, 1, 1])?;
        // The smaller of the two is scaled.
        let scaled = |t: &Tensor, smaller| if smaller { t.f_mul(&each) } else { Ok(t.shallow_clone()) };
        let of_inputs = inputs < outputs;
        let left = scaled(&self.outputs, !of_inputs)?.f_reshape([-1, outputs])?;
        let right = scaled(&self.inputs, of_inputs)?.f_reshape([-1, inputs])?;
        let sum = left.f_transpose(0, 1)?.f_matmul(&right)?.f_reshape(-1)?;
        let of_bias = match (self.biased, of_inputs) {
            (false, _) => None,
            (true, false) => Some(left.f_sum_dim_intlist(0, false, None::<Kind>)?),
            (true, true) => {
                let factors = factors.f_view([-1, 1])?.f_expand([-1, times], false)?.f_reshape([1, -1])?;
                Some(factors.f_matmul(&left)?.f_reshape(-1)?)
            }
        };
        Ok((sum, of_bias))
    }

    /// Points in time.
    fn times(&self) -> i64 {
        self.sizes().0
    }
}
