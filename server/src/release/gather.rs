//! From spooled updates to one: the exact sum, block by block of the model as it is needed, or what a rule makes of updates
//! that it reads where they lie.
//!
//! Every update is held against its checksum or digest before anything that was made of it is kept: a rotten file must not enter a
//! model. Memory of a sum: some blocks for each thread, whatever the model's size and however many updates; of a rule: what
//! it says. Never all updates.

use super::partial::Partial;
use super::{BLOCK, Trouble, blocks};
use crate::spool::{Reading, Spooled};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use undertone_core::aggregate::IntegerSum;
use undertone_core::rules::rescale::NumberSum;
use undertone_core::rules::{Aggregate, Rows, RowsError, Tiling};
use undertone_privacy::adaptive_clip::CountSum;
use undertone_privacy::release::Whole;
use undertone_round::coordinator::Update;
use undertone_round::job::Job;

/// What a job's rule makes of the updates. Work for several cores: not for an async thread.
pub(super) fn robust(
    job: &Job,
    updates: &[Spooled],
    threads: usize,
    centre: Option<&[f64]>,
) -> Result<Aggregate, Trouble> {
    // Read twice or more: first to know that the files are whole.
    each(updates, threads, |update| update.verify())?;
    let rows = SpoolRows { updates, values: job.part().len(), disk_failed: AtomicBool::new(false) };
    let tiling = Tiling::new(threads, updates.len());
    let aggregate = job.spec().aggregation.rule.aggregate(&rows, job.grid(), tiling, centre);
    aggregate.map_err(|e| {
        let text = format!("the aggregation rule: {e}");
        if rows.disk_failed.load(Ordering::Relaxed) { Trouble::Now(text) } else { Trouble::failed(text) }
    })
}

/// Does something with each update, several at once. The first trouble ends it.
fn each(
    updates: &[Spooled],
    threads: usize,
    work: impl Fn(&Spooled) -> Result<(), Trouble> + Sync,
) -> Result<(), Trouble> {
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

/// The sum of a job's updates as it is known before a value was read.
pub(super) fn whole(job: &Job, updates: &[Update]) -> Whole {
    Whole {
        grid: job.grid(),
        values: job.part().len(),
        updates: updates.len() as u32,
        total_weight: updates.iter().map(|update| u64::from(update.weight)).sum(),
    }
}

/// Sums that are waited for, of each reader.
const AHEAD: usize = 2;

/// Sums the updates, and what others summed, while `take` takes the sum from it block by block. The readers are ahead of it by some
/// blocks, each with its share of the updates.
pub(super) fn sum<T>(
    job: &Job,
    updates: &[Spooled],
    partial: &[Partial],
    threads: usize,
    take: impl FnOnce(Summed<'_>) -> Result<T, Trouble>,
) -> Result<T, Trouble> {
    let readers = threads.min(updates.len());
    let mut shares: Vec<Vec<Reading<'_>>> = (0..readers).map(|_| vec![]).collect();
    let (mut within, mut numbers) = (CountSum::default(), NumberSum::default());
    for (i, update) in updates.iter().enumerate() {
        let reading = Reading::new(update, job)?;
        let said = reading.said();
        said.within.into_iter().for_each(|bit| within.fold(bit));
        if let Some(rescaling) = job.rescaling() {
            let missing =
                || Trouble::failed(format!("the update of {} has no number beside it", update.update.client));
            numbers.fold(rescaling, said.number.ok_or_else(missing)?, update.update.weight);
        }
        shares[i % readers].push(reading);
    }
    for sum in partial {
        let (of_sum, numbers_of_sum) = sum.said();
        within.merge(of_sum);
        numbers.merge(numbers_of_sum);
    }
    std::thread::scope(|scope| {
        let parts = shares.into_iter().map(|share| {
            let (sender, receiver) = sync_channel(AHEAD);
            scope.spawn(move || {
                if let Err(e) = read(job, share, &sender) {
                    // Whoever took what came before has ended already.
                    let _ = sender.send(Part::Trouble(e));
                }
            });
            receiver
        });
        let partial = partial.iter().map(|sum| {
            let (sender, receiver) = sync_channel(AHEAD);
            scope.spawn(move || {
                if let Err(e) = sum.read(job, &sender) {
                    let _ = sender.send(Part::Trouble(e));
                }
            });
            receiver
        });
        take(Summed { job, within, numbers, parts: parts.chain(partial).collect() })
    })
}

/// What a reader has to say.
pub(super) enum Part {
    Sum(IntegerSum),
    /// All that the reader read was what it should be.
    Whole,
    Trouble(Trouble),
}

fn read(job: &Job, mut updates: Vec<Reading<'_>>, out: &SyncSender<Part>) -> Result<(), Trouble> {
    let mut units = vec![0; BLOCK.min(job.part().len())];
    let mut bytes = vec![];
    for block in blocks(job.part().len()) {
        let units = &mut units[..block.len()];
        let mut sum = IntegerSum::zero(job.grid(), block.len());
        for reading in &mut updates {
            let update = &reading.of().update;
            reading.block(block.clone(), units, &mut bytes)?;
            sum.fold(units, update.weight)
                .map_err(|e| Trouble::failed(format!("the update of {}: {e}", update.client)))?;
        }
        if out.send(Part::Sum(sum)).is_err() {
            return Ok(());
        }
    }
    updates.into_iter().try_for_each(Reading::finish)?;
    let _ = out.send(Part::Whole);
    Ok(())
}

/// The sum of the updates, on its way.
pub(super) struct Summed<'a> {
    job: &'a Job,
    /// How many of them were within the clip norm, where clients say so.
    pub(super) within: CountSum,
    /// The sum of what stands beside them, where the job rescales updates.
    pub(super) numbers: NumberSum,
    parts: Vec<Receiver<Part>>,
}

impl Summed<'_> {
    /// The sum over the next block, of so many values. Not to be believed before [`finish`](Self::finish).
    pub(super) fn block(&mut self, values: usize) -> Result<IntegerSum, Trouble> {
        let mut all: Option<IntegerSum> = None;
        for part in &self.parts {
            match (next(part)?, &mut all) {
                (Part::Sum(sum), None) => all = Some(sum),
                (Part::Sum(sum), Some(all)) => {
                    all.merge(&sum).map_err(|e| Trouble::failed(e.to_string()))?;
                }
                (Part::Whole, _) => return Err(Trouble::failed("a reader of updates ended too soon".into())),
                (Part::Trouble(e), _) => return Err(e),
            }
        }
        Ok(all.unwrap_or_else(|| IntegerSum::zero(self.job.grid(), values)))
    }

    /// Whether every update was what it should be.
    pub(super) fn finish(self) -> Result<(), Trouble> {
        for part in &self.parts {
            match next(part)? {
                Part::Whole => {}
                Part::Sum(_) => return Err(Trouble::failed("a reader of updates did not end".into())),
                Part::Trouble(e) => return Err(e),
            }
        }
        Ok(())
    }
}

fn next(part: &Receiver<Part>) -> Result<Part, Trouble> {
    part.recv().map_err(|_| Trouble::failed("a reader of updates broke".into()))
}

/// The spooled updates as a rule reads them.
struct SpoolRows<'a> {
    updates: &'a [Spooled],
    values: usize,
    /// Whether the disk failed: it may be mended, where a file that is too short is not.
    disk_failed: AtomicBool,
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
        self.updates[row].read_at(from, out).map_err(|e| {
            self.disk_failed.fetch_or(e.kind() != std::io::ErrorKind::UnexpectedEof, Ordering::Relaxed);
            RowsError { row, reason: format!("{}: {e}", self.updates[row].update.client) }
        })
    }
}
