//! Looking at a database without changing it.

use super::{ACQUIRE_TIMEOUT, SCHEMA, fault, named, parse};
use crate::error::StoreError;
use crate::inspection::Inspection;
use crate::sql::SqlStore;
use crate::sql::connection::{Server, Sql, parsed, statement};
use sqlx::{ConnectOptions as _, Connection as _};
use std::time::Instant;

impl SqlStore {
    /// Looks at the PostgreSQL database at `url`: what it is, which coordinators are there, and how long a commit takes (of a message in its
    /// log that nobody reads).
    ///
    /// # Errors
    /// [`StoreError`] as of [`SqlStore::postgres`].
    pub async fn look_at_postgres(url: &str) -> Result<Inspection, StoreError> {
        let options = parse(url)?;
        let at = named(&options);
        let first = tokio::time::timeout(ACQUIRE_TIMEOUT, options.connect()).await;
        let mut connection = first.unwrap_or(Err(sqlx::Error::PoolTimedOut)).map_err(|e| fault(&at, e))?;
        let mut in_the_middle = false;
        let server = Server { connection: &mut connection, in_the_middle: &mut in_the_middle };
        let looked = look(&mut Sql::postgres(server, &at)).await;
        let _ = connection.close().await;
        looked
    }
}

async fn look(sql: &mut Sql<'_>) -> Result<Inspection, StoreError> {
    let version = "SELECT 'PostgreSQL ' || current_setting('server_version') AS version";
    let found = Inspection::of(sql, &SCHEMA, version).await?;
    let begun = Instant::now();
    let message = "SELECT pg_logical_emit_message(true, 'undertone', 'doctor')::text AS place";
    sql.first(statement(message), |row| parsed::<String>(row, "place")).await?;
    Ok(Inspection { commit: Some(begun.elapsed()), ..found })
}
