//! The state of one machine, in one SQLite file.
//!
//! One connection writes, one transaction at a time ([`writer`]); a few others read ([`reader`]) what is
//! committed, without waiting for it. WAL mode lets them.

mod connection;
mod identity;
mod jobs;
mod reader;
mod schema;
#[cfg(test)]
mod tests;
mod writer;

use crate::durability::Durability;
use crate::error::{CommitError, EnrolError, StoreError};
use crate::records::{
    ClientRecord, EnrolRequest, EventRecord, JobRecord, LedgerRow, NewEvent, ReleaseRecord, TokenRecord,
    Transition, UploadRecord,
};
use crate::rules;
use crate::store::Store;
use async_trait::async_trait;
use reader::Reader;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use std::path::Path;
use std::time::Duration;
use undertone_core::digest::Digest;
use undertone_core::id::{AttemptKey, ClientId, JobId};
use writer::Writer;

/// How long to wait for another program that uses the file, before [`StoreError::Busy`].
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// What is left of the write-ahead log after a burst.
const WAL_BYTES_KEPT: &str = "67108864";

/// A [`Store`] in an SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    writer: Writer,
    reader: Reader,
}

impl SqliteStore {
    /// Opens the store in the file at `path`, making the file (readable by this user only) or bringing its
    /// schema up to date if need be. The folder must exist.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be opened, is damaged, belongs to another program or to a newer one.
    pub async fn open(path: &Path, durability: Durability) -> Result<Self, StoreError> {
        let at = path.display().to_string();
        connection::prepare_file(path, &at)?;
        let base = SqliteConnectOptions::new().filename(path).busy_timeout(BUSY_TIMEOUT);
        let options = base.clone().journal_mode(SqliteJournalMode::Wal);
        let options = match durability {
            // The two other pragmas ask macOS for what fsync means elsewhere.
            Durability::Disk => options
                .synchronous(SqliteSynchronous::Full)
                .pragma("fullfsync", "ON")
                .pragma("checkpoint_fullfsync", "ON"),
            Durability::Process => options.synchronous(SqliteSynchronous::Normal),
        };
        let writer = Writer::new(options.pragma("journal_size_limit", WAL_BYTES_KEPT), &at);
        // The writer comes first: it repairs what a crash left, which a reader may not.
        schema::migrate(&writer).await?;
        Ok(Self { writer, reader: Reader::new(base.read_only(true), &at) })
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn create_token(&self, token: TokenRecord) -> Result<(), StoreError> {
        rules::check_token(&token)?;
        let mut write = self.writer.begin().await?;
        let outcome = identity::create_token(&mut write.sql(), token).await;
        write.finish(outcome).await
    }

    async fn list_tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        identity::tokens(&mut self.reader.get().await?.sql()).await
    }

    async fn delete_token(&self, id: &str) -> Result<bool, StoreError> {
        let mut write = self.writer.begin().await?;
        let outcome = identity::delete_token(&mut write.sql(), id).await;
        write.finish(outcome).await
    }

    async fn enrol(
        &self,
        secret_digest: Digest,
        now_unix_s: u64,
        request: EnrolRequest,
    ) -> Result<ClientRecord, EnrolError> {
        let mut write = self.writer.begin().await?;
        let outcome = identity::enrol(&mut write.sql(), secret_digest, now_unix_s, request).await;
        write.finish(outcome).await
    }

    async fn client(&self, id: &ClientId) -> Result<Option<ClientRecord>, StoreError> {
        identity::client(&mut self.reader.get().await?.sql(), id).await
    }

    async fn clients(&self) -> Result<Vec<ClientRecord>, StoreError> {
        identity::clients(&mut self.reader.get().await?.sql()).await
    }

    async fn touch_client(&self, id: &ClientId, now_unix_s: u64) -> Result<bool, StoreError> {
        StoreError::check_number("the time", now_unix_s)?;
        let mut write = self.writer.begin().await?;
        let outcome = identity::touch(&mut write.sql(), id, now_unix_s).await;
        write.finish(outcome).await
    }

    async fn insert_job(&self, job: JobRecord, events: Vec<NewEvent>) -> Result<(), StoreError> {
        rules::check_job(&job, &events)?;
        let mut write = self.writer.begin().await?;
        let outcome = jobs::insert(&mut write.sql(), job, &events).await;
        write.finish(outcome).await
    }

    async fn job(&self, id: &JobId) -> Result<Option<JobRecord>, StoreError> {
        jobs::job(&mut self.reader.get().await?.sql(), id).await
    }

    async fn jobs(&self) -> Result<Vec<JobRecord>, StoreError> {
        jobs::jobs(&mut self.reader.get().await?.sql()).await
    }

    async fn open_jobs(&self) -> Result<Vec<JobRecord>, StoreError> {
        jobs::open_jobs(&mut self.reader.get().await?.sql()).await
    }

    async fn commit(&self, transition: Transition) -> Result<u64, CommitError> {
        rules::check_transition(&transition)?;
        let mut write = self.writer.begin().await?;
        let outcome = jobs::step(&mut write.sql(), transition).await;
        write.finish(outcome).await
    }

    async fn events(&self, job: &JobId, after_seq: u64, limit: u32) -> Result<Vec<EventRecord>, StoreError> {
        jobs::events(&mut self.reader.get().await?.sql(), job, after_seq, limit).await
    }

    async fn ledger(&self, after_seq: u64, limit: u32) -> Result<Vec<LedgerRow>, StoreError> {
        jobs::ledger(&mut self.reader.get().await?.sql(), after_seq, limit).await
    }

    async fn uploads(&self, key: &AttemptKey) -> Result<Vec<UploadRecord>, StoreError> {
        jobs::uploads(&mut self.reader.get().await?.sql(), key).await
    }

    async fn upload(&self, key: &AttemptKey, client: &ClientId) -> Result<Option<UploadRecord>, StoreError> {
        jobs::upload(&mut self.reader.get().await?.sql(), key, client).await
    }

    async fn releases(&self, job: &JobId) -> Result<Vec<ReleaseRecord>, StoreError> {
        jobs::releases(&mut self.reader.get().await?.sql(), job).await
    }

    async fn released_models(&self) -> Result<Vec<Digest>, StoreError> {
        jobs::released_models(&mut self.reader.get().await?.sql()).await
    }

    async fn close(&self) {
        // The writer last: the last one out folds the log into the file.
        self.reader.close().await;
        self.writer.close().await;
    }
}
