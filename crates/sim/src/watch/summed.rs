//! What is summed: held against what the clients themselves stored.

use super::{Predicate, Release, RoundSum, Watch};
use crate::release::Made;
use crate::scenario::SimJob;
use crate::storage::{Storage, ready};
use std::collections::BTreeSet;
use undertone_core::id::AttemptKey;
use undertone_privacy::ledger::{EntryState, LedgerEntry};
use undertone_store::Store as _;

impl Watch {
    /// A coordinator draws noise over an attempt's sum.
    pub(crate) fn draws(&mut self, key: &AttemptKey, noise: u64) {
        let first = *self.draws.entry(key.clone()).or_insert(noise);
        self.hold(Predicate::OneDraw, first == noise, || format!("noise is drawn again over {key}"));
    }

    /// A coordinator has made the model of an attempt.
    pub(crate) fn released(&mut self, storage: &Storage, sim: &SimJob, made: &Made<'_>) {
        let Made { key, updates, sum, denominator, model, noise } = made;
        let mut units = vec![0i64; sim.job.part().len()];
        for update in *updates {
            let asked = update.asked_in(key);
            let Some(sealing) = self.sealed.get(&(update.client.clone(), asked.clone())) else {
                let detail = format!("{} stored nothing for {asked}, and is in {key}", update.client);
                return self.fail(Predicate::SumIsExact, detail);
            };
            if sealing.weight != update.sent_weight() {
                let detail = format!(
                    "{} weighs {} in {key}, and said {}",
                    update.client, update.weight, sealing.weight
                );
                return self.fail(Predicate::SumIsExact, detail);
            }
            for (sum, unit) in units.iter_mut().zip(&sealing.units) {
                *sum += i64::from(*unit) * i64::from(update.weight);
            }
        }
        self.hold(Predicate::SumIsExact, sum.units() == units, || {
            format!("{key}: the sum is {:?}, and what its clients stored is {units:?}", sum.units())
        });
        if sim.job.spec().cohort.buffered().is_none() {
            let accepted = ready(storage.store.uploads(key)).unwrap_or_default();
            let accepted: BTreeSet<_> =
                accepted.into_iter().map(|upload| (upload.client, upload.blob)).collect();
            let summed: BTreeSet<_> =
                updates.iter().map(|update| (update.client.clone(), update.blob)).collect();
            self.hold(Predicate::CountsOnce, accepted == summed && summed.len() == updates.len(), || {
                format!("{key} is summed over {summed:?}, and accepted were {accepted:?}")
            });
        }
        if noise.is_some() {
            let due = sim.job.spec().cohort.denominator();
            self.hold(Predicate::FixedDenominator, *denominator == due, || {
                format!("{key}: the noised sum is divided by {denominator}, and not by {due}")
            });
        }
        let release = Release { updates: updates.to_vec(), units, output: model.digest };
        let first = self.releases.entry((*key).clone()).or_insert(release);
        let (same_inputs, same_output) = (first.updates == *updates, first.output == model.digest);
        self.hold(Predicate::CountsOnce, same_inputs, || {
            format!("{key} is released over other updates than before")
        });
        self.hold(Predicate::IdenticalRetry, same_output, || {
            format!("{key} is released again with other bytes")
        });
    }

    /// The ledger commits to an attempt's release: from here on its updates are counted.
    pub(super) fn counted_by(&mut self, entry: &LedgerEntry) {
        let key = &entry.key;
        let Some(release) = self.releases.get(key) else {
            return self
                .fail(Predicate::BytesBeforeCommit, format!("{key} is committed, and nothing was released"));
        };
        let output = release.output;
        let asked: Vec<_> =
            release.updates.iter().map(|update| (update.client.clone(), update.asked_in(key))).collect();
        self.hold(Predicate::IdenticalRetry, entry.state == EntryState::Committed { output }, || {
            format!("{key} is committed to {:?}, and what was made is {output}", entry.state)
        });
        self.published.push(output);
        for update in asked {
            if let Some(before) = self.counted.insert(update.clone(), key.clone()) {
                let detail =
                    format!("the update of {} for {} is in {before} and in {key}", update.0, update.1);
                self.fail(Predicate::CountsOnce, detail);
            }
        }
    }

    /// What was released, by job and round.
    pub(crate) fn rounds(&self) -> Vec<RoundSum> {
        let ledgers = self.jobs.keys().map(|id| self.chain.job(id));
        let entries = ledgers.flat_map(|ledger| ledger.entries().to_vec());
        let released = entries.filter_map(|entry| match entry.state {
            EntryState::Committed { .. } | EntryState::Published { .. } => {
                let release = self.releases.get(&entry.key)?;
                let mut clients: Vec<_> =
                    release.updates.iter().map(|update| (update.client.clone(), update.weight)).collect();
                clients.sort();
                let (job, round) = (entry.key.job.clone(), entry.key.round.0);
                Some(RoundSum { job, round, clients, units: release.units.clone() })
            }
            _ => None,
        });
        released.collect()
    }
}
