//! The update is durable here and on its way.

use super::settling::Settling;
use super::{Books, Effect, Failure, Sealed, State};
use undertone_core::id::AttemptKey;

/// Times that an upload is tried before the client turns to other work. The bytes stay in the outbox; the next
/// session, or the same offer again, sends them.
pub(super) const MAX_TRIES: u32 = 5;

#[derive(Debug)]
pub(super) struct Uploading {
    key: AttemptKey,
    sealed: Sealed,
    tries: u32,
}

impl Uploading {
    pub(super) fn begin(key: AttemptKey, sealed: Sealed, out: &mut Vec<Effect>) -> State {
        Self { key, sealed, tries: 0 }.send(out)
    }

    pub(super) fn key(&self) -> &AttemptKey {
        &self.key
    }

    fn send(self, out: &mut Vec<Effect>) -> State {
        out.push(Effect::Upload { key: self.key.clone(), sealed: self.sealed.clone(), tries: self.tries });
        State::Uploading(self)
    }

    pub(super) fn uploaded(self, books: &mut Books, out: &mut Vec<Effect>) -> State {
        books.close(&self.key.job, true, out);
        State::Idle
    }

    pub(super) fn failed(self, failure: Failure, books: &mut Books, out: &mut Vec<Effect>) -> State {
        match failure {
            Failure::Transient(_) if self.tries + 1 < MAX_TRIES => {
                Self { tries: self.tries + 1, ..self }.send(out)
            }
            Failure::Transient(_) => State::Idle,
            Failure::Closed(_) | Failure::Final(_) => {
                books.close(&self.key.job, false, out);
                failure.report(&self.key, out);
                State::Idle
            }
        }
    }

    /// Something newer is offered. The bytes may be there for all that is known here.
    pub(super) fn superseded(self, out: &mut Vec<Effect>) -> State {
        out.push(Effect::Abandon(self.key.clone()));
        Settling::begin(self.key, self.sealed, out)
    }

    /// The coordinator said that it goes on without the update.
    pub(super) fn withdrawn(self, books: &mut Books, out: &mut Vec<Effect>) -> State {
        out.push(Effect::Abandon(self.key.clone()));
        books.close(&self.key.job, false, out);
        State::Idle
    }
}
