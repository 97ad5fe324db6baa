//! From spooled updates to one: folded into the exact sum, or combined by a rule that reads them where they lie.
//!
//! Every update is read once from end to end and held against its digest before anything is made of it: a rotten file must
//! not enter a sum. Memory: the sum and one update for each thread, or what the rule says; never all updates.

use super::Unreadable;
use crate::spool::Spooled;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use undertone_core::aggregate::IntegerSum;
use undertone_core::rules::{Aggregate, Rows, RowsError, Tiling};
use undertone_privacy::adaptive_clip::CountSum;
use undertone_privacy::release::Collected;
use undertone_round::job::Job;

/// What the updates of an attempt come to.
pub(super) enum Gathered {
    /// Their sum.
    Sum(Collected),
    /// What the job's rule made of them.
    Robust(Aggregate),
}

/// Most updates that are read at once: each takes four bytes a value.
const MOST_READERS: usize = 2;

/// Reads, checks and combines. Work for several cores: not for an async thread.
pub(super) fn gather(
    job: &Job,
    updates: &[Spooled],
    threads: usize,
    centre: Option<&[f64]>,
) -> Result<Gathered, Unreadable> {
    let rule = job.spec().aggregation.rule;
    if !rule.needs_all_rows() {
        return sum(job, updates, threads).map(Gathered::Sum);
    }
    // Read twice or more: first to know that the files are whole.
    each(updates, threads, |update| update.check_plain())?;
    let rows = SpoolRows { updates, values: job.layout().len() };
    let tiling = Tiling::new(threads, updates.len());
    let aggregate = rule.aggregate(&rows, job.grid(), tiling, centre);
    aggregate.map(Gathered::Robust).map_err(|e| Unreadable::ForGood(format!("the aggregation rule: {e}")))
}

fn sum(job: &Job, updates: &[Spooled], threads: usize) -> Result<Collected, Unreadable> {
    let zero = IntegerSum::zero(job.grid(), job.layout().len());
    let sum = Mutex::new(Collected { sum: zero, within: CountSum::default() });
    let readers = threads.min(MOST_READERS);
    each(updates, readers, |update| {
        // What an encoding left out is zero.
        let mut units = vec![0; job.layout().len()];
        let within = update.check(job, |start, run| units[start..start + run.len()].copy_from_slice(run))?;
        // In any order: the sum is the same bits.
        let mut sum = sum.lock().expect("no panic while locked");
        sum.sum
            .fold_parallel(&units, update.update.weight, threads)
            .map_err(|e| Unreadable::ForGood(format!("the update of {}: {e}", update.update.client)))?;
        within.into_iter().for_each(|bit| sum.within.fold(bit));
        Ok(())
    })?;
    Ok(sum.into_inner().expect("no panic while locked"))
}

/// Does something with each update, several at once. The first trouble ends it.
fn each(
    updates: &[Spooled],
    threads: usize,
    work: impl Fn(&Spooled) -> Result<(), Unreadable> + Sync,
) -> Result<(), Unreadable> {
    let (next, trouble) = (AtomicUsize::new(0), Mutex::new(None));
    let worker = || {
        while let Some(update) = updates.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(e) = work(update) {
                trouble.lock().expect("no panic while locked").get_or_insert(e);
                // Nobody else begins another.
                next.store(updates.len(), Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|threads_of| {
        for _ in 1..threads.min(updates.len()).max(1) {
            threads_of.spawn(worker);
        }
        worker();
    });
    trouble.into_inner().expect("no panic while locked").map_or(Ok(()), Err)
}

/// The spooled updates as a rule reads them.
struct SpoolRows<'a> {
    updates: &'a [Spooled],
    values: usize,
}

impl Rows for SpoolRows<'_> {
    fn rows(&self) -> usize {
        self.updates.len()
    }

    fn values(&self) -> usize {
        self.values
    }

    fn weight(&self, row: usize) -> u32 {
        self.updates[row].update.weight
    }

    fn read(&self, row: usize, from: usize, out: &mut [i32]) -> Result<(), RowsError> {
        self.updates[row]
            .read_at(from, out)
            .map_err(|e| RowsError { row, reason: format!("{}: {e}", self.updates[row].update.client) })
    }
}
