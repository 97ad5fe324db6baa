//! What an operation leaves of its parameters' gradients, example by example.

use super::Role;
use super::outer::{Outer, never_rounding};
use crate::nn::pass::{Operation, Use};
use tch::{Kind, TchError, Tensor};

/// The gradients of one parameter, one an example, in the form that costs least to keep.
#[derive(Debug)]
pub(super) enum Gradient {
    /// Sums of products, of a matrix.
    Outer(Outer),
    /// Rows of an embedding.
    Rows {
        /// Which row, i64, shape (examples, times).
        places: Tensor,
        /// What is added to it, shape (examples, times, width).
        values: Tensor,
        /// Rows of the embedding.
        vocabulary: i64,
    },
    /// As they are, shape (examples, values).
    Whole(Tensor),
}

impl Gradient {
    /// From all uses of the parameter: a parameter that is used twice (a recurrent cell's at each step, say) has the sum of the
    /// uses' gradients, whose norm is not the sum of theirs. Uses of one kind are laid behind each other like points in time.
    pub(super) fn of(
        examples: i64,
        uses: &[(&Use, &Tensor, Role)],
        parameter: &Tensor,
    ) -> Result<Self, TchError> {
        let matrix = |role: Role, used: &Use| {
            role == Role::Weight && matches!(used.operation, Operation::Linear | Operation::Conv2d { .. })
        };
        let rows = |role: Role, used: &Use| role == Role::Weight && used.operation == Operation::Embedding;
        if uses.iter().all(|&(used, _, role)| matrix(role, used)) {
            let parts = uses.iter().map(|&(used, output, _)| outer(examples, used, output, parameter));
            return Ok(Self::Outer(Outer::joined(parts.collect::<Result<_, _>>()?)?));
        }
        if uses.iter().all(|&(used, _, role)| rows(role, used)) {
            let parts: Vec<_> = uses
                .iter()
                .map(|&(used, output, _)| rows_of(examples, used, output, parameter))
                .collect::<Result<_, _>>()?;
            let (places, values): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
            let vocabulary = parameter.size()[0];
            return Ok(Self::Rows { places: joined(places)?, values: joined(values)?, vocabulary });
        }
        // Nothing but sums of one width, or kinds that only their full gradients can be added up from.
        let mut sum: Option<Tensor> = None;
        for &(used, output, role) in uses {
            let whole = match role {
                Role::Bias => of_bias(examples, used, output, parameter)?,
                Role::Weight if matrix(role, used) => {
                    outer(examples, used, output, parameter)?.materialised()?
                }
                Role::Weight if rows(role, used) => {
                    let (places, values) = rows_of(examples, used, output, parameter)?;
                    scattered(&places, &values, parameter.size()[0])?
                }
                Role::Weight => of_scale(examples, used, output)?,
            };
            sum = Some(match sum {
                Some(sum) => sum.f_add(&whole)?,
                None => whole,
            });
        }
        Ok(Self::Whole(sum.expect("a parameter on the tape has a use")))
    }

    /// The gradients themselves, shape (examples, values).
    pub(super) fn materialised(self) -> Result<Tensor, TchError> {
        match self {
            Self::Outer(outer) => outer.materialised(),
            Self::Rows { places, values, vocabulary } => scattered(&places, &values, vocabulary),
            Self::Whole(whole) => Ok(whole),
        }
    }

    /// Those of the examples at these places, i64.
    pub(super) fn of_some(self, places: &Tensor) -> Result<Self, TchError> {
        let some = |t: &Tensor| t.f_index_select(0, places);
        Ok(match self {
            Self::Outer(outer) => Self::Outer(outer.of_some(places)?),
            Self::Rows { places, values, vocabulary } => {
                Self::Rows { places: some(&places)?, values: some(&values)?, vocabulary }
            }
            Self::Whole(whole) => Self::Whole(some(&whole)?),
        })
    }

    /// Takes in the gradients of the bias that was added at each use, if they cost next to nothing beside its own; whether
    /// it did.
    pub(super) fn joins_bias(&mut self) -> bool {
        match self {
            Self::Outer(outer) if !outer.is_cheaper_whole() => {
                outer.join_bias();
                true
            }
            _ => false,
        }
    }

    /// The squared norm of each, f64, shape (examples); what was computed on the way and serves
    /// [weighted sums](Self::weighted_sums) is kept if `keep`.
    pub(super) fn squared_norms(&mut self, keep: bool) -> Result<Tensor, TchError> {
        match self {
            Self::Outer(outer) if outer.is_cheaper_whole() => {
                let whole = outer.materialised()?;
                let norms = squares(&whole)?;
                if keep {
                    *self = Self::Whole(whole);
                    return Ok(norms);
                }
                // What is summed in the end is computed once more, and rounded in another way.
                outer.never_rounding(norms)
            }
            Self::Outer(outer) => outer.squared_norms(),
            Self::Rows { places, values, vocabulary } => squared_norms_of_rows(places, values, *vocabulary),
            Self::Whole(whole) => squares(whole),
        }
    }

    /// Σ cᵢ·gᵢ for c of shape (examples): flat, as the parameter is; and the same of a [joined](Self::joins_bias) bias.
    pub(super) fn weighted_sums(&self, factors: &Tensor) -> Result<(Tensor, Option<Tensor>), TchError> {
        match self {
            Self::Outer(outer) => outer.weighted_sums(factors),
            Self::Rows { places, values, vocabulary } => {
                let scaled = values.f_mul(&factors.f_view([-1, 1, 1])?)?;
                let sum = Tensor::f_embedding_dense_backward(&scaled, places, *vocabulary, -1, false)?;
                Ok((sum.f_reshape(-1)?, None))
            }
            Self::Whole(whole) => Ok((factors.f_unsqueeze(0)?.f_matmul(whole)?.f_reshape(-1)?, None)),
        }
    }

    /// Values that book-keeping holds beyond the tape from the norms to the weighted sum, and those that the norms take beside
    /// them.
    pub(super) fn values(&self) -> (i64, i64) {
        match self {
            Self::Outer(outer) => outer.values(),
            Self::Rows { values, .. } => (0, 2 * values.numel() as i64),
            Self::Whole(whole) => (whole.numel() as i64, whole.numel() as i64),
        }
    }
}

/// Values that one f32 sum of squares takes at most. libtorch's norms are such sums in a few parts side by side, in which a square is
/// lost, and always downwards, once it is too small beside the sum so far: 4096 lose less than 2^-15.
const CHUNK: i64 = 4096;

/// Σ of squares along all but the first dimension, in f64, and never less: a square below the least normal f32 may be lost, so
/// that as much is added for each.
pub(super) fn squares(values: &Tensor) -> Result<Tensor, TchError> {
    let values = values.f_flatten(1, -1)?;
    let (examples, count) = (values.size()[0], values.size()[1]);
    // One look at the values, where squares and then their sum would be two.
    let of = |values: &Tensor, over: i64| {
        let norm = values.f_norm_scalaropt_dim(2, [over], false)?.f_to_kind(Kind::Double)?;
        norm.f_square()
    };
    let whole = count / CHUNK * CHUNK;
    let mut sum = of(&values.f_narrow(1, whole, count - whole)?, 1)?;
    if whole > 0 {
        let chunks = values.f_narrow(1, 0, whole)?.f_view([examples, -1, CHUNK])?;
        sum = sum.f_add_(&of(&chunks, 2)?.f_sum_dim_intlist(1, false, None::<Kind>)?)?;
    }
    sum.f_add_scalar_(count as f64 * f64::from(f32::MIN_POSITIVE))
}

fn joined(mut parts: Vec<Tensor>) -> Result<Tensor, TchError> {
    if parts.len() == 1 { Ok(parts.remove(0)) } else { Tensor::f_cat(&parts, 1) }
}

/// Views of one example side by side: rows become examples, the first dimension after them all that there is of one.
fn outer(examples: i64, used: &Use, output: &Tensor, weight: &Tensor) -> Result<Outer, TchError> {
    match used.operation {
        Operation::Linear => {
            let inputs = used.input.f_reshape([examples, -1, weight.size()[1]])?;
            Ok(Outer::new(inputs, output.f_reshape([examples, -1, weight.size()[0]])?, 0))
        }
        Operation::Conv2d { stride, padding } => {
            let kernel = [weight.size()[2], weight.size()[3]];
            let patches = used.input.f_im2col(kernel, [1, 1], [padding, padding], [stride, stride])?;
            let held = patches.numel() as i64;
            let (patches, g) = (patches.f_transpose(1, 2)?, output.f_flatten(2, -1)?.f_transpose(1, 2)?);
            let (width, outputs) = (patches.size()[2], g.size()[2]);
            match patches.size()[0] == examples {
                true => Ok(Outer::new(patches, g, held)),
                false => Ok(Outer::new(
                    patches.f_reshape([examples, -1, width])?,
                    g.f_reshape([examples, -1, outputs])?,
                    held,
                )),
            }
        }
        Operation::Embedding | Operation::Normalisation(_) | Operation::Shift => {
            unreachable!("its gradients are no products of matrices")
        }
    }
}

fn rows_of(
    examples: i64,
    used: &Use,
    output: &Tensor,
    weight: &Tensor,
) -> Result<(Tensor, Tensor), TchError> {
    let places = used.input.f_reshape([examples, -1])?;
    Ok((places, output.f_reshape([examples, -1, weight.size()[1]])?))
}

/// Each example's gradient of an embedding, shape (examples, vocabulary · width).
fn scattered(places: &Tensor, values: &Tensor, vocabulary: i64) -> Result<Tensor, TchError> {
    let (examples, width) = (values.size()[0], values.size()[2]);
    let rows = Tensor::f_zeros([examples, vocabulary, width], (values.kind(), values.device()))?;
    let places = places.f_unsqueeze(2)?.f_expand([-1, -1, width], false)?;
    rows.f_scatter_add(1, &places, values)?.f_reshape([examples, -1])
}

/// Equal tokens of an example add up before they are squared.
fn squared_norms_of_rows(places: &Tensor, values: &Tensor, vocabulary: i64) -> Result<Tensor, TchError> {
    let (examples, times, width) = (values.size()[0], values.size()[1], values.size()[2]);
    if times == 1 {
        return squares(values);
    }
    let owners = Tensor::f_arange(examples, (Kind::Int64, values.device()))?;
    let keys = owners.f_mul_scalar(vocabulary)?.f_unsqueeze(1)?.f_add(places)?;
    let (found, place, _) = keys.f_reshape(-1)?.f_internal_unique2(true, true, false)?;
    let rows = Tensor::f_zeros([found.size()[0], width], (values.kind(), values.device()))?;
    let rows = rows.f_index_add(0, &place, &values.f_reshape([-1, width])?)?;
    let owner = found.f_div_scalar_mode(vocabulary, "floor")?;
    let none = Tensor::f_zeros([examples], (Kind::Double, values.device()))?;
    never_rounding(none.f_index_add(0, &owner, &squares(&rows)?)?, &squares(values)?, times)
}

/// Each example's gradient of what normalised values were multiplied with. The values themselves are made anew: to normalise
/// costs less than to hold them.
fn of_scale(examples: i64, used: &Use, output: &Tensor) -> Result<Tensor, TchError> {
    let Operation::Normalisation(how) = used.operation else {
        unreachable!("no other operation multiplies value by value")
    };
    let products = how.of(&used.input, None)?.f_mul_(output)?;
    of_example(examples, over_channel(&products, how.channel(output.dim()))?)
}

/// Each example's gradient of what was added.
fn of_bias(examples: i64, used: &Use, output: &Tensor, bias: &Tensor) -> Result<Tensor, TchError> {
    let rows = match used.operation {
        Operation::Linear => over_channel(output, output.dim() as i64 - 1)?,
        Operation::Conv2d { .. } => over_channel(output, 1)?,
        Operation::Normalisation(how) => over_channel(output, how.channel(output.dim()))?,
        Operation::Shift => {
            // What was broadcast in front of the bias's own dimensions is summed, but for the examples.
            let extra = output.dim() - bias.dim();
            let sums = match extra {
                0 | 1 => output.shallow_clone(),
                _ => output.f_sum_dim_intlist(
                    &(1..extra as i64).collect::<Vec<_>>()[..],
                    false,
                    None::<Kind>,
                )?,
            };
            sums.f_reshape([output.size()[0], -1])?
        }
        Operation::Embedding => unreachable!("an embedding adds nothing"),
    };
    of_example(examples, rows)
}

/// Sums over the views of an example: from shape (rows, values) to (examples, values).
fn of_example(examples: i64, rows: Tensor) -> Result<Tensor, TchError> {
    if rows.size()[0] == examples {
        return Ok(rows);
    }
    let values = rows.size()[1];
    rows.f_reshape([examples, -1, values])?.f_sum_dim_intlist(1, false, None::<Kind>)
}

/// Sums over all dimensions but the rows' and one other: shape (rows, channels).
fn over_channel(values: &Tensor, channel: i64) -> Result<Tensor, TchError> {
    let dimensions: Vec<i64> = (1..values.dim() as i64).filter(|d| *d != channel).collect();
    if dimensions.is_empty() {
        return Ok(values.shallow_clone());
    }
    values.f_sum_dim_intlist(&dimensions[..], false, None::<Kind>)
}
