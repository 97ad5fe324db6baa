//! Client level, cohorts drawn by the coordinator: each canary is a client of the population, and in a round if the
//! Poisson draw says so. Who observes sees released models, not the draw: the claim is the amplified one.
//!
//! The job is run several times over, with a population of its own each time, so that there are more canaries than a
//! population has clients: noise and draws are apart, and what each run promises to its clients, all promise together. Half
//! of a population, up to a bound, are canaries; the others are there in any case, send zeros, and fill the cohort up to
//! its cap like anyone. Who is drawn is up to the coordinator's own function, and what becomes of an update is as in
//! [`super::client_level`].
//!
//! A canary's score is a log-likelihood ratio: where a client is seldom in, a plain sum over rounds drowns it in the noise
//! of those that it sat out.

use super::client_level::{attempt, update};
use super::design::AuditError;
use super::subject::{Two, clip_norm, refused};
use crate::ledger::{LedgerEntry, Loss};
use crate::noise::NoiseRng;
use crate::release::Carried;
use crate::release::{Counted, release};
use crate::resolve::ResolvedContract;
use chacha20::ChaCha20Rng;
use chacha20::rand_core::SeedableRng as _;
use undertone_core::aggregate::IntegerSum;
use undertone_core::cohort::{Cohort, CohortRule};
use undertone_core::fixed::{FixedVector, Grid};
use undertone_core::id::ClientId;

/// Most canaries of one run: a model has a coordinate for each.
const CANARIES: u32 = 1024;
/// Most clients of one run. Of a larger population only so many are there, as a claim for the whole of it allows; they
/// then fill no cap that was set for all.
const PEOPLE: u32 = 4096;

/// How a contract's cohorts are drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draw {
    rate: f64,
    population: u32,
    cap: u32,
    noise_multiplier: f64,
}

impl Draw {
    /// `None` if nobody is drawn, or nothing is claimed for it.
    pub(super) fn of(contract: &ResolvedContract) -> Option<Self> {
        match contract.loss()? {
            Loss::CappedPoissonGaussian { noise_multiplier, sampling_rate: rate, population, cap } => {
                Some(Self { rate, population, cap, noise_multiplier })
            }
            Loss::Gaussian { .. } | Loss::CorrelatedGaussian { .. } => None,
        }
    }

    fn people(&self) -> u32 {
        self.population.min(PEOPLE)
    }

    fn canaries(&self) -> usize {
        (self.people() / 2).clamp(1, CANARIES) as usize
    }

    fn cohort(&self) -> Cohort {
        let Self { rate, population, cap, .. } = *self;
        // Who is connected is decided before the draw, and is everyone.
        Cohort::new(CohortRule::Poisson { rate, population, cap, min_clients: 0 })
    }

    /// Clients in a round, about: what it costs to sum them.
    pub(super) fn expected_cohort(&self) -> f64 {
        (self.rate * f64::from(self.people())).min(f64::from(self.cap))
    }

    /// The probability that a client who is there is in a round, or less: the cap takes the same from everyone, and at
    /// most (√(σ² + (cap - μ)²) - (cap - μ))/2 of a number with mean μ and variance σ² (Scarf 1958).
    pub(super) fn least_rate(&self) -> f64 {
        let (people, cap) = (f64::from(self.people()), f64::from(self.cap));
        if cap >= people {
            return self.rate;
        }
        let mean = people * self.rate;
        let variance = mean * (1.0 - self.rate);
        let room = cap - mean;
        let lost = 0.5 * (libm::sqrt(variance + room * room) - room);
        ((mean - lost) / people).max(0.0)
    }

    /// log of the density of `seen`, what a release shows of a canary in clip norms, with the canary in over that without
    /// it: it was in this round with the probability of the rate.
    fn log_likelihood_ratio(&self, seen: f64) -> f64 {
        let drawn = (seen - 0.5) / (self.noise_multiplier * self.noise_multiplier);
        let (sat_out, took_part) = (libm::log1p(-self.rate), libm::log(self.rate) + drawn);
        let (more, less) = (sat_out.max(took_part), sat_out.min(took_part));
        more + libm::log1p(libm::exp(less - more))
    }
}

/// Scores from the releases of the job.
pub(super) fn released(
    contract: &ResolvedContract,
    draw: Draw,
    grid: Grid,
    rounds: u32,
    included: &[bool],
    noise: &mut NoiseRng,
) -> Result<Vec<f64>, AuditError> {
    let entries = (1..=rounds).map(|round| attempt(contract, round));
    let entries = entries.collect::<Result<Vec<LedgerEntry>, _>>()?;
    let cohort = draw.cohort();
    let counted = Counted { most: cohort.size(), denominator: cohort.denominator(), fresh_weight: None };
    let mut draws = generator(noise);
    scores(contract, draw, grid, rounds, included, &mut draws, |round, sum| {
        // A clip norm that moves is held where it began: what is attacked is the noise of the updates.
        let entry = &entries[round as usize - 1];
        let (release, _) = release(sum, contract, entry, counted, Carried::default(), noise)
            .map_err(|e| refused("release")(&e))?;
        Ok(release.mean().collect())
    })
}

/// Scores from the plain means that a job without noise would give out.
pub(super) fn summed(
    contract: &ResolvedContract,
    draw: Draw,
    grid: Grid,
    rounds: u32,
    included: &[bool],
    sampling: &mut NoiseRng,
) -> Result<Vec<f64>, AuditError> {
    let divisor = grid.units_per_one() * draw.cohort().denominator();
    scores(contract, draw, grid, rounds, included, &mut generator(sampling), |_, sum| {
        Ok(sum.units().iter().map(|&units| units as f64 / divisor).collect())
    })
}

/// Runs the job over one population after another; `observe` makes of a round's sum what leaves the coordinator.
fn scores(
    contract: &ResolvedContract,
    draw: Draw,
    grid: Grid,
    rounds: u32,
    included: &[bool],
    draws: &mut ChaCha20Rng,
    mut observe: impl FnMut(u32, IntegerSum) -> Result<Vec<f64>, AuditError>,
) -> Result<Vec<f64>, AuditError> {
    let in_clip_norms = draw.cohort().denominator() / clip_norm(contract)?;
    let mut scores = Vec::with_capacity(included.len());
    for canaries in included.chunks(draw.canaries()) {
        let population = Population::gather(contract, draw, grid, canaries)?;
        let mut run = vec![0.0; canaries.len()];
        for round in 1..=rounds {
            let means = observe(round, population.sum(draw, draws)?)?;
            for (score, mean) in run.iter_mut().zip(means) {
                *score += draw.log_likelihood_ratio(mean * in_clip_norms);
            }
        }
        scores.extend(run);
    }
    Ok(scores)
}

/// The clients of one run: in the order of their names, with what each sends whenever it is asked.
struct Population {
    grid: Grid,
    len: usize,
    names: Vec<ClientId>,
    updates: Vec<FixedVector>,
    /// Of each update: the largest that the contract allows.
    weight: u32,
    zeros: FixedVector,
}

impl Population {
    fn gather(
        contract: &ResolvedContract,
        draw: Draw,
        grid: Grid,
        canaries: &[bool],
    ) -> Result<Self, AuditError> {
        let (two, len) = (Two::of(contract)?, canaries.len());
        let name = |kind: &str, number: usize| {
            ClientId::new(format!("{kind}-{number:05}")).map_err(|e| refused("client's name")(&e))
        };
        // Canaries come first by name, so that a name's place is that of its update.
        let (mut names, mut updates) = (vec![], vec![]);
        for (coordinate, &included) in canaries.iter().enumerate() {
            if let Some(raw) = two.hand_in(included, len, coordinate) {
                names.push(name("canary", coordinate)?);
                updates.push(update(raw, contract, grid)?);
            }
        }
        for other in len..draw.people() as usize {
            names.push(name("other", other)?);
        }
        let zeros = FixedVector::from_units(grid, vec![0; len]).map_err(|e| refused("grid")(&e))?;
        Ok(Self { grid, len, names, updates, weight: contract.contract().max_weight(), zeros })
    }

    /// One round up to the sum.
    fn sum(&self, draw: Draw, draws: &mut ChaCha20Rng) -> Result<IntegerSum, AuditError> {
        let drawn = draw.cohort().draw(&self.names, draws).unwrap_or_default();
        let mut sum = IntegerSum::zero(self.grid, self.len);
        for name in &drawn {
            let place = self.names.binary_search(name).expect("only who is there is drawn");
            let update = self.updates.get(place).unwrap_or(&self.zeros);
            sum.fold(update.units(), self.weight).map_err(|e| refused("sum")(&e))?;
        }
        Ok(sum)
    }
}

/// The generator of draws, keyed afresh.
fn generator(noise: &mut NoiseRng) -> ChaCha20Rng {
    let mut key = [0; 32];
    key.chunks_exact_mut(8).for_each(|bytes| bytes.copy_from_slice(&noise.bits().to_le_bytes()));
    ChaCha20Rng::from_seed(key)
}

#[cfg(test)]
mod tests;
