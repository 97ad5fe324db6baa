//! Connections in use.
//!
//! Transactions are begun and ended by hand, as in the store of one machine and for the same reason: a connection that is not
//! known to be outside a transaction is dropped, whatever the reason, and the server then undoes its work.

use super::fault;
use crate::error::StoreError;
use crate::sql;
use crate::sql::connection::{Server, Sql, in_time};
use async_trait::async_trait;
use sqlx::Postgres;
use sqlx::pool::PoolConnection;

/// A connection that reads. Dropped in the middle of an answer, it is closed.
pub(super) struct Reading<'p> {
    /// Taken out when it is dropped.
    connection: Option<PoolConnection<Postgres>>,
    in_the_middle: bool,
    at: &'p str,
}

impl<'p> Reading<'p> {
    pub(super) fn by(connection: PoolConnection<Postgres>, at: &'p str) -> Self {
        Self { connection: Some(connection), in_the_middle: false, at }
    }
}

impl sql::Read for Reading<'_> {
    fn sql(&mut self) -> Sql<'_> {
        let connection = self.connection.as_mut().expect("taken out only when it is dropped");
        Sql::postgres(Server { connection, in_the_middle: &mut self.in_the_middle }, self.at)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take_if(|_| self.in_the_middle) {
            drop(connection.detach());
        }
    }
}

/// A transaction that has begun. Dropped, it is undone.
pub(super) struct Work<'p> {
    /// Taken out when the transaction has ended well.
    connection: Option<PoolConnection<Postgres>>,
    in_the_middle: bool,
    at: &'p str,
}

impl<'p> Work<'p> {
    pub(super) async fn begin(connection: PoolConnection<Postgres>, at: &'p str) -> Result<Self, StoreError> {
        let mut work = Self { connection: Some(connection), in_the_middle: false, at };
        work.run("BEGIN").await.map_err(|e| fault(at, e))?;
        Ok(work)
    }

    fn server(&mut self) -> Server<'_> {
        let connection = self.connection.as_mut().expect("taken out only at the end, which takes the whole");
        Server { connection, in_the_middle: &mut self.in_the_middle }
    }

    async fn run(&mut self, statement: &'static str) -> Result<(), sqlx::Error> {
        let Server { connection, in_the_middle } = self.server();
        in_time(in_the_middle, sqlx::raw_sql(statement).execute(connection)).await.map(drop)
    }
}

#[async_trait]
impl sql::Write for Work<'_> {
    fn sql(&mut self) -> Sql<'_> {
        let at = self.at;
        Sql::postgres(self.server(), at)
    }

    async fn commit(mut self: Box<Self>) -> Result<(), StoreError> {
        match self.run("COMMIT").await {
            Ok(()) => drop(self.connection.take()),
            Err(e) if says_no(&e) => return Err(fault(self.at, e)),
            Err(e) => return Err(StoreError::Unsure { at: self.at.to_owned(), detail: e.to_string() }),
        }
        Ok(())
    }

    async fn undo(mut self: Box<Self>) {
        // One that has not answered would not answer to this either: it is closed.
        if !self.in_the_middle && self.run("ROLLBACK").await.is_ok() {
            drop(self.connection.take());
        }
    }
}

/// Whether this answer to a `COMMIT` says that nothing was made: a rule that was broken (class 23), a conflict (class 40). Any
/// other, such as that of a server that stops, may come after it was made.
fn says_no(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|e| e.code());
    code.is_some_and(|code| code.starts_with("23") || code.starts_with("40"))
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            // Closes its socket.
            drop(connection.detach());
        }
    }
}
