//! A copy of the file, as it stands between two transactions.

use super::{BUSY_TIMEOUT, fault};
use crate::error::StoreError;
use crate::sql::SqlStore;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use std::path::Path;

impl SqlStore {
    /// Copies the SQLite file at `from` to a new file at `to`, durably, for this user alone. Others may write to it meanwhile: the copy is
    /// what they had committed when it began.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be read or is damaged, or if `to` is there already or cannot be written.
    pub async fn copy_sqlite(from: &Path, to: &Path) -> Result<(), StoreError> {
        let (at, copy) = (from.display().to_string(), to.display().to_string());
        let not_written = |detail: String| StoreError::NotOpened { at: copy.clone(), detail };
        let name = to.to_str().ok_or_else(|| not_written("its name is no UTF-8".into()))?;
        // SQLite writes into an empty file, and leaves its permissions.
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(to).map_err(|e| not_written(e.to_string()))?;
        let options = SqliteConnectOptions::new().filename(from).busy_timeout(BUSY_TIMEOUT);
        let mut connection = options.connect().await.map_err(|e| fault(&at, e))?;
        let copied = sqlx::query("VACUUM INTO $1").bind(name).execute(&mut connection).await;
        let _ = connection.close().await;
        copied.map_err(|e| match fault(&at, e) {
            StoreError::Full { .. } => StoreError::Full { at: copy.clone() },
            StoreError::NotWritable { detail, .. } => StoreError::NotWritable { at: copy.clone(), detail },
            other => other,
        })?;
        file.sync_all().map_err(|e| not_written(e.to_string()))
    }
}
