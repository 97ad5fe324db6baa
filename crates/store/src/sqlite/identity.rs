//! Tokens and clients.

use super::connection::{Sql, int, number, optional, parsed};
use crate::error::{EnrolError, StoreError};
use crate::records::{ClientRecord, EnrolRequest, TokenRecord};
use crate::rules::{self, Admission};
use sqlx::Row;
use sqlx::query;
use sqlx::sqlite::SqliteRow;
use undertone_core::digest::Digest;
use undertone_core::id::ClientId;

pub(super) async fn create_token(sql: &mut Sql<'_>, token: TokenRecord) -> Result<(), StoreError> {
    let insert = query(
        "INSERT INTO tokens (id, secret_digest, role, name, uses_left, max_uses, expires_unix_s, created_unix_s)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
    )
    .bind(&token.id)
    .bind(token.secret_digest.to_string())
    .bind(token.role.as_str())
    .bind(token.name.as_ref().map(ClientId::as_str))
    .bind(token.uses_left)
    .bind(token.max_uses)
    .bind(int(token.expires_unix_s))
    .bind(int(token.created_unix_s));
    match sql.execute(insert).await? {
        0 => Err(StoreError::Exists { what: "token", id: token.id }),
        _ => Ok(()),
    }
}

pub(super) async fn tokens(sql: &mut Sql<'_>) -> Result<Vec<TokenRecord>, StoreError> {
    sql.all(query("SELECT * FROM tokens ORDER BY created_unix_s, id"), token_row).await
}

pub(super) async fn delete_token(sql: &mut Sql<'_>, id: &str) -> Result<bool, StoreError> {
    Ok(sql.execute(query("DELETE FROM tokens WHERE id = ?").bind(id)).await? > 0)
}

pub(super) async fn enrol(
    sql: &mut Sql<'_>,
    secret: Digest,
    now_unix_s: u64,
    request: EnrolRequest,
) -> Result<ClientRecord, EnrolError> {
    let token = query("SELECT * FROM tokens WHERE secret_digest = ?").bind(secret.to_string());
    let token = sql.first(token, token_row).await?.ok_or(EnrolError::UnknownToken)?;
    let earlier = query("SELECT * FROM clients WHERE token_id = ? AND key_digest = ?")
        .bind(&token.id)
        .bind(request.key_digest.to_string());
    let earlier = sql.first(earlier, client_row).await?;
    let client = match rules::admit(&token, earlier, now_unix_s, request)? {
        Admission::Again(client) => return Ok(client),
        Admission::New(client) => client,
    };
    let insert = query(
        "INSERT INTO clients (id, role, key_digest, certificate_serial, enrolled_unix_s, last_seen_unix_s,
         software, token_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
    )
    .bind(client.id.as_str())
    .bind(client.role.as_str())
    .bind(client.key_digest.to_string())
    .bind(&client.certificate_serial)
    .bind(int(client.enrolled_unix_s))
    .bind(client.last_seen_unix_s.map(int))
    .bind(&client.software)
    .bind(&client.token_id);
    if sql.execute(insert).await? == 0 {
        return Err(EnrolError::NameTaken(client.id));
    }
    sql.execute(query("UPDATE tokens SET uses_left = uses_left - 1 WHERE id = ?").bind(&token.id)).await?;
    Ok(client)
}

pub(super) async fn client(sql: &mut Sql<'_>, id: &ClientId) -> Result<Option<ClientRecord>, StoreError> {
    sql.first(query("SELECT * FROM clients WHERE id = ?").bind(id.as_str()), client_row).await
}

pub(super) async fn clients(sql: &mut Sql<'_>) -> Result<Vec<ClientRecord>, StoreError> {
    sql.all(query("SELECT * FROM clients ORDER BY id"), client_row).await
}

pub(super) async fn touch(sql: &mut Sql<'_>, id: &ClientId, now_unix_s: u64) -> Result<bool, StoreError> {
    let update =
        query("UPDATE clients SET last_seen_unix_s = max(coalesce(last_seen_unix_s, 0), ?1) WHERE id = ?2");
    Ok(sql.execute(update.bind(int(now_unix_s)).bind(id.as_str())).await? > 0)
}

fn token_row(row: &SqliteRow) -> sqlx::Result<TokenRecord> {
    Ok(TokenRecord {
        id: parsed(row, "id")?,
        secret_digest: parsed(row, "secret_digest")?,
        role: parsed(row, "role")?,
        name: optional(row, "name")?,
        uses_left: number(row, "uses_left")?,
        max_uses: number(row, "max_uses")?,
        expires_unix_s: number(row, "expires_unix_s")?,
        created_unix_s: number(row, "created_unix_s")?,
    })
}

fn client_row(row: &SqliteRow) -> sqlx::Result<ClientRecord> {
    let last_seen: Option<i64> = row.try_get("last_seen_unix_s")?;
    Ok(ClientRecord {
        id: parsed(row, "id")?,
        role: parsed(row, "role")?,
        key_digest: parsed(row, "key_digest")?,
        certificate_serial: parsed(row, "certificate_serial")?,
        enrolled_unix_s: number(row, "enrolled_unix_s")?,
        last_seen_unix_s: last_seen.map(|_| number(row, "last_seen_unix_s")).transpose()?,
        software: parsed(row, "software")?,
        token_id: parsed(row, "token_id")?,
    })
}
