//! The privacy ledger, as it is stored: read line by line, and once more at the end.

use super::{Predicate, Watch};
use crate::coverage::Coverage;
use crate::storage::{Storage, ready};
use undertone_core::id::AttemptKey;
use undertone_privacy::ledger::chain::{Chain, Line};
use undertone_privacy::ledger::population::Budgets;
use undertone_privacy::ledger::{EntryState, LedgerEntry};
use undertone_store::{LedgerRow, Store as _};

fn line(row: &LedgerRow) -> Result<Line, String> {
    serde_json::from_str(&row.document).map_err(|e| format!("line {} cannot be read: {e}", row.seq))
}

impl Watch {
    /// The new lines: each follows those before it, and what is spent does not fall.
    pub(super) fn read_ledger(&mut self, storage: &Storage) {
        let rows = ready(storage.store.ledger(self.chain.len(), u32::MAX)).unwrap_or_default();
        for row in rows {
            let entry = match line(&row).and_then(|line| {
                let entry = line.entry.clone();
                self.chain.apply(line).map(|()| entry).map_err(|e| e.to_string())
            }) {
                Ok(entry) => entry,
                Err(problem) => return self.fail(Predicate::LedgerOnlyGrows, problem),
            };
            if let EntryState::Committed { output } | EntryState::Published { output } = entry.state {
                self.hold(Predicate::BytesBeforeCommit, storage.has(&output), || {
                    format!("{} is committed to {output}, which is not there", entry.key)
                });
            }
            if let EntryState::Committed { .. } = entry.state {
                self.counted_by(&entry);
            }
        }
        let (before, now) = (self.spent, self.chain.totals().spent());
        let falls = now.record_epsilon < before.record_epsilon
            || now.client_epsilon < before.client_epsilon
            || now.unprotected < before.unprotected
            || now.clients_unprotected < before.clients_unprotected;
        self.hold(Predicate::LedgerOnlyGrows, !falls, || format!("spent {before:?}, and then {now:?}"));
        self.spent = now;
    }

    /// The entry of an attempt as it is stored.
    pub(super) fn entry(&mut self, storage: &Storage, key: &AttemptKey) -> Option<LedgerEntry> {
        self.read_ledger(storage);
        self.chain.job(&key.job).entry(key).cloned()
    }

    /// All lines from the first: nothing that was read before has changed, and all that was reserved is spent.
    pub(super) fn read_ledger_again(&mut self, storage: &Storage) {
        let rows = ready(storage.store.ledger(0, u32::MAX)).unwrap_or_default();
        let lines: Result<Vec<Line>, String> = rows.iter().map(line).collect();
        let again =
            lines.and_then(|lines| Chain::from_lines(Budgets::default(), lines).map_err(|e| e.to_string()));
        let same = again.as_ref().is_ok_and(|again| again.head() == self.chain.head());
        self.hold(Predicate::LedgerOnlyGrows, same, || "the ledger is not what it was".into());
        let mut wrong = None;
        for (id, job) in &self.jobs {
            let (ledger, contract) = (self.chain.job(id), job.sim.job.contract());
            let attempts = ledger.entries().len();
            let due = contract.epsilon_after(attempts as u32);
            if attempts > 0 && ledger.spent(contract) != due {
                wrong =
                    Some(format!("{id}: {attempts} attempts cost {:?}, not {due:?}", ledger.spent(contract)));
            }
        }
        if let Some(wrong) = wrong {
            self.fail(Predicate::LedgerOnlyGrows, wrong);
        }
    }

    /// One model for a round: the one that the ledger published, in the ledger's order.
    pub(super) fn read_releases(&mut self, storage: &Storage, coverage: &mut Coverage) {
        let mut wrong = None;
        for id in self.jobs.keys() {
            let ledger = self.chain.job(id);
            for release in ready(storage.store.releases(id)).unwrap_or_default() {
                coverage.note("rounds released");
                let published = ledger.entries().iter().filter(|entry| {
                    entry.key.round == release.round
                        && entry.state == EntryState::Published { output: release.model }
                });
                if published.count() != 1 {
                    wrong =
                        Some(format!("{id} round {}: the ledger did not publish its model", release.round));
                }
            }
        }
        if let Some(wrong) = wrong {
            self.fail(Predicate::BytesBeforeCommit, wrong);
        }
    }
}
