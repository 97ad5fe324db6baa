//! Accepted; the model is on its way.

use super::training::Training;
use super::{Acceptance, Effect, Failure, State};
use undertone_core::id::AttemptKey;

#[derive(Debug)]
pub(super) struct Fetching {
    acceptance: Box<Acceptance>,
}

impl Fetching {
    pub(super) fn begin(acceptance: Box<Acceptance>, out: &mut Vec<Effect>) -> State {
        out.push(Effect::Fetch(acceptance.key().clone(), acceptance.model(), acceptance.job().clone()));
        State::Fetching(Self { acceptance })
    }

    pub(super) fn key(&self) -> &AttemptKey {
        self.acceptance.key()
    }

    pub(super) fn ready(self, out: &mut Vec<Effect>) -> State {
        Training::begin(self.acceptance, out)
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
