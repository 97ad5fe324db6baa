//! A contract against the planned schedule: the final noise, the price of an attempt, ε after any number of them.
//!
//! Coordinator and clients resolve for themselves and compare digests; neither takes the other's ε on trust.

use crate::contract::{Noise, PrivacyContract, Trust, Unit};
use crate::discrete_gaussian::NoiseError;
use crate::ledger::Loss;
use crate::local::{LocalError, LocalNoise};
use crate::pld::{ACCOUNTANT, AccountantError, Composition, Curve, EpsilonInterval, Mechanism, calibrate};
use crate::rdp::{MAX_NOISE_MULTIPLIER, MIN_NOISE_MULTIPLIER};
use crate::sensitivity::{Adjacency, L2Sensitivity};
use serde::{Deserialize, Serialize};
use undertone_core::cohort::{Cohort, CohortRule};
use undertone_core::digest::{Digest, Digester};
use undertone_core::fixed::Grid;
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
    digest: Digest,
}

/// What is promised, in numbers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Promised {
    pub(crate) clip_norm: f64,
    pub(crate) adjacency: Adjacency,
    pub(crate) noise_multiplier: f64,
    delta: f64,
    budget_epsilon: f64,
    /// Compositions that an attempt at a round costs.
    charge: u32,
    draw: Option<CappedDraw>,
    curve: Curve,
}

/// Clients drawn by themselves with a probability, and cut down to a cap: what amplification by sampling rests on,
/// against whoever sees released models and does not know the draw.
#[derive(Debug, Clone, Copy, PartialEq)]
struct CappedDraw {
    rate: f64,
    population: u32,
    cap: u32,
}

impl CappedDraw {
    fn of(cohort: &Cohort) -> Option<Self> {
        match cohort.rule() {
            CohortRule::Poisson { rate, population, cap, .. } => Some(Self { rate, population, cap }),
            // A draw of a fixed size is none of these, whatever its size (and everyone is no draw).
            CohortRule::All { .. } | CohortRule::Uniform { .. } => None,
        }
    }

    fn mechanism(&self, noise_multiplier: f64) -> Result<Mechanism, AccountantError> {
        Mechanism::truncated_poisson_gaussian(
            noise_multiplier,
            self.rate,
            self.population.into(),
            self.cap.into(),
        )
    }
}

impl PrivacyContract {
    /// Fixes the numbers that depend on the schedule. A contract with a target ε gets the least noise that keeps it
    /// over `schedule.rounds` attempts; retries spend beyond the target, up to the budget.
    ///
    /// # Errors
    /// [`ContractError`].
    pub fn resolve(&self, schedule: Schedule) -> Result<ResolvedContract, ContractError> {
        self.resolve_drawn(schedule, None)
    }

    /// The same for the cohorts of a job: ones that are drawn by [`CohortRule::Poisson`] cost less.
    ///
    /// # Errors
    /// [`ContractError`].
    pub fn resolve_for(
        &self,
        schedule: Schedule,
        cohort: &Cohort,
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
        self.resolve_drawn(schedule, draw)
    }

    fn resolve_drawn(
        &self,
        schedule: Schedule,
        draw: Option<CappedDraw>,
    ) -> Result<ResolvedContract, ContractError> {
        if !(1..=MAX_ROUNDS).contains(&schedule.rounds) {
            return Err(ContractError::Rounds(schedule.rounds));
        }
        let charge = match self.unit() {
            Unit::None => 0,
            Unit::Client => 1,
            Unit::Record if (1..=MAX_LOCAL_STEPS).contains(&schedule.local_steps) => schedule.local_steps,
            Unit::Record => return Err(ContractError::LocalSteps(schedule.local_steps)),
        };
        let promise = match self.promise() {
            None => None,
            Some(p) => {
                // Without sampling a Gaussian release is the subsampled one at rate 1.
                let sampling_rate = self.sampling_rate().unwrap_or(1.0);
                let mechanism = |z| match draw {
                    Some(draw) => draw.mechanism(z),
                    None => Mechanism::poisson_gaussian(z, sampling_rate),
                };
                let compositions = u64::from(schedule.rounds) * u64::from(charge);
                let noise_multiplier = match p.noise {
                    Noise::Multiplier(z) => z,
                    Noise::TargetEpsilon(target) => {
                        // A client that pushes another one out of a full cohort moves the sum twice as far.
                        let least =
                            if draw.is_some() { 2.0 * MIN_NOISE_MULTIPLIER } else { MIN_NOISE_MULTIPLIER };
                        calibrate::least_noise(target, p.delta, (least, MAX_NOISE_MULTIPLIER), |z| {
                            Composition::new(NEIGHBOURS).add(mechanism(z)?, compositions)
                        })
                        .map_err(|e| match e {
                            AccountantError::Unreachable { .. } => {
                                ContractError::Unreachable { target, compositions }
                            }
                            other => ContractError::Accountant(other),
                        })?
                    }
                };
                let curve = Curve::new(mechanism(noise_multiplier)?, NEIGHBOURS, p.delta)?;
                Some(Promised {
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
        let digest = digest(self, schedule.rounds, charge, promise.as_ref());
        let resolved = ResolvedContract { contract: *self, schedule, promise, digest };
        resolved.check_budget()?;
        Ok(resolved)
    }
}

/// Everything that the promise rests on: terms, schedule, price, final noise, accountant.
fn digest(contract: &PrivacyContract, rounds: u32, charge: u32, promise: Option<&Promised>) -> Digest {
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
        d.field(ACCOUNTANT.as_bytes());
    }
    d.finish()
}

impl ResolvedContract {
    /// The contract that was resolved.
    pub fn contract(&self) -> &PrivacyContract {
        &self.contract
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
    /// promise.
    pub fn charge(&self) -> u32 {
        self.promise.as_ref().map_or(0, |p| p.charge)
    }

    /// What one composition loses. `None` where nothing is promised.
    pub fn loss(&self) -> Option<Loss> {
        self.promise.as_ref().map(|p| match p.draw {
            Some(CappedDraw { rate, population, cap }) => Loss::CappedPoissonGaussian {
                noise_multiplier: p.noise_multiplier,
                sampling_rate: rate,
                population,
                cap,
            },
            None => Loss::Gaussian {
                noise_multiplier: p.noise_multiplier,
                sampling_rate: self.contract.sampling_rate().unwrap_or(1.0),
                adjacency: self.contract.adjacency().unwrap_or_default(),
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
        self.epsilon_of(u64::from(attempts) * u64::from(self.charge()))
    }

    /// ε at another δ than the contract's, after so many attempts at rounds: the same noise keeps a promise at every δ.
    pub(crate) fn epsilon_at(&self, attempts: u32, delta: f64) -> Option<f64> {
        let compositions = u64::from(attempts) * u64::from(self.charge());
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
        promise.curve.interval(u64::from(attempts) * u64::from(self.charge())).ok()
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
        terms.resolve_drawn(schedule, self.promise.as_ref().and_then(|p| p.draw))
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

/// The kind of promise of a [`ResolvedContract`].
#[derive(Debug, Clone, Copy)]
pub enum Terms<'a> {
    /// `unit = "none"`.
    NoPromise(NoPromise<'a>),
    /// `unit = "record"`, `trust = "local"`.
    RecordLocal(RecordLocal<'a>),
    /// `unit = "client"`, `trust = "central"`.
    ClientCentral(ClientCentral<'a>),
    /// `unit = "client"`, `trust = "local"`.
    ClientLocal(ClientLocal<'a>),
}

/// Evidence that a contract promises nothing.
#[derive(Debug, Clone, Copy)]
pub struct NoPromise<'a> {
    pub(crate) contract: &'a ResolvedContract,
}

/// Evidence that updates were made private before they left the clients.
#[derive(Debug, Clone, Copy)]
pub struct RecordLocal<'a> {
    pub(crate) contract: &'a ResolvedContract,
}

/// Evidence that the coordinator must add the noise.
#[derive(Debug, Clone, Copy)]
pub struct ClientCentral<'a> {
    pub(crate) contract: &'a ResolvedContract,
    pub(crate) promise: &'a Promised,
}

impl ClientCentral<'_> {
    /// How far two neighbours can be apart in the sum, in units of `grid`.
    pub(crate) fn sensitivity(&self, grid: Grid) -> Result<L2Sensitivity, NoiseError> {
        Ok(L2Sensitivity::of_clipped(self.promise.clip_norm, grid, self.promise.adjacency)?)
    }
}

/// Evidence that each client must add all the noise to its own update.
#[derive(Debug, Clone, Copy)]
pub struct ClientLocal<'a> {
    pub(crate) contract: &'a ResolvedContract,
    promise: &'a Promised,
}

impl ClientLocal<'_> {
    /// The mechanism of one client, for messages on `grid`.
    ///
    /// # Errors
    /// [`LocalError`] if clip norm or noise does not suit the grid or the wire.
    pub fn noise(&self, grid: Grid) -> Result<LocalNoise, LocalError> {
        let p = self.promise;
        LocalNoise::new(p.clip_norm, p.noise_multiplier, p.adjacency, grid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Schedule = Schedule { rounds: 20, local_steps: 2 };

    fn record(noise: Noise) -> PrivacyContract {
        PrivacyContract::record_local(1.0, 0.25, noise, 1e-3, 10.0).unwrap()
    }

    #[test]
    fn a_target_is_kept_by_the_planned_rounds_and_nearly_reached() {
        let resolved = record(Noise::TargetEpsilon(5.0)).resolve(PLAN).unwrap();
        let epsilon = resolved.epsilon_after(20).unwrap();
        assert!(epsilon <= 5.0 && epsilon > 4.9999, "{epsilon}");
        assert!(resolved.epsilon_after(21).unwrap() > 5.0);
        assert_eq!(resolved.epsilon_after(0), Some(0.0));
        assert_eq!((resolved.charge(), resolved.accountant()), (2, Some("pld")));
        let r = resolved.record_privacy(200).unwrap();
        assert_eq!((r.clip_norm, r.sampling_rate, r.expected_batch), (1.0, 0.25, 50.0));
        assert_eq!(Some(r.noise_multiplier), resolved.noise_multiplier());
        assert!(resolved.record_privacy(0).unwrap().expected_batch > 0.0);
    }

    #[test]
    fn client_level_is_one_gaussian_release_a_round() {
        let contract = PrivacyContract::client_central(0.5, Noise::Multiplier(4.0), 1e-6, 20.0).unwrap();
        let resolved = contract.resolve(Schedule { rounds: 100, local_steps: 7 }).unwrap();
        // dp-accounting 0.6.0 says 14.4508 (privacy loss distribution), the closed form a little less.
        assert!((resolved.epsilon_after(100).unwrap() - 14.450_777).abs() < 1e-3);
        let interval = resolved.epsilon_interval_after(100).unwrap();
        assert!(interval.lower <= interval.upper && interval.upper - interval.lower < 1e-3, "{interval:?}");
        assert_eq!((resolved.charge(), resolved.record_privacy(100)), (1, None));
    }

    #[test]
    fn a_local_message_is_one_gaussian_release_a_round() {
        let of = |contract: Result<PrivacyContract, _>| {
            let contract: PrivacyContract = contract.unwrap();
            contract.resolve(Schedule { rounds: 100, local_steps: 7 }).unwrap()
        };
        let local = of(PrivacyContract::client_local(0.5, Noise::Multiplier(4.0), 1e-6, 20.0));
        let central = of(PrivacyContract::client_central(0.5, Noise::Multiplier(4.0), 1e-6, 20.0));
        // Nobody is sampled, and the noise is counted in sensitivities: the price is that of the central mechanism.
        assert_eq!(local.epsilon_after(100), central.epsilon_after(100));
        assert_eq!(local.charge(), 1);
        assert_ne!(local.digest(), central.digest());
        assert!(!local.is_noised_by_the_coordinator() && central.is_noised_by_the_coordinator());
        let Terms::ClientLocal(terms) = local.terms() else { panic!() };
        // Any two updates are neighbours: twice the clip norm.
        let sigma = terms.noise(Grid::new(16).unwrap()).unwrap().sigma();
        assert!((sigma / (4.0 * 2.0 * 0.5 * 65_536.0) - 1.0).abs() < 1e-6, "{sigma}");
        assert!(matches!(local.loss(), Some(Loss::Gaussian { sampling_rate: 1.0, .. })));
    }

    #[test]
    fn only_a_poisson_draw_is_amplified_and_its_cap_is_charged() {
        let plan = Schedule { rounds: 100, local_steps: 1 };
        let central = |noise| PrivacyContract::client_central(1.0, noise, 1e-6, 100.0).unwrap();
        let poisson =
            |cap| Cohort::new(CohortRule::Poisson { rate: 0.1, population: 1000, cap, min_clients: 1 });
        let of = |cohort: &Cohort| central(Noise::Multiplier(1.0)).resolve_for(plan, cohort).unwrap();
        let everyone = central(Noise::Multiplier(1.0)).resolve(plan).unwrap();
        let spent = |r: &ResolvedContract| r.epsilon_after(100).unwrap();
        // A fixed-size draw of a tenth is charged as if it were everyone.
        let fixed = of(&Cohort::new(CohortRule::Uniform { size: 100, min_clients: 1 }));
        assert_eq!((spent(&fixed), fixed.digest()), (spent(&everyone), everyone.digest()));
        let (wide, capped, tight) = (of(&poisson(200)), of(&poisson(130)), of(&poisson(110)));
        assert!(spent(&wide) < 0.3 * spent(&everyone), "{} of {}", spent(&wide), spent(&everyone));
        assert!(spent(&wide) < spent(&capped) && spent(&capped) < spent(&tight));
        assert_ne!(wide.digest(), capped.digest());
        assert!(matches!(
            capped.loss(),
            Some(Loss::CappedPoissonGaussian { population: 1000, cap: 130, .. })
        ));
        let twice = capped.instead(capped.contract(), Schedule { rounds: 50, ..plan }).unwrap();
        assert_eq!(twice.epsilon_after(50), capped.epsilon_after(50), "the draw is kept");
        let target = central(Noise::TargetEpsilon(2.0)).resolve_for(plan, &poisson(200)).unwrap();
        assert!(spent(&target) <= 2.0 && spent(&target) > 1.999, "{}", spent(&target));
        let local = PrivacyContract::client_local(1.0, Noise::Multiplier(9.0), 1e-6, 100.0).unwrap();
        let replace = central(Noise::Multiplier(9.0)).with_adjacency(Adjacency::ReplaceOne).unwrap();
        for other in [record(Noise::Multiplier(2.0)), local, replace, PrivacyContract::none()] {
            let e = other.resolve_for(plan, &poisson(200)).unwrap_err().to_string();
            assert!(e.contains("goes with unit = \"client\"") && e.contains("rule = \"uniform\""), "{e}");
        }
    }

    #[test]
    fn no_promise_has_no_number_to_show() {
        let resolved = PrivacyContract::none().resolve(PLAN).unwrap();
        assert_eq!(resolved.epsilon_after(5), None);
        assert_eq!((resolved.delta(), resolved.budget_epsilon(), resolved.charge()), (None, None, 0));
        assert_eq!((resolved.accountant(), resolved.record_privacy(9)), (None, None));
    }

    #[test]
    fn the_digest_covers_schedule_and_noise() {
        let contract = record(Noise::TargetEpsilon(5.0));
        let digest =
            |rounds, local_steps| contract.resolve(Schedule { rounds, local_steps }).unwrap().digest();
        assert_eq!(digest(20, 2), digest(20, 2));
        assert_ne!(digest(20, 2), digest(21, 2));
        assert_ne!(digest(20, 2), digest(20, 3));
        // Two ways to the same noise are still two contracts.
        let noise = contract.resolve(PLAN).unwrap().noise_multiplier().unwrap();
        assert_ne!(record(Noise::Multiplier(noise)).resolve(PLAN).unwrap().digest(), digest(20, 2));
        // Local steps mean nothing at client level.
        let client = PrivacyContract::client_central(1.0, Noise::Multiplier(1.0), 1e-5, 90.0).unwrap();
        let digest = |local_steps| client.resolve(Schedule { rounds: 3, local_steps }).unwrap().digest();
        assert_eq!(digest(0), digest(9));
    }

    #[test]
    fn a_plan_beyond_its_budget_is_refused_with_what_would_fit() {
        let contract = PrivacyContract::client_central(1.0, Noise::Multiplier(2.0), 1e-5, 6.0).unwrap();
        let plan = |rounds| contract.resolve(Schedule { rounds, local_steps: 1 });
        let ContractError::OverBudget { fits, epsilon, .. } = plan(100).unwrap_err() else { panic!() };
        assert!(fits > 0 && epsilon > 6.0);
        assert!(plan(fits).unwrap().epsilon_after(fits).unwrap() <= 6.0);
        let e = plan(fits + 1).unwrap_err().to_string();
        assert!(e.contains(&format!("{fits} rounds would fit")), "{e}");
        let dear = PrivacyContract::client_central(1.0, Noise::Multiplier(0.5), 1e-5, 1.0).unwrap();
        let e = dear.resolve(Schedule { rounds: 1, local_steps: 1 }).unwrap_err().to_string();
        assert!(e.contains("0 rounds would fit"), "{e}");
    }

    #[test]
    fn impossible_schedules_are_refused() {
        let contract = record(Noise::TargetEpsilon(5.0));
        let of = |rounds, local_steps| contract.resolve(Schedule { rounds, local_steps }).unwrap_err();
        assert_eq!(of(0, 1), ContractError::Rounds(0));
        assert_eq!(of(1, 0), ContractError::LocalSteps(0));
        let strict = PrivacyContract::client_central(1.0, Noise::TargetEpsilon(1e-5), 1e-9, 1.0).unwrap();
        let e = strict.resolve(Schedule { rounds: 1_000_000, local_steps: 1 }).unwrap_err();
        assert!(matches!(e, ContractError::Unreachable { compositions: 1_000_000, .. }), "{e}");
    }
}
