//! Tokens and clients.

use super::connection::{Row, Sql, number, optional, optional_number, parsed, statement};
use crate::error::{EnrolError, StoreError};
use crate::records::{ClientRecord, EnrolRequest, TokenRecord};
use crate::rules::{self, Admission};
use undertone_core::digest::Digest;
use undertone_core::id::ClientId;

// Columns by name: a program that still runs when a newer one adds a column reads on as before.
const TOKEN_ROWS: &str =
    "SELECT id, secret_digest, role, name, uses_left, max_uses, expires_unix_s, created_unix_s FROM tokens";
const CLIENT_ROWS: &str = "SELECT id, role, key_digest, certificate_serial, enrolled_unix_s, last_seen_unix_s, software, token_id FROM clients";

pub(super) async fn create_token(sql: &mut Sql<'_>, token: TokenRecord) -> Result<(), StoreError> {
    let insert = statement(
        "INSERT INTO tokens (id, secret_digest, role, name, uses_left, max_uses, expires_unix_s, created_unix_s)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
    )
    .bind(&token.id)
    .bind(token.secret_digest.to_string())
    .bind(token.role.as_str())
    .bind(token.name.as_ref().map(ClientId::as_str))
    .bind(token.uses_left)
    .bind(token.max_uses)
    .bind(token.expires_unix_s)
    .bind(token.created_unix_s);
    match sql.execute(insert).await? {
        0 => Err(StoreError::Exists { what: "token", id: token.id }),
        _ => Ok(()),
    }
}

pub(super) async fn tokens(sql: &mut Sql<'_>) -> Result<Vec<TokenRecord>, StoreError> {
    sql.all(statement(TOKEN_ROWS).and("ORDER BY created_unix_s, id"), token_row).await
}

pub(super) async fn delete_token(sql: &mut Sql<'_>, id: &str) -> Result<bool, StoreError> {
    Ok(sql.execute(statement("DELETE FROM tokens WHERE id = $1").bind(id)).await? > 0)
}

/// The row of the token is locked first: its uses are counted down one after another.
pub(super) async fn enrol(
    sql: &mut Sql<'_>,
    secret: Digest,
    now_unix_s: u64,
    request: EnrolRequest,
) -> Result<ClientRecord, EnrolError> {
    let token = statement(TOKEN_ROWS).and("WHERE secret_digest = $1").bind(secret.to_string()).locking();
    let token = sql.first(token, token_row).await?.ok_or(EnrolError::UnknownToken)?;
    let earlier = statement(CLIENT_ROWS)
        .and("WHERE token_id = $1 AND key_digest = $2")
        .bind(&token.id)
        .bind(request.key_digest.to_string());
    let earlier = sql.first(earlier, client_row).await?;
    let client = match rules::admit(&token, earlier, now_unix_s, request)? {
        Admission::Again(client) => return Ok(client),
        Admission::New(client) => client,
    };
    let insert = statement(
        "INSERT INTO clients (id, role, key_digest, certificate_serial, enrolled_unix_s, last_seen_unix_s,
         software, token_id) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO NOTHING",
    )
    .bind(client.id.as_str())
    .bind(client.role.as_str())
    .bind(client.key_digest.to_string())
    .bind(&client.certificate_serial)
    .bind(client.enrolled_unix_s)
    .bind(client.last_seen_unix_s)
    .bind(&client.software)
    .bind(&client.token_id);
    if sql.execute(insert).await? == 0 {
        return Err(EnrolError::NameTaken(client.id));
    }
    sql.execute(statement("UPDATE tokens SET uses_left = uses_left - 1 WHERE id = $1").bind(&token.id))
        .await?;
    Ok(client)
}

pub(super) async fn client(sql: &mut Sql<'_>, id: &ClientId) -> Result<Option<ClientRecord>, StoreError> {
    sql.first(statement(CLIENT_ROWS).and("WHERE id = $1").bind(id.as_str()), client_row).await
}

pub(super) async fn clients(sql: &mut Sql<'_>) -> Result<Vec<ClientRecord>, StoreError> {
    sql.all(statement(CLIENT_ROWS).and("ORDER BY id"), client_row).await
}

pub(super) async fn touch(sql: &mut Sql<'_>, id: &ClientId, now_unix_s: u64) -> Result<bool, StoreError> {
    let update =
        statement("UPDATE clients SET last_seen_unix_s = CASE WHEN last_seen_unix_s > $1 THEN last_seen_unix_s ELSE $1 END
         WHERE id = $2");
    Ok(sql.execute(update.bind(now_unix_s).bind(id.as_str())).await? > 0)
}

fn token_row(row: &Row) -> sqlx::Result<TokenRecord> {
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

fn client_row(row: &Row) -> sqlx::Result<ClientRecord> {
    Ok(ClientRecord {
        id: parsed(row, "id")?,
        role: parsed(row, "role")?,
        key_digest: parsed(row, "key_digest")?,
        certificate_serial: parsed(row, "certificate_serial")?,
        enrolled_unix_s: number(row, "enrolled_unix_s")?,
        last_seen_unix_s: optional_number(row, "last_seen_unix_s")?,
        software: parsed(row, "software")?,
        token_id: parsed(row, "token_id")?,
    })
}
