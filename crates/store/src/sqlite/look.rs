//! Looking at a file without changing it.

use super::{BUSY_TIMEOUT, SCHEMA, fault};
use crate::error::StoreError;
use crate::inspection::Inspection;
use crate::sql::SqlStore;
use crate::sql::connection::{Sql, parsed, statement};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use std::path::Path;

impl SqlStore {
    /// Looks at the SQLite file at `path`, also while others use it: what it is, and whether every page of it
    /// is whole, which takes as long as reading it.
    ///
    /// # Errors
    /// [`StoreError`] as of [`SqlStore::sqlite`].
    pub async fn look_at_sqlite(path: &Path) -> Result<Inspection, StoreError> {
        let at = path.display().to_string();
        let options = SqliteConnectOptions::new().filename(path).busy_timeout(BUSY_TIMEOUT);
        let mut connection = options.connect().await.map_err(|e| fault(&at, e))?;
        let looked = look(&mut Sql::sqlite(&mut connection, &at)).await;
        let _ = connection.close().await;
        looked
    }
}

async fn look(sql: &mut Sql<'_>) -> Result<Inspection, StoreError> {
    let version = "SELECT 'SQLite ' || sqlite_version() AS version";
    let found = Inspection::of(sql, &SCHEMA, version).await?;
    let check = statement("SELECT quick_check AS fault FROM pragma_quick_check");
    let told = sql.all(check, |row| parsed::<String>(row, "fault")).await?;
    let damage = told.into_iter().filter(|fault| fault != "ok").collect();
    Ok(Inspection { damage, ..found })
}
