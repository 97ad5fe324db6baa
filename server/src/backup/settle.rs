//! After a restore: the ledger takes the maximum, never less.
//!
//! A restored state is older than what happened. Three rules make up for it.
//! 1. Every line of a newer ledger that survived is taken over: they follow the lines of the backup, or they are refused.
//! 2. Where nothing shows that this was all, each job that was under way is charged all that it could have spent since
//!    ([`Ledger::unknown`](undertone_privacy::ledger::Ledger::unknown)), and so is each job that the operator names as submitted since.
//! 3. No job goes on: another draw of noise over the same people in the same round, or correlated noise from an older state, is
//!    nothing that the ledger could have paid for. And no join token is worth anything: some were used up since.

use super::BackupError;
use super::newer::Newer;
use crate::ledger;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use undertone_core::id::JobId;
use undertone_privacy::ledger::chain::{Chain, ClosedJob, Line};
use undertone_privacy::ledger::population::Budgets;
use undertone_privacy::ledger::{EntryState, Ledger, LedgerEntry};
use undertone_round::coordinator::{Carried, JobState, Measuring, Phase, Pool};
use undertone_round::event::{JobEvent, Outcome};
use undertone_round::job::{Job, JobSpec};
use undertone_store::{JobRecord, NewEvent, SqlStore, Store as _, Transition};

/// What an operator knows of the time after a backup.
#[derive(Debug, Clone)]
pub enum Knowledge {
    /// All that was spent: the database that the deployment used last.
    Everything {
        /// The SQLite file.
        database: PathBuf,
    },
    /// Not all of it: what may have been spent besides is counted.
    TheWorst {
        /// Copies of the ledger from after the backup.
        ledgers: Vec<PathBuf>,
        /// The files of all jobs that were submitted after the backup.
        jobs: Vec<PathBuf>,
    },
}

/// What was done to a restored state.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Settled {
    /// Lines of the ledger in the backup.
    pub lines_before: u64,
    /// Lines that newer ledgers had more.
    pub lines_newer: u64,
    /// Jobs that were ended, and jobs that were charged.
    pub jobs: Vec<Counted>,
    /// Join tokens that were forgotten.
    pub tokens: usize,
}

/// A job after a restore.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Counted {
    /// Which.
    pub job: JobId,
    /// ε by the lines that are known; absent where no privacy was promised.
    pub epsilon_known: Option<f64>,
    /// ε that is counted now.
    pub epsilon: Option<f64>,
}

/// Whether this looks like the database that a coordinator used, where it used it: a file that was taken out of its folder may be without
/// its last commits (they are in the log beside it), and one of a backup is of another day.
fn is_the_last(database: &Path) -> Result<(), BackupError> {
    let beside = |name: &str| database.with_file_name(name).exists();
    if beside("lock") && !beside(super::manifest::FILE) {
        return Ok(());
    }
    let problem = "it is not in the state folder of a coordinator, so that it may not be all that was spent: name the database where it \
                   was used, with the files beside it, or use --count-the-worst (with --ledger, if you export its ledger)";
    Err(BackupError::Ledger { from: database.display().to_string(), problem: problem.into() })
}

/// A job submitted after the backup.
struct Later {
    job: Job,
    found: bool,
}

/// Brings a restored state in order. `why` is for the record, for example "restored from a backup of ...".
pub(super) async fn settle(
    store: &SqlStore,
    knowledge: &Knowledge,
    why: &str,
    now_ms: u64,
) -> Result<Settled, BackupError> {
    let mut known = super::lines(store).await?;
    let before = known.len();
    let (complete, mut later) = match knowledge {
        Knowledge::Everything { database } => {
            is_the_last(database)?;
            let newer = Newer::of_database(database).await?;
            if !newer.is_up_to_date(&known) {
                let from = database.display().to_string();
                let problem = "it is older than the backup, so that it cannot be what was used last".into();
                return Err(BackupError::Ledger { from, problem });
            }
            newer.add_to(&mut known)?;
            (true, vec![])
        }
        Knowledge::TheWorst { ledgers, jobs } => {
            for file in ledgers {
                Newer::exported(file)?.add_to(&mut known)?;
            }
            (false, jobs.iter().map(read_job).collect::<Result<Vec<_>, _>>()?)
        }
    };
    let damaged = |problem: String| BackupError::Ledger { from: "the privacy ledger".into(), problem };
    let mut chain =
        Chain::from_lines(Budgets::default(), known.iter().cloned()).map_err(|e| damaged(e.to_string()))?;
    let open = store.open_jobs().await?;
    let plans = plan(&chain, &open, complete, why)?;
    // Jobs of before that are in no backup any more were settled by an earlier restore.
    let since: BTreeSet<JobId> = known[before..].iter().map(|line| line.entry.key.job.clone()).collect();
    let extra = if complete { vec![] } else { plan_later(store, &chain, &since, &mut later, why).await? };

    let newer: Vec<_> = known[before..].iter().map(ledger::row).collect();
    let mut settled =
        Settled { lines_before: before as u64, lines_newer: newer.len() as u64, jobs: vec![], tokens: 0 };
    let (mut steps, mut more) = (vec![], vec![]);
    for (record, entries) in open.iter().zip(plans) {
        let epsilon_known = chain.spent_by(&record.id).and_then(|spent| spent.epsilon);
        let lines = chain.lines_for(&entries, now_ms).map_err(|e| damaged(e.to_string()))?;
        steps.push(end(record, &lines, why, now_ms));
        apply(&mut chain, lines)?;
        settled.jobs.push(counted(&chain, &record.id, epsilon_known));
    }
    for (job, entries) in extra {
        let epsilon_known = chain.spent_by(&job).and_then(|spent| spent.epsilon);
        let lines = chain.lines_for(&entries, now_ms).map_err(|e| damaged(e.to_string()))?;
        more.extend(lines.iter().map(ledger::row));
        apply(&mut chain, lines)?;
        settled.jobs.push(counted(&chain, &job, epsilon_known));
    }
    // All is decided. It is written whole or not at all.
    settled.tokens = store.settle(&newer, steps, &more).await?;
    Ok(settled)
}

fn apply(chain: &mut Chain, lines: Vec<Line>) -> Result<(), BackupError> {
    for line in lines {
        chain
            .apply(line)
            .map_err(|e| BackupError::Ledger { from: "the privacy ledger".into(), problem: e.to_string() })?;
    }
    Ok(())
}

fn counted(chain: &Chain, job: &JobId, epsilon_known: Option<f64>) -> Counted {
    let ClosedJob { epsilon, .. } = chain.spent_by(job).unwrap_or(ClosedJob { attempts: 0, epsilon: None });
    Counted { job: job.clone(), epsilon_known, epsilon }
}

/// The entries that end each open job's part of the ledger.
fn plan(
    chain: &Chain,
    open: &[JobRecord],
    complete: bool,
    why: &str,
) -> Result<Vec<Vec<LedgerEntry>>, BackupError> {
    open.iter()
        .map(|record| {
            let ledger = chain.job(&record.id);
            let mut entries = burn_open(&ledger, why);
            if !complete {
                let unreadable =
                    |problem: String| BackupError::Unreadable { job: record.id.clone(), problem };
                let job =
                    Job::from_document(record.document.as_bytes()).map_err(|e| unreadable(e.to_string()))?;
                let state: JobState =
                    serde_json::from_str(&record.state).map_err(|e| unreadable(e.to_string()))?;
                entries.extend(worst(&record.id, &job, &ledger, state.released, why));
            }
            Ok(entries)
        })
        .collect()
}

/// The entries of jobs that are not in the backup.
async fn plan_later(
    store: &SqlStore,
    chain: &Chain,
    since: &BTreeSet<JobId>,
    later: &mut [Later],
    why: &str,
) -> Result<Vec<(JobId, Vec<LedgerEntry>)>, BackupError> {
    let mut plans = vec![];
    for id in since {
        let ledger = chain.job(id);
        let Some(first) = ledger.entries().first() else { continue };
        if store.job(id).await?.is_some() || first.loss.is_none() {
            continue;
        }
        // Each file is one job's: of two with one contract both have to be named.
        let is_of = |l: &&mut Later| {
            let name = id.as_str().strip_prefix(l.job.spec().name.as_str());
            !l.found
                && l.job.contract().digest() == first.contract
                && name.is_some_and(|n| n.starts_with('-'))
        };
        let named = later.iter_mut().find(is_of);
        let named = named.ok_or_else(|| BackupError::UnknownJob(id.clone()))?;
        named.found = true;
        let mut entries = burn_open(&ledger, why);
        entries.extend(worst(id, &named.job, &ledger, 0, why));
        plans.push((id.clone(), entries));
    }
    for later in later.iter().filter(|l| !l.found) {
        let mut random = [0u8; 4];
        getrandom::fill(&mut random)?;
        let suffix = u32::from_le_bytes(random) & 0xff_ffff;
        let name = &later.job.spec().name;
        let id = JobId::new(format!("{name}-{suffix:06x}"))
            .map_err(|e| BackupError::Ledger { from: name.clone(), problem: e.to_string() })?;
        let entries = worst(&id, &later.job, &Ledger::default(), 0, why);
        plans.push((id, entries));
    }
    Ok(plans)
}

/// Attempts that were begun: whatever became of them, they give no release that this deployment knows.
fn burn_open(ledger: &Ledger, why: &str) -> Vec<LedgerEntry> {
    let open = |e: &&LedgerEntry| matches!(e.state, EntryState::Reserved | EntryState::Sampled { .. });
    ledger.entries().iter().filter(open).filter_map(|e| ledger.burn(&e.key, why).ok()).collect()
}

/// What the job may have spent beyond its ledger, reserved and burnt.
fn worst(id: &JobId, job: &Job, ledger: &Ledger, released: u32, why: &str) -> Vec<LedgerEntry> {
    let is_out =
        |e: &&LedgerEntry| matches!(e.state, EntryState::Committed { .. } | EntryState::Published { .. });
    let last = ledger.entries().iter().filter(is_out).map(|e| e.key.round.0).max().unwrap_or(0);
    let rounds = last.max(released) + 1..=job.spec().rounds;
    if rounds.is_empty() {
        return vec![];
    }
    let attempts = job.spec().deadlines.max_attempts;
    let Some(entry) = ledger.unknown(id, job.contract(), rounds, attempts) else { return vec![] };
    let reason = format!("{why}: all that the job may have spent since is counted");
    let burnt = LedgerEntry { state: EntryState::Burnt { reason }, ..entry.clone() };
    vec![entry, burnt]
}

/// The step that ends a job.
fn end(record: &JobRecord, lines: &[Line], why: &str, now_ms: u64) -> Transition {
    let reason = format!(
        "{why}: what happened to the job since is not known, and it does not go on; a new job may begin with its last model ([initial] \
         weights)"
    );
    let outcome = Outcome::Failed { reason };
    let state = match serde_json::from_str::<JobState>(&record.state) {
        Ok(state) => {
            let carried = Carried { clip: state.carried.clip, ..Carried::default() };
            let (measuring, pool) = (Measuring::default(), Pool::default());
            let phase = Phase::Ended { outcome: outcome.clone() };
            serde_json::to_string(&JobState { carried, measuring, pool, phase, ..state }).expect("plain data")
        }
        // For whoever understands it.
        Err(_) => record.state.clone(),
    };
    let document = serde_json::to_string(&JobEvent::Ended { outcome: outcome.clone() }).expect("plain data");
    Transition {
        ended: true,
        events: vec![NewEvent { unix_ms: now_ms, document }],
        ledger: lines.iter().map(ledger::row).collect(),
        ..Transition::new(record.id.clone(), record.version, outcome.status(), state)
    }
}

fn read_job(file: &PathBuf) -> Result<Later, BackupError> {
    let text = std::fs::read_to_string(file).map_err(BackupError::at(file))?;
    let shown = file.display().to_string();
    let refused = |problem: String| BackupError::Ledger { from: shown.clone(), problem };
    let job = JobSpec::from_toml(&text, &shown).map_err(|e| refused(e.to_string()))?;
    let job = job.resolve().map_err(|e| refused(e.to_string()))?;
    Ok(Later { job, found: false })
}
