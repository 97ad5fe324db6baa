//! What waits for its turn.

use super::Offer;
use std::collections::VecDeque;
use undertone_core::id::{AttemptKey, JobId};

/// Most offers that may wait.
const MAX_WAITING: usize = 64;

/// First come, first served; one entry for each job.
#[derive(Debug, Default)]
pub(super) struct Waiting(VecDeque<Next>);

/// Something to begin.
#[derive(Debug)]
pub(super) enum Next {
    /// An offer whose terms are within the policy.
    Offer(Box<Offer>),
    /// An update that is stored but has no receipt.
    Resend(AttemptKey),
}

impl Next {
    fn key(&self) -> &AttemptKey {
        match self {
            Self::Offer(offer) => offer.key(),
            Self::Resend(key) => key,
        }
    }
}

impl Waiting {
    /// Adds an offer, in the place of the job's older entry or at the end. `false` if too many wait: it is not taken.
    pub(super) fn push_offer(&mut self, offer: Offer) -> bool {
        self.push(Next::Offer(Box::new(offer)), MAX_WAITING)
    }

    /// Adds an update to send again. These are as many as there are open accounts at most, which has a bound.
    pub(super) fn push_resend(&mut self, key: AttemptKey) {
        self.push(Next::Resend(key), usize::MAX);
    }

    fn push(&mut self, next: Next, most: usize) -> bool {
        let full = self.0.len() >= most;
        match self.0.iter_mut().find(|n| n.key().job == next.key().job) {
            Some(older) if older.key() > next.key() => {}
            Some(older) => *older = next,
            None if full => return false,
            None => self.0.push_back(next),
        }
        true
    }

    /// Puts an offer back that was taken too early.
    pub(super) fn put_back(&mut self, offer: Box<Offer>) {
        self.0.push_front(Next::Offer(offer));
    }

    pub(super) fn pop(&mut self) -> Option<Next> {
        self.0.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A new session repeats the offers that still stand.
    pub(super) fn forget_offers(&mut self) {
        self.0.retain(|n| matches!(n, Next::Resend(_)));
    }

    pub(super) fn remove_attempt(&mut self, key: &AttemptKey) {
        self.0.retain(|n| n.key() != key);
    }

    pub(super) fn remove_job(&mut self, job: &JobId) {
        self.0.retain(|n| n.key().job != *job);
    }
}
