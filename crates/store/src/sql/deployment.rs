//! What a database is told once.

use super::connection::{Sql, parsed, statement};
use crate::error::StoreError;

pub(super) async fn once(sql: &mut Sql<'_>, name: &str, value: &str) -> Result<String, StoreError> {
    let insert =
        statement("INSERT INTO deployment (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING");
    sql.execute(insert.bind(name).bind(value)).await?;
    Ok(told(sql, name).await?.unwrap_or_else(|| value.to_owned()))
}

pub(super) async fn forget(sql: &mut Sql<'_>, name: &str) -> Result<(), StoreError> {
    sql.execute(statement("DELETE FROM deployment WHERE name = $1").bind(name)).await.map(drop)
}

pub(super) async fn told(sql: &mut Sql<'_>, name: &str) -> Result<Option<String>, StoreError> {
    let kept = statement("SELECT value FROM deployment WHERE name = $1").bind(name);
    sql.first(kept, |row| parsed(row, "value")).await
}
