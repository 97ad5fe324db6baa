//! A population's ledger: the entries of all jobs over the same people as one append-only chain of lines.
//!
//! Each transition of an entry adds a line; none is changed or removed. A line holds the digest of the line before it,
//! so that whoever keeps one digest can tell whether anything before it was rewritten. ε is recomputed from the lines
//! alone: they carry the mechanism and its numbers.

use super::population::{Budgets, Totals};
use super::{DamagedLedger, EntryState, Ledger, LedgerEntry};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use undertone_core::digest::{Digest, Digester};
use undertone_core::id::JobId;

/// One line of a population's ledger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Position, from 1, without gaps.
    pub seq: u64,
    /// When, in milliseconds of Unix time. For people: nothing is decided by it.
    pub unix_ms: u64,
    /// The attempt's entry after the transition.
    pub entry: LedgerEntry,
    /// Digest of the line before; of nothing for the first.
    pub before: Digest,
    /// Digest of this line.
    pub digest: Digest,
}

impl Line {
    /// The digest that the line must have.
    fn digest_of(&self) -> Digest {
        let mut d = Digester::new();
        d.field(b"undertone privacy ledger 1");
        d.field(self.before.as_bytes());
        d.field(&self.seq.to_le_bytes());
        d.field(&self.unix_ms.to_le_bytes());
        self.entry.digest_into(&mut d);
        d.finish()
    }
}

/// The lines of a population, as far as decisions need them.
#[derive(Debug, Clone)]
pub struct Chain {
    lines: u64,
    head: Digest,
    jobs: BTreeMap<JobId, Ledger>,
    closed: BTreeMap<JobId, ClosedJob>,
    totals: Totals,
}

/// What stays in memory of a job that takes no more attempts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClosedJob {
    /// Attempts charged.
    pub attempts: u32,
    /// ε spent; absent where no privacy was promised.
    pub epsilon: Option<f64>,
}

impl Chain {
    /// An empty chain under these budgets.
    pub fn new(budgets: Budgets) -> Self {
        Self {
            lines: 0,
            head: Digest::of(b""),
            jobs: BTreeMap::new(),
            closed: BTreeMap::new(),
            totals: Totals::new(budgets),
        }
    }

    /// Rebuilds the chain from its lines, checking each.
    ///
    /// # Errors
    /// [`DamagedLedger`] at the first line that does not follow from those before it.
    pub fn from_lines(
        budgets: Budgets,
        lines: impl IntoIterator<Item = Line>,
    ) -> Result<Self, DamagedLedger> {
        let mut chain = Self::new(budgets);
        for line in lines {
            chain.apply(line)?;
        }
        Ok(chain)
    }

    /// Number of lines.
    pub fn len(&self) -> u64 {
        self.lines
    }

    /// Whether nothing was ever reserved.
    pub fn is_empty(&self) -> bool {
        self.lines == 0
    }

    /// Digest of the last line.
    pub fn head(&self) -> Digest {
        self.head
    }

    /// The entries of a job that is not [closed](Self::close).
    pub fn job(&self, id: &JobId) -> Ledger {
        self.jobs.get(id).cloned().unwrap_or_default()
    }

    /// All jobs that ever reserved, with what they spent.
    pub fn jobs(&self) -> impl Iterator<Item = (&JobId, ClosedJob)> {
        let open = self.jobs.iter().map(|(id, ledger)| (id, ClosedJob::of(ledger)));
        self.closed.iter().map(|(id, job)| (id, *job)).chain(open)
    }

    /// What a job spent.
    pub fn spent_by(&self, id: &JobId) -> Option<ClosedJob> {
        self.closed.get(id).copied().or_else(|| self.jobs.get(id).map(ClosedJob::of))
    }

    /// Lets go of the entries of a job that takes no more attempts; no line of it may follow.
    pub fn close(&mut self, id: &JobId) {
        if let Some(ledger) = self.jobs.remove(id) {
            self.closed.insert(id.clone(), ClosedJob::of(&ledger));
        }
    }

    /// [Closes](Self::close) all jobs but these.
    pub fn close_others(&mut self, open: &dyn Fn(&JobId) -> bool) {
        let over: Vec<JobId> = self.jobs.keys().filter(|id| !open(id)).cloned().collect();
        over.iter().for_each(|id| self.close(id));
    }

    /// What the population has spent, and may spend.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// The lines that bring these entries (new ones, or next versions of old ones) into the chain, in order.
    ///
    /// # Errors
    /// [`DamagedLedger`] for an entry that no function of the ledger would have given.
    pub fn lines_for(&self, entries: &[LedgerEntry], unix_ms: u64) -> Result<Vec<Line>, DamagedLedger> {
        let mut after = self.after(entries.iter().map(|e| &e.key.job));
        let mut lines = Vec::with_capacity(entries.len());
        for entry in entries {
            let mut line = Line {
                seq: after.lines + 1,
                unix_ms,
                entry: entry.clone(),
                before: after.head,
                digest: after.head,
            };
            line.digest = line.digest_of();
            after.apply(line.clone())?;
            lines.push(line);
        }
        Ok(lines)
    }

    /// A copy with the entries of these jobs only: what the next lines are checked against.
    fn after<'a>(&self, jobs: impl Iterator<Item = &'a JobId>) -> Self {
        let jobs = jobs.filter_map(|id| Some((id.clone(), self.jobs.get(id)?.clone()))).collect();
        let closed = BTreeMap::new();
        Self { lines: self.lines, head: self.head, jobs, closed, totals: self.totals.clone() }
    }

    /// Takes in a line that is durable now.
    ///
    /// # Errors
    /// [`DamagedLedger`] if it does not follow; nothing changes then.
    pub fn apply(&mut self, line: Line) -> Result<(), DamagedLedger> {
        let damaged = |problem| Err(DamagedLedger { seq: line.seq, problem });
        if line.seq != self.lines + 1 {
            return damaged("lines are missing or out of order");
        }
        if line.before != self.head {
            return damaged("it does not follow the line before it");
        }
        if line.digest != line.digest_of() {
            return damaged("its digest is not that of its text");
        }
        if self.closed.contains_key(&line.entry.key.job) {
            return damaged("its job takes no more attempts");
        }
        let is_new = self.jobs.get(&line.entry.key.job).is_none_or(|l| l.entry(&line.entry.key).is_none());
        if is_new && line.entry.state != EntryState::Reserved {
            return damaged("an attempt does not begin as reserved");
        }
        let ledger = self.jobs.entry(line.entry.key.job.clone()).or_default();
        ledger.apply(line.entry.clone()).map_err(|e| DamagedLedger { seq: line.seq, ..e })?;
        if is_new {
            self.totals.add(&line.entry);
        }
        self.lines = line.seq;
        self.head = line.digest;
        Ok(())
    }
}

impl ClosedJob {
    fn of(ledger: &Ledger) -> Self {
        let entries = ledger.entries();
        Self {
            attempts: u32::try_from(entries.len()).unwrap_or(u32::MAX),
            epsilon: entries.last().and_then(|e| e.epsilon_after),
        }
    }
}

#[cfg(test)]
mod tests;
