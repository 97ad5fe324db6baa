//! The observer: it sees what every process says and what the disks hold, and looks after every event whether the promises of the
//! design hold. It takes part in nothing.

mod ledger;
mod said;
mod summed;

use crate::coverage::Coverage;
use crate::jobs::Kind;
use crate::scenario::{Scenario, SimJob};
use crate::storage::{Storage, ready};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use undertone_core::digest::Digest;
use undertone_core::id::{AttemptKey, ClientId, JobId};
use undertone_privacy::ledger::chain::Chain;
use undertone_privacy::ledger::population::{Budgets, PopulationSpent};
use undertone_round::coordinator::{JobState, Phase, Update};
use undertone_round::event::Outcome;
use undertone_store::Store as _;

/// An attempt that begins when all is well has ended by then, also if a clock was set back, in milliseconds.
const GRACE_MS: u64 = 900_000;

/// What must hold after every event, or at the end. The numbers are those of the design's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Predicate {
    /// 1: what is said (a receipt, an offer, an upload) rests on what is durable.
    PersistThenSpeak,
    /// 2: no update is in two releases, and those of a release are those that were accepted for it.
    CountsOnce,
    /// 2: what is released is the integer sum of what its clients stored, each by its weight.
    SumIsExact,
    /// 2: an update that its client holds for undelivered is never counted, before or after.
    UndeliveredNeverCounts,
    /// 3: a client sends one update for an attempt, the same bytes each time.
    OneUpdateEach,
    /// 3: nobody is asked before the attempt is paid for.
    BudgetBeforeOffers,
    /// 3: noise is drawn once over an attempt's updates.
    OneDraw,
    /// 3: whatever is made again is the same bytes.
    IdenticalRetry,
    /// 3: the ledger is added to, what it says is spent never falls, and all that was reserved is spent.
    LedgerOnlyGrows,
    /// 3: the bytes are durable before the ledger commits to them, and committed before they are published.
    BytesBeforeCommit,
    /// 4: a noised sum is divided by the job's number, whoever came.
    FixedDenominator,
    /// What a job that goes on needs, and every released model, is there.
    NeededBlobsStay,
    /// Whoever changes something has the lease.
    OneHolder,
    /// 7: a client writes its decision down before it accepts.
    DecidedBeforeAccepting,
    /// A step breaks an invariant of the machine itself, or a process finds what it cannot go on with.
    MachineInvariant,
    /// 10: when faults stop, every job comes to its end, and none fails because nothing happens.
    Liveness,
    /// Where cohorts are the same, the sums are those of a world without faults.
    SameAsWithoutFaults,
}

/// A promise that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub predicate: Predicate,
    /// What was seen.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} does not hold: {}", self.predicate, self.detail)
    }
}

/// What was released in a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoundSum {
    /// The job.
    pub job: JobId,
    /// The round.
    pub round: u32,
    /// Whose updates are in it, by what they weigh.
    pub clients: Vec<(ClientId, u32)>,
    /// The integer sum.
    pub units: Vec<i64>,
}

/// What the observer knows.
pub(crate) struct Watch {
    violation: Option<Violation>,
    /// Whether something changed in the store, and in the blobs, since the last look.
    store_changed: bool,
    blobs_changed: bool,
    jobs: BTreeMap<JobId, Observed>,
    chain: Chain,
    spent: PopulationSpent,
    /// The highest number that a lease was taken with.
    lease: Option<u64>,
    sealed: BTreeMap<(ClientId, AttemptKey), Sealing>,
    undelivered: BTreeSet<(ClientId, AttemptKey)>,
    /// What each attempt's release was made from, and its output.
    releases: BTreeMap<AttemptKey, Release>,
    draws: BTreeMap<AttemptKey, u64>,
    /// The attempt in whose release an update counts, by client and the attempt in which it was asked.
    counted: BTreeMap<(ClientId, AttemptKey), AttemptKey>,
    published: Vec<Digest>,
}

/// A job as it is stored.
struct Observed {
    sim: SimJob,
    version: u64,
    needs: Vec<Digest>,
    outcome: Option<(Outcome, u64)>,
    phase: String,
}

/// What a client stored to be sent.
struct Sealing {
    units: Vec<i32>,
    digest: Digest,
    weight: u32,
    sent: u32,
}

struct Release {
    updates: Vec<Update>,
    units: Vec<i64>,
    output: Digest,
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self {
            violation: None,
            store_changed: true,
            blobs_changed: true,
            jobs: BTreeMap::new(),
            chain: Chain::new(Budgets::default()),
            spent: PopulationSpent::default(),
            lease: None,
            sealed: BTreeMap::new(),
            undelivered: BTreeSet::new(),
            releases: BTreeMap::new(),
            draws: BTreeMap::new(),
            counted: BTreeMap::new(),
            published: vec![],
        }
    }

    pub(crate) fn expect_job(&mut self, sim: &SimJob) {
        let observed =
            Observed { sim: sim.clone(), version: 0, needs: vec![], outcome: None, phase: String::new() };
        self.jobs.insert(sim.id.clone(), observed);
    }

    pub(crate) fn failure(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    pub(crate) fn into_violation(self) -> Option<Violation> {
        self.violation
    }

    /// The first thing that does not hold is what counts.
    pub(crate) fn fail(&mut self, predicate: Predicate, detail: String) {
        self.violation.get_or_insert(Violation { predicate, detail });
    }

    fn hold(&mut self, predicate: Predicate, holds: bool, detail: impl FnOnce() -> String) {
        if !holds {
            self.fail(predicate, detail());
        }
    }

    pub(crate) fn blobs_changed(&mut self) {
        self.blobs_changed = true;
    }

    pub(crate) fn all_over(&self) -> bool {
        self.jobs.values().all(|job| job.outcome.is_some())
    }

    /// Looks at what is stored, after an event.
    pub(crate) fn look(&mut self, storage: &Storage) {
        if std::mem::take(&mut self.store_changed) {
            self.read_ledger(storage);
            self.read_jobs(storage);
            self.blobs_changed = true;
        }
        if std::mem::take(&mut self.blobs_changed) {
            let needed = self.jobs.values().flat_map(|job| &job.needs).chain(&self.published);
            if let Some(missing) = needed.copied().find(|blob| !storage.has(blob)) {
                self.fail(Predicate::NeededBlobsStay, format!("{missing} is needed and gone"));
            }
        }
    }

    fn read_jobs(&mut self, storage: &Storage) {
        let mut broken = None;
        for (id, job) in &mut self.jobs {
            let Some(record) = ready(storage.store.job(id)).ok().flatten() else { continue };
            if record.version == job.version {
                continue;
            }
            if record.version < job.version {
                broken = Some(format!("{id} went from version {} to {}", job.version, record.version));
            }
            let state: JobState = match serde_json::from_str(&record.state) {
                Ok(state) => state,
                Err(e) => {
                    broken = Some(format!("the state of {id} cannot be read: {e}"));
                    continue;
                }
            };
            job.version = record.version;
            job.phase = format!("{:?}", state.phase);
            // Of a job that is over, what it released stays: that is looked at besides.
            job.needs = if record.ended { vec![] } else { state.blobs() };
            if let (Phase::Ended { outcome }, None) = (state.phase, &job.outcome) {
                job.outcome = Some((outcome, storage.now_ms()));
            }
        }
        if let Some(detail) = broken {
            self.fail(Predicate::MachineInvariant, detail);
        }
    }

    /// Looks at all of it once more, when nothing more happens.
    pub(crate) fn end(&mut self, storage: &Storage, scenario: &Scenario, coverage: &mut Coverage) {
        self.look(storage);
        let mut problems = vec![];
        for (id, job) in &self.jobs {
            let calm_ms = scenario.calm_at_ms;
            match &job.outcome {
                None => problems.push(format!("{id} has not ended: {}", job.phase)),
                Some((Outcome::Failed { reason }, _)) if calm_ms == 0 => {
                    problems.push(format!("{id} failed, and nothing went wrong: {reason}"));
                }
                // Whoever took part in what came to nothing may not take part again.
                Some((Outcome::Failed { reason }, at_ms))
                    if *at_ms > calm_ms + GRACE_MS && job.sim.kind != Kind::Limited =>
                {
                    problems.push(format!("{id} failed long after all was well: {reason}"));
                }
                Some(_) => {}
            }
        }
        if let Some(problem) = problems.into_iter().next() {
            self.fail(Predicate::Liveness, problem);
        }
        self.read_ledger_again(storage);
        self.read_releases(storage, coverage);
    }
}
