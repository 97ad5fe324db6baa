//! Local training without a promise to single records: batches in a random order, or all rows in each step.

use crate::augment::Views;
use crate::checkpoint::{SamplerState, State};
use crate::early_stop::Watch;
use crate::failure::Failure;
use crate::memory::MicroBatch;
use crate::nn::{Network, to_vec};
use crate::rows::Rows;
use crate::run::{Model, Run, Trained};
use crate::sampling::{ShuffledBatches, hold_out, sampling_rng, seed_dropout};
use rand_chacha::ChaCha20Rng;
use tch::{Reduction, Tensor, no_grad};
use undertone_core::plan::LocalWork;
use undertone_core::trainer::TrainerError;

/// Trains the plan's part of the model: batches of `batch_size` rows in a random order, or all rows in each step without
/// one.
pub(crate) fn train(network: &Network, rows: &Rows, mut run: Run<'_>) -> Result<Trained, Failure> {
    let plan = run.plan;
    plan.validate().map_err(TrainerError::Unsupported)?;
    let resumed = run.keeper.load();
    let rng = match resumed.as_ref().and_then(|state| state.sampler.as_ref()) {
        Some(sampler) => sampler.rng(),
        None => sampling_rng(run.seed, run.weights)?,
    };
    let mut views = Views::new(plan.augmentation, network.input(), &rng)?;
    let key = rng.clone();
    let mut model = run.model(network, rows.device(), resumed.as_ref())?;
    model.tensors = model.tensors.followed()?;

    let (held_out, kept) = match plan.early_stop {
        Some(rule) => hold_out(rows.len(), rule.held_out, &rng).map(|(out, kept)| (out, Some(kept)))?,
        None => (vec![], None),
    };
    let count = kept.as_ref().map_or(rows.len(), Vec::len);
    let size = plan.batch_size.map_or(count, |n| count.min(n as usize));
    let per_pass = count.div_ceil(size) as u64;
    let steps = match plan.work() {
        LocalWork::Steps(n) => n.into(),
        LocalWork::Epochs(n) => u64::from(n) * per_pass,
    };
    let mut watch = plan.early_stop.map(|rule| Watch::new(rule, held_out, per_pass, resumed.as_ref()));
    let mut batches = Batches::new(plan.batch_size.is_some(), kept, rng, size, count, resumed.as_ref());
    let rate = run.learning_rate(steps);
    let mut micro = MicroBatch::new(usize::MAX);
    let first = resumed.map_or(0, |state| state.step);
    for step in first..steps {
        run.stop.before_step(step, steps)?;
        let places = batches.next_batch();
        let (gradient, loss) = micro.run(places.map_or(rows.len(), <[i64]>::len), |most| {
            views.begin(step);
            if network.drops() {
                seed_dropout(&key, step);
            }
            gradient(network, rows, &model, &mut views, places, most)
        })?;
        if !loss.is_finite() {
            let what = format!("the loss is {loss}");
            return Err(TrainerError::Diverged { step: step + 1, of: steps, what }.into());
        }
        model.optimizer.step(&mut model.flat, gradient, rate.at(step))?;
        if let Some(watch) = &mut watch
            && watch.ends(network, rows, &model, (step + 1, steps), run.stop)?
        {
            break;
        }
        run.keeper.keep(|| {
            let (best, without_progress) = watch.as_ref().map_or((None, 0), Watch::state);
            Ok(State {
                step: step + 1,
                sampler: Some(batches.state()),
                weights: to_vec(&model.flat)?,
                optimizer: (model.optimizer.steps(), model.optimizer.state()?),
                best,
                without_progress,
            })
        })?;
    }
    match watch {
        Some(watch) => Ok(watch.best(steps)?),
        // A weight that is once NaN or infinite stays so: what no loss has told yet is seen here.
        None => Ok(Trained::new(to_vec(&model.flat)?, steps, steps)?),
    }
}

/// The gradient of the mean loss of a batch's views, flat, and that loss; of all rows without `places`. At most `most` rows are
/// computed at once, and the parts' gradients added up.
fn gradient(
    network: &Network,
    rows: &Rows,
    model: &Model,
    views: &mut Views,
    places: Option<&[i64]>,
    most: usize,
) -> Result<(Tensor, f64), Failure> {
    let count = places.map_or(rows.len(), <[i64]>::len);
    let examples = count as f64 * views.count() as f64;
    let mut sum: Option<(Tensor, f64)> = None;
    for start in (0..count).step_by(most) {
        let some = most.min(count - start);
        let (x, y) = match places {
            Some(places) => rows.select(&places[start..start + some])?,
            None => rows.range(start, some)?,
        };
        let (x, y) = views.with_truth(x, y)?;
        let loss = |reduction| network.training_loss(&model.tensors, &x, &y, reduction);
        let loss = match some == count {
            true => loss(Reduction::Mean)?,
            false => loss(Reduction::Sum)?.f_div_scalar(examples)?,
        };
        let gradient = model.tensors.gradient(&loss)?;
        let loss = loss.f_double_value(&[])?;
        sum = Some(match sum {
            None => (gradient, loss),
            Some((mut total, before)) => {
                let _ = no_grad(|| total.f_add_(&gradient))?;
                (total, before + loss)
            }
        });
    }
    // A plan is never about no rows: the data contract asks for one at least.
    Ok(sum.ok_or_else(|| TrainerError::Data("there are no rows to train on".into()))?)
}

/// The batches of a round.
#[derive(Debug)]
enum Batches {
    /// All rows, or all that are not held out, each time; the generator chose those.
    All { kept: Option<Vec<i64>>, rng: ChaCha20Rng },
    /// Shuffled, of rows that are not held out.
    Shuffled { kept: Option<Vec<i64>>, batches: ShuffledBatches, batch: Vec<i64> },
}

impl Batches {
    fn new(
        shuffled: bool,
        kept: Option<Vec<i64>>,
        rng: ChaCha20Rng,
        size: usize,
        count: usize,
        resumed: Option<&State>,
    ) -> Self {
        if !shuffled {
            return Self::All { kept, rng };
        }
        let batches = match resumed.and_then(|state| state.sampler.as_ref()) {
            Some(sampler) => ShuffledBatches::resume(count, size, sampler),
            None => ShuffledBatches::new(count, size, rng),
        };
        Self::Shuffled { kept, batches, batch: Vec::new() }
    }

    /// The places of the next batch's rows; `None`: all rows.
    fn next_batch(&mut self) -> Option<&[i64]> {
        match self {
            Self::All { kept, .. } => kept.as_deref(),
            Self::Shuffled { kept: None, batches, .. } => Some(batches.next_batch()),
            Self::Shuffled { kept: Some(kept), batches, batch } => {
                batch.clear();
                batch.extend(batches.next_batch().iter().map(|&i| kept[i as usize]));
                Some(batch)
            }
        }
    }

    /// Where they stand, after a batch.
    fn state(&self) -> SamplerState {
        match self {
            Self::All { rng, .. } => SamplerState::of(rng, 0),
            Self::Shuffled { batches, .. } => batches.state(),
        }
    }
}

#[cfg(test)]
mod tests;
