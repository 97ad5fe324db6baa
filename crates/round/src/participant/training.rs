//! The trainer works.

use super::storing::Storing;
use super::{Acceptance, Account, Books, Effect, Failure, Parcel, State};
use std::sync::Arc;
use undertone_core::id::AttemptKey;

#[derive(Debug)]
pub(super) struct Training {
    acceptance: Box<Acceptance>,
}

impl Training {
    pub(super) fn begin(acceptance: Box<Acceptance>, out: &mut Vec<Effect>) -> State {
        out.push(Effect::Train(acceptance.clone()));
        State::Training(Self { acceptance })
    }

    pub(super) fn key(&self) -> &AttemptKey {
        self.acceptance.key()
    }

    /// Counts the update before anything is done with it.
    pub(super) fn trained(self, parcel: Parcel, books: &mut Books, out: &mut Vec<Effect>) -> State {
        let key = self.key().clone();
        let before = books.accounts.get(&key.job);
        let job = self.acceptance.job();
        let account = match Account::charge(before, &key, job.digest(), job.spec().cohort.participation()) {
            Ok(account) => account,
            // It was checked before the offer was accepted; what changed since then counts.
            Err(e) => {
                Failure::Final(e.to_string()).report(&key, out);
                return State::Idle;
            }
        };
        books.accounts.insert(key.job.clone(), account.clone());
        let (weight, job) = (self.acceptance.weight(), Arc::clone(self.acceptance.job()));
        Storing::begin(key, account, parcel, weight, job, out)
    }

    pub(super) fn failed(self, failure: Failure, out: &mut Vec<Effect>) -> State {
        failure.report(self.key(), out);
        State::Idle
    }

    pub(super) fn dropped(self, out: &mut Vec<Effect>) -> State {
        out.push(Effect::Abandon(self.key().clone()));
        State::Idle
    }
}
