//! Something newer is offered, and the update before it never got its receipt: whether it counted is asked first.
//!
//! The receipt may have been lost after the coordinator took the update in. Taken for undelivered it would go back to what
//! an encoding left out, and be sent a second time. Only the coordinator's word that it does not have the update says so;
//! where nobody can tell, nothing is put back: an update may be lost, none is counted twice.

use super::uploading::MAX_TRIES;
use super::{Books, Effect, Failure, Sealed, State};
use undertone_core::id::AttemptKey;

#[derive(Debug)]
pub(super) struct Settling {
    key: AttemptKey,
    sealed: Sealed,
    tries: u32,
}

impl Settling {
    pub(super) fn begin(key: AttemptKey, sealed: Sealed, out: &mut Vec<Effect>) -> State {
        Self { key, sealed, tries: 0 }.ask(out)
    }

    pub(super) fn key(&self) -> &AttemptKey {
        &self.key
    }

    fn ask(self, out: &mut Vec<Effect>) -> State {
        out.push(Effect::Settle { key: self.key.clone(), sealed: self.sealed.clone(), tries: self.tries });
        State::Settling(self)
    }

    pub(super) fn counted(self, books: &mut Books, out: &mut Vec<Effect>) -> State {
        books.close(&self.key.job, true, out);
        State::Idle
    }

    pub(super) fn failed(self, failure: Failure, books: &mut Books, out: &mut Vec<Effect>) -> State {
        match failure {
            Failure::Transient(_) if self.tries + 1 < MAX_TRIES => {
                Self { tries: self.tries + 1, ..self }.ask(out)
            }
            Failure::Transient(_) | Failure::Final(_) => self.counted(books, out),
            Failure::Closed(_) => {
                books.close(&self.key.job, false, out);
                State::Idle
            }
        }
    }

    /// The coordinator said that it goes on without the update.
    pub(super) fn withdrawn(self, books: &mut Books, out: &mut Vec<Effect>) -> State {
        out.push(Effect::Abandon(self.key.clone()));
        books.close(&self.key.job, false, out);
        State::Idle
    }
}
