//! A contract against the planned schedule: the final noise, the price of an attempt, ε after any number of them.
//!
//! Coordinator and clients resolve for themselves and compare digests; neither takes the other's ε on trust.

mod draw;
mod terms;

pub use terms::{ClientCentral, ClientLocal, NoPromise, RecordLocal, Terms};

use crate::adaptive_clip::AdaptiveClipError;
use crate::blt::{self, BltError};
use crate::contract::{CentralMechanism, Noise, PrivacyContract, Trust, Unit};
use crate::ledger::Loss;
use crate::participation::Participation;
use crate::pld::{ACCOUNTANT, AccountantError, Composition, Curve, EpsilonInterval, Mechanism, calibrate};
use crate::rdp::{MAX_NOISE_MULTIPLIER, MIN_NOISE_MULTIPLIER};
use crate::sensitivity::Adjacency;
use draw::CappedDraw;
use serde::{Deserialize, Serialize};
use undertone_core::cohort::{Buffered, Cohort};
use undertone_core::digest::{Digest, Digester};
use undertone_core::limits::{MAX_LOCAL_STEPS, MAX_ROUNDS};
use undertone_core::trainer::RecordPrivacy;

/// Noise is counted in sensitivities, whatever the contract's neighbours are: for the accountant one contribution more or
/// less.
const NEIGHBOURS: Adjacency = Adjacency::AddRemove;

/// What a job plans to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Rounds.
    pub rounds: u32,
    /// Optimiser steps of a client in one round. Matters at record level only, where each step is a release.
    pub local_steps: u32,
}

/// Why a contract does not go with a schedule.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ContractError {
    /// No rounds, or too many.
    #[error("a job has 1 to {MAX_ROUNDS} rounds, not {0}")]
    Rounds(u32),
    /// No steps, or too many.
    #[error("a record-level contract needs 1 to {MAX_LOCAL_STEPS} local_steps in a round, not {0}")]
    LocalSteps(u32),
    /// A draw of cohorts that no proof covers under this contract.
    #[error(
        "rule = \"poisson\" goes with unit = \"client\", trust = \"central\", adjacency = \"add-remove\" alone, where the \
         coordinator's noise hides how many were drawn, not with {contract}: take rule = \"all\" or rule = \"uniform\""
    )]
    Cohort {
        /// What the contract says instead.
        contract: String,
    },
    /// Who may be drawn would depend on who was drawn before, which the amplification keeps secret.
    #[error(
        "rule = \"poisson\" does not go with participations and separation: who may be drawn would tell who was drawn before; \
         take one of the two, or rule = \"all\" or \"uniform\" with the limits"
    )]
    DrawnParticipation,
    /// Correlated noise without a bound on how often a client takes part.
    #[error(
        "mechanism = \"blt\" needs [cohort] participations and separation: its noise rests on how often a client takes part at \
         most, and how far apart"
    )]
    Participation,
    /// Correlated noise over updates that count later than they were asked.
    #[error(
        "mechanism = \"blt\" does not go with rule = \"buffered\": its noise rests on how many rounds apart a client's updates \
         count, and an update counts in whichever round it arrives in; take mechanism = \"discrete-gaussian\", or rule = \"all\" \
         or \"uniform\" with participations and separation"
    )]
    CorrelatedBuffer,
    /// A clip norm that moves while clients are at work.
    #[error(
        "adaptive_clip does not go with rule = \"buffered\": an update that was clipped to the norm of an older round may be longer \
         than the norm that the noise of this round is scaled to; take a fixed clip_norm, or another rule"
    )]
    BufferedClip,
    /// Weights by staleness that leave no room.
    #[error("rule = \"buffered\": {0}")]
    Staleness(String),
    /// Correlated noise for cohorts that are drawn in secret.
    #[error(
        "mechanism = \"blt\" does not go with rule = \"poisson\": it claims nothing of a draw; take rule = \"all\" or \
         rule = \"uniform\" with participations and separation"
    )]
    CorrelatedDraw,
    /// The correlated noise cannot be made.
    #[error("mechanism = \"blt\": {0}")]
    Correlated(#[from] BltError),
    /// The count of clients that the clip norm follows leaves no noise for the updates.
    #[error(transparent)]
    AdaptiveClip(#[from] AdaptiveClipError),
    /// The measurements alone would spend the target.
    #[error(
        "target_epsilon = {target} leaves nothing for training beside {measurements} measurements of metrics epsilon = {each}: \
         measure less often ([evaluation] every), or with a smaller epsilon"
    )]
    Metrics {
        /// The target.
        target: f64,
        /// Planned measurements.
        measurements: u32,
        /// ε of each.
        each: f64,
    },
    /// No amount of noise keeps the target.
    #[error(
        "target_epsilon = {target} cannot be kept over {compositions} noisy steps with any noise: plan fewer rounds \
         or local_steps, or raise target_epsilon"
    )]
    Unreachable {
        /// The target.
        target: f64,
        /// Rounds times steps.
        compositions: u64,
    },
    /// The plan needs more than the budget.
    #[error(
        "{rounds} rounds at this noise spend ε = {epsilon:.2}, more than budget_epsilon = {budget}: {fits} rounds would fit; \
         plan fewer, add noise, or give target_epsilon instead of noise_multiplier"
    )]
    OverBudget {
        /// Rounds planned.
        rounds: u32,
        /// What they would spend.
        epsilon: f64,
        /// The budget.
        budget: f64,
        /// Rounds that fit.
        fits: u32,
    },
    /// The accountant refuses.
    #[error(transparent)]
    Accountant(#[from] AccountantError),
}

/// A contract with all its numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedContract {
    contract: PrivacyContract,
    schedule: Schedule,
    promise: Option<Promised>,
    /// What a fresh update of weight 1 weighs in a sum: above 1 where stale ones weigh fractions of it.
    weight_of_one: u32,
    buffered: Option<Buffered>,
    digest: Digest,
}

/// What is promised, in numbers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Promised {
    pub(crate) clip_norm: f64,
    pub(crate) adjacency: Adjacency,
    /// Of a round as a whole; of the whole run with correlated noise.
    pub(crate) noise_multiplier: f64,
    /// Of the updates alone: more, where a noised count takes its share of the round.
    update_noise: f64,
    delta: f64,
    budget_epsilon: f64,
    /// Compositions that an attempt at a round costs.
    charge: u32,
    draw: Option<CappedDraw>,
    correlated: Option<Correlated>,
    measured: Option<Measured>,
    curve: Curve,
}

/// What correlated noise rests on, and how it is correlated.
#[derive(Debug, Clone, PartialEq)]
struct Correlated {
    participation: Participation,
    parameters: blt::Parameters,
}

/// Buffers of correlated noise: a third is worth less than one percent of noise and costs a model's size of memory.
const BLT_BUFFERS: usize = 2;

/// Measurements that are charged: every so many rounds, and of the last.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Measured {
    epsilon: f64,
    every: u32,
}

impl Measured {
    /// Of a run of so many rounds without a retry. Attempts beyond the plan are of any round.
    fn after(self, attempts: u32, rounds: u32) -> u32 {
        let last = attempts >= rounds && !rounds.is_multiple_of(self.every);
        attempts / self.every + u32::from(last)
    }
}

/// What is known of a job's cohorts and of who measures its models.
#[derive(Debug, Clone, Copy, Default)]
struct Setting {
    draw: Option<CappedDraw>,
    participation: Option<Participation>,
    /// 0: never.
    measured_every: u32,
    buffered: Option<Buffered>,
}

impl PrivacyContract {
    /// Fixes the numbers that depend on the schedule. A contract with a target ε gets the least noise that keeps it
    /// over `schedule.rounds` attempts; retries spend beyond the target, up to the budget.
    ///
    /// # Errors
    /// [`ContractError`].
    pub fn resolve(&self, schedule: Schedule) -> Result<ResolvedContract, ContractError> {
        self.resolve_over(schedule, Setting::default())
    }

    /// The same for the cohorts of a job: ones that are drawn by [`CohortRule::Poisson`](undertone_core::cohort::CohortRule::Poisson) cost less.
    ///
    /// # Errors
    /// [`ContractError`].
    pub fn resolve_for(
        &self,
        schedule: Schedule,
        cohort: &Cohort,
    ) -> Result<ResolvedContract, ContractError> {
        self.resolve_measured(schedule, cohort, 0)
    }

    /// The same for a job whose models evaluators measure every so many rounds and at the end (0: never): where the
    /// contract keeps measurements private, they are charged.
    ///
    /// # Errors
    /// [`ContractError`].
    pub fn resolve_measured(
        &self,
        schedule: Schedule,
        cohort: &Cohort,
        measured_every: u32,
    ) -> Result<ResolvedContract, ContractError> {
        let draw = CappedDraw::of(cohort);
        let covered = (self.unit(), self.trust(), self.adjacency())
            == (Unit::Client, Some(Trust::Central), Some(Adjacency::AddRemove));
        if draw.is_some() && !covered {
            let mut contract = format!("unit = \"{}\"", self.unit().as_str());
            if let (Some(trust), Some(adjacency)) = (self.trust(), self.adjacency()) {
                contract +=
                    &format!(", trust = \"{}\", adjacency = \"{}\"", trust.as_str(), adjacency.as_str());
            }
            return Err(ContractError::Cohort { contract });
        }
        if draw.is_some() && cohort.participation().is_some() {
            return Err(ContractError::DrawnParticipation);
        }
        let (participation, buffered) = (cohort.participation(), cohort.buffered());
        self.resolve_over(schedule, Setting { draw, participation, measured_every, buffered })
    }

    fn resolve_over(&self, schedule: Schedule, setting: Setting) -> Result<ResolvedContract, ContractError> {
        let draw = setting.draw;
        if !(1..=MAX_ROUNDS).contains(&schedule.rounds) {
            return Err(ContractError::Rounds(schedule.rounds));
        }
        let charge = match self.unit() {
            Unit::None => 0,
            Unit::Client => 1,
            Unit::Record if (1..=MAX_LOCAL_STEPS).contains(&schedule.local_steps) => schedule.local_steps,
            Unit::Record => return Err(ContractError::LocalSteps(schedule.local_steps)),
        };
        let correlated = self.correlated(schedule, setting)?;
        if setting.buffered.is_some() && self.adaptive_clip().is_some() {
            return Err(ContractError::BufferedClip);
        }
        let staleness = setting.buffered.map(|b| b.staleness(self.max_weight())).transpose();
        let staleness = staleness.map_err(ContractError::Staleness)?;
        let weight_of_one = staleness.map_or(1, |s| s.one());
        let every = setting.measured_every;
        let measured = self.metrics().filter(|_| every > 0).map(|m| Measured { epsilon: m.epsilon(), every });
        let promise = match self.promise() {
            None => None,
            Some(p) => {
                // Without sampling a Gaussian release is the subsampled one at rate 1.
                let sampling_rate = self.sampling_rate().unwrap_or(1.0);
                let mechanism = |z| match draw {
                    Some(draw) => draw.mechanism(z),
                    None => Mechanism::poisson_gaussian(z, sampling_rate),
                };
                // Correlated noise is one mechanism over the whole run.
                let releases = if correlated.is_some() { 1 } else { u64::from(schedule.rounds) };
                let compositions = releases * u64::from(charge);
                let noise_multiplier = match p.noise {
                    Noise::Multiplier(z) => z,
                    Noise::TargetEpsilon(told) => {
                        let measurements = measured.map_or(0, |m| m.after(schedule.rounds, schedule.rounds));
                        let each = measured.map_or(0.0, |m| m.epsilon);
                        let target = told - f64::from(measurements) * each;
                        if target <= 0.0 {
                            return Err(ContractError::Metrics { target: told, measurements, each });
                        }
                        // A client that pushes another one out of a full cohort moves the sum twice as far.
                        let least =
                            if draw.is_some() { 2.0 * MIN_NOISE_MULTIPLIER } else { MIN_NOISE_MULTIPLIER };
                        calibrate::least_noise(target, p.delta, (least, MAX_NOISE_MULTIPLIER), |z| {
                            Composition::new(NEIGHBOURS).add(mechanism(z)?, compositions)
                        })
                        .map_err(|e| match e {
                            AccountantError::Unreachable { .. } => {
                                ContractError::Unreachable { target: told, compositions }
                            }
                            other => ContractError::Accountant(other),
                        })?
                    }
                };
                let curve = Curve::new(mechanism(noise_multiplier)?, NEIGHBOURS, p.delta)?;
                let update_noise = match self.adaptive_clip() {
                    Some(rule) => rule.update_noise(noise_multiplier)?,
                    None => noise_multiplier,
                };
                Some(Promised {
                    update_noise,
                    correlated,
                    measured,
                    clip_norm: p.clip_norm,
                    adjacency: self.adjacency().unwrap_or_default(),
                    noise_multiplier,
                    delta: p.delta,
                    budget_epsilon: p.budget_epsilon,
                    charge,
                    draw,
                    curve,
                })
            }
        };
        let digest = digest(self, schedule.rounds, charge, promise.as_ref(), setting.buffered);
        let buffered = setting.buffered;
        let resolved =
            ResolvedContract { contract: *self, schedule, promise, weight_of_one, buffered, digest };
        resolved.check_budget()?;
        Ok(resolved)
    }

    fn correlated(&self, schedule: Schedule, setting: Setting) -> Result<Option<Correlated>, ContractError> {
        if self.mechanism() != Some(CentralMechanism::Blt) {
            return Ok(None);
        }
        if setting.draw.is_some() {
            return Err(ContractError::CorrelatedDraw);
        }
        if setting.buffered.is_some() {
            return Err(ContractError::CorrelatedBuffer);
        }
        let participation = setting.participation.ok_or(ContractError::Participation)?;
        let parameters = blt::optimise(BLT_BUFFERS, schedule.rounds, participation)?;
        Ok(Some(Correlated { participation, parameters }))
    }
}

/// Everything that the promise rests on: terms, schedule, price, final noise, accountant.
fn digest(
    contract: &PrivacyContract,
    rounds: u32,
    charge: u32,
    promise: Option<&Promised>,
    buffered: Option<Buffered>,
) -> Digest {
    let mut d = Digester::new();
    d.field(b"undertone resolved privacy contract 3");
    d.field(contract.digest().as_bytes());
    d.field(&rounds.to_le_bytes());
    d.field(&charge.to_le_bytes());
    if let Some(p) = promise {
        d.field(&p.noise_multiplier.to_bits().to_le_bytes());
        if let Some(draw) = p.draw {
            d.field(&draw.rate.to_bits().to_le_bytes());
            d.field(&draw.population.to_le_bytes());
            d.field(&draw.cap.to_le_bytes());
        }
        if let Some(correlated) = &p.correlated {
            d.field(b"blt");
            d.field(&correlated.participation.limit().to_le_bytes());
            d.field(&correlated.participation.separation().to_le_bytes());
            for (theta, omega) in correlated.parameters.theta().zip(correlated.parameters.omega()) {
                d.field(&theta.to_bits().to_le_bytes());
                d.field(&omega.to_bits().to_le_bytes());
            }
        }
        if let Some(measured) = p.measured {
            d.field(b"measured every");
            d.field(&measured.every.to_le_bytes());
        }
        if let Some(b) = buffered {
            d.field(b"buffered");
            d.field(&b.buffer.to_le_bytes());
            d.field(&b.max_staleness.to_le_bytes());
            d.field(b.decay.as_str().as_bytes());
        }
        d.field(ACCOUNTANT.as_bytes());
    }
    d.finish()
}

impl ResolvedContract {
    /// The contract that was resolved.
    pub fn contract(&self) -> &PrivacyContract {
        &self.contract
    }

    /// The most that one update weighs in a sum: what the sensitivity is scaled by.
    pub fn full_weight(&self) -> u32 {
        // Each factor has room for the other: [`ContractError::Staleness`].
        self.contract.max_weight() * self.weight_of_one
    }

    /// What a fresh update of weight 1 weighs in a sum.
    pub fn weight_of_one(&self) -> u32 {
        self.weight_of_one
    }

    /// The schedule that it was resolved against.
    pub fn schedule(&self) -> Schedule {
        self.schedule
    }

    /// Who is protected.
    pub fn unit(&self) -> Unit {
        self.contract.unit()
    }

    /// Who must be trusted; `None` where nothing is promised.
    pub fn trust(&self) -> Option<Trust> {
        self.contract.trust()
    }

    /// Compositions that an attempt at a round costs: `local_steps` at record level, 1 at client level, 0 without a
    /// promise. With correlated noise the first attempt pays for the whole run: see [`Self::charge_after`].
    pub fn charge(&self) -> u32 {
        self.promise.as_ref().map_or(0, |p| p.charge)
    }

    /// Compositions that the next attempt costs after so many. Correlated noise is one mechanism, whatever becomes of the
    /// attempts: what a client gives is bounded by how often it takes part.
    pub fn charge_after(&self, attempts: usize) -> u32 {
        if attempts > 0 && self.is_correlated() { 0 } else { self.charge() }
    }

    /// How many attempts of a run without retries are charged.
    pub fn paying_attempts(&self) -> u32 {
        if self.is_correlated() { 1 } else { self.schedule.rounds }
    }

    /// The mechanism's name; `None` where nothing is promised. Where clients add the noise to whole updates it is the exact
    /// discrete Gaussian.
    pub fn mechanism_name(&self) -> Option<&'static str> {
        self.promise.as_ref().map(|_| match self.contract.record_mechanism() {
            Some(mechanism) => mechanism.as_str(),
            None => self.contract.mechanism().unwrap_or_default().as_str(),
        })
    }

    /// Whether the noise of the rounds is one mechanism.
    pub fn is_correlated(&self) -> bool {
        self.promise.as_ref().is_some_and(|p| p.correlated.is_some())
    }

    /// How often a client may take part, where the noise rests on it.
    pub fn participation(&self) -> Option<Participation> {
        self.promise.as_ref().and_then(|p| p.correlated.as_ref()).map(|c| c.participation)
    }

    fn compositions_after(&self, attempts: u32) -> u64 {
        let paying = if self.is_correlated() { attempts.min(1) } else { attempts };
        u64::from(paying) * u64::from(self.charge())
    }

    /// What one composition loses. `None` where nothing is promised.
    pub fn loss(&self) -> Option<Loss> {
        let adjacency = self.contract.adjacency().unwrap_or_default();
        self.promise.as_ref().map(|p| match (p.draw, &p.correlated) {
            (Some(CappedDraw { rate, population, cap }), _) => Loss::CappedPoissonGaussian {
                noise_multiplier: p.noise_multiplier,
                sampling_rate: rate,
                population,
                cap,
            },
            (None, Some(Correlated { participation, .. })) => Loss::CorrelatedGaussian {
                noise_multiplier: p.noise_multiplier,
                rounds: self.schedule.rounds,
                participations: participation.limit(),
                separation: participation.separation(),
                adjacency,
            },
            (None, None) => Loss::Gaussian {
                noise_multiplier: p.noise_multiplier,
                sampling_rate: self.contract.sampling_rate().unwrap_or(1.0),
                adjacency,
            },
        })
    }

    /// Whether ε counts on a random draw of the cohort, which holds against observers of models and not against the
    /// coordinator.
    pub fn is_drawn(&self) -> bool {
        self.promise.as_ref().is_some_and(|p| p.draw.is_some())
    }

    /// Standard deviation of the noise in multiples of the sensitivity, given or computed.
    pub fn noise_multiplier(&self) -> Option<f64> {
        self.promise.as_ref().map(|p| p.noise_multiplier)
    }

    /// Which data sets the promise makes hard to tell apart; `None` where nothing is promised.
    pub fn adjacency(&self) -> Option<Adjacency> {
        self.contract.adjacency()
    }

    /// ε at the contract's δ after so many attempts at rounds, whatever became of them. `None` where nothing is
    /// promised: no number may be shown then.
    pub fn epsilon_after(&self, attempts: u32) -> Option<f64> {
        let trained = self.epsilon_of(self.compositions_after(attempts))?;
        Some(trained + self.measured_epsilon_after(attempts))
    }

    /// ε of the measurements of so many attempts.
    fn measured_epsilon_after(&self, attempts: u32) -> f64 {
        let measured = self.promise.as_ref().and_then(|p| p.measured);
        measured.map_or(0.0, |m| f64::from(m.after(attempts, self.schedule.rounds)) * m.epsilon)
    }

    /// ε of the measurement that an attempt at `round` pays for, if the round is measured and measurements are kept
    /// private. They compose with the rest by addition (δ = 0).
    pub fn measured_epsilon(&self, round: u32) -> Option<f64> {
        let measured = self.promise.as_ref()?.measured?;
        let counts = round == self.schedule.rounds || round.is_multiple_of(measured.every);
        counts.then_some(measured.epsilon)
    }

    /// How many measurements a run without retries pays for, and ε of each.
    pub fn planned_measurements(&self) -> Option<(u32, f64)> {
        let measured = self.promise.as_ref()?.measured?;
        Some((measured.after(self.schedule.rounds, self.schedule.rounds), measured.epsilon))
    }

    /// ε at another δ than the contract's, after so many attempts at rounds: the same noise keeps a promise at every δ.
    pub(crate) fn epsilon_at(&self, attempts: u32, delta: f64) -> Option<f64> {
        let compositions = self.compositions_after(attempts);
        self.promise.as_ref().map(|p| {
            let used = Composition::new(Adjacency::AddRemove).add(p.curve.mechanism(), compositions);
            used.and_then(|c| c.epsilon_upper(delta)).unwrap_or(f64::INFINITY)
        })
    }

    /// ε after so many compositions.
    pub(crate) fn epsilon_of(&self, compositions: u64) -> Option<f64> {
        // Beyond what the accountant can speak about there is no promise: no budget covers it.
        self.promise.as_ref().map(|p| p.curve.upper(compositions).unwrap_or(f64::INFINITY))
    }

    /// Both bounds of ε after so many attempts: the upper one is [`Self::epsilon_after`] and the one that is enforced.
    /// `None` where nothing is promised, or beyond what the accountant can speak about.
    pub fn epsilon_interval_after(&self, attempts: u32) -> Option<EpsilonInterval> {
        let promise = self.promise.as_ref()?;
        let trained = promise.curve.interval(self.compositions_after(attempts)).ok()?;
        // Evaluators may be others than those who train: only the upper bound adds up.
        Some(EpsilonInterval { upper: trained.upper + self.measured_epsilon_after(attempts), ..trained })
    }

    /// Other terms or another schedule for cohorts that are drawn in the same way.
    ///
    /// # Errors
    /// [`ContractError`].
    pub fn instead(
        &self,
        terms: &PrivacyContract,
        schedule: Schedule,
    ) -> Result<ResolvedContract, ContractError> {
        let promise = self.promise.as_ref();
        let participation = self.participation();
        let measured_every = promise.and_then(|p| p.measured).map_or(0, |m| m.every);
        let draw = promise.and_then(|p| p.draw);
        terms.resolve_over(schedule, Setting { draw, participation, measured_every, buffered: self.buffered })
    }

    /// A plan that cannot be carried out is refused before anybody is asked. Retries may still spend a budget early.
    fn check_budget(&self) -> Result<(), ContractError> {
        let rounds = self.schedule.rounds;
        match (self.epsilon_after(rounds), self.budget_epsilon()) {
            (Some(epsilon), Some(budget)) if epsilon > budget => {
                Err(ContractError::OverBudget { rounds, epsilon, budget, fits: self.rounds_that_fit() })
            }
            _ => Ok(()),
        }
    }

    /// How many rounds of those planned the budget has room for.
    fn rounds_that_fit(&self) -> u32 {
        let fits = |rounds| self.epsilon_after(rounds) <= self.budget_epsilon();
        let (mut low, mut high) = (0, self.schedule.rounds);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if fits(middle) { low = middle } else { high = middle - 1 }
        }
        low
    }

    /// The ε that the job may never exceed.
    pub fn budget_epsilon(&self) -> Option<f64> {
        self.promise.as_ref().map(|p| p.budget_epsilon)
    }

    /// δ.
    pub fn delta(&self) -> Option<f64> {
        self.promise.as_ref().map(|p| p.delta)
    }

    /// The accountant that ε comes from.
    pub fn accountant(&self) -> Option<&'static str> {
        self.promise.as_ref().map(|_| ACCOUNTANT)
    }

    /// The digest of the contract, the schedule, the price of an attempt and the final noise: what ledger entries,
    /// offers and uploads name.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The numbers of DP-SGD for a client that declares `declared_rows` rows, if the contract is record-level.
    /// The declaration is public and need not be true; the private number of rows must not come in here. Zero counts
    /// as one.
    pub fn record_privacy(&self, declared_rows: u64) -> Option<RecordPrivacy> {
        let (promise, sampling_rate) = (self.promise.as_ref()?, self.contract.sampling_rate()?);
        Some(RecordPrivacy {
            clip_norm: promise.clip_norm,
            noise_multiplier: promise.noise_multiplier,
            sampling_rate,
            expected_batch: sampling_rate * declared_rows.max(1) as f64,
            mechanism: self.contract.record_mechanism()?,
        })
    }

    /// Whether the coordinator draws the noise of a release: then another draw over the same updates would be another
    /// release.
    pub fn is_noised_by_the_coordinator(&self) -> bool {
        matches!(self.terms(), Terms::ClientCentral(_))
    }

    /// The kind of promise, as the evidence that a mechanism of [`crate::release`] asks for.
    pub fn terms(&self) -> Terms<'_> {
        match (self.unit(), &self.promise) {
            (Unit::Client, Some(promise)) if self.trust() == Some(Trust::Local) => {
                Terms::ClientLocal(ClientLocal { contract: self, promise })
            }
            (Unit::Record, Some(_)) => Terms::RecordLocal(RecordLocal { contract: self }),
            (Unit::Client, Some(promise)) => Terms::ClientCentral(ClientCentral { contract: self, promise }),
            _ => Terms::NoPromise(NoPromise { contract: self }),
        }
    }
}

#[cfg(test)]
mod tests;
