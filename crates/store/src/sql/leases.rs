//! Who may do what nobody else does meanwhile.

use super::connection::{Row, Sql, Statement, number, parsed, statement};
use crate::error::StoreError;
use crate::fleet::Note;
use crate::records::Lease;

/// The database's clock, in milliseconds of Unix time.
pub(crate) async fn now_ms(sql: &mut Sql<'_>) -> Result<u64, StoreError> {
    let now = sql.pick(
        "SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER) AS now",
        "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT) AS now",
    );
    Ok(sql.first(statement(now), |row| number(row, "now")).await?.unwrap_or(0))
}

fn found(name: &str) -> Statement<'_> {
    statement("SELECT holder, number, expires_ms FROM leases WHERE name = $1").bind(name)
}

fn lease_row(row: &Row) -> sqlx::Result<(String, u64, u64)> {
    Ok((parsed(row, "holder")?, number(row, "number")?, number(row, "expires_ms")?))
}

/// Looks without a lock first: who stands by asks every few seconds, and must never be in the way. Then the row is locked against
/// transactions that rest on the lease, and against others that take it; and then one statement decides.
pub(super) async fn take(
    sql: &mut Sql<'_>,
    name: &str,
    holder: &str,
    ttl_ms: u64,
) -> Result<Lease, StoreError> {
    let now = now_ms(sql).await?;
    if let Some((holder, number, expires_ms)) = sql.first(found(name), lease_row).await?
        && expires_ms > now
    {
        return Ok(Lease { holder, number, left_ms: expires_ms - now });
    }
    sql.first(found(name).locking(), lease_row).await?;
    // After the wait: what was asked before may be long ago.
    let now = now_ms(sql).await?;
    let take = statement(
        "INSERT INTO leases (name, holder, number, expires_ms) VALUES ($1, $2, 1, $3)
         ON CONFLICT (name) DO UPDATE SET
             number = leases.number + 1, holder = excluded.holder, expires_ms = excluded.expires_ms
         WHERE leases.expires_ms <= $4",
    );
    sql.execute(take.bind(name).bind(holder).bind(now.saturating_add(ttl_ms)).bind(now)).await?;
    let (holder, number, expires_ms) = sql.first(found(name), lease_row).await?.unwrap_or_default();
    Ok(Lease { holder, number, left_ms: expires_ms.saturating_sub(now) })
}

pub(super) async fn renew(
    sql: &mut Sql<'_>,
    name: &str,
    lease: &Lease,
    ttl_ms: u64,
) -> Result<bool, StoreError> {
    let until = now_ms(sql).await?.saturating_add(ttl_ms);
    let renew =
        statement("UPDATE leases SET expires_ms = $1 WHERE name = $2 AND holder = $3 AND number = $4");
    Ok(sql.execute(renew.bind(until).bind(name).bind(&lease.holder).bind(lease.number)).await? > 0)
}

/// Has all leases of a holder last from now; gives those that it has.
pub(super) async fn renew_all(
    sql: &mut Sql<'_>,
    holder: &str,
    ttl_ms: u64,
) -> Result<Vec<(String, u64)>, StoreError> {
    let until = now_ms(sql).await?.saturating_add(ttl_ms);
    // A state that was set back has leases of another day.
    let renew = statement(
        "UPDATE leases SET expires_ms = $1 WHERE holder = $2
             AND NOT EXISTS (SELECT 1 FROM deployment WHERE deployment.name = 'unsettled')
         RETURNING name, number",
    );
    sql.all(renew.bind(until).bind(holder), |row| Ok((parsed(row, "name")?, number(row, "number")?))).await
}

/// Whether it is now.
pub(super) async fn holds(sql: &mut Sql<'_>, name: &str, lease: &Lease) -> Result<bool, StoreError> {
    let found = sql.first(found(name), lease_row).await?;
    Ok(found.is_some_and(|(holder, number, _)| (&holder, number) == (&lease.holder, lease.number)))
}

/// Whether it still is. Renewing it goes on meanwhile; taking it waits for the end of this transaction.
pub(super) async fn is_held(sql: &mut Sql<'_>, name: &str, lease: &Lease) -> Result<bool, StoreError> {
    let held = statement(
        "SELECT number FROM leases WHERE name = $1 AND holder = $2 AND number = $3
             AND NOT EXISTS (SELECT 1 FROM deployment WHERE deployment.name = 'unsettled')",
    )
    .bind(name)
    .bind(&lease.holder)
    .bind(lease.number)
    .sharing();
    Ok(sql.first(held, |row| number::<u64>(row, "number")).await?.is_some())
}

/// The row stays with its number, so that the next one is another.
pub(super) async fn end(sql: &mut Sql<'_>, name: &str, lease: &Lease) -> Result<(), StoreError> {
    let end = statement(
        "UPDATE leases SET expires_ms = 0, holder = $1 WHERE name = $2 AND holder = $3 AND number = $4",
    );
    sql.execute(end.bind("").bind(name).bind(&lease.holder).bind(lease.number)).await?;
    sql.notify(&Note::Lease).await
}
