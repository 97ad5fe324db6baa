//! What a resolved contract answers: noise, prices, ε.

use super::draw::CappedDraw;
use super::{
    ClientCentral, ClientLocal, ContractError, Correlated, NoPromise, RecordLocal, ResolvedContract,
    Schedule, Setting, Terms,
};
use crate::contract::{PrivacyContract, Trust, Unit};
use crate::ledger::Loss;
use crate::participation::Participation;
use crate::pld::{ACCOUNTANT, Composition, EpsilonInterval};
use crate::sensitivity::Adjacency;
use undertone_core::digest::Digest;
use undertone_core::trainer::RecordPrivacy;

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
    pub(super) fn check_budget(&self) -> Result<(), ContractError> {
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
