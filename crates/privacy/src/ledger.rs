//! The rules of the privacy ledger; the store makes them durable.
//!
//! Reserved (durable before any client is asked) → sampled (the cohort is drawn) → committed (the noised bytes durable
//! first) → published, or burnt.
//! **Everything reserved counts as spent, for ever**: a crash, a retry or a burnt attempt gives nothing back. A
//! transition is a function from an entry to the next version of it; nothing here removes or reorders entries.

pub mod chain;
pub mod population;
mod recompute;
mod unknown;

pub use recompute::recompute;

use crate::contract::Unit;
use crate::rdp::RdpCurve;
use crate::resolve::ResolvedContract;
use crate::sensitivity::Adjacency;
use population::{PopulationSpentUp, Totals};
use serde::{Deserialize, Serialize};
use undertone_core::digest::{Digest, Digester};
use undertone_core::id::AttemptKey;
use undertone_core::limits::clip_text;

/// What became of a reserved attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "lowercase", deny_unknown_fields)]
pub enum EntryState {
    /// The charge counts. Nobody is asked yet.
    Reserved,
    /// The cohort is drawn: these clients may be asked, and one release may be made.
    Sampled {
        /// Digest of the cohort's names, in order.
        cohort: Digest,
    },
    /// The result is durable: every retry publishes these bytes.
    Committed {
        /// Digest of the bytes.
        output: Digest,
    },
    /// The result is out.
    Published {
        /// Digest of the bytes.
        output: Digest,
    },
    /// The attempt gave no release. It is spent all the same: updates may have been seen.
    Burnt {
        /// Why.
        reason: String,
    },
}

/// One attempt's line in the ledger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerEntry {
    /// Position, from 1, without gaps.
    pub seq: u64,
    /// The attempt.
    pub key: AttemptKey,
    /// Digest of the [`ResolvedContract`] that it is charged under.
    pub contract: Digest,
    /// Who is protected.
    pub unit: Unit,
    /// What one composition loses, in numbers that anyone can recompute ε from. Absent where no privacy is promised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
    /// The δ that ε is told at. Absent where no privacy is promised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta: Option<f64>,
    /// Compositions charged.
    pub compositions: u32,
    /// ε (with δ = 0) of the measurement of the round's model on evaluators' data, where that is kept private.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<f64>,
    /// What became of it.
    pub state: EntryState,
    /// ε spent with this entry and all before it. Absent where no privacy is promised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epsilon_after: Option<f64>,
}

/// How one composition of a mechanism loses privacy.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "mechanism", rename_all = "lowercase", deny_unknown_fields)]
pub enum Loss {
    /// Gaussian noise on a Poisson sample, or on everything at `sampling_rate` 1.
    Gaussian {
        /// Standard deviation of the noise in sensitivities.
        noise_multiplier: f64,
        /// The probability with which a unit is in the sample.
        sampling_rate: f64,
        /// Which data sets are neighbours: a client (or record) more or less, or one in the place of another.
        #[serde(default)]
        adjacency: Adjacency,
    },
    /// Gaussian noise on a Poisson sample of a population that is cut down to a cap by chance; one client more or less.
    #[serde(rename = "capped-poisson-gaussian")]
    CappedPoissonGaussian {
        /// Standard deviation of the noise in sensitivities.
        noise_multiplier: f64,
        /// The probability with which a client is drawn.
        sampling_rate: f64,
        /// Clients that may be drawn.
        population: u32,
        /// Most that are kept.
        cap: u32,
    },
    /// Gaussian noise that is correlated over the rounds of a run ([`crate::blt`]): one composition is the whole run.
    #[serde(rename = "correlated-gaussian")]
    CorrelatedGaussian {
        /// Standard deviation of the independent noise in sensitivities of the whole run.
        noise_multiplier: f64,
        /// Rounds of the run.
        rounds: u32,
        /// Most rounds that a client takes part in.
        participations: u32,
        /// Rounds between them, one of the two included.
        separation: u32,
        /// Which data sets are neighbours.
        #[serde(default)]
        adjacency: Adjacency,
    },
}

impl Loss {
    /// Its Rényi curve. A loss that the accountant refuses (no contract has one) counts as unbounded.
    fn curve(&self) -> RdpCurve {
        match *self {
            Self::Gaussian { noise_multiplier, sampling_rate, .. } => {
                RdpCurve::new(noise_multiplier, sampling_rate).unwrap_or_else(|_| RdpCurve::unbounded())
            }
            Self::CorrelatedGaussian { noise_multiplier, .. } => {
                RdpCurve::new(noise_multiplier, 1.0).unwrap_or_else(|_| RdpCurve::unbounded())
            }
            Self::CappedPoissonGaussian { noise_multiplier, sampling_rate, population, cap } => {
                RdpCurve::truncated_poisson(noise_multiplier, sampling_rate, population.into(), cap.into())
                    .unwrap_or_else(|_| RdpCurve::unbounded())
            }
        }
    }

    /// What one composition of an entry over `unit` loses for each record or each client (`level`): a curve, and how often
    /// it counts. `None` if nothing is promised at that level.
    ///
    /// A changed record replaces its client's whole contribution by another: where clients are only added or removed,
    /// that is twice the distance and so four times the Rényi loss of a Gaussian, and no sampling of clients is counted
    /// in its favour.
    fn at_level(&self, level: Unit, unit: Unit) -> Option<(RdpCurve, u64)> {
        match (level, unit, *self) {
            (_, Unit::None, _) | (Unit::None, ..) | (Unit::Client, Unit::Record, _) => None,
            (
                Unit::Record,
                Unit::Client,
                Self::Gaussian { noise_multiplier, adjacency: Adjacency::AddRemove, .. }
                | Self::CappedPoissonGaussian { noise_multiplier, .. },
            ) => {
                let unsampled =
                    Self::Gaussian { noise_multiplier, sampling_rate: 1.0, adjacency: Adjacency::AddRemove };
                Some((unsampled.curve(), 4))
            }
            (
                Unit::Record,
                Unit::Client,
                Self::CorrelatedGaussian { adjacency: Adjacency::AddRemove, .. },
            ) => Some((self.curve(), 4)),
            _ => Some((self.curve(), 1)),
        }
    }
}

/// The budget does not allow another attempt: the job is over, which is not a failure.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error(
    "the privacy budget is spent: ε is {epsilon_spent:.4} and would be {epsilon_would_be:.4} after another attempt, \
     above the budget of {budget}"
)]
pub struct BudgetSpent {
    /// ε so far.
    pub epsilon_spent: f64,
    /// ε with the attempt that was refused.
    pub epsilon_would_be: f64,
    /// The budget.
    pub budget: f64,
}

/// Why an attempt is not reserved.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ReserveError {
    /// See [`BudgetSpent`].
    #[error(transparent)]
    BudgetSpent(#[from] BudgetSpent),
    /// The budget that all jobs over the same population share.
    #[error(transparent)]
    PopulationSpent(#[from] PopulationSpentUp),
    /// The attempt has an entry: it may be resumed, not charged (or drawn) twice.
    #[error("{0} is in the ledger already")]
    AlreadyReserved(AttemptKey),
    /// Entries under other terms: their compositions cannot be added to these.
    #[error(
        "the ledger holds entries of contract {found}, not of {wanted}: a contract does not change in mid-job"
    )]
    OtherContract {
        /// In the ledger.
        found: Digest,
        /// Asked for.
        wanted: Digest,
    },
}

/// A step that an entry may not take.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TransitionError {
    /// No such entry.
    #[error("{0} is not in the ledger: reserve it first")]
    Unknown(AttemptKey),
    /// Committed or published with other bytes: they would be a second, uncharged release.
    #[error("{key} has the result {kept} already and cannot have {other} too")]
    OtherOutput {
        /// The attempt.
        key: AttemptKey,
        /// The result that stays.
        kept: Digest,
        /// The result that is refused.
        other: Digest,
    },
    /// For example published before committed, or committed after burnt.
    #[error("{key} is {from} and cannot become {to}")]
    Illegal {
        /// The attempt.
        key: AttemptKey,
        /// Its state.
        from: &'static str,
        /// The state that was asked for.
        to: &'static str,
    },
}

/// Stored entries that are no ledger.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the privacy ledger is damaged at entry {seq}: {problem}; stop and restore it, do not train on")]
pub struct DamagedLedger {
    /// Position of the entry.
    pub seq: u64,
    /// What is wrong.
    pub problem: &'static str,
}

/// All attempts charged to one budget, in order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ledger {
    entries: Vec<LedgerEntry>,
}

impl Ledger {
    /// Rebuilds the ledger from what the store kept.
    ///
    /// # Errors
    /// [`DamagedLedger`] for gaps, doubled attempts, mixed contracts, or an ε that falls or is no number.
    pub fn from_entries(entries: Vec<LedgerEntry>) -> Result<Self, DamagedLedger> {
        let mut ledger = Self { entries: Vec::with_capacity(entries.len()) };
        for entry in entries {
            ledger.check_next(&entry)?;
            ledger.entries.push(entry);
        }
        Ok(ledger)
    }

    /// The entries in order.
    pub fn entries(&self) -> &[LedgerEntry] {
        &self.entries
    }

    /// The entry of an attempt.
    pub fn entry(&self, key: &AttemptKey) -> Option<&LedgerEntry> {
        self.entries.iter().rev().find(|e| e.key == *key)
    }

    /// ε spent under `contract`, whatever became of the attempts. `None` where no privacy is promised.
    pub fn spent(&self, contract: &ResolvedContract) -> Option<f64> {
        let told = self.entries.last().and_then(|e| e.epsilon_after);
        contract.epsilon_of(0).map(|nothing| told.unwrap_or(nothing))
    }

    /// A new entry for an attempt, or the refusal. Nothing is reserved before the entry is durable and
    /// [applied](Self::apply).
    ///
    /// # Errors
    /// [`ReserveError`].
    pub fn reserve(
        &self,
        key: AttemptKey,
        contract: &ResolvedContract,
        population: &Totals,
    ) -> Result<LedgerEntry, ReserveError> {
        let wanted = contract.digest();
        if let Some(other) = self.entries.iter().find(|e| e.contract != wanted) {
            return Err(ReserveError::OtherContract { found: other.contract, wanted });
        }
        if self.entry(&key).is_some() {
            return Err(ReserveError::AlreadyReserved(key));
        }
        let before = self.compositions(contract);
        // Bounds of two compositions may cross by a rounding: what was told is never taken back.
        let told = self.entries.last().and_then(|e| e.epsilon_after).unwrap_or(0.0);
        let charge = contract.charge_after(self.entries.len());
        let metrics = contract.measured_epsilon(key.round.0);
        let measured = self.entries.iter().filter_map(|e| e.metrics).chain(metrics).sum::<f64>();
        let trained = contract.epsilon_of(before + u64::from(charge));
        let epsilon_after = trained.map(|e| (e + measured).max(told));
        if let (Some(epsilon_would_be), Some(budget)) = (epsilon_after, contract.budget_epsilon())
            && epsilon_would_be > budget
        {
            let epsilon_spent = told;
            return Err(BudgetSpent { epsilon_spent, epsilon_would_be, budget }.into());
        }
        let entry = LedgerEntry {
            seq: self.entries.len() as u64 + 1,
            key,
            contract: wanted,
            unit: contract.unit(),
            loss: contract.loss(),
            delta: contract.delta(),
            compositions: charge,
            metrics,
            state: EntryState::Reserved,
            epsilon_after,
        };
        population.admit(&entry)?;
        Ok(entry)
    }

    /// The entry once its result is durable.
    ///
    /// # Errors
    /// [`TransitionError`]; doing it again with the same bytes changes nothing.
    pub fn commit(&self, key: &AttemptKey, output: Digest) -> Result<LedgerEntry, TransitionError> {
        self.step(key, EntryState::Committed { output })
    }

    /// The entry once its result is out.
    ///
    /// # Errors
    /// [`TransitionError`]; doing it again with the same bytes changes nothing.
    pub fn publish(&self, key: &AttemptKey, output: Digest) -> Result<LedgerEntry, TransitionError> {
        self.step(key, EntryState::Published { output })
    }

    /// The entry of an attempt that gives no release. It stays spent.
    ///
    /// # Errors
    /// [`TransitionError`] if its result is out. Burning again keeps the first reason.
    pub fn burn(&self, key: &AttemptKey, reason: &str) -> Result<LedgerEntry, TransitionError> {
        self.step(key, EntryState::Burnt { reason: clip_text(reason).to_owned() })
    }

    /// Takes in an entry that is durable now: a new one, or the next version of one.
    ///
    /// # Errors
    /// [`DamagedLedger`] for an entry that no function of this ledger would have given; nothing changes then.
    pub fn apply(&mut self, entry: LedgerEntry) -> Result<(), DamagedLedger> {
        let index = usize::try_from(entry.seq.saturating_sub(1)).unwrap_or(usize::MAX);
        let Some(old) = self.entries.get(index) else {
            self.check_next(&entry)?;
            self.entries.push(entry);
            return Ok(());
        };
        let same_charge = LedgerEntry { state: old.state.clone(), ..entry.clone() } == *old;
        if !same_charge {
            return Err(DamagedLedger { seq: entry.seq, problem: "an entry's key or charge was rewritten" });
        }
        match next_state(&old.key, &old.state, entry.state.clone()) {
            Ok(state) if state == entry.state => self.entries[index].state = state,
            _ => return Err(DamagedLedger { seq: entry.seq, problem: "an entry's state went back" }),
        }
        Ok(())
    }

    fn step(&self, key: &AttemptKey, to: EntryState) -> Result<LedgerEntry, TransitionError> {
        let entry = self.entry(key).ok_or_else(|| TransitionError::Unknown(key.clone()))?;
        Ok(LedgerEntry { state: next_state(key, &entry.state, to)?, ..entry.clone() })
    }

    fn compositions(&self, contract: &ResolvedContract) -> u64 {
        let digest = contract.digest();
        self.entries.iter().filter(|e| e.contract == digest).map(|e| u64::from(e.compositions)).sum()
    }

    fn check_next(&self, entry: &LedgerEntry) -> Result<(), DamagedLedger> {
        let damaged = |problem| Err(DamagedLedger { seq: entry.seq, problem });
        if entry.seq != self.entries.len() as u64 + 1 {
            return damaged("entries are missing or out of order");
        }
        if self.entry(&entry.key).is_some() {
            return damaged("an attempt is charged twice");
        }
        if entry.epsilon_after.is_some_and(|e| !(e.is_finite() && e >= 0.0)) {
            return damaged("its ε is not a number");
        }
        let Some(last) = self.entries.last() else { return Ok(()) };
        if last.contract != entry.contract {
            return damaged("its contract is another");
        }
        match (last.epsilon_after, entry.epsilon_after) {
            (None, None) => Ok(()),
            (Some(before), Some(after)) if after >= before => Ok(()),
            _ => damaged("its ε is smaller than that of the entry before"),
        }
    }
}

/// The state after asking for `to`; the one it has if it is there already.
fn next_state(key: &AttemptKey, from: &EntryState, to: EntryState) -> Result<EntryState, TransitionError> {
    use EntryState::{Burnt, Committed, Published, Reserved, Sampled};
    match (from, &to) {
        (
            Committed { output: kept } | Published { output: kept },
            Committed { output } | Published { output },
        ) if kept != output => {
            Err(TransitionError::OtherOutput { key: key.clone(), kept: *kept, other: *output })
        }
        (Sampled { cohort: kept }, Sampled { cohort }) if kept == cohort => Ok(to),
        (Reserved, Sampled { .. } | Burnt { .. })
        | (Sampled { .. }, Committed { .. } | Burnt { .. })
        | (Committed { .. }, Published { .. } | Burnt { .. }) => Ok(to),
        (Committed { .. }, Committed { .. })
        | (Published { .. }, Committed { .. } | Published { .. })
        | (Burnt { .. }, Burnt { .. }) => Ok(from.clone()),
        _ => Err(TransitionError::Illegal { key: key.clone(), from: from.word(), to: to.word() }),
    }
}

impl LedgerEntry {
    /// The entry once its cohort is drawn: `cohort` is the digest of the clients' names.
    ///
    /// # Errors
    /// [`TransitionError`] if it is further than that.
    pub fn sampled(&self, cohort: Digest) -> Result<Self, TransitionError> {
        let state = next_state(&self.key, &self.state, EntryState::Sampled { cohort })?;
        Ok(Self { state, ..self.clone() })
    }

    fn digest_into(&self, d: &mut Digester) {
        d.field(&self.seq.to_le_bytes());
        d.field(self.key.job.as_str().as_bytes());
        d.field(&self.key.round.0.to_le_bytes());
        d.field(&self.key.attempt.0.to_le_bytes());
        d.field(self.contract.as_bytes());
        d.field(self.unit.as_str().as_bytes());
        match self.loss {
            None => d.field(b""),
            Some(Loss::CappedPoissonGaussian { noise_multiplier, sampling_rate, .. }) => {
                d.field(b"capped-poisson-gaussian");
                d.field(&noise_multiplier.to_bits().to_le_bytes());
                d.field(&sampling_rate.to_bits().to_le_bytes());
            }
            Some(Loss::CorrelatedGaussian {
                noise_multiplier,
                rounds,
                participations,
                separation,
                adjacency,
            }) => {
                d.field(b"correlated-gaussian");
                d.field(adjacency.as_str().as_bytes());
                d.field(&noise_multiplier.to_bits().to_le_bytes());
                [rounds, participations, separation].iter().for_each(|n| d.field(&n.to_le_bytes()));
            }
            Some(Loss::Gaussian { noise_multiplier, sampling_rate, adjacency }) => {
                d.field(b"gaussian");
                d.field(adjacency.as_str().as_bytes());
                d.field(&noise_multiplier.to_bits().to_le_bytes());
                d.field(&sampling_rate.to_bits().to_le_bytes());
            }
        }
        if let Some(Loss::CappedPoissonGaussian { population, cap, .. }) = self.loss {
            d.field(&population.to_le_bytes());
            d.field(&cap.to_le_bytes());
        }
        d.field(&self.delta.map_or([0xff; 8], |delta| delta.to_bits().to_le_bytes()));
        d.field(&self.compositions.to_le_bytes());
        if let Some(metrics) = self.metrics {
            d.field(b"metrics");
            d.field(&metrics.to_bits().to_le_bytes());
        }
        d.field(self.state.word().as_bytes());
        match &self.state {
            EntryState::Reserved => d.field(b""),
            EntryState::Sampled { cohort: digest }
            | EntryState::Committed { output: digest }
            | EntryState::Published { output: digest } => d.field(digest.as_bytes()),
            EntryState::Burnt { reason } => d.field(reason.as_bytes()),
        }
        d.field(&self.epsilon_after.map_or([0xff; 8], |e| e.to_bits().to_le_bytes()));
    }
}

impl EntryState {
    /// The word in reports and logs.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Reserved => "reserved",
            Self::Sampled { .. } => "sampled",
            Self::Committed { .. } => "committed",
            Self::Published { .. } => "published",
            Self::Burnt { .. } => "burnt",
        }
    }
}

#[cfg(test)]
mod tests;
