//! raw -> clipped -> fixed-point: the only way from what training gave to what may leave.

use crate::job::Job;
use undertone_core::fixed::FixedVector;
use undertone_core::trainer::LocalUpdate;
use undertone_privacy::clip::{BoundError, ClipError, RawUpdate, clip};
use undertone_privacy::contract::Unit;

/// Why an update does not leave. The sentences may hold values of the update: they are for the client's own log.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EncodeError {
    /// The trainer gave an update of another shape.
    #[error("the trainer gave {found} values, the model has {wanted}")]
    WrongLength {
        /// Values given.
        found: usize,
        /// Values in the model.
        wanted: usize,
    },
    /// Longer than the job's sanity bound. It is not scaled down: nothing in the job says that it should be.
    #[error(
        "the update has an L2 norm of {norm}, above [aggregation] max_update_norm = {bound}: training went astray \
         (learning_rate too high?) or the bound is too low"
    )]
    TooLong {
        /// The update's norm.
        norm: f64,
        /// The bound.
        bound: f64,
    },
    /// Not finite.
    #[error(transparent)]
    Clip(#[from] ClipError),
    /// The bound does not suit the grid.
    #[error(transparent)]
    Bound(#[from] BoundError),
}

impl EncodeError {
    /// The sentence for the coordinator: what kind of trouble, without a number of it.
    pub fn told(&self) -> &'static str {
        match self {
            Self::WrongLength { .. } => "the trainer gave an update of the wrong shape",
            Self::TooLong { .. } => {
                "the update is longer than max_update_norm: lower learning_rate or raise the bound"
            }
            Self::Clip(ClipError::NotFinite { .. }) => {
                "training diverged (NaN or infinity): lower learning_rate"
            }
            Self::Clip(ClipError::Bound(_)) | Self::Bound(_) => {
                "the job's norm bound does not suit its grid: change fraction_bits"
            }
        }
    }
}

/// Turns what training gave into what may leave: for a client-level contract clipped to its clip norm, otherwise
/// within the job's bound on the norm; then rounded to the job's grid.
///
/// # Errors
/// [`EncodeError`]; then nothing leaves.
pub fn encode(job: &Job, raw: LocalUpdate) -> Result<FixedVector, EncodeError> {
    let (found, wanted) = (raw.delta.len(), job.layout().len());
    if found != wanted {
        return Err(EncodeError::WrongLength { found, wanted });
    }
    let bound = job.update_norm_bound();
    if job.contract().unit() != Unit::Client {
        let norm = raw.delta.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
        if norm.is_finite() && norm > bound {
            return Err(EncodeError::TooLong { norm, bound });
        }
    }
    Ok(clip(RawUpdate::new(raw.delta), bound)?.to_grid(job.grid())?)
}

#[cfg(test)]
mod tests {
    use super::super::sample::{CLIENT, NONE, RECORD, job, job_with};
    use super::*;
    use proptest::prelude::*;
    use undertone_privacy::clip::check_norm;

    fn raw(delta: &[f32]) -> LocalUpdate {
        LocalUpdate { delta: delta.to_vec(), steps: 1 }
    }

    #[test]
    fn a_client_level_update_is_clipped_and_any_other_that_is_too_long_is_kept_back() {
        let client = job(CLIENT);
        let fixed = encode(&client, raw(&[30.0, 40.0])).unwrap();
        check_norm(fixed.units(), client.grid(), 0.5).unwrap();
        assert!((fixed.decode()[0] - 0.3).abs() < 1e-4 && (fixed.decode()[1] - 0.4).abs() < 1e-4);
        for privacy in [RECORD, NONE] {
            let job = job_with(privacy, "max_update_norm = 5.0");
            assert_eq!(encode(&job, raw(&[3.0, 4.0])).unwrap().decode(), [3.0, 4.0]);
            let e = encode(&job, raw(&[3.1, 4.0])).unwrap_err();
            assert!(matches!(e, EncodeError::TooLong { bound: 5.0, .. }), "{e}");
            // What is told holds no number of the update.
            assert!(!e.told().contains(char::is_numeric));
        }
    }

    #[test]
    fn nonsense_does_not_leave() {
        for privacy in [CLIENT, RECORD, NONE] {
            let job = job(privacy);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert!(matches!(encode(&job, raw(&[0.0, bad])), Err(EncodeError::Clip(_))), "{bad}");
            }
            let e = encode(&job, raw(&[0.0])).unwrap_err();
            assert_eq!(e, EncodeError::WrongLength { found: 1, wanted: 2 });
            assert!(encode(&job, raw(&[f32::MAX, 1e38])).is_ok() == (privacy == CLIENT));
        }
    }

    proptest! {
        #[test]
        fn what_leaves_is_within_the_bound(a in any::<f32>(), b in any::<f32>()) {
            for privacy in [CLIENT, RECORD] {
                let job = job(privacy);
                if let Ok(fixed) = encode(&job, raw(&[a, b])) {
                    prop_assert!(check_norm(fixed.units(), job.grid(), job.update_norm_bound()).is_ok());
                }
            }
        }
    }
}
