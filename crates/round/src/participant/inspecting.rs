//! The terms are within the policy; the data is being checked.

use super::fetching::Fetching;
use super::{Books, Effect, Offer, State, Verdict, consider};
use undertone_core::id::AttemptKey;
use undertone_core::trainer::{DataReport, TrainerError};

#[derive(Debug)]
pub(super) struct Inspecting {
    offer: Offer,
}

impl Inspecting {
    pub(super) fn begin(offer: Offer, out: &mut Vec<Effect>) -> State {
        out.push(Effect::Inspect(offer.key().clone(), offer.job().clone()));
        State::Inspecting(Self { offer })
    }

    pub(super) fn key(&self) -> &AttemptKey {
        self.offer.key()
    }

    pub(super) fn inspected(
        self,
        data: Result<DataReport, TrainerError>,
        books: &mut Books,
        out: &mut Vec<Effect>,
    ) -> State {
        let account = books.accounts.get(&self.key().job);
        let decision = consider(&self.offer, account, &books.policy, data.as_ref());
        out.push(Effect::Record(Box::new(decision.clone())));
        match decision.verdict {
            Verdict::Accept(acceptance) => {
                out.push(Effect::Accept(decision.key));
                Fetching::begin(acceptance, out)
            }
            Verdict::Decline(refusal) => {
                out.push(Effect::Decline(decision.key, refusal));
                State::Idle
            }
        }
    }

    pub(super) fn dropped(self, out: &mut Vec<Effect>) -> State {
        out.push(Effect::Abandon(self.key().clone()));
        State::Idle
    }
}
