//! The one connection that writes.
//!
//! Transactions are begun and ended by hand. The pool's own transaction type keeps count of what it began, and
//! SQLite may end a transaction by itself when the disk is full: the count is then wrong for ever, and with it
//! the only connection. Here a connection that is not known to be outside a transaction is dropped, whatever
//! the reason (a fault, a caller that went away in mid-statement); SQLite then undoes its work, and the next
//! write opens another.

use super::fault;
use crate::error::StoreError;
use crate::sql;
use crate::sql::connection::Sql;
use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{Mutex, MutexGuard};

/// Hands out the writing connection, in order of asking.
#[derive(Debug)]
pub(super) struct Writer {
    options: SqliteConnectOptions,
    at: String,
    closed: AtomicBool,
    /// The connection while nobody writes and the last one left it in order.
    idle: Mutex<Option<SqliteConnection>>,
}

/// A transaction that has begun. Dropped, it is undone.
pub(super) struct Write<'w> {
    connection: SqliteConnection,
    at: &'w str,
    idle: MutexGuard<'w, Option<SqliteConnection>>,
}

impl Writer {
    pub(super) fn new(options: SqliteConnectOptions, at: &str) -> Self {
        Self { options, at: at.to_owned(), closed: AtomicBool::new(false), idle: Mutex::new(None) }
    }

    /// Begins a transaction that may write from its first statement on, so that what it reads stays true.
    pub(super) async fn begin(&self) -> Result<Write<'_>, StoreError> {
        let mut idle = self.idle.lock().await;
        if self.closed.load(Ordering::Acquire) {
            return Err(StoreError::Closed { at: self.at.clone() });
        }
        let mut connection = match idle.take() {
            Some(connection) => connection,
            None => self.options.connect().await.map_err(|e| fault(&self.at, e))?,
        };
        let begun = sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut connection).await;
        begun.map_err(|e| fault(&self.at, e))?;
        Ok(Write { connection, at: &self.at, idle })
    }

    pub(super) async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        if let Some(connection) = self.idle.lock().await.take()
            && let Err(error) = connection.close().await
        {
            tracing::warn!(at = self.at, %error, "the database did not close well; nothing saved is lost");
        }
    }
}

impl Write<'_> {
    /// Ends the transaction and gives the connection back.
    async fn end(mut self, how: &'static str) -> Result<(), StoreError> {
        sqlx::raw_sql(how).execute(&mut self.connection).await.map_err(|e| fault(self.at, e))?;
        *self.idle = Some(self.connection);
        Ok(())
    }
}

#[async_trait]
impl sql::Write for Write<'_> {
    fn sql(&mut self) -> Sql<'_> {
        Sql::sqlite(&mut self.connection, self.at)
    }

    async fn commit(self: Box<Self>) -> Result<(), StoreError> {
        self.end("COMMIT").await
    }

    async fn undo(self: Box<Self>) {
        // If it fails, the fault that the work met has ended the transaction already.
        let _ = self.end("ROLLBACK").await;
    }
}
