//! Local training that protects each record: DP-SGD (Abadi et al. 2016, Algorithm 1).
//!
//! One step: a Poisson batch; each example's gradient clipped onto an integer grid; the integers summed, exactly;
//! discrete Gaussian noise added to the sum; the noised sum divided by a public constant. What follows (scaling,
//! momentum, the step itself) is post-processing. The part that makes the promise is [`undertone_privacy::dp_sgd`].

use crate::failure::{Failure, Stop};
use crate::model::{Network, Parameters, to_vec};
use crate::per_example;
use crate::rows::Rows;
use crate::sampling::{poisson_batch, sampling_rng};
use crate::sgd::Trained;
use tch::Tensor;
use undertone_core::plan::{LocalWork, TrainPlan};
use undertone_core::trainer::{RecordPrivacy, TrainerError};
use undertone_privacy::dp_sgd::GradientMechanism;
use undertone_privacy::noise::NoiseRng;

/// Values of per-example gradients held at once (16 MiB of f32): bounds memory whatever batch is drawn.
const GRADIENT_VALUES: usize = 4 << 20;

/// Trains the plan's part of the model from `weights`, which are all of it, with the plan's number of steps.
pub(crate) fn train(
    network: &Network,
    rows: &Rows,
    plan: &TrainPlan,
    privacy: &RecordPrivacy,
    weights: &[f32],
    seed: Option<u64>,
    stop: &Stop,
) -> Result<Trained, Failure> {
    let steps = check(plan, privacy).map_err(TrainerError::Unsupported)?;
    let mechanism = GradientMechanism::new(privacy).map_err(|e| TrainerError::Unsupported(e.to_string()))?;
    let mut noise = NoiseRng::from_os().map_err(|e| TrainerError::Broken(e.to_string()))?;
    let mut sampling = sampling_rng(seed, weights)?;

    let part = network.part(plan)?;
    let whole = network.load(weights, rows.device())?;
    let on_device = |values: &[f32]| -> Result<Tensor, Failure> {
        Ok(Tensor::f_from_slice(values)?.f_to_device(rows.device())?)
    };
    // Clipping, noise and steps are over the part that is trained; the rest is public and stays as it is.
    let mut weights = part.gather(weights);
    let mut flat = on_device(&weights)?;
    let mut velocity = vec![0f64; weights.len()];
    let start = weights.clone();
    for step in 1..=steps {
        stop.check()?;
        let batch = poisson_batch(rows.len(), privacy.sampling_rate, &mut sampling);
        let mut sum = mechanism.empty_sum(weights.len());
        for some in batch.chunks((GRADIENT_VALUES / part.len()).max(1)) {
            let (x, y) = rows.select(some)?;
            let gradients =
                to_vec(&per_example::gradients(network, Parameters::of(&flat, &whole, &part), &x, &y)?)?;
            for gradient in gradients.chunks_exact(part.len()) {
                sum.add(gradient);
            }
        }
        let gradient = sum.noised(&mut noise);

        for (((w, v), g), w0) in weights.iter_mut().zip(&mut velocity).zip(gradient.mean()).zip(&start) {
            // The pull of FedProx is computed from what was noised already: it costs no privacy.
            *v = plan.momentum * *v + g + plan.proximal * (f64::from(*w) - f64::from(*w0));
            *w = (f64::from(*w) - plan.learning_rate * *v) as f32;
        }
        // Divergence ends it here.
        weights = Trained::new(weights, step)?.weights;
        flat = on_device(&weights)?;
    }
    Ok(Trained { weights, steps })
}

/// The number of steps, if the numbers make sense together.
fn check(plan: &TrainPlan, privacy: &RecordPrivacy) -> Result<u64, String> {
    plan.validate()?;
    let RecordPrivacy { noise_multiplier, sampling_rate, expected_batch, .. } = *privacy;
    if !(sampling_rate > 0.0 && sampling_rate <= 1.0) {
        return Err(format!("sampling_rate must be above 0 and at most 1, not {sampling_rate}"));
    }
    if !(noise_multiplier.is_finite() && noise_multiplier > 0.0) {
        return Err(format!("noise_multiplier must be a positive number, not {noise_multiplier}"));
    }
    if !(expected_batch.is_finite() && expected_batch > 0.0) {
        return Err(format!("expected_batch must be a positive number of rows, not {expected_batch}"));
    }
    if plan.batch_size.is_some() {
        return Err(
            "a record-level privacy contract draws Poisson batches at its own sampling_rate: leave batch_size out"
                .into(),
        );
    }
    match plan.work() {
        LocalWork::Steps(n) => Ok(n.into()),
        LocalWork::Epochs(_) => Err(
            "with a record-level privacy contract the number of steps must not depend on the number of rows: \
             give local_steps, not local_epochs"
                .into(),
        ),
    }
}

#[cfg(test)]
mod tests;
