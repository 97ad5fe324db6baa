//! The release of a sum: spooled updates are read, folded into the product's integer sum, passed through the product's gate, and
//! make the next model.
//!
//! Where the coordinator adds the noise, the noise is a stand-in, drawn from the run's seed: the product's noise takes no seed in a
//! build that people use, and what is simulated is how often it is drawn and over what. What is divided by is the job's number.

use crate::chance::Chance;
use crate::driver::{FIRST_PAUSE_MS, LAST_PAUSE_MS};
use crate::faults::Fault;
use crate::mutant::Mutant;
use crate::replica::AtReplica;
use crate::storage::Storage;
use crate::uploads::decoded;
use crate::world::World;
use undertone_core::aggregate::IntegerSum;
use undertone_core::id::AttemptKey;
use undertone_privacy::ledger::LedgerEntry;
use undertone_privacy::noise::NoiseRng;
use undertone_privacy::release::{Carried as Left, Counted, release};
use undertone_round::coordinator::{Carried, Input, ModelRef, Update};
use undertone_round::job::Job;

/// What stands before the values of a model file.
const HEADER: &[u8; 16] = b"simulated model\n";

/// A release that was ordered.
pub(crate) struct Order {
    entry: LedgerEntry,
    model: ModelRef,
    updates: Vec<Update>,
    /// What its noise is drawn from, however often the disk makes it begin again.
    noise: u64,
    pause_ms: u64,
}

impl Order {
    pub(crate) fn new(entry: LedgerEntry, model: ModelRef, updates: Vec<Update>, noise: u64) -> Self {
        Self { entry, model, updates, noise, pause_ms: FIRST_PAUSE_MS }
    }
}

/// A release, for the observer to look at.
pub(crate) struct Made<'a> {
    pub(crate) key: &'a AttemptKey,
    pub(crate) updates: &'a [Update],
    /// The exact sum, before any noise.
    pub(crate) sum: &'a IntegerSum,
    /// What its noise was drawn from, where the coordinator draws it.
    pub(crate) noise: Option<u64>,
    /// What was divided by.
    pub(crate) denominator: f64,
    pub(crate) model: ModelRef,
}

/// The model that a job begins with.
pub(crate) fn first_model(job: &Job) -> Vec<u8> {
    file(&vec![0.0; job.layout().len()])
}

fn file(values: &[f32]) -> Vec<u8> {
    HEADER.iter().copied().chain(values.iter().flat_map(|value| value.to_le_bytes())).collect()
}

fn values(file: &[u8]) -> Vec<f32> {
    let values = file.get(HEADER.len()..).unwrap_or_default();
    values.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// The exact sum of updates, each as often as `times` says.
fn summed(
    storage: &Storage,
    job: &Job,
    updates: &[Update],
    times: impl Fn(&Update) -> u32,
) -> Result<IntegerSum, String> {
    let mut sum = IntegerSum::zero(job.grid(), job.part().len());
    for update in updates {
        let blob =
            storage.get(&update.blob).ok_or_else(|| format!("the update of {} is gone", update.client))?;
        let units = decoded(job, blob.get(..update.bytes as usize).unwrap_or_default())?;
        for _ in 0..times(update) {
            sum.fold(&units, update.weight).map_err(|e| e.to_string())?;
        }
    }
    Ok(sum)
}

/// The mean that leaves, and what was divided by.
fn mean(job: &Job, order: &Order, sum: &IntegerSum) -> Result<(Vec<f64>, f64), String> {
    let cohort = job.spec().cohort;
    let one = job.grid().units_per_one();
    if job.contract().is_noised_by_the_coordinator() {
        let mut noise = Chance::of(order.noise);
        let noised = sum.units().iter().map(|units| units + noise.below(200_001) as i64 - 100_000);
        let denominator = cohort.denominator();
        return Ok((noised.map(|units| units as f64 / one / denominator).collect(), denominator));
    }
    let counted = Counted {
        most: cohort.size(),
        denominator: cohort.denominator(),
        fresh_weight: job.fresh_weight(order.updates.iter().map(Update::sent_weight)),
    };
    let denominator = counted.fresh_weight.unwrap_or(sum.total_weight()) as f64;
    // Under these contracts nothing is drawn from it.
    let mut rng = NoiseRng::from_os().map_err(|e| e.to_string())?;
    let released = release(sum.clone(), job.contract(), &order.entry, counted, Left::default(), &mut rng);
    let (released, _) = released.map_err(|e| e.to_string())?;
    Ok((released.mean().collect(), denominator))
}

impl World {
    /// One try at a release. A disk that fails costs time, not privacy: the next try has the same noise.
    pub(crate) fn release(&mut self, r: usize, job: usize, mut order: Order) {
        let key = order.entry.key.clone();
        let sim = self.scenario.jobs[job].clone();
        let twice = self.mutant == Some(Mutant::CountsRetryTwice);
        let times = |update: &Update| 1 + u32::from(twice && self.watch.was_sent_again(&update.client, &key));
        let tried = summed(&self.storage, &sim.job, &order.updates, times)
            .and_then(|sum| mean(&sim.job, &order, &sum).map(|mean| (sum, mean)));
        let (sum, (mut mean, mut denominator)) = match tried {
            Ok(made) => made,
            Err(reason) => {
                self.note(format!("replica {r}: no release of {key}: {reason}"));
                self.coverage.note("releases that could not be made");
                return self.feed_job(r, job, Input::ReleaseFailed { key, reason, is_final: false }, None);
            }
        };
        if self.mutant == Some(Mutant::DividesByReceived) && !order.updates.is_empty() {
            let received = order.updates.len() as f64;
            mean.iter_mut().for_each(|value| *value *= denominator / received);
            denominator = received;
        }
        let Some(old) = self.storage.get(&order.model.digest) else {
            let reason = "the current model cannot be read".into();
            return self.feed_job(r, job, Input::ReleaseFailed { key, reason, is_final: false }, None);
        };
        let moved: Vec<f32> =
            values(&old).iter().zip(&mean).map(|(weight, step)| weight + *step as f32).collect();
        let noise = sim.job.contract().is_noised_by_the_coordinator().then_some(order.noise);
        if let Some(noise) = noise {
            self.watch.draws(&key, noise);
        }
        if self.strikes(Fault::BlobUnwritable) {
            let wanted = self.driver(r, job).is_some_and(|driver| driver.state.is_releasing(&key));
            if wanted {
                let after = order.pause_ms;
                order.pause_ms = (after * 2).min(LAST_PAUSE_MS);
                if self.mutant == Some(Mutant::DrawsNoiseAgain) {
                    order.noise = self.chance.word();
                }
                self.later_at_replica(after, r, AtReplica::Release { job, order: Box::new(order) });
            }
            return;
        }
        let mut bytes = file(&moved);
        if self.mutant == Some(Mutant::StampsModels) {
            bytes.extend(self.queue.now_ms().to_le_bytes());
        }
        let model = self.storage.put(bytes);
        self.note(format!("replica {r}: {key} gives {}", model.digest.short()));
        let made = Made { key: &key, updates: &order.updates, sum: &sum, noise, denominator, model };
        self.watch.released(&self.storage, &sim, &made);
        match self.driver(r, job) {
            // What nobody waits for leaves nothing behind, unless another release came to the same bytes.
            Some(driver) if driver.state.is_over() => {
                let is_named = driver.state.blobs().contains(&model.digest);
                return self.delete(r, (!is_named).then_some(model.digest));
            }
            Some(_) => {}
            None => return,
        }
        if self.driver(r, job).is_some_and(|driver| !driver.state.is_releasing(&key)) {
            self.coverage.note("releases that came too late");
        }
        let input = Box::new(Input::Released { key, model, carried: Carried::default() });
        let after = self.chance.between(1, 60);
        self.later_at_replica(after, r, AtReplica::Feed { job, input });
    }
}
