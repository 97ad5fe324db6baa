//! The participant's side of a round.
//!
//! [`Participant::step`] takes what happened and returns what to do. One attempt is in hand at a time:
//!
//! ```text
//! Idle -> Inspecting -> Fetching -> Training -> Storing -> Uploading -> Idle
//!   \-> Settling -> Idle: an update without a receipt stands before the next offer
//! ```
//!
//! Rules that the states keep together:
//! - *Decided first*: nothing is fetched or trained without an [`Acceptance`], and only [`consider`] makes one.
//! - *One draw of noise for an attempt*: the update is counted and durable before its first byte leaves; from then
//!   on the attempt gets those bytes or none, however often it is offered.
//! - *The newest attempt of a job counts*: a newer offer replaces the older one; an older one is declined.
//! - *An update is not taken back unasked*: its receipt may have been lost. Only the coordinator's word closes an attempt as
//!   undelivered.
//! - *Jobs take turns*: offers of other jobs wait, one for each job.

mod account;
mod consider;
mod encode;
mod fetching;
mod inspecting;
mod message;
mod offer;
mod settling;
mod storing;
mod training;
mod uploading;
mod waiting;

#[cfg(test)]
mod machine_tests;
#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod sample;

pub use account::{Account, Sealed};
pub use consider::{
    Acceptance, AllowedModules, DATA_UNFIT, Decision, Policy, Refusal, Terms, Verdict, consider, told,
};
pub use encode::{EncodeError, Parcel, absent, encode};
pub use message::{Effect, Failure, Input};
pub use offer::{
    ModelRef, Offer, OfferedDelta, OfferedFrozen, OfferedModel, UnreadableOffer, check_model_size,
};

use fetching::Fetching;
use inspecting::Inspecting;
use settling::Settling;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use storing::Storing;
use training::Training;
use undertone_core::id::{AttemptKey, JobId};
use uploading::Uploading;
use waiting::{Next, Waiting};

/// Most jobs that a client keeps accounts of.
pub const MAX_ACCOUNTS: usize = 10_000;

/// The participant machine.
#[derive(Debug)]
pub struct Participant {
    books: Books,
    waiting: Waiting,
    state: State,
}

/// What outlives an attempt: the owner's policy and what each job has been given.
#[derive(Debug)]
struct Books {
    policy: Policy,
    accounts: BTreeMap<JobId, Account>,
}

/// The attempt in hand: one struct for each state, owning exactly what exists then.
#[derive(Debug)]
enum State {
    Idle,
    Inspecting(Inspecting),
    Fetching(Fetching),
    Training(Training),
    Storing(Storing),
    Uploading(Uploading),
    Settling(Settling),
}

impl Participant {
    /// A client at rest, with the accounts that it finds on its disk.
    pub fn new(policy: Policy, accounts: impl IntoIterator<Item = Account>) -> Self {
        let accounts = accounts.into_iter().map(|a| (a.job().clone(), a)).collect();
        Self { books: Books { policy, accounts }, waiting: Waiting::default(), state: State::Idle }
    }

    /// The attempt in hand.
    pub fn in_hand(&self) -> Option<&AttemptKey> {
        self.state.key()
    }

    /// Whether nothing is in hand and nothing waits.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle) && self.waiting.is_empty()
    }

    /// Takes one input; the effects are to be carried out in order. Results of attempts that are no longer in
    /// hand are ignored.
    pub fn step(&mut self, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        match input {
            Input::SessionUp => self.session_up(),
            Input::SessionLost => self.waiting.forget_offers(),
            Input::Offered(offer) => self.offered(*offer, &mut out),
            Input::Withdrawn(key) => self.withdrawn(&key, &mut out),
            Input::Inspected(key, data) => self.advance(&key, |state, books| match state {
                State::Inspecting(s) => s.inspected(data, books, &mut out),
                other => other,
            }),
            Input::ModelReady(key) => self.advance(&key, |state, _| match state {
                State::Fetching(s) => s.ready(&mut out),
                other => other,
            }),
            Input::Trained(key, parcel) => self.advance(&key, |state, books| match state {
                State::Training(s) => s.trained(parcel, books, &mut out),
                other => other,
            }),
            Input::Stored(key, sealed) => self.advance(&key, |state, books| match state {
                State::Storing(s) => s.stored(sealed, books, &mut out),
                other => other,
            }),
            Input::Uploaded(key) => self.advance(&key, |state, books| match state {
                State::Uploading(s) => s.uploaded(books, &mut out),
                State::Settling(s) => s.counted(books, &mut out),
                other => other,
            }),
            Input::Failed(key, failure) => self.advance(&key, |state, books| match state {
                State::Fetching(s) => s.failed(failure, &mut out),
                State::Training(s) => s.failed(failure, &mut out),
                State::Storing(s) => s.failed(failure, &mut out),
                State::Uploading(s) => s.failed(failure, books, &mut out),
                State::Settling(s) => s.failed(failure, books, &mut out),
                State::Idle | State::Inspecting(_) => state,
            }),
        }
        self.begin_next(&mut out);
        out
    }

    fn advance(&mut self, key: &AttemptKey, next: impl FnOnce(State, &mut Books) -> State) {
        if self.state.key() == Some(key) {
            self.state = next(std::mem::replace(&mut self.state, State::Idle), &mut self.books);
        }
    }

    /// Updates that never got their receipt are sent again, whether or not the coordinator asks: it tells if the
    /// attempt is over.
    fn session_up(&mut self) {
        for account in self.books.accounts.values().filter(|a| a.sealed().is_some()) {
            if self.state.key() != Some(&account.last()) {
                self.waiting.push_resend(account.last());
            }
        }
    }

    fn offered(&mut self, offer: Offer, out: &mut Vec<Effect>) {
        let key = offer.key().clone();
        match self.state.order_to(&key) {
            Some(Ordering::Equal) if matches!(self.state, State::Settling(_)) => {
                return self.decline(&offer, OLDER, out);
            }
            Some(Ordering::Equal) if !self.state.is_unwanted() => {
                // The coordinator asks again after a broken session: the work goes on, the answer is repeated.
                if !matches!(self.state, State::Inspecting(_)) {
                    out.push(Effect::Accept(key));
                }
                return;
            }
            Some(Ordering::Greater) => return self.decline(&offer, OLDER, out),
            Some(Ordering::Less) => self.supersede_in_hand(out),
            Some(Ordering::Equal) | None => {}
        }
        if let Some(account) = self.books.accounts.get(&key.job) {
            match account.last().cmp(&key) {
                Ordering::Equal if account.sealed().is_some() => {
                    out.push(Effect::Accept(key.clone()));
                    self.waiting.push_resend(key);
                    return;
                }
                Ordering::Equal => return self.decline(&offer, DONE, out),
                Ordering::Greater => return self.decline(&offer, OLDER, out),
                // An update that has no receipt is settled before this begins.
                Ordering::Less => {}
            }
        } else if self.books.accounts.len() >= MAX_ACCOUNTS {
            return self.decline(&offer, "this client keeps accounts of too many jobs already", out);
        }
        let account = self.books.accounts.get(&key.job);
        let terms = Terms::of(offer.job(), account, &self.books.policy);
        if let Err(refusal) = consider::check_offer(&terms, &offer, account, &self.books.policy) {
            self.waiting.remove_job(&key.job);
            if let Some((older, _)) = self.books.unsettled(&key)
                && self.state.key() != Some(&older)
            {
                self.waiting.push_resend(older);
            }
            out.push(Effect::Record(Box::new(Decision {
                key: key.clone(),
                terms,
                verdict: Verdict::Decline(refusal.clone()),
            })));
            out.push(Effect::Decline(key, refusal));
        } else if !self.waiting.push_offer(offer.clone()) {
            self.decline(&offer, "too many jobs wait for this client already", out);
        }
    }

    fn decline(&self, offer: &Offer, told: &str, out: &mut Vec<Effect>) {
        let key = offer.key().clone();
        let terms = Terms::of(offer.job(), self.books.accounts.get(&key.job), &self.books.policy);
        let refusal = Refusal::open(told);
        let verdict = Verdict::Decline(refusal.clone());
        out.push(Effect::Record(Box::new(Decision { key: key.clone(), terms, verdict })));
        out.push(Effect::Decline(key, refusal));
    }

    fn withdrawn(&mut self, key: &AttemptKey, out: &mut Vec<Effect>) {
        self.waiting.remove_attempt(key);
        if self.state.key() == Some(key) {
            self.drop_in_hand(out);
        } else if self.books.accounts.get(&key.job).is_some_and(|a| a.last() == *key) {
            self.books.close(&key.job, false, out);
        }
    }

    /// A newer attempt of the job takes the place of the one in hand.
    fn supersede_in_hand(&mut self, out: &mut Vec<Effect>) {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Uploading(s) => self.state = s.superseded(out),
            s @ State::Settling(_) => self.state = s,
            other => {
                self.state = other;
                self.drop_in_hand(out);
            }
        }
    }

    /// Lets go of the attempt in hand, whatever state it is in. Storing is brief and finishes first.
    fn drop_in_hand(&mut self, out: &mut Vec<Effect>) {
        self.state = match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => State::Idle,
            State::Inspecting(s) => s.dropped(out),
            State::Fetching(s) => s.dropped(out),
            State::Training(s) => s.dropped(out),
            State::Storing(s) => s.dropped(),
            State::Uploading(s) => s.withdrawn(&mut self.books, out),
            State::Settling(s) => s.withdrawn(&mut self.books, out),
        };
    }

    fn begin_next(&mut self, out: &mut Vec<Effect>) {
        while matches!(self.state, State::Idle) {
            self.state = match self.waiting.pop() {
                None => return,
                Some(Next::Offer(offer)) => match self.books.unsettled(offer.key()) {
                    Some((key, sealed)) => {
                        self.waiting.put_back(offer);
                        Settling::begin(key, sealed, out)
                    }
                    None => Inspecting::begin(*offer, out),
                },
                Some(Next::Resend(key)) => match self.books.sealed(&key) {
                    Some(sealed) => Uploading::begin(key, sealed, out),
                    None => State::Idle,
                },
            };
        }
    }
}

const OLDER: &str = "a newer attempt of this job has been offered to this client already";
const DONE: &str = "this client has made its update for this attempt already";

impl Books {
    fn sealed(&self, key: &AttemptKey) -> Option<Sealed> {
        self.accounts.get(&key.job).filter(|a| a.last() == *key).and_then(|a| a.sealed().cloned())
    }

    /// The update of the job before `newer` that is stored and has no receipt.
    fn unsettled(&self, newer: &AttemptKey) -> Option<(AttemptKey, Sealed)> {
        let account = self.accounts.get(&newer.job).filter(|account| account.last() < *newer)?;
        Some((account.last(), account.sealed()?.clone()))
    }

    /// Empties the job's place in the outbox.
    fn close(&mut self, job: &JobId, delivered: bool, out: &mut Vec<Effect>) {
        if let Some(account) = self.accounts.get_mut(job)
            && account.sealed().is_some()
        {
            *account = account.clone().closed();
            out.push(Effect::Discard { account: account.clone(), delivered });
        }
    }
}

impl State {
    fn key(&self) -> Option<&AttemptKey> {
        match self {
            Self::Idle => None,
            Self::Inspecting(s) => Some(s.key()),
            Self::Fetching(s) => Some(s.key()),
            Self::Training(s) => Some(s.key()),
            Self::Storing(s) => Some(s.key()),
            Self::Uploading(s) => Some(s.key()),
            Self::Settling(s) => Some(s.key()),
        }
    }

    /// How the attempt in hand stands to an attempt of the same job.
    fn order_to(&self, key: &AttemptKey) -> Option<Ordering> {
        self.key().filter(|k| k.job == key.job).map(|k| k.cmp(key))
    }

    fn is_unwanted(&self) -> bool {
        matches!(self, Self::Storing(s) if s.is_unwanted())
    }
}
