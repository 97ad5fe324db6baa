//! What is said, at the moment at which it is said: whether it rests on what is durable.

use super::{Predicate, Sealing, Watch};
use crate::disk::Disk;
use crate::message::Claim;
use crate::outbox;
use crate::storage::{Storage, ready};
use undertone_core::digest::Digest;
use undertone_core::id::{AttemptKey, ClientId};
use undertone_privacy::ledger::EntryState;
use undertone_round::participant::Sealed;
use undertone_store::{Store as _, Transition};

impl Watch {
    /// A coordinator asks a client.
    pub(crate) fn offers(&mut self, storage: &Storage, client: &ClientId, key: &AttemptKey) {
        let entry = self.entry(storage, key);
        let paid = entry.is_some_and(|entry| entry.state != EntryState::Reserved);
        self.hold(Predicate::BudgetBeforeOffers, paid, || {
            format!("{client} is asked in {key}, which is not in the ledger with its cohort")
        });
    }

    /// A coordinator makes a model known.
    pub(crate) fn publishes(&mut self, storage: &Storage, key: &AttemptKey, model: &Digest) {
        let committed = self.entry(storage, key).is_some_and(|entry| match entry.state {
            EntryState::Committed { output } | EntryState::Published { output } => output == *model,
            _ => false,
        });
        self.hold(Predicate::BytesBeforeCommit, committed, || {
            format!("{key}: {model} is published, and the ledger did not commit to it")
        });
    }

    /// A coordinator says that an update counts.
    pub(crate) fn receipt(&mut self, storage: &Storage, claim: &Claim) {
        let record = ready(storage.store.upload(&claim.key, &claim.client)).ok().flatten();
        let kept = record.is_some_and(|record| record.claim == Some(claim.fingerprint()));
        self.hold(Predicate::PersistThenSpeak, kept, || {
            format!("{} has a receipt for {}, and no update of it is stored", claim.client, claim.key)
        });
    }

    /// A client says that it takes part.
    pub(crate) fn accepts(&mut self, client: &ClientId, disk: &Disk, key: &AttemptKey) {
        let decided = outbox::decided(disk).contains(&key.to_string());
        self.hold(Predicate::DecidedBeforeAccepting, decided, || {
            format!("{client} accepts {key} without a decision in its log")
        });
    }

    /// A client has an update durable.
    pub(crate) fn sealed(&mut self, client: &ClientId, key: &AttemptKey, units: &[i32], sealed: &Sealed) {
        let place = self.sealed.entry((client.clone(), key.clone()));
        let new = Sealing { units: units.to_vec(), digest: sealed.update, weight: sealed.weight, sent: 0 };
        let kept = place.or_insert(new);
        let (first, sent) = (kept.digest, kept.sent);
        if first == sealed.update {
            return;
        }
        if sent == 0 {
            (kept.units, kept.digest, kept.weight) = (units.to_vec(), sealed.update, sealed.weight);
            return;
        }
        self.fail(
            Predicate::OneUpdateEach,
            format!("{client} sent {first} for {key}, and now makes {}", sealed.update),
        );
    }

    /// A client begins to send an update.
    pub(crate) fn sends(&mut self, disk: &Disk, claim: &Claim) {
        let stored = outbox::sealed(disk, &claim.key).is_some_and(|sealed| sealed.update == claim.digest)
            && outbox::update(disk, &claim.key.job).is_some_and(|bytes| Digest::of(bytes) == claim.digest);
        self.hold(Predicate::PersistThenSpeak, stored, || {
            format!("{} sends for {} what is not in its outbox", claim.client, claim.key)
        });
        let Some(sealing) = self.sealed.get_mut(&(claim.client.clone(), claim.key.clone())) else { return };
        sealing.sent += 1;
        let first = sealing.digest;
        self.hold(Predicate::OneUpdateEach, first == claim.digest, || {
            format!("{} sends {} for {} after {first}", claim.client, claim.digest, claim.key)
        });
    }

    /// Whether an upload of this update was begun more than once.
    pub(crate) fn was_sent_again(&self, client: &ClientId, key: &AttemptKey) -> bool {
        self.sealed.get(&(client.clone(), key.clone())).is_some_and(|sealing| sealing.sent > 1)
    }

    /// A client gives up an update, in the belief that it does not count and never will.
    pub(crate) fn undelivered(&mut self, storage: &Storage, client: &ClientId, key: &AttemptKey) {
        let counted = ready(storage.store.upload(key, client)).ok().flatten().is_some();
        self.hold(Predicate::UndeliveredNeverCounts, !counted, || {
            format!("{client} gives up its update for {key}, which was accepted")
        });
        self.undelivered.insert((client.clone(), key.clone()));
    }

    /// Somebody has taken the lease.
    pub(crate) fn lease_taken(&mut self, number: u64) {
        let before = self.lease.replace(number);
        self.hold(Predicate::OneHolder, before < Some(number), || {
            format!("lease {number} was taken after {before:?}")
        });
    }

    /// A step was made.
    pub(crate) fn committed(&mut self, storage: &Storage, r: usize, lease: Option<u64>, step: &Transition) {
        self.store_changed = true;
        let newest = self.lease;
        self.hold(Predicate::OneHolder, lease == newest, || {
            format!(
                "replica {r} with lease {lease:?} makes a step at {} ms, and lease {newest:?} was taken",
                storage.now_ms()
            )
        });
        for upload in &step.uploads {
            let given_up = self.undelivered.contains(&(upload.client.clone(), upload.key.clone()));
            self.hold(Predicate::UndeliveredNeverCounts, !given_up, || {
                format!(
                    "the update of {} for {} is accepted after its client gave it up",
                    upload.client, upload.key
                )
            });
        }
    }

    /// A client cannot read an offer.
    pub(crate) fn unreadable_offer(&mut self, key: &AttemptKey, problem: &str) {
        self.fail(Predicate::MachineInvariant, format!("the offer of {key} cannot be read: {problem}"));
    }

    /// A client was sent another model than it asked for.
    pub(crate) fn wrong_model(&mut self, key: &AttemptKey) {
        self.fail(Predicate::MachineInvariant, format!("the model for {key} is another one"));
    }

    /// A client cannot start.
    pub(crate) fn outbox_damaged(&mut self, problem: &str) {
        self.fail(Predicate::PersistThenSpeak, format!("a client cannot start: {problem}"));
    }

    /// A coordinator cannot read the ledger.
    pub(crate) fn ledger_damaged(&mut self, problem: &str) {
        self.fail(Predicate::LedgerOnlyGrows, format!("a coordinator cannot go on: {problem}"));
    }
}
