//! The connections that read. They see what is committed, and cannot write.

use super::fault;
use crate::error::StoreError;
use crate::sql;
use crate::sql::connection::Sql;
use sqlx::Sqlite;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};
use std::time::Duration;

/// Reads at the same time; more wait.
const CONNECTIONS: u32 = 4;
/// How long a read waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);

/// Hands out reading connections.
#[derive(Debug)]
pub(super) struct Reader {
    pool: SqlitePool,
    at: String,
}

/// A reading connection in use.
pub(super) struct Read<'r> {
    connection: PoolConnection<Sqlite>,
    at: &'r str,
}

impl Reader {
    pub(super) fn new(options: SqliteConnectOptions, at: &str) -> Self {
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .max_lifetime(None)
            .connect_lazy_with(options);
        Self { pool, at: at.to_owned() }
    }

    pub(super) async fn get(&self) -> Result<Read<'_>, StoreError> {
        let connection = self.pool.acquire().await.map_err(|e| fault(&self.at, e))?;
        Ok(Read { connection, at: &self.at })
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }
}

impl sql::Read for Read<'_> {
    fn sql(&mut self) -> Sql<'_> {
        Sql::sqlite(&mut self.connection, self.at)
    }
}
