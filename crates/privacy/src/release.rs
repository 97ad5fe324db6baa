//! From the sum to what may be released: the only way to a [`Releasable`].
//!
//! Which way a sum takes is decided by the contract's [`Terms`]; each way asks for the evidence of its own kind, so
//! that another contract's way does not compile. All need the attempt's ledger entry in the state *sampled*:
//! budget and cohort before noise, and no second draw once a result is committed.

use crate::discrete_gaussian::{DiscreteGaussian, NoiseError};
use crate::ledger::{EntryState, LedgerEntry};
use crate::noise::NoiseRng;
use crate::resolve::{ClientCentral, ClientLocal, NoPromise, RecordLocal, ResolvedContract, Terms};
use std::fmt;
use undertone_core::aggregate::IntegerSum;
use undertone_core::fixed::Grid;
use undertone_core::id::AttemptKey;

/// Why nothing is released.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ReleaseError {
    /// The ledger does not allow it.
    #[error(
        "{key} is {state} in the privacy ledger: only an attempt whose cohort is drawn and that has no result yet may be released"
    )]
    NotReserved {
        /// The attempt.
        key: AttemptKey,
        /// Its state.
        state: &'static str,
    },
    /// The entry was reserved under other terms.
    #[error("{0} was reserved under another privacy contract")]
    OtherContract(AttemptKey),
    /// Client level counts each client once.
    #[error(
        "{updates} updates have a total weight of {total_weight}: a client-level contract weighs each as 1"
    )]
    NotUniform {
        /// Updates in the sum.
        updates: u32,
        /// Their weight.
        total_weight: u64,
    },
    /// More updates than the public denominator was set for, or a denominator of zero.
    #[error("{updates} updates do not fit a cohort of {cohort_size}")]
    Cohort {
        /// Updates in the sum.
        updates: u32,
        /// The cohort's size.
        cohort_size: u32,
    },
    /// Nothing to average.
    #[error("no update was received")]
    NothingReceived,
    /// The noise.
    #[error(transparent)]
    Noise(#[from] NoiseError),
}

/// The public numbers that a round counts on, however many reported.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Counted {
    /// Most updates that a sum may hold.
    pub most: u32,
    /// What a sum is divided by.
    pub denominator: f64,
}

impl From<u32> for Counted {
    /// A cohort of a fixed size.
    fn from(size: u32) -> Self {
        Self { most: size, denominator: f64::from(size) }
    }
}

/// A mean that may leave the coordinator.
#[derive(Clone, PartialEq)]
pub struct Releasable {
    grid: Grid,
    units: Vec<i64>,
    denominator: f64,
}

/// Takes the way that the contract prescribes. `cohort` is what the round counts on, however many reported.
///
/// # Errors
/// [`ReleaseError`].
pub fn release(
    sum: IntegerSum,
    contract: &ResolvedContract,
    entry: &LedgerEntry,
    cohort: impl Into<Counted>,
    rng: &mut NoiseRng,
) -> Result<Releasable, ReleaseError> {
    match contract.terms() {
        Terms::ClientCentral(terms) => noise_sum(sum, terms, entry, cohort, rng),
        Terms::ClientLocal(terms) => locally_private(sum, terms, entry),
        Terms::RecordLocal(terms) => already_private(sum, terms, entry),
        Terms::NoPromise(terms) => no_promise(sum, terms, entry),
    }
}

/// Client level: adds discrete Gaussian noise with σ = noise multiplier · sensitivity to each value, where the sensitivity
/// is ⌊clip_norm·2^f⌋ units, or twice as much where neighbours replace one client, and
/// divides by the fixed denominator of `cohort`, also when fewer reported (a divisor that follows the private number of
/// reporters has no bounded sensitivity).
///
/// That each update in the sum is within the bound is the receiver's check,
/// [`check_norm`](crate::clip::check_norm).
///
/// # Errors
/// [`ReleaseError`].
pub fn noise_sum(
    sum: IntegerSum,
    terms: ClientCentral<'_>,
    entry: &LedgerEntry,
    cohort: impl Into<Counted>,
    rng: &mut NoiseRng,
) -> Result<Releasable, ReleaseError> {
    let Counted { most, denominator } = cohort.into();
    check_entry(entry, terms.contract)?;
    let (grid, updates, total_weight) = (sum.grid(), sum.updates(), sum.total_weight());
    if total_weight != u64::from(updates) {
        return Err(ReleaseError::NotUniform { updates, total_weight });
    }
    if !(denominator.is_finite() && denominator > 0.0) || updates > most {
        return Err(ReleaseError::Cohort { updates, cohort_size: most });
    }
    let noise = DiscreteGaussian::for_sensitivity(terms.promise.noise_multiplier, terms.sensitivity(grid)?)?;
    let mut units = sum.into_units();
    noise.add_to(&mut units, rng);
    Ok(Releasable { grid, units, denominator })
}

/// Record level: updates were private before they left the clients, and whatever is computed from them stays so
/// (post-processing). Divides by the weight that was received.
///
/// # Errors
/// [`ReleaseError`].
pub fn already_private(
    sum: IntegerSum,
    terms: RecordLocal<'_>,
    entry: &LedgerEntry,
) -> Result<Releasable, ReleaseError> {
    check_entry(entry, terms.contract)?;
    weighted_mean(sum)
}

/// Client level, local trust: each update was private before it left its client, and whatever is computed from them
/// stays so (post-processing). Divides by the number of updates received.
///
/// # Errors
/// [`ReleaseError`].
pub fn locally_private(
    sum: IntegerSum,
    terms: ClientLocal<'_>,
    entry: &LedgerEntry,
) -> Result<Releasable, ReleaseError> {
    check_entry(entry, terms.contract)?;
    let (updates, total_weight) = (sum.updates(), sum.total_weight());
    // A weight would travel beside the message, without noise.
    if total_weight != u64::from(updates) {
        return Err(ReleaseError::NotUniform { updates, total_weight });
    }
    weighted_mean(sum)
}

/// No promise: releases the plain mean over the weight that was received.
///
/// # Errors
/// [`ReleaseError`].
pub fn no_promise(
    sum: IntegerSum,
    terms: NoPromise<'_>,
    entry: &LedgerEntry,
) -> Result<Releasable, ReleaseError> {
    check_entry(entry, terms.contract)?;
    weighted_mean(sum)
}

impl Releasable {
    /// The mean of each value, in the model's own unit.
    pub fn mean(&self) -> impl ExactSizeIterator<Item = f64> + '_ {
        let divisor = self.grid.units_per_one() * self.denominator;
        self.units.iter().map(move |&u| u as f64 / divisor)
    }
}

impl fmt::Debug for Releasable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Releasable({} values over {})", self.units.len(), self.denominator)
    }
}

fn check_entry(entry: &LedgerEntry, contract: &ResolvedContract) -> Result<(), ReleaseError> {
    if entry.contract != contract.digest() {
        return Err(ReleaseError::OtherContract(entry.key.clone()));
    }
    match entry.state {
        EntryState::Sampled { .. } => Ok(()),
        _ => Err(ReleaseError::NotReserved { key: entry.key.clone(), state: entry.state.word() }),
    }
}

fn weighted_mean(sum: IntegerSum) -> Result<Releasable, ReleaseError> {
    let (grid, denominator) = (sum.grid(), sum.total_weight());
    if denominator == 0 {
        return Err(ReleaseError::NothingReceived);
    }
    Ok(Releasable { grid, units: sum.into_units(), denominator: denominator as f64 })
}

#[cfg(test)]
mod tests;
