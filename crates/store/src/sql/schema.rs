//! The schema, and how older databases come to it.
//!
//! Migrations are numbered and frozen once merged. All that are due run in one transaction, which also notes
//! their digests: a database has the newest schema or the one it had. (sqlx has a migrator too; it commits step by
//! step, reads the clock, and would take a database of another program for an empty one.)

use super::connection::{Sql, number, parsed, statement};
use crate::error::StoreError;
use undertone_core::digest::Digest;

/// What a database does in its own way.
pub(crate) struct Schema {
    /// A `SELECT` of the `name` of each table that is there.
    pub(crate) tables: &'static str,
    /// Makes the table `schema_versions` of a `number` and a `digest`.
    pub(crate) versions: &'static str,
    /// All migrations; the first has number 1.
    pub(crate) migrations: &'static [&'static str],
}

/// Brings the database to the newest schema, or says why it cannot. In a transaction that nobody else is in at the same time.
pub(crate) async fn migrate(sql: &mut Sql<'_>, schema: &Schema) -> Result<(), StoreError> {
    apply(sql, schema, schema.migrations).await
}

/// As [`migrate`], to the schema after these migrations.
pub(crate) async fn apply(
    sql: &mut Sql<'_>,
    schema: &Schema,
    migrations: &[&'static str],
) -> Result<(), StoreError> {
    let at = sql.at().to_owned();
    let applied = match standing(sql, schema, migrations).await? {
        Some(applied) => applied,
        None => {
            sql.execute(statement(schema.versions)).await?;
            0
        }
    };
    for (number, text) in (1_u32..).zip(migrations).skip(applied) {
        sql.batch(text).await?;
        let note = statement("INSERT INTO schema_versions (number, digest) VALUES ($1, $2)");
        sql.execute(note.bind(number).bind(Digest::of(text.as_bytes()).to_string())).await?;
        tracing::info!(at, number, "the database has a new schema");
    }
    Ok(())
}

/// How many of these migrations a database has seen; none: nothing is in it.
///
/// # Errors
/// That it is another program's, or came to where it is by other migrations.
pub(crate) async fn standing(
    sql: &mut Sql<'_>,
    schema: &Schema,
    migrations: &[&'static str],
) -> Result<Option<usize>, StoreError> {
    let at = sql.at().to_owned();
    let tables = sql.all(statement(schema.tables), |row| parsed::<String>(row, "name")).await?;
    if tables.is_empty() {
        return Ok(None);
    }
    if !tables.iter().any(|name| name == "schema_versions") {
        return Err(StoreError::Foreign { at });
    }
    let applied = statement("SELECT number, digest FROM schema_versions ORDER BY number");
    let applied =
        sql.all(applied, |row| Ok((number::<u32>(row, "number")?, parsed::<Digest>(row, "digest")?))).await?;
    let known = migrations.len() as u32;
    if let Some((found, _)) = applied.last().filter(|(found, _)| *found > known) {
        return Err(StoreError::NewerSchema { at, found: *found, known });
    }
    for ((number, text), found) in (1..).zip(migrations).zip(&applied) {
        if *found != (number, Digest::of(text.as_bytes())) {
            return Err(StoreError::OtherSchema { at, number });
        }
    }
    Ok(Some(applied.len()))
}
