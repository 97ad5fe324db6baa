//! From the sum to what may be released: the only way to a [`Releasable`].
//!
//! Which way a sum takes is decided by the contract's [`Terms`]; each way asks for the evidence of its own kind, so
//! that another contract's way does not compile. All need the attempt's ledger entry in the state *sampled*:
//! budget and cohort before noise, and no second draw once a result is committed.

use crate::adaptive_clip::{ClipState, CountSum};
use crate::blt::{BltError, BltNoise, BltRound};
use crate::contract::CentralMechanism;
use crate::discrete_gaussian::{DiscreteGaussian, NoiseError};
use crate::fast_gaussian::{FastGaussian, FastNoise};
use crate::ledger::{EntryState, LedgerEntry};
use crate::noise::NoiseRng;
use crate::resolve::{ClientCentral, ClientLocal, NoPromise, RecordLocal, ResolvedContract, Terms};
use std::fmt;
use std::ops::Range;
use undertone_core::aggregate::IntegerSum;
use undertone_core::fixed::Grid;
use undertone_core::id::AttemptKey;
use undertone_core::rules::Aggregate;

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
    /// More weight than the sensitivity covers.
    #[error(
        "{updates} updates have a total weight of {total_weight}: the contract weighs each as {max_weight} at most"
    )]
    TooHeavy {
        /// Updates in the sum.
        updates: u32,
        /// Their weight.
        total_weight: u64,
        /// The most that one may weigh.
        max_weight: u32,
    },
    /// More updates than the public denominator was set for, or a denominator of zero.
    #[error("{updates} updates do not fit a cohort of {cohort_size}")]
    Cohort {
        /// Updates in the sum.
        updates: u32,
        /// The cohort's size.
        cohort_size: u32,
    },
    /// A part of another sum.
    #[error("a part of the sum ({found:?}) does not belong to the sum that is released ({whole:?})")]
    OtherPart {
        /// What the part says.
        found: Whole,
        /// What was begun with.
        whole: Whole,
    },
    /// The parts are not all of the sum.
    #[error("the sum broke off after {found} of {wanted} values: nothing of it is released")]
    NotWhole {
        /// Values given.
        found: usize,
        /// Values of the sum.
        wanted: usize,
    },
    /// Nothing to average.
    #[error("no update was received")]
    NothingReceived,
    /// The noise.
    #[error(transparent)]
    Noise(#[from] NoiseError),
    /// The correlated noise.
    #[error(transparent)]
    Correlated(#[from] BltError),
    /// Noise of the rounds before is missing: nothing would cancel, and a fresh start would be a second mechanism.
    #[error(
        "the correlated noise is at round {found}, not at the one before {key}: the run cannot go on; submit it as a new job \
         with a new budget"
    )]
    NoiseLost {
        /// The attempt.
        key: AttemptKey,
        /// Rounds that the noise at hand was drawn for.
        found: u32,
    },
}

impl ReleaseError {
    /// Whether no later attempt can do better.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::NoiseLost { .. } | Self::Correlated(_))
    }
}

/// What the clients of an attempt gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Collected {
    /// The sum of their updates.
    pub sum: IntegerSum,
    /// How many of the updates were within the clip norm, where it moves.
    pub within: CountSum,
}

impl From<IntegerSum> for Collected {
    fn from(sum: IntegerSum) -> Self {
        Self { sum, within: CountSum::default() }
    }
}

/// What goes on from one release of a job to the next, to be made durable in the step that commits the release: nothing
/// before the first round.
#[derive(Clone, PartialEq, Default)]
pub struct Carried {
    /// The clip norm of the round to come, where it moves. Public.
    pub clip: Option<ClipState>,
    /// The state of correlated noise, as [`BltNoise::to_bytes`] gives it. Secret.
    pub noise: Option<Vec<u8>>,
}

impl fmt::Debug for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noise = self.noise.as_ref().map_or(0, Vec::len);
        write!(f, "Carried({:?}, {noise} bytes of noise)", self.clip)
    }
}

/// The public numbers that a round counts on, however many reported.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Counted {
    /// Most updates that a sum may hold.
    pub most: u32,
    /// What a sum is divided by.
    pub denominator: f64,
    /// Where updates weigh less the staler they are: what they would weigh together if all were fresh. A mean that no noise of
    /// the coordinator's rests on is over this (a stale update makes the step smaller) and not over the weight that went in.
    pub fresh_weight: Option<u64>,
}

impl From<u32> for Counted {
    /// A cohort of a fixed size.
    fn from(size: u32) -> Self {
        Self { most: size, denominator: f64::from(size), fresh_weight: None }
    }
}

/// What may leave the coordinator: a mean, or what a robust rule made in its place.
#[derive(Clone, PartialEq)]
pub struct Releasable {
    grid: Grid,
    values: Values,
    denominator: f64,
}

/// In units of the grid.
#[derive(Clone, PartialEq)]
enum Values {
    Exact(Vec<i64>),
    Real(Vec<f64>),
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Self::Exact(units) => units.len(),
            Self::Real(units) => units.len(),
        }
    }
}

/// What is known of a sum before its values: every part of it says the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whole {
    /// The grid.
    pub grid: Grid,
    /// Values, in all parts together.
    pub values: usize,
    /// Updates that went in.
    pub updates: u32,
    /// Their weights together.
    pub total_weight: u64,
}

impl Whole {
    /// Of a sum that is there in one piece.
    pub fn of(sum: &IntegerSum) -> Self {
        let (updates, total_weight) = (sum.updates(), sum.total_weight());
        Self { grid: sum.grid(), values: sum.units().len(), updates, total_weight }
    }
}

/// Takes the way that the contract prescribes. `cohort` is what the round counts on, however many reported; `carried` is
/// what the release before gave.
///
/// # Errors
/// [`ReleaseError`].
pub fn release(
    collected: impl Into<Collected>,
    contract: &ResolvedContract,
    entry: &LedgerEntry,
    cohort: impl Into<Counted>,
    carried: Carried,
    rng: &mut NoiseRng,
) -> Result<(Releasable, Carried), ReleaseError> {
    let Collected { sum, within } = collected.into();
    let mut release = Release::begin(Whole::of(&sum), within, contract, entry, cohort, carried, rng)?;
    let released = release.part(sum, rng)?;
    Ok((released, release.finish()?))
}

/// A release under way: the sum comes in parts, one behind the other, so that neither it nor the model need be in memory as a
/// whole. Parts are independent in all but the correlated noise's buffers, which are model-sized; how a sum is cut changes
/// nothing. Until [`finish`](Self::finish) has said that it is whole, no part may leave.
#[derive(Debug)]
pub struct Release {
    whole: Whole,
    /// Values done.
    done: usize,
    denominator: f64,
    noised: Option<Box<Noised>>,
}

/// What a release under a central contract needs.
#[derive(Debug)]
struct Noised {
    noise: Noise,
    next_clip: Option<ClipState>,
}

#[derive(Debug)]
enum Noise {
    Discrete(DiscreteGaussian),
    Fast(FastNoise),
    Correlated(BltRound),
}

impl Release {
    /// Takes the way that the contract prescribes. `within` is how many of the updates were within the clip norm, where it
    /// moves: no value of the sum is drawn yet, but the noise on that number is.
    ///
    /// # Errors
    /// [`ReleaseError`].
    pub fn begin(
        whole: Whole,
        within: CountSum,
        contract: &ResolvedContract,
        entry: &LedgerEntry,
        cohort: impl Into<Counted>,
        carried: Carried,
        rng: &mut NoiseRng,
    ) -> Result<Self, ReleaseError> {
        let cohort = cohort.into();
        let fresh = |release: Self| release.over(cohort.fresh_weight);
        match contract.terms() {
            Terms::ClientCentral(terms) => Self::noised((whole, within), terms, entry, cohort, carried, rng),
            Terms::ClientLocal(terms) => Self::locally_private(whole, terms, entry).map(fresh),
            Terms::RecordLocal(terms) => Self::already_private(whole, terms, entry).map(fresh),
            Terms::NoPromise(terms) => Self::no_promise(whole, terms, entry).map(fresh),
        }
    }

    /// Client level: adds Gaussian noise with σ = noise multiplier · sensitivity to each value, where the sensitivity
    /// is ⌊clip_norm·2^f⌋ units, or twice as much where neighbours replace one client, times the largest weight, and
    /// divides by the fixed denominator of `cohort`, times the largest weight, also when fewer reported (a divisor that
    /// follows the private number of reporters has no bounded sensitivity). The noise is the contract's
    /// [`CentralMechanism`]; where the clip norm moves, it is somewhat more, and the noised count of updates within the clip
    /// norm moves it on.
    ///
    /// That each update in the sum is within the bound, and of a weight of at most the largest, is the receiver's check,
    /// [`check_norm`](crate::clip::check_norm) against [`clip_norm_of`].
    fn noised(
        (whole, within): (Whole, CountSum),
        terms: ClientCentral<'_>,
        entry: &LedgerEntry,
        cohort: Counted,
        carried: Carried,
        rng: &mut NoiseRng,
    ) -> Result<Self, ReleaseError> {
        let Counted { most, denominator, .. } = cohort;
        check_entry(entry, terms.contract)?;
        let Whole { grid, values, updates, total_weight } = whole;
        let max_weight = terms.contract.full_weight();
        if total_weight > u64::from(updates) * u64::from(max_weight) {
            return Err(ReleaseError::TooHeavy { updates, total_weight, max_weight });
        }
        if !(denominator.is_finite() && denominator > 0.0) || updates > most {
            return Err(ReleaseError::Cohort { updates, cohort_size: most });
        }
        let clip_norm = terms.clip_norm(carried.clip.as_ref());
        let noise = match terms.mechanism() {
            CentralMechanism::DiscreteGaussian => {
                let sensitivity = terms.sensitivity(clip_norm, grid).map_err(NoiseError::from)?;
                Noise::Discrete(DiscreteGaussian::for_sensitivity(terms.update_noise(), sensitivity)?)
            }
            CentralMechanism::FastGaussian => {
                Noise::Fast(FastGaussian::for_clipped_sum(terms, clip_norm, grid)?.vector(rng))
            }
            CentralMechanism::Blt => {
                let saved = correlated(terms, entry, carried.noise.as_deref(), grid, values)?;
                Noise::Correlated(saved.next_round()?)
            }
        };
        let next_clip = match terms.contract.contract().adaptive_clip() {
            None => None,
            Some(rule) => {
                let state = carried.clip.unwrap_or_else(|| rule.start());
                let share = within.noised(&rule, terms.promise.adjacency, denominator, rng)?;
                // Never frozen: correlated noise, which needs a clip norm that stays, goes with none that moves.
                Some(state.after(&rule, share).unwrap_or(state))
            }
        };
        let noised = Noised { noise, next_clip };
        let denominator = denominator * f64::from(max_weight);
        Ok(Self { whole, done: 0, denominator, noised: Some(Box::new(noised)) })
    }

    /// Record level: updates were private before they left the clients, and whatever is computed from them stays so
    /// (post-processing). Divides by the weight that was received.
    fn already_private(
        whole: Whole,
        terms: RecordLocal<'_>,
        entry: &LedgerEntry,
    ) -> Result<Self, ReleaseError> {
        check_entry(entry, terms.contract)?;
        Self::by_weight(whole)
    }

    /// Client level, local trust: each update was private before it left its client, and whatever is computed from them
    /// stays so (post-processing). Divides by the number of updates received.
    fn locally_private(
        whole: Whole,
        terms: ClientLocal<'_>,
        entry: &LedgerEntry,
    ) -> Result<Self, ReleaseError> {
        check_entry(entry, terms.contract)?;
        let Whole { updates, total_weight, .. } = whole;
        // A weight would travel beside the message, without noise. (What staleness takes off is the coordinator's.)
        let max_weight = terms.contract.full_weight();
        if total_weight > u64::from(updates) * u64::from(max_weight) {
            return Err(ReleaseError::TooHeavy { updates, total_weight, max_weight });
        }
        Self::by_weight(whole)
    }

    /// No promise: the plain mean over the weight that was received.
    fn no_promise(whole: Whole, terms: NoPromise<'_>, entry: &LedgerEntry) -> Result<Self, ReleaseError> {
        check_entry(entry, terms.contract)?;
        Self::by_weight(whole)
    }

    fn by_weight(whole: Whole) -> Result<Self, ReleaseError> {
        if whole.total_weight == 0 {
            return Err(ReleaseError::NothingReceived);
        }
        Ok(Self { whole, done: 0, denominator: whole.total_weight as f64, noised: None })
    }

    /// Divided by another weight, if there is one.
    fn over(self, weight: Option<u64>) -> Self {
        Self { denominator: weight.map_or(self.denominator, |w| w as f64), ..self }
    }

    /// The next values.
    ///
    /// # Errors
    /// [`ReleaseError::OtherPart`] if it is no part of the sum that was begun with; [`ReleaseError::Correlated`].
    pub fn part(&mut self, sum: IntegerSum, rng: &mut NoiseRng) -> Result<Releasable, ReleaseError> {
        let (whole, found) = (self.whole, Whole::of(&sum));
        let end = self.done + found.values;
        if (Whole { values: whole.values, ..found }) != whole || end > whole.values {
            return Err(ReleaseError::OtherPart { found, whole });
        }
        self.done = end;
        let mut units = sum.into_units();
        match self.noised.as_deref_mut().map(|n| &mut n.noise) {
            None => {}
            Some(Noise::Discrete(noise)) => noise.add_to(&mut units, rng),
            Some(Noise::Fast(noise)) => noise.add_to(&mut units),
            Some(Noise::Correlated(noise)) => noise.add_to(&mut units, rng)?,
        }
        Ok(Releasable { grid: whole.grid, values: Values::Exact(units), denominator: self.denominator })
    }

    /// The clip norm of the round to come, where it moves.
    pub fn next_clip(&self) -> Option<ClipState> {
        self.noised.as_ref()?.next_clip
    }

    /// Ends it: what goes on to the next release.
    ///
    /// # Errors
    /// [`ReleaseError::NotWhole`] if values are missing; then no part may leave.
    pub fn finish(self) -> Result<Carried, ReleaseError> {
        if self.done != self.whole.values {
            return Err(ReleaseError::NotWhole { found: self.done, wanted: self.whole.values });
        }
        let Some(noised) = self.noised else { return Ok(Carried::default()) };
        let noise = match noised.noise {
            Noise::Correlated(round) => Some(round.finish()?.to_bytes()),
            Noise::Discrete(_) | Noise::Fast(_) => None,
        };
        Ok(Carried { clip: noised.next_clip, noise })
    }
}

/// What a robust rule made of updates that were private before they left their clients, or that nothing is promised for:
/// whatever is computed from them stays so (post-processing).
///
/// # Errors
/// [`ReleaseError`]; [`ReleaseError::OtherContract`] under a contract whose noise the coordinator adds: it is scaled to a
/// sum.
pub fn release_robust(
    aggregate: Aggregate,
    grid: Grid,
    contract: &ResolvedContract,
    entry: &LedgerEntry,
) -> Result<Releasable, ReleaseError> {
    if let Terms::ClientCentral(_) = contract.terms() {
        return Err(ReleaseError::OtherContract(entry.key.clone()));
    }
    check_entry(entry, contract)?;
    Ok(match aggregate {
        Aggregate::Exact { units, denominator } => {
            Releasable { grid, values: Values::Exact(units), denominator: denominator as f64 }
        }
        Aggregate::Real { units } => Releasable { grid, values: Values::Real(units), denominator: 1.0 },
    })
}

/// The clip norm that the updates of a round are held to under a central contract: the first one, or the one that the
/// round before gave. `None` where clients are not clipped as a whole by the coordinator's terms.
pub fn clip_norm_of(contract: &ResolvedContract, state: Option<&ClipState>) -> Option<f64> {
    match contract.terms() {
        Terms::ClientCentral(terms) => Some(terms.clip_norm(state)),
        _ => None,
    }
}

/// The noise at the round of `entry`: the first one's, or the saved one's if it is of the round before.
fn correlated(
    terms: ClientCentral<'_>,
    entry: &LedgerEntry,
    saved: Option<&[u8]>,
    grid: Grid,
    values: usize,
) -> Result<BltNoise, ReleaseError> {
    let mechanism = terms.correlated_noise(grid, values)?;
    let mechanism = mechanism.ok_or(ReleaseError::OtherContract(entry.key.clone()))?;
    let noise = match saved {
        Some(bytes) => BltNoise::from_bytes(mechanism, bytes)?,
        None => BltNoise::start(mechanism),
    };
    if noise.round() + 1 != entry.key.round.0 {
        return Err(ReleaseError::NoiseLost { key: entry.key.clone(), found: noise.round() });
    }
    Ok(noise)
}

impl Releasable {
    /// The mean of each value, in the model's own unit.
    pub fn mean(&self) -> impl ExactSizeIterator<Item = f64> + '_ {
        self.mean_in(0..self.values.len())
    }

    /// The mean of each value of a range.
    ///
    /// # Panics
    /// If the range reaches beyond the last value.
    pub fn mean_in(&self, range: Range<usize>) -> impl ExactSizeIterator<Item = f64> + '_ {
        assert!(range.end <= self.values.len(), "the release has {} values", self.values.len());
        let divisor = self.grid.units_per_one() * self.denominator;
        range.map(move |i| {
            let units = match &self.values {
                Values::Exact(units) => units[i] as f64,
                Values::Real(units) => units[i],
            };
            units / divisor
        })
    }
}

impl fmt::Debug for Releasable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Releasable({} values over {})", self.values.len(), self.denominator)
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

#[cfg(test)]
mod tests;
