//! Carrying out what a step decided.

use crate::message::ToClient;
use crate::mutant::Mutant;
use crate::release::Order;
use crate::replica::AtReplica;
use crate::storage::ready;
use crate::world::World;
use undertone_core::id::{AttemptKey, ClientId};
use undertone_round::coordinator::{Effect, Input};
use undertone_store::Store as _;

impl World {
    pub(crate) fn carry_out(&mut self, r: usize, job: usize, effect: Effect) {
        match effect {
            Effect::Offer { client, key, model, clip_norm, .. } => {
                self.watch.offers(&self.storage, &client, &key);
                self.tell(r, &client, ToClient::Offer { job, key, model, clip_norm });
            }
            Effect::Withdraw { client, key, .. } => self.tell(r, &client, ToClient::Withdraw { key }),
            Effect::Evaluate { evaluator, round, model } => {
                self.tell(r, &evaluator, ToClient::Evaluate { job, round, model });
            }
            Effect::Release { key, model, mut updates, carried: _ } => {
                if self.mutant == Some(Mutant::LeavesOneOut) {
                    updates.pop();
                }
                let entry = self.driver(r, job).and_then(|driver| driver.ledger.entry(&key).cloned());
                let Some(entry) = entry else {
                    let reason = format!("{key} has no entry in the privacy ledger");
                    return self.feed_job(
                        r,
                        job,
                        Input::ReleaseFailed { key, reason, is_final: false },
                        None,
                    );
                };
                let order = Box::new(Order::new(entry, model, updates, self.chance.word()));
                let after = self.chance.pick(&[5, 100, 2_000]);
                self.later_at_replica(after, r, AtReplica::Release { job, order });
            }
            Effect::Publish { key, model } => {
                self.watch.publishes(&self.storage, &key, &model.digest);
                let input = Box::new(Input::Published { key, sent_bytes: 0 });
                let after = self.chance.below(10);
                self.later_at_replica(after, r, AtReplica::Feed { job, input });
            }
            Effect::Forget { key } => {
                let after = self.chance.pick(&[0, 5, 2_000]);
                self.later_at_replica(after, r, AtReplica::Forget { key });
            }
            Effect::Discard { blob } => self.delete(r, [blob]),
        }
    }

    fn tell(&mut self, r: usize, client: &ClientId, message: ToClient) {
        let Some(c) = self.clients.iter().position(|c| c.id == *client) else { return };
        let session = self.replicas[r].process.as_ref().and_then(|process| process.sessions.get(&c).copied());
        if let Some(conn) = session {
            self.send_down(conn, message);
        }
    }

    /// Deletes the spooled updates of a closed attempt. What cannot be deleted now is swept at the next start.
    pub(crate) fn forget(&mut self, r: usize, key: &AttemptKey) {
        self.forget_unfinished(r, key);
        if !self.store_answers(r) {
            return;
        }
        let Some(process) = &self.replicas[r].process else { return };
        let updates = ready(process.store.uploads(key)).unwrap_or_default();
        self.delete(r, updates.into_iter().map(|update| update.blob).collect::<Vec<_>>());
    }
}
