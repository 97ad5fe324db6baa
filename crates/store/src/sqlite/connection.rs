//! A connection in use: runs statements, decodes rows, and says in our words what went wrong.

use crate::error::StoreError;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{Row, Sqlite};
use std::fmt::Display;
use std::path::Path;
use std::str::FromStr;

/// A connection, borrowed for some statements.
pub(super) struct Sql<'c> {
    pub(super) raw: &'c mut SqliteConnection,
    /// The file, for errors.
    pub(super) at: &'c str,
}

/// A statement with its values.
pub(super) type Statement<'q> = Query<'q, Sqlite, SqliteArguments>;

impl Sql<'_> {
    /// Runs a statement; returns how many rows it changed.
    pub(super) async fn execute(&mut self, statement: Statement<'_>) -> Result<u64, StoreError> {
        let done = statement.execute(&mut *self.raw).await.map_err(|e| fault(self.at, e))?;
        Ok(done.rows_affected())
    }

    /// The first row of the result, decoded.
    pub(super) async fn first<T>(
        &mut self,
        statement: Statement<'_>,
        decode: fn(&SqliteRow) -> sqlx::Result<T>,
    ) -> Result<Option<T>, StoreError> {
        let row = statement.fetch_optional(&mut *self.raw).await.map_err(|e| fault(self.at, e))?;
        row.map(|row| decode(&row)).transpose().map_err(|e| fault(self.at, e))
    }

    /// All rows of the result, decoded.
    pub(super) async fn all<T>(
        &mut self,
        statement: Statement<'_>,
        decode: fn(&SqliteRow) -> sqlx::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let rows = statement.fetch_all(&mut *self.raw).await.map_err(|e| fault(self.at, e))?;
        rows.iter().map(decode).collect::<sqlx::Result<_>>().map_err(|e| fault(self.at, e))
    }
}

/// A number as the database has it. Records are checked before they come here; the bound of a query may be
/// past every number stored.
pub(super) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A number column.
pub(super) fn number<T: TryFrom<i64>>(row: &SqliteRow, column: &str) -> sqlx::Result<T> {
    let value: i64 = row.try_get(column)?;
    T::try_from(value).map_err(|_| undecodable(column, format!("{value} is out of range")))
}

/// A text column that is something more.
pub(super) fn parsed<T: FromStr<Err: Display>>(row: &SqliteRow, column: &str) -> sqlx::Result<T> {
    let text: &str = row.try_get(column)?;
    text.parse().map_err(|e| undecodable(column, format!("\"{text}\": {e}")))
}

/// As [`parsed`], of a column that may be empty.
pub(super) fn optional<T: FromStr<Err: Display>>(row: &SqliteRow, column: &str) -> sqlx::Result<Option<T>> {
    row.try_get::<Option<&str>, _>(column)?.map(|_| parsed(row, column)).transpose()
}

/// Why a column cannot be read.
pub(super) fn undecodable(column: &str, why: String) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source: why.into() }
}

/// What an error of the database means. Codes: <https://www.sqlite.org/rescode.html>.
pub(super) fn fault(at: &str, error: sqlx::Error) -> StoreError {
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

/// Sees to it that there is a file and that only this user can use it. SQLite gives the files that it puts
/// beside it the same permissions.
pub(super) fn prepare_file(path: &Path, at: &str) -> Result<(), StoreError> {
    prepare(path).map_err(|e| {
        let (at, detail) = (at.to_owned(), e.to_string());
        match e.kind() {
            std::io::ErrorKind::StorageFull => StoreError::Full { at },
            std::io::ErrorKind::ReadOnlyFilesystem => StoreError::NotWritable { at, detail },
            _ => StoreError::NotOpened { at, detail },
        }
    })
}

fn prepare(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Ok(file) => {
            file.sync_all()?;
            // The name must be as durable as the file. (Folders cannot be synced everywhere.)
            #[cfg(unix)]
            std::fs::File::open(
                path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")),
            )?
            .sync_all()?;
            Ok(())
        }
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt;
                let mode = std::fs::metadata(path)?.permissions().mode();
                if mode & 0o077 != 0 {
                    tracing::warn!(path = %path.display(), "others could use the database; now they cannot");
                    std::fs::set_permissions(path, PermissionsExt::from_mode(mode & 0o700))?;
                }
            }
            Ok(())
        }
        Err(e) => Err(e),
    }
}
