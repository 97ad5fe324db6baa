//! The store and the blobs, which are the product's own in memory; and the ways to them, which fail.

use crate::faults::Fault;
use crate::mutant::Mutant;
use crate::release::first_model;
use crate::scenario::SimJob;
use crate::world::{Event, World};
use bytes::Bytes;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use undertone_core::digest::Digest;
use undertone_round::coordinator::{JobState, ModelRef};
use undertone_store::{
    Blobs as _, CommitError, JobRecord, MemoryBlobs, MemoryStore, Store as _, StoreError, Transition,
};

/// What survives every process.
pub(crate) struct Storage {
    pub(crate) store: MemoryStore,
    pub(crate) blobs: MemoryBlobs,
    time_ms: Arc<AtomicU64>,
}

/// A write on its way to the database, whose sender is dead.
pub(crate) struct LateWrite {
    r: usize,
    store: Arc<MemoryStore>,
    lease: Option<u64>,
    step: Transition,
}

/// Polls what waits for nothing: everything in memory is ready at once.
pub(crate) fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("nothing in memory waits"),
    }
}

fn away() -> StoreError {
    StoreError::Unreachable { at: "the simulated store".into(), detail: "a fault".into() }
}

fn unsure() -> StoreError {
    StoreError::Unsure { at: "the simulated store".into(), detail: "a fault".into() }
}

impl Storage {
    pub(crate) fn new() -> Self {
        let time_ms = Arc::<AtomicU64>::default();
        let clock = Arc::clone(&time_ms);
        let store = MemoryStore::with_clock(move || Duration::from_millis(clock.load(Ordering::Relaxed)));
        Self { store, blobs: MemoryBlobs::new(), time_ms }
    }

    /// The database's own clock.
    pub(crate) fn set_time(&self, now_ms: u64) {
        self.time_ms.store(now_ms, Ordering::Relaxed);
    }

    /// The virtual time.
    pub(crate) fn now_ms(&self) -> u64 {
        self.time_ms.load(Ordering::Relaxed)
    }

    /// Keeps a blob.
    pub(crate) fn put(&self, bytes: Vec<u8>) -> ModelRef {
        let put = ready(self.blobs.put(Bytes::from(bytes)));
        let (digest, bytes) = put.expect("memory takes everything");
        ModelRef { digest, bytes }
    }

    /// The bytes of a blob.
    pub(crate) fn get(&self, digest: &Digest) -> Option<Vec<u8>> {
        ready(self.blobs.get(digest, 1 << 20)).ok()
    }

    pub(crate) fn has(&self, digest: &Digest) -> bool {
        ready(self.blobs.len(digest)).is_ok()
    }

    /// All blobs, in order.
    pub(crate) fn list(&self) -> Vec<Digest> {
        let mut all = ready(self.blobs.list()).expect("memory can be listed");
        all.sort();
        all
    }

    /// Takes a job in, as a coordinator does when an operator submits it.
    pub(crate) fn submit(&self, job: &SimJob, now_ms: u64) {
        let state = JobState::new(self.put(first_model(&job.job)), now_ms);
        let record = JobRecord {
            id: job.id.clone(),
            document: String::from_utf8(job.job.spec().to_document()).expect("JSON is UTF-8"),
            document_digest: job.job.digest(),
            version: JobRecord::FIRST_VERSION,
            status: state.status().to_owned(),
            ended: false,
            state: serde_json::to_string(&state).expect("plain data"),
            created_unix_s: now_ms / 1000,
        };
        ready(self.store.insert_job(record, vec![])).expect("a new job");
    }
}

impl World {
    /// Whether the store answers a coordinator's question just now.
    pub(crate) fn store_answers(&mut self, r: usize) -> bool {
        self.replicas[r].store_away_until_ms <= self.queue.now_ms() && !self.strikes(Fault::StoreUnreachable)
    }

    /// One step of a job, through a coordinator's own handle and its fence.
    pub(crate) fn commit(&mut self, r: usize, step: Transition) -> Result<u64, CommitError> {
        if !self.store_answers(r) {
            return Err(away().into());
        }
        let Some(process) = &self.replicas[r].process else { return Err(away().into()) };
        let (store, lease) = (Arc::clone(&process.store), process.lease.as_ref().map(|lease| lease.number));
        if self.strikes(Fault::UnsureNotDone) {
            return Err(unsure().into());
        }
        let done = self.write(r, &store, lease, step);
        if done.is_ok() && self.strikes(Fault::UnsureDone) {
            return Err(unsure().into());
        }
        done
    }

    /// Has a step arrive at the database some time after its coordinator died.
    pub(crate) fn send_late(&mut self, r: usize, step: Transition) {
        let Some(process) = &self.replicas[r].process else { return };
        let lease = process.lease.as_ref().map(|lease| lease.number);
        let write = LateWrite { r, store: Arc::clone(&process.store), lease, step };
        let after = self.chance.between(1, 15_000);
        self.queue.after(after, Event::LateWrite(Box::new(write)));
    }

    pub(crate) fn write_late(&mut self, write: LateWrite) {
        let LateWrite { r, store, lease, step } = write;
        let done = self.write(r, &store, lease, step);
        self.note(format!("a write of a dead replica {r} arrives: {}", outcome(&done)));
        self.coverage.note(if done.is_ok() {
            "late writes that were made"
        } else {
            "late writes that were refused"
        });
    }

    fn write(
        &mut self,
        r: usize,
        store: &MemoryStore,
        lease: Option<u64>,
        step: Transition,
    ) -> Result<u64, CommitError> {
        let done = ready(store.commit(step.clone()));
        match &done {
            Ok(_) => self.watch.committed(&self.storage, r, lease, &step),
            Err(CommitError::Store(StoreError::Fenced { .. })) => {
                self.coverage.note("writes stopped by the fence")
            }
            Err(CommitError::Conflict { .. }) => self.coverage.note("writes stopped by the version"),
            Err(_) => {}
        }
        done
    }

    /// Deletes blobs, while the coordinator has its lease. What cannot be deleted now is swept at the next start.
    pub(crate) fn delete(&mut self, r: usize, gone: impl IntoIterator<Item = Digest>) {
        for digest in gone {
            if !self.store_answers(r) || self.strikes(Fault::BlobUndeletable) {
                continue;
            }
            let Some(process) = &self.replicas[r].process else { return };
            let blobs = &self.storage.blobs;
            let delete = || ready(blobs.delete(&digest)).is_ok();
            let done = match self.mutant {
                Some(Mutant::DeletesUnguarded) => Ok(delete()),
                _ => process.store.guarded(delete),
            };
            self.watch.blobs_changed();
            match done {
                Ok(_) => self.note(format!("replica {r} deletes {}", digest.short())),
                Err(_) => self.coverage.note("deletions stopped by the fence"),
            }
        }
    }
}

/// What came of a write, in a word.
pub(crate) fn outcome(done: &Result<u64, CommitError>) -> String {
    match done {
        Ok(version) => format!("version {version}"),
        Err(e) => e.to_string(),
    }
}
