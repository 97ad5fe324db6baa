//! The schema, and how older files come to it.
//!
//! Migrations are numbered and frozen once merged. All that are due run in one transaction, which also notes
//! their digests: a file has the newest schema or the one it had. (sqlx has a migrator too; it commits step by
//! step, reads the clock, and would take a file of another program for an empty one.)

use super::connection::{Sql, fault, number, parsed};
use super::writer::Writer;
use crate::error::StoreError;
use undertone_core::digest::Digest;

/// All migrations; the first has number 1.
pub(super) const MIGRATIONS: &[&str] = &[
    include_str!("../../migrations/sqlite/0001_start.sql"),
    include_str!("../../migrations/sqlite/0002_ended.sql"),
    include_str!("../../migrations/sqlite/0003_ledger_chain.sql"),
    include_str!("../../migrations/sqlite/0004_claims.sql"),
];

const VERSIONS: &str = "CREATE TABLE schema_versions (
    number INTEGER NOT NULL PRIMARY KEY,
    digest TEXT    NOT NULL
) STRICT";

/// Brings the file to the newest schema, or says why it cannot.
pub(super) async fn migrate(writer: &Writer) -> Result<(), StoreError> {
    let mut write = writer.begin().await?;
    let outcome = apply(&mut write.sql(), writer.at(), MIGRATIONS).await;
    write.finish(outcome).await
}

pub(super) async fn apply(
    sql: &mut Sql<'_>,
    at: &str,
    migrations: &[&'static str],
) -> Result<(), StoreError> {
    let tables = sql.all(sqlx::query("SELECT name FROM sqlite_schema"), |row| parsed::<String>(row, "name"));
    let tables = tables.await?;
    if tables.is_empty() {
        sql.execute(sqlx::query(VERSIONS)).await?;
    } else if !tables.iter().any(|name| name == "schema_versions") {
        return Err(StoreError::Foreign { at: at.to_owned() });
    }
    let applied = sqlx::query("SELECT number, digest FROM schema_versions ORDER BY number");
    let applied =
        sql.all(applied, |row| Ok((number::<i64>(row, "number")?, parsed::<Digest>(row, "digest")?))).await?;
    let known = migrations.len() as i64;
    if let Some((found, _)) = applied.last().filter(|(found, _)| *found > known) {
        return Err(StoreError::NewerSchema { at: at.to_owned(), found: *found, known });
    }
    let mut applied = applied.into_iter();
    for (number, text) in (1..).zip(migrations) {
        let digest = Digest::of(text.as_bytes());
        match applied.next() {
            Some(found) if found == (number, digest) => continue,
            Some(_) => return Err(StoreError::OtherSchema { at: at.to_owned(), number }),
            None => {}
        }
        sqlx::raw_sql(*text).execute(&mut *sql.raw).await.map_err(|e| fault(at, e))?;
        let note = sqlx::query("INSERT INTO schema_versions (number, digest) VALUES (?, ?)");
        sql.execute(note.bind(number).bind(digest.to_string())).await?;
        tracing::info!(at, number, "the database has a new schema");
    }
    Ok(())
}
