//! The state of one machine, in one SQLite file.
//!
//! One connection writes, one transaction at a time ([`writer`]); a few others read ([`reader`]) what is
//! committed, without waiting for it. WAL mode lets them.

mod copy;
mod file;
mod look;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use crate::durability::Durability;
use crate::error::StoreError;
use crate::postgres::Listener;
use crate::sql::schema::{self, Schema};
use crate::sql::{self, Engine, Read, SqlStore, Write};
use async_trait::async_trait;
use reader::Reader;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use std::path::Path;
use std::time::Duration;
use writer::Writer;

/// How long to wait for another program that uses the file, before [`StoreError::Busy`].
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// What is left of the write-ahead log after a burst.
const WAL_BYTES_KEPT: &str = "67108864";

const SCHEMA: Schema = Schema {
    tables: "SELECT name FROM sqlite_schema",
    versions: "CREATE TABLE schema_versions (number INTEGER NOT NULL PRIMARY KEY, digest TEXT NOT NULL) STRICT",
    migrations: &[
        include_str!("../migrations/sqlite/0001_start.sql"),
        include_str!("../migrations/sqlite/0002_ended.sql"),
        include_str!("../migrations/sqlite/0003_ledger_chain.sql"),
        include_str!("../migrations/sqlite/0004_claims.sql"),
        include_str!("../migrations/sqlite/0005_leases.sql"),
    ],
};

/// An SQLite file in use.
#[derive(Debug)]
struct Sqlite {
    writer: Writer,
    reader: Reader,
    at: String,
}

impl SqlStore {
    /// Opens the store in the SQLite file at `path`, making the file (readable by this user only) or bringing its
    /// schema up to date if need be. The folder must exist.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be opened, is damaged, belongs to another program or to a newer one.
    pub async fn sqlite(path: &Path, durability: Durability) -> Result<Self, StoreError> {
        let at = path.display().to_string();
        file::prepare(path, &at)?;
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
        let mut write = writer.begin().await?;
        let outcome = schema::migrate(&mut write.sql(), &SCHEMA).await;
        sql::finish(Box::new(write), outcome).await?;
        let reader = Reader::new(base.read_only(true), &at);
        Ok(Self::over(Sqlite { writer, reader, at }))
    }
}

#[async_trait]
impl Engine for Sqlite {
    async fn read(&self) -> Result<Box<dyn Read + '_>, StoreError> {
        Ok(Box::new(self.reader.get().await?))
    }

    async fn write(&self) -> Result<Box<dyn Write + '_>, StoreError> {
        Ok(Box::new(self.writer.begin().await?))
    }

    async fn listen(&self) -> Result<Listener, StoreError> {
        let detail = "one file is for one program; several share a PostgreSQL database".to_owned();
        Err(StoreError::NotOpened { at: self.at.clone(), detail })
    }

    async fn close(&self) {
        // The writer last: the last one out folds the log into the file.
        self.reader.close().await;
        self.writer.close().await;
    }
}

/// What an error of the database means. Codes: <https://www.sqlite.org/rescode.html>.
pub(crate) fn fault(at: &str, error: sqlx::Error) -> StoreError {
    let at = at.to_owned();
    let detail = match &error {
        sqlx::Error::Database(e) => e.message().to_owned(),
        other => other.to_string(),
    };
    match &error {
        sqlx::Error::Database(e) => {
            let code = e.code().and_then(|code| code.parse::<u32>().ok());
            match code.map(|extended| extended & 0xff) {
                Some(3 | 8) => StoreError::NotWritable { at, detail },
                Some(5 | 6) => StoreError::Busy { at, detail },
                Some(11 | 26) => StoreError::Damaged { at, detail },
                Some(13) => StoreError::Full { at },
                Some(14) => StoreError::NotOpened { at, detail },
                _ => StoreError::Failed { at, source: error.into() },
            }
        }
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => StoreError::Damaged { at, detail },
        sqlx::Error::PoolTimedOut => StoreError::Busy { at, detail },
        sqlx::Error::PoolClosed => StoreError::Closed { at },
        _ => StoreError::Failed { at, source: error.into() },
    }
}
