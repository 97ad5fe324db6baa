//! raw -> clipped -> fixed-point (-> noised, where clients add the noise): the only way from what training gave to what
//! may leave.

use crate::job::Job;
use undertone_core::encoding::residual::Residual;
use undertone_core::encoding::rounding::Rounding;
use undertone_core::encoding::{self, Encoder, Encoding, Units};
use undertone_core::fixed::FixedVector;
use undertone_core::rules::rescale::{RescaleError, Share};
use undertone_core::trainer::LocalUpdate;
use undertone_privacy::adaptive_clip::WithinBit;
use undertone_privacy::clip::{BoundError, ClipError, RawUpdate, bound_in_units, clip};
use undertone_privacy::contract::Unit;
use undertone_privacy::local::LocalError;
use undertone_privacy::noise::NoiseRng;
use undertone_privacy::resolve::Terms;

/// What leaves in an attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct Parcel {
    /// The update.
    pub update: FixedVector,
    /// The L2 norm, in units of the grid, that it is within and must be within when it arrives.
    pub bound: u64,
    /// Whether it was within the clip norm before it was clipped; only where the clip norm follows the answers.
    pub within: Option<WithinBit>,
    /// What goes beside it; only where the job rescales updates.
    pub number: Option<u64>,
}

impl Parcel {
    /// An update under the job's own bound.
    pub fn of(job: &Job, update: FixedVector) -> Self {
        Self { update, bound: job.norm_bound(None).1, within: None, number: None }
    }

    /// The bytes that leave, in the job's encoding. Where it rounds by chance, `rng` throws the coins; where it leaves
    /// values out, they wait in `residual`. What arrives is within the bound, whatever was rounded.
    ///
    /// # Errors
    /// If the encoding cannot carry the update: no update of a job that resolved is like that.
    pub fn encoded(
        &self,
        job: &Job,
        residual: &mut Option<Residual>,
        rng: &mut impl rand::Rng,
    ) -> Result<Vec<u8>, encoding::EncodeError> {
        let (kind, grid, units) = (&job.spec().transport.updates, job.grid(), self.update.units());
        match kind {
            Encoding::Fixed32 => Ok(self.update.to_bytes()),
            Encoding::TopK { .. } => residual.get_or_insert_with(|| Residual::new(grid, units.len())).encode(
                kind,
                units,
                Some(self.bound),
            ),
            _ => {
                let rounding = Rounding::within(kind, grid, units, self.bound, rng)?;
                let mut bytes = Vec::with_capacity(job.update_bytes() as usize);
                let mut encoder = Encoder::new(kind, Units::new(grid), units.len(), &rounding)?;
                encoder.push(units, &mut bytes)?;
                encoder.finish(&mut bytes)?;
                Ok(bytes)
            }
        }
    }
}

/// Why an update does not leave. The sentences may hold values of the update: they are for the client's own log.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EncodeError {
    /// The trainer gave an update of another shape.
    #[error("the trainer gave {found} values, the part of the model that is trained has {wanted}")]
    WrongLength {
        /// Values given.
        found: usize,
        /// Values in the part that is trained.
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
    /// The noise does not suit the update or the grid.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// The update cannot be rescaled as the job says.
    #[error(transparent)]
    Rescale(#[from] RescaleError),
}

impl EncodeError {
    /// The sentence for the coordinator: what kind of trouble, without a number of it.
    pub fn told(&self) -> &'static str {
        match self {
            Self::WrongLength { .. } => "the trainer gave an update of the wrong shape",
            Self::TooLong { .. } => {
                "the update is longer than max_update_norm: lower learning_rate or raise the bound"
            }
            Self::Rescale(RescaleError::Steps { .. }) => {
                "the client makes more local steps than [aggregation] rescale max_steps: raise it, or lower local_epochs"
            }
            Self::Rescale(RescaleError::Loss) => "the trainer gave no loss of the model before training",
            Self::Clip(ClipError::NotFinite { .. }) => {
                "training diverged (NaN or infinity): lower learning_rate"
            }
            Self::Clip(ClipError::Bound(_)) | Self::Bound(_) | Self::Local(_) => {
                "the job's norm bound does not suit its grid: change fraction_bits"
            }
        }
    }
}

/// Turns what training gave into what may leave: for a client-level contract clipped to its clip norm, otherwise
/// within the job's bound on the norm, and rescaled where the job says so; then rounded to the job's grid; then, with local
/// trust at client level, noised.
/// `clip_norm` is the round's, where it moves.
///
/// # Errors
/// [`EncodeError`]; then nothing leaves, or what [`absent`] gives.
pub fn encode(
    job: &Job,
    clip_norm: Option<f64>,
    mut raw: LocalUpdate,
    rng: &mut NoiseRng,
) -> Result<Parcel, EncodeError> {
    let (found, wanted) = (raw.delta.len(), job.part().len());
    if found != wanted {
        return Err(EncodeError::WrongLength { found, wanted });
    }
    let bound = job.update_norm_bound();
    let mut share = None;
    if job.contract().unit() != Unit::Client {
        let mut norm = raw.delta.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
        if let Some(rescaling) = job.rescaling() {
            let Share { factor, number } = rescaling.share(norm, raw.steps, raw.first_loss)?;
            raw.delta.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
            // Before or after: neither may be beyond it.
            norm *= factor.max(1.0);
            share = Some((rescaling, number));
        }
        if norm.is_finite() && norm > bound {
            return Err(EncodeError::TooLong { norm, bound });
        }
    }
    if let Terms::ClientLocal(terms) = job.contract().terms() {
        let noise = terms.noise(job.grid())?;
        let clipped = clip(RawUpdate::new(raw.delta), noise.clip_norm())?;
        return Ok(Parcel::of(job, noise.privatise(&clipped, rng)?.into_vector()));
    }
    let raw = RawUpdate::new(raw.delta);
    let Some(norm) = clip_norm else {
        let mut parcel = Parcel::of(job, clip(raw, bound)?.to_grid(job.grid())?);
        if let Some((rescaling, number)) = share {
            let number = number.max(rescaling.least_number(parcel.update.squared_norm(), parcel.bound));
            (parcel.bound, parcel.number) = (rescaling.bound(number, parcel.bound), Some(number));
        }
        return Ok(parcel);
    };
    let within = Some(WithinBit::of(&raw, norm));
    let update = clip(raw, norm)?.to_grid(job.grid())?;
    Ok(Parcel { update, bound: bound_in_units(norm, job.grid())?, within, number: None })
}

/// What leaves in place of an update that is not to be had (unfit data, training that failed) under a client-level
/// contract, because silence would tell what the noise is to hide: noise alone where the client adds it, zeros where the
/// coordinator does. `None` under any other contract: then nothing leaves.
pub fn absent(job: &Job, rng: &mut NoiseRng) -> Option<Parcel> {
    let len = job.part().len();
    match job.contract().terms() {
        // A job whose noise does not suit its grid does not resolve.
        Terms::ClientLocal(terms) => {
            Some(Parcel::of(job, terms.noise(job.grid()).ok()?.absent(len, rng).into_vector()))
        }
        Terms::ClientCentral(_) => {
            // No answer about the clip norm: a client that has nothing to say must move neither sum nor count.
            let update = FixedVector::from_units(job.grid(), vec![0; len]).ok()?;
            Some(Parcel::of(job, update))
        }
        Terms::RecordLocal(_) | Terms::NoPromise(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{CLIENT, LOCAL, NONE, RECORD, job, job_with};
    use super::*;
    use proptest::prelude::*;
    use undertone_privacy::clip::check_norm;

    fn raw(delta: &[f32]) -> LocalUpdate {
        LocalUpdate { delta: delta.to_vec(), steps: 1, first_loss: None }
    }

    #[test]
    fn a_client_level_update_is_clipped_and_any_other_that_is_too_long_is_kept_back() {
        let client = job(CLIENT);
        let fixed = encode(&client, None, raw(&[30.0, 40.0]), &mut rng()).unwrap().update;
        check_norm(fixed.units(), client.grid(), 0.5).unwrap();
        assert!((fixed.decode()[0] - 0.3).abs() < 1e-4 && (fixed.decode()[1] - 0.4).abs() < 1e-4);
        for privacy in [RECORD, NONE] {
            let job = job_with(privacy, "max_update_norm = 5.0");
            assert_eq!(encode(&job, None, raw(&[3.0, 4.0]), &mut rng()).unwrap().update.decode(), [3.0, 4.0]);
            let e = encode(&job, None, raw(&[3.1, 4.0]), &mut rng()).unwrap_err();
            assert!(matches!(e, EncodeError::TooLong { bound: 5.0, .. }), "{e}");
            // What is told holds no number of the update.
            assert!(!e.told().contains(char::is_numeric));
        }
    }

    /// What leaves is the update as the job rescales it, within the bound that the number beside it leaves.
    #[test]
    fn an_update_is_rescaled_before_it_is_rounded() {
        let fair = "rescale = { kind = \"q-fedavg\", q = 2.0, lipschitz = 10.0, max_loss = 4.0 }\nmax_update_norm = 5.0";
        let job = job_with(NONE, fair);
        let with = |first_loss, delta: &[f32]| {
            encode(&job, None, LocalUpdate { first_loss, ..raw(delta) }, &mut rng())
        };
        let parcel = with(Some(2.0), &[0.3, 0.4]).unwrap();
        // (2/4)^2 of it; h/(L·M^2) = 1/4 + 2·(1/2)/4·10·0.25.
        assert_eq!(
            parcel.update.units(),
            [(0.3f64 * 16384.0).round() as i32, (0.4f64 * 16384.0).round() as i32]
        );
        let h = parcel.number.unwrap() as f64 / f64::from(1 << 20);
        assert!((h - (0.25 + 0.625)).abs() < 1e-5, "{h}");
        assert_eq!(parcel.bound, job.bound_beside(parcel.number, job.norm_bound(None)).1);
        assert!(parcel.bound < job.norm_bound(None).1);
        for loss in [0.0, 0.001, 0.7, 4.0, 1e9] {
            let parcel = with(Some(loss), &[3.0, 4.0]).unwrap();
            let squared = parcel.update.squared_norm();
            assert!(squared <= u128::from(parcel.bound).pow(2), "{loss}: {squared} {}", parcel.bound);
        }
        assert!(matches!(with(Some(0.01), &[3.1, 4.0]), Err(EncodeError::TooLong { .. })));
        assert!(matches!(with(None, &[0.3, 0.4]), Err(EncodeError::Rescale(RescaleError::Loss))));
        assert!(matches!(with(Some(1.0), &[f32::NAN, 0.4]), Err(EncodeError::Clip(_))));
    }

    fn rng() -> NoiseRng {
        NoiseRng::from_os().unwrap()
    }

    /// An update, a larger one, NaN or nothing at all: one message of the same size, and none tells which it was.
    #[test]
    fn with_local_trust_noise_leaves_whatever_there_is() {
        let job = job(LOCAL);
        let sent = |delta: &[f32]| match encode(&job, None, raw(delta), &mut rng()) {
            Ok(parcel) => parcel.update,
            Err(EncodeError::Clip(_) | EncodeError::WrongLength { .. }) => {
                absent(&job, &mut rng()).unwrap().update
            }
            Err(e) => panic!("{e}"),
        };
        let deviation = |delta: &[f32], expected: f64| {
            let of = |_| f64::from(sent(delta).units()[0]) / 65_536.0;
            let values: Vec<f64> = (0..2000).map(of).collect();
            let mean = values.iter().sum::<f64>() / 2000.0;
            // σ = 4 · 2 · 0.5; the mean is within five standard errors.
            assert!((mean - expected).abs() < 5.0 * 4.0 / 2000f64.sqrt(), "{delta:?}: {mean}");
            (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 2000.0).sqrt()
        };
        for (delta, mean) in
            [(&[0.3f32, 0.4][..], 0.3), (&[3e30, 4e30], 0.3), (&[f32::NAN, 0.0], 0.0), (&[], 0.0)]
        {
            let found = deviation(delta, mean);
            assert!((found / 4.0 - 1.0).abs() < 0.1, "{delta:?}: {found}");
            let message = sent(delta);
            check_norm(message.units(), job.grid(), job.update_norm_bound()).unwrap();
            assert_eq!(message.to_bytes().len() as u64, job.update_bytes());
        }
        assert_ne!(sent(&[0.0, 0.0]), sent(&[0.0, 0.0]), "noise is drawn for each message");
        let central = super::super::sample::job(CLIENT);
        assert_eq!(
            absent(&central, &mut rng()).unwrap().update.units(),
            [0, 0],
            "the coordinator's noise covers it"
        );
        for other in [RECORD, NONE] {
            assert_eq!(absent(&super::super::sample::job(other), &mut rng()), None);
        }
    }

    /// Neighbours under an adaptive clip norm: with its update, or with nothing to say, a client moves the sum by a clip norm
    /// and the count by half a client, which is what both noises are scaled to.
    #[test]
    fn a_client_with_nothing_to_say_moves_neither_sum_nor_count() {
        use undertone_privacy::adaptive_clip::CountSum;
        let rule = "adaptive_clip = { min = 0.1, max = 4.0, count_noise = 5.0 }";
        let job = job(&format!("{CLIENT}\n{rule}"));
        let nothing = absent(&job, &mut rng()).unwrap();
        assert_eq!((nothing.update.units(), nothing.within), (&[0, 0][..], None));
        for (delta, within) in [([0.1, 0.0], true), ([30.0, 40.0], false), ([0.0, 0.0], true)] {
            let parcel = encode(&job, Some(0.25), raw(&delta), &mut rng()).unwrap();
            check_norm(parcel.update.units(), job.grid(), 0.25).unwrap();
            assert_eq!(parcel.within.map(WithinBit::to_wire), Some(within));
            let (mut with, without) = (CountSum::default(), CountSum::default());
            parcel.within.into_iter().for_each(|bit| with.fold(bit));
            let mut twice = with;
            parcel.within.into_iter().for_each(|bit| twice.fold(bit));
            // Half a client from nothing, as the other way round: never a whole one.
            assert!(with != without && twice != without);
        }
    }

    #[test]
    fn nonsense_does_not_leave() {
        for privacy in [CLIENT, RECORD, NONE] {
            let job = job(privacy);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert!(
                    matches!(encode(&job, None, raw(&[0.0, bad]), &mut rng()), Err(EncodeError::Clip(_))),
                    "{bad}"
                );
            }
            let e = encode(&job, None, raw(&[0.0]), &mut rng()).unwrap_err();
            assert_eq!(e, EncodeError::WrongLength { found: 1, wanted: 2 });
            assert!(encode(&job, None, raw(&[f32::MAX, 1e38]), &mut rng()).is_ok() == (privacy == CLIENT));
        }
    }

    proptest! {
        #[test]
        fn what_leaves_is_within_the_bound(a in any::<f32>(), b in any::<f32>()) {
            for privacy in [CLIENT, RECORD] {
                let job = job(privacy);
                if let Ok(Parcel { update: fixed, .. }) = encode(&job, None, raw(&[a, b]), &mut rng()) {
                    prop_assert!(check_norm(fixed.units(), job.grid(), job.update_norm_bound()).is_ok());
                }
            }
        }
    }
}
