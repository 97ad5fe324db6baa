//! A connection in use: runs statements, decodes rows, and says in our words what went wrong.
//!
//! What goes in and comes out is a whole number or a text, of either database: statements are written for both.

use crate::error::StoreError;
use crate::fleet::Note;
use crate::{postgres, sqlite};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Executor as _, Row as _};
use std::borrow::Cow;
use std::fmt::Display;
use std::str::FromStr;

/// A connection, borrowed for some statements.
pub(crate) struct Sql<'c> {
    raw: Raw<'c>,
    /// The database, for errors.
    at: &'c str,
}

/// A connection of PostgreSQL, and whether a statement on it has not come to its end: such a one is of no use to anybody else.
pub(crate) struct Server<'c> {
    pub(crate) connection: &'c mut PgConnection,
    pub(crate) in_the_middle: &'c mut bool,
}

/// Which database it is.
enum Raw<'c> {
    Sqlite(&'c mut SqliteConnection),
    Postgres(Server<'c>),
}

/// A statement with its values, for the places `$1`, `$2` and so on.
pub(crate) struct Statement<'q> {
    text: &'static str,
    /// What follows.
    rest: &'static str,
    lock: Lock,
    values: Vec<Value<'q>>,
}

/// What becomes of the rows that a `SELECT` finds, until the transaction ends. Transactions of SQLite are alone in any case.
#[derive(Clone, Copy)]
enum Lock {
    None,
    /// Nobody else changes them, or shares them.
    Alone,
    /// Nobody takes them alone. (Who changes anything but their key may.)
    Shared,
    /// As [`Lock::Alone`], of those that nobody else has.
    Free,
}

/// A value, or the absence of one: databases want to know what is absent.
pub(crate) enum Value<'q> {
    Int(Option<i64>),
    Text(Option<Cow<'q, str>>),
}

/// A row of a result.
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

/// A statement without values yet.
pub(crate) fn statement<'q>(text: &'static str) -> Statement<'q> {
    Statement { text, rest: "", lock: Lock::None, values: Vec::new() }
}

impl<'q> Statement<'q> {
    /// What follows the text.
    pub(crate) fn and(self, rest: &'static str) -> Self {
        Self { rest, ..self }
    }

    /// Adds the next value.
    pub(crate) fn bind(mut self, value: impl Into<Value<'q>>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Has a `SELECT` take the rows that it finds for this transaction alone.
    pub(crate) fn locking(self) -> Self {
        Self { lock: Lock::Alone, ..self }
    }

    /// As [`locking`](Self::locking), and has it pass over rows that another transaction has.
    pub(crate) fn skipping(self) -> Self {
        Self { lock: Lock::Free, ..self }
    }

    /// Has a `SELECT` hold off whoever wants the rows alone.
    pub(crate) fn sharing(self) -> Self {
        Self { lock: Lock::Shared, ..self }
    }
}

/// The statement as sqlx has it, of the database that the caller's types say.
macro_rules! query {
    ($statement:expr) => {{
        let statement = $statement;
        let locks = match statement.lock {
            Lock::None => "",
            Lock::Alone => " FOR UPDATE",
            Lock::Shared => " FOR KEY SHARE",
            Lock::Free => " FOR UPDATE SKIP LOCKED",
        };
        // All of it is in this program's text: values come beside it.
        let text = AssertSqlSafe(format!("{} {}{locks}", statement.text, statement.rest));
        statement.values.into_iter().fold(sqlx::query(text), |query, value| match value {
            Value::Int(value) => query.bind(value),
            Value::Text(value) => query.bind(value),
        })
    }};
}

impl<'c> Sql<'c> {
    pub(crate) fn sqlite(raw: &'c mut SqliteConnection, at: &'c str) -> Self {
        Self { raw: Raw::Sqlite(raw), at }
    }

    pub(crate) fn postgres(server: Server<'c>, at: &'c str) -> Self {
        Self { raw: Raw::Postgres(server), at }
    }

    /// What the database at hand understands, where the two differ.
    pub(super) fn pick(&self, sqlite: &'static str, postgres: &'static str) -> &'static str {
        match self.raw {
            Raw::Sqlite(_) => sqlite,
            Raw::Postgres(_) => postgres,
        }
    }

    /// The database, for errors.
    pub(crate) fn at(&self) -> &str {
        self.at
    }

    /// Runs a statement; returns how many rows it changed.
    pub(crate) async fn execute(&mut self, statement: Statement<'_>) -> Result<u64, StoreError> {
        let done = match &mut self.raw {
            Raw::Sqlite(raw) => {
                query!(without_locks(statement)).execute(&mut **raw).await.map(|done| done.rows_affected())
            }
            Raw::Postgres(Server { connection, in_the_middle }) => {
                let done = in_time(in_the_middle, query!(statement).execute(&mut **connection)).await;
                done.map(|done| done.rows_affected())
            }
        };
        done.map_err(|e| self.fault(e))
    }

    /// Runs a text of several statements.
    pub(crate) async fn batch(&mut self, text: &'static str) -> Result<(), StoreError> {
        let done = match &mut self.raw {
            Raw::Sqlite(raw) => raw.execute(sqlx::raw_sql(text)).await.map(drop),
            Raw::Postgres(Server { connection, in_the_middle }) => {
                in_time(in_the_middle, connection.execute(sqlx::raw_sql(text))).await.map(drop)
            }
        };
        done.map_err(|e| self.fault(e))
    }

    /// The first row of the result, decoded.
    pub(crate) async fn first<T>(
        &mut self,
        statement: Statement<'_>,
        decode: fn(&Row) -> sqlx::Result<T>,
    ) -> Result<Option<T>, StoreError> {
        let row = match &mut self.raw {
            Raw::Sqlite(raw) => {
                query!(without_locks(statement)).fetch_optional(&mut **raw).await.map(|r| r.map(Row::Sqlite))
            }
            Raw::Postgres(Server { connection, in_the_middle }) => {
                let row = query!(statement).fetch_optional(&mut **connection);
                let row = in_time(in_the_middle, row).await;
                row.map(|row| row.map(Row::Postgres))
            }
        };
        let row = row.map_err(|e| self.fault(e))?;
        row.map(|row| decode(&row)).transpose().map_err(|e| self.fault(e))
    }

    /// All rows of the result, decoded.
    pub(crate) async fn all<T>(
        &mut self,
        statement: Statement<'_>,
        decode: fn(&Row) -> sqlx::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let rows: sqlx::Result<Vec<Row>> = match &mut self.raw {
            Raw::Sqlite(raw) => {
                let rows = query!(without_locks(statement)).fetch_all(&mut **raw).await;
                rows.map(|rows| rows.into_iter().map(Row::Sqlite).collect())
            }
            Raw::Postgres(Server { connection, in_the_middle }) => {
                let rows = query!(statement).fetch_all(&mut **connection);
                let rows = in_time(in_the_middle, rows).await;
                rows.map(|rows| rows.into_iter().map(Row::Postgres).collect())
            }
        };
        let rows = rows.map_err(|e| self.fault(e))?;
        rows.iter().map(decode).collect::<sqlx::Result<_>>().map_err(|e| self.fault(e))
    }

    /// Tells whoever listens, when the transaction is committed. Of one file nobody else is told.
    pub(super) async fn notify(&mut self, note: &Note) -> Result<(), StoreError> {
        match self.raw {
            Raw::Sqlite(_) => Ok(()),
            Raw::Postgres(_) => {
                let tell = statement("SELECT pg_notify('undertone', $1)").bind(note.to_string());
                self.first(tell, |_| Ok(())).await.map(drop)
            }
        }
    }

    fn fault(&self, error: sqlx::Error) -> StoreError {
        match &self.raw {
            Raw::Sqlite(_) => sqlite::fault(self.at, error),
            Raw::Postgres(_) => postgres::fault(self.at, error),
        }
    }
}

/// Waits for a server no longer than it may take: one that is gone without a word would keep us for ever.
pub(crate) async fn in_time<T>(
    in_the_middle: &mut bool,
    work: impl Future<Output = sqlx::Result<T>>,
) -> sqlx::Result<T> {
    *in_the_middle = true;
    let Ok(done) = tokio::time::timeout(postgres::PATIENCE, work).await else {
        let text = format!("no answer within {} s", postgres::PATIENCE.as_secs());
        return Err(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, text)));
    };
    *in_the_middle = false;
    done
}

fn without_locks(statement: Statement<'_>) -> Statement<'_> {
    Statement { lock: Lock::None, ..statement }
}

impl Row {
    fn int(&self, column: &str) -> sqlx::Result<Option<i64>> {
        match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
        }
    }

    fn text(&self, column: &str) -> sqlx::Result<Option<&str>> {
        match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
        }
    }
}

/// A number as databases have it. Records are checked before they come here; the bound of a query may be past every number
/// stored.
impl From<u64> for Value<'_> {
    fn from(value: u64) -> Self {
        Self::Int(Some(i64::try_from(value).unwrap_or(i64::MAX)))
    }
}

impl From<u32> for Value<'_> {
    fn from(value: u32) -> Self {
        Self::Int(Some(value.into()))
    }
}

impl From<bool> for Value<'_> {
    fn from(value: bool) -> Self {
        Self::Int(Some(value.into()))
    }
}

impl From<Option<u64>> for Value<'_> {
    fn from(value: Option<u64>) -> Self {
        value.map_or(Self::Int(None), Self::from)
    }
}

impl<'q> From<&'q str> for Value<'q> {
    fn from(value: &'q str) -> Self {
        Self::Text(Some(value.into()))
    }
}

impl<'q> From<&'q String> for Value<'q> {
    fn from(value: &'q String) -> Self {
        Self::Text(Some(value.into()))
    }
}

impl From<String> for Value<'_> {
    fn from(value: String) -> Self {
        Self::Text(Some(value.into()))
    }
}

impl<'q> From<Option<&'q str>> for Value<'q> {
    fn from(value: Option<&'q str>) -> Self {
        Self::Text(value.map(Cow::from))
    }
}

impl From<Option<String>> for Value<'_> {
    fn from(value: Option<String>) -> Self {
        Self::Text(value.map(Cow::from))
    }
}

/// A number column.
pub(super) fn number<T: TryFrom<i64>>(row: &Row, column: &str) -> sqlx::Result<T> {
    optional_number(row, column)?.ok_or_else(|| undecodable(column, "it is empty".into()))
}

/// As [`number`], of a column that may be empty.
pub(super) fn optional_number<T: TryFrom<i64>>(row: &Row, column: &str) -> sqlx::Result<Option<T>> {
    let Some(value) = row.int(column)? else { return Ok(None) };
    T::try_from(value).map(Some).map_err(|_| undecodable(column, format!("{value} is out of range")))
}

/// A text column that is something more.
pub(crate) fn parsed<T: FromStr<Err: Display>>(row: &Row, column: &str) -> sqlx::Result<T> {
    optional(row, column)?.ok_or_else(|| undecodable(column, "it is empty".into()))
}

/// As [`parsed`], of a column that may be empty.
pub(super) fn optional<T: FromStr<Err: Display>>(row: &Row, column: &str) -> sqlx::Result<Option<T>> {
    let Some(text) = row.text(column)? else { return Ok(None) };
    text.parse().map(Some).map_err(|e| undecodable(column, format!("\"{text}\": {e}")))
}

/// Why a column cannot be read.
fn undecodable(column: &str, why: String) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source: why.into() }
}
