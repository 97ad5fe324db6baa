//! A contract against the planned schedule: the final noise, the price of an attempt, ε after any number of them.
//!
//! Coordinator and clients resolve for themselves and compare digests; neither takes the other's ε on trust.

mod draw;
mod resolved;
mod terms;

pub use terms::{ClientCentral, ClientLocal, NoPromise, RecordLocal, Terms};

use crate::adaptive_clip::AdaptiveClipError;
use crate::blt::{self, BltError};
use crate::contract::{CentralMechanism, Noise, PrivacyContract, Trust, Unit};
use crate::participation::Participation;
use crate::pld::{ACCOUNTANT, AccountantError, Composition, Curve, Mechanism, calibrate};
use crate::rdp::{MAX_NOISE_MULTIPLIER, MIN_NOISE_MULTIPLIER};
use crate::sensitivity::Adjacency;
use draw::CappedDraw;
use serde::{Deserialize, Serialize};
use undertone_core::cohort::{Buffered, Cohort};
use undertone_core::digest::{Digest, Digester};
use undertone_core::limits::{MAX_LOCAL_STEPS, MAX_ROUNDS};

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

#[cfg(test)]
mod tests;
