//! The update is being written to the outbox. Brief, and never interrupted: an attempt that is dropped meanwhile
//! is only marked, so that the outbox holds what the account says.

use super::uploading::Uploading;
use super::{Account, Books, Effect, Failure, Parcel, Sealed, State};
use crate::job::Job;
use std::sync::Arc;
use undertone_core::id::AttemptKey;

#[derive(Debug)]
pub(super) struct Storing {
    key: AttemptKey,
    unwanted: bool,
}

impl Storing {
    pub(super) fn begin(
        key: AttemptKey,
        account: Account,
        parcel: Parcel,
        weight: u32,
        job: Arc<Job>,
        out: &mut Vec<Effect>,
    ) -> State {
        out.push(Effect::Store { account, parcel, weight, job });
        State::Storing(Self { key, unwanted: false })
    }

    pub(super) fn key(&self) -> &AttemptKey {
        &self.key
    }

    pub(super) fn is_unwanted(&self) -> bool {
        self.unwanted
    }

    pub(super) fn stored(self, sealed: Sealed, books: &mut Books, out: &mut Vec<Effect>) -> State {
        if let Some(account) = books.accounts.get_mut(&self.key.job) {
            *account = account.clone().with_sealed(sealed.clone());
        }
        if self.unwanted {
            books.close(&self.key.job, false, out);
            State::Idle
        } else {
            Uploading::begin(self.key, sealed, out)
        }
    }

    pub(super) fn failed(self, failure: Failure, out: &mut Vec<Effect>) -> State {
        if !self.unwanted {
            failure.report(&self.key, out);
        }
        State::Idle
    }

    pub(super) fn dropped(self) -> State {
        State::Storing(Self { unwanted: true, ..self })
    }
}
