//! Storage that fails when a test says so, around a real one.

use bytes::Bytes;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::sync::watch;
use undertone_core::digest::Digest;
use undertone_core::id::{AttemptKey, ClientId, JobId};
use undertone_store::{
    BlobError, BlobWriter, Blobs, ClientRecord, CommitError, EnrolError, EnrolRequest, EventRecord,
    JobRecord, Lease, LedgerRow, LocalBlob, MemoryBlobs, MemoryStore, NewEvent, ReleaseRecord, Store,
    StoreError, TokenRecord, Transition, UploadRecord,
};

/// A store and blobs in memory that outlive coordinators, and the switches of their faults.
///
/// ```no_run
/// # use undertone_harness::{Deployment, FaultyStorage};
/// # async fn test() {
/// let storage = FaultyStorage::new();
/// let mut deployment = Deployment::start_on(&storage).await;
/// storage.fail_steps(true); // the disk is full: jobs stand still
/// storage.fail_steps(false); // and go on
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct FaultyStorage {
    store: Arc<MemoryStore>,
    blobs: Arc<MemoryBlobs>,
    faults: Arc<Faults>,
}

#[derive(Debug, Default)]
struct Faults {
    steps: AtomicBool,
    answers: AtomicU32,
    blob_writes: AtomicBool,
    blob_reads: AtomicBool,
    blob_commits: AtomicBool,
    panics: AtomicU32,
    /// Where writers of blobs stand and wait.
    held: watch::Sender<Option<HeldAt>>,
    /// What could not be kept.
    refused: Mutex<Vec<Digest>>,
    hits: AtomicU32,
    /// What was saved.
    saved: Mutex<Vec<Transition>>,
}

/// Where a disk is slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldAt {
    /// Before it takes bytes of a blob.
    Write,
    /// Before what it took is settled.
    Settle,
}

impl Default for FaultyStorage {
    fn default() -> Self {
        Self::new()
    }
}

impl FaultyStorage {
    /// Empty, and sound for now.
    pub fn new() -> Self {
        Self {
            store: Arc::new(MemoryStore::new()),
            blobs: Arc::new(MemoryBlobs::new()),
            faults: Arc::default(),
        }
    }

    /// From now on no step of a job can be saved (or can again).
    pub fn fail_steps(&self, on: bool) {
        self.faults.steps.store(on, Ordering::SeqCst);
    }

    /// The next `n` steps are saved and reported as failed.
    pub fn lose_answers(&self, n: u32) {
        self.faults.answers.store(n, Ordering::SeqCst);
    }

    /// From now on no blob can be written (or can again).
    pub fn fail_blob_writes(&self, on: bool) {
        self.faults.blob_writes.store(on, Ordering::SeqCst);
    }

    /// From now on no blob can be read (or can again).
    pub fn fail_blob_reads(&self, on: bool) {
        self.faults.blob_reads.store(on, Ordering::SeqCst);
    }

    /// From now on every blob is refused after its last byte (or is kept again).
    pub fn fail_blob_commits(&self, on: bool) {
        self.faults.blob_commits.store(on, Ordering::SeqCst);
    }

    /// From now on writers of blobs wait there (or go on): a slow disk.
    pub fn hold_blobs(&self, at: Option<HeldAt>) {
        self.faults.held.send_replace(at);
    }

    /// The digests of the blobs that were refused after their last byte.
    pub fn refused(&self) -> Vec<Digest> {
        self.faults.refused.lock().expect("no panic while locked").clone()
    }

    /// The next `n` steps panic.
    pub fn panic_at_steps(&self, n: u32) {
        self.faults.panics.store(n, Ordering::SeqCst);
    }

    /// How many calls were failed so far.
    pub fn hits(&self) -> u32 {
        self.faults.hits.load(Ordering::SeqCst)
    }

    /// All steps of jobs that were saved, in order.
    pub fn steps(&self) -> Vec<Transition> {
        self.faults.saved.lock().expect("no panic while locked").clone()
    }

    /// The store without its faults.
    pub fn store(&self) -> &MemoryStore {
        &self.store
    }

    /// The blobs without their faults.
    pub fn blobs(&self) -> &MemoryBlobs {
        &self.blobs
    }
}

impl Faults {
    fn hit(&self, switch: &AtomicBool) -> bool {
        let on = switch.load(Ordering::SeqCst);
        if on {
            self.hits.fetch_add(1, Ordering::SeqCst);
        }
        on
    }

    async fn wait(&self, at: HeldAt) {
        let mut held = self.held.subscribe();
        if *held.borrow_and_update() == Some(at) {
            self.hits.fetch_add(1, Ordering::SeqCst);
            let _ = held.wait_for(|held| *held != Some(at)).await;
        }
    }
}

fn disk() -> std::io::Error {
    std::io::Error::from(std::io::ErrorKind::StorageFull)
}

#[async_trait::async_trait]
impl Store for FaultyStorage {
    async fn create_token(&self, token: TokenRecord) -> Result<(), StoreError> {
        self.store.create_token(token).await
    }
    async fn list_tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        self.store.list_tokens().await
    }
    async fn delete_token(&self, id: &str) -> Result<bool, StoreError> {
        self.store.delete_token(id).await
    }
    async fn enrol(
        &self,
        secret: Digest,
        now: u64,
        request: EnrolRequest,
    ) -> Result<ClientRecord, EnrolError> {
        self.store.enrol(secret, now, request).await
    }
    async fn client(&self, id: &ClientId) -> Result<Option<ClientRecord>, StoreError> {
        self.store.client(id).await
    }
    async fn clients(&self) -> Result<Vec<ClientRecord>, StoreError> {
        self.store.clients().await
    }
    async fn touch_client(&self, id: &ClientId, now_unix_s: u64) -> Result<bool, StoreError> {
        self.store.touch_client(id, now_unix_s).await
    }
    async fn insert_job(&self, job: JobRecord, events: Vec<NewEvent>) -> Result<(), StoreError> {
        self.store.insert_job(job, events).await
    }
    async fn job(&self, id: &JobId) -> Result<Option<JobRecord>, StoreError> {
        self.store.job(id).await
    }
    async fn jobs(&self) -> Result<Vec<JobRecord>, StoreError> {
        self.store.jobs().await
    }
    async fn open_jobs(&self) -> Result<Vec<JobRecord>, StoreError> {
        self.store.open_jobs().await
    }
    async fn commit(&self, transition: Transition) -> Result<u64, CommitError> {
        let full = || CommitError::Store(StoreError::Full { at: "the test".into() });
        if self.faults.hit(&self.faults.steps) {
            return Err(full());
        }
        let panics =
            self.faults.panics.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if panics.is_ok() {
            self.faults.hits.fetch_add(1, Ordering::SeqCst);
            panic!("as the test asked");
        }
        let version = self.store.commit(transition.clone()).await?;
        self.faults.saved.lock().expect("no panic while locked").push(transition);
        let lost = self.faults.answers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if lost.is_ok() {
            self.faults.hits.fetch_add(1, Ordering::SeqCst);
            return Err(full());
        }
        Ok(version)
    }
    async fn events(&self, job: &JobId, after_seq: u64, limit: u32) -> Result<Vec<EventRecord>, StoreError> {
        self.store.events(job, after_seq, limit).await
    }
    async fn ledger(&self, after_seq: u64, limit: u32) -> Result<Vec<LedgerRow>, StoreError> {
        self.store.ledger(after_seq, limit).await
    }
    async fn uploads(&self, key: &AttemptKey) -> Result<Vec<UploadRecord>, StoreError> {
        self.store.uploads(key).await
    }
    async fn releases(&self, job: &JobId) -> Result<Vec<ReleaseRecord>, StoreError> {
        self.store.releases(job).await
    }
    async fn released_models(&self) -> Result<Vec<Digest>, StoreError> {
        self.store.released_models().await
    }
    async fn take_lease(&self, name: &str, holder: &str, ttl: Duration) -> Result<Lease, StoreError> {
        self.store.take_lease(name, holder, ttl).await
    }

    async fn renew_lease(&self, name: &str, lease: &Lease, ttl: Duration) -> Result<bool, StoreError> {
        self.store.renew_lease(name, lease, ttl).await
    }

    async fn end_lease(&self, name: &str, lease: &Lease) -> Result<(), StoreError> {
        self.store.end_lease(name, lease).await
    }

    /// The state outlives the coordinator, as a disk does.
    async fn close(&self) {}
}

#[async_trait::async_trait]
impl Blobs for FaultyStorage {
    async fn writer(&self) -> Result<Box<dyn BlobWriter>, BlobError> {
        if self.faults.hit(&self.faults.blob_writes) {
            return Err(BlobError::from(disk()));
        }
        let writer = self.blobs.writer().await?;
        Ok(Box::new(FaultyWriter { writer, faults: self.faults.clone() }))
    }
    async fn open(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> Result<Box<dyn AsyncRead + Send + Unpin>, BlobError> {
        if self.faults.hit(&self.faults.blob_reads) {
            return Err(BlobError::from(disk()));
        }
        self.blobs.open(digest, offset).await
    }
    async fn resume(
        &self,
        name: &str,
        sink: &mut (dyn for<'a> FnMut(&'a [u8]) + Send),
    ) -> Result<Box<dyn BlobWriter>, BlobError> {
        if self.faults.hit(&self.faults.blob_writes) {
            return Err(BlobError::from(disk()));
        }
        let writer = self.blobs.resume(name, sink).await?;
        Ok(Box::new(FaultyWriter { writer, faults: self.faults.clone() }))
    }
    async fn unfinished(&self) -> Result<Vec<(String, u64)>, BlobError> {
        self.blobs.unfinished().await
    }
    async fn written(&self, name: &str) -> Result<u64, BlobError> {
        self.blobs.written(name).await
    }
    async fn abandon(&self, name: &str) -> Result<(), BlobError> {
        self.blobs.abandon(name).await
    }
    async fn local(&self, digest: &Digest) -> Result<LocalBlob, BlobError> {
        if self.faults.hit(&self.faults.blob_reads) {
            return Err(BlobError::from(disk()));
        }
        self.blobs.local(digest).await
    }
    async fn len(&self, digest: &Digest) -> Result<u64, BlobError> {
        self.blobs.len(digest).await
    }
    async fn delete(&self, digest: &Digest) -> Result<(), BlobError> {
        self.blobs.delete(digest).await
    }
    async fn list(&self) -> Result<Vec<Digest>, BlobError> {
        self.blobs.list().await
    }
}

#[derive(Debug)]
struct FaultyWriter {
    writer: Box<dyn BlobWriter>,
    faults: Arc<Faults>,
}

#[async_trait::async_trait]
impl BlobWriter for FaultyWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<(), BlobError> {
        self.faults.wait(HeldAt::Write).await;
        self.writer.write(bytes).await
    }

    async fn settle(&mut self) -> Result<Digest, BlobError> {
        self.faults.wait(HeldAt::Settle).await;
        self.writer.settle().await
    }

    async fn commit(self: Box<Self>, expected: Option<Digest>) -> Result<(Digest, u64), BlobError> {
        if !self.faults.hit(&self.faults.blob_commits) {
            return self.writer.commit(expected).await;
        }
        // Kept for a moment, to learn its digest.
        let wrong = self.writer.commit(Some(Digest::of(b"none has this digest"))).await;
        if let Err(BlobError::Mismatch { found, .. }) = wrong {
            self.faults.refused.lock().expect("no panic while locked").push(found);
        }
        Err(BlobError::from(disk()))
    }
}
