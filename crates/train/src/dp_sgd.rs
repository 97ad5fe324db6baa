//! Local training that protects each record: DP-SGD (Abadi et al. 2016, Algorithm 1).
//!
//! One step: a Poisson batch; each example's gradient clipped, and summed ([`engine`] has the ways); noise added to the sum;
//! the noised sum divided by a public constant. What follows (schedule, optimiser, the step itself) is post-processing. The
//! part that makes the promise is [`undertone_privacy::dp_sgd`].

mod engine;

use crate::augment::Views;
use crate::checkpoint::State;
use crate::failure::Failure;
use crate::memory::MicroBatch;
use crate::nn::{Network, to_vec};
use crate::rows::Rows;
use crate::run::{Model, Run, Trained};
use crate::sampling::{poisson_batch, sampling_rng, seed_dropout};
use engine::Engine;
use tch::{Kind, TchError, Tensor};
use undertone_core::plan::TrainPlan;
use undertone_core::trainer::{RecordPrivacy, TrainerError};
use undertone_privacy::dp_sgd::GradientMechanism;
use undertone_privacy::noise::NoiseRng;

/// Trains the plan's part of the model, with the plan's number of steps. `say` takes what the log should have at the start.
pub(crate) fn train(
    network: &Network,
    rows: &Rows,
    privacy: &RecordPrivacy,
    mut run: Run<'_>,
    say: &dyn Fn(&str),
) -> Result<Trained, Failure> {
    let steps = check(run.plan, privacy).map_err(TrainerError::Unsupported)?;
    let mechanism = GradientMechanism::new(privacy).map_err(|e| TrainerError::Unsupported(e.to_string()))?;
    let mut noise = NoiseRng::from_os().map_err(|e| TrainerError::Broken(e.to_string()))?;
    let resumed = run.keeper.load();
    // Clipping, noise and steps are over the part that is trained; the rest is public and stays as it is.
    let part = network.part(run.plan)?;
    let mut model = run.model(network, rows.device(), resumed.as_ref())?;
    // After a kill other batches are drawn, whatever seed there is: those of the steps that were lost met noise already. So a seed
    // counts only where a kill at any later time will be known of.
    let mut seed = run.seed.filter(|_| !run.keeper.was_begun());
    if seed.is_some() && !run.keeper.begin(|| state(&model, 0))? {
        say("the seed of batches is not used: a kill would not be known of");
        seed = None;
    }
    let mut sampling = sampling_rng(seed, run.weights)?;
    let mut views = Views::new(run.plan.augmentation, network.input(), &sampling)?;
    let (any, _) = rows.range(0, 1)?;
    let engine = Engine::choose(network, &model.tensors, &mechanism, &any, views.count())?;
    say(&format!("engine = \"{}\", mechanism = \"{}\"", engine.name(), privacy.mechanism.as_str()));
    model.tensors = engine.prepared(model.tensors)?;
    let rate = run.learning_rate(steps);
    let mut micro = MicroBatch::new(usize::MAX);
    let first = resumed.map_or(0, |state| state.step);
    for step in first..steps {
        run.stop.before_step(step, steps)?;
        let batch = poisson_batch(rows.len(), privacy.sampling_rate, &mut sampling);
        // Before any noise is drawn: what ran out of memory is summed anew.
        let sum = micro.run(batch.len().min(engine.at_once(batch.len())), |most| {
            views.begin(step);
            if network.drops() {
                seed_dropout(&sampling, step);
            }
            let mut sum = mechanism.empty_sum(part.len());
            for some in batch.chunks(most) {
                let (x, y) = rows.select(some)?;
                engine.add(&model.tensors, &views.of(x)?, &y, &mut sum)?;
            }
            Ok(sum)
        })?;
        let gradient =
            Tensor::f_from_slice(&sum.noised(&mut noise).into_mean())?.f_to_device(rows.device())?;
        // From here on it is computed from what was noised already: it costs no privacy.
        model.optimizer.step(&mut model.flat, gradient, rate.at(step))?;
        if !sum_is_finite(&model.flat)? {
            // Divergence ends it here; a sum alone may overflow too.
            Trained::new(to_vec(&model.flat)?, step + 1, steps)?;
        }
        run.keeper.keep(|| state(&model, step + 1))?;
    }
    Ok(Trained::new(to_vec(&model.flat)?, steps, steps)?)
}

/// Nothing in it tells of batches.
fn state(model: &Model, step: u64) -> Result<State, Failure> {
    Ok(State {
        step,
        sampler: None,
        weights: to_vec(&model.flat)?,
        optimizer: (model.optimizer.steps(), model.optimizer.state()?),
        best: None,
        without_progress: 0,
    })
}

/// False if any value is not finite, or they are so large that their sum is not.
fn sum_is_finite(values: &Tensor) -> Result<bool, TchError> {
    Ok(values.f_sum(None::<Kind>)?.f_double_value(&[])?.is_finite())
}

/// The number of steps, if the numbers make sense together.
fn check(plan: &TrainPlan, privacy: &RecordPrivacy) -> Result<u64, String> {
    plan.validate()?;
    plan.check_record_privacy()?;
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
    Ok(plan.local_steps.expect("checked with what a record-level contract rules out").into())
}

#[cfg(test)]
mod tests;
