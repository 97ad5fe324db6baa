//! Jobs, their steps, and what steps leave behind.

use super::connection::{Sql, int, number, optional, parsed};
use crate::error::{CommitError, StoreError};
use crate::records::{EventRecord, JobRecord, LedgerRow, NewEvent, ReleaseRecord, Transition, UploadRecord};
use crate::rules;
use sqlx::query;
use sqlx::sqlite::SqliteRow;
use undertone_core::digest::Digest;
use undertone_core::id::{Attempt, AttemptKey, ClientId, JobId, Round};

pub(super) async fn insert(sql: &mut Sql<'_>, job: JobRecord, events: &[NewEvent]) -> Result<(), StoreError> {
    let insert = query(
        "INSERT INTO jobs (id, document, document_digest, version, status, ended, state, created_unix_s)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
    )
    .bind(job.id.as_str())
    .bind(&job.document)
    .bind(job.document_digest.to_string())
    .bind(int(job.version))
    .bind(&job.status)
    .bind(job.ended)
    .bind(&job.state)
    .bind(int(job.created_unix_s));
    match sql.execute(insert).await? {
        0 => Err(StoreError::Exists { what: "job", id: job.id.into() }),
        _ => append_events(sql, &job.id, events).await,
    }
}

pub(super) async fn job(sql: &mut Sql<'_>, id: &JobId) -> Result<Option<JobRecord>, StoreError> {
    sql.first(query("SELECT * FROM jobs WHERE id = ?").bind(id.as_str()), job_row).await
}

pub(super) async fn jobs(sql: &mut Sql<'_>) -> Result<Vec<JobRecord>, StoreError> {
    sql.all(query("SELECT * FROM jobs ORDER BY created_unix_s, id"), job_row).await
}

pub(super) async fn open_jobs(sql: &mut Sql<'_>) -> Result<Vec<JobRecord>, StoreError> {
    sql.all(query("SELECT * FROM jobs WHERE ended = 0 ORDER BY created_unix_s, id"), job_row).await
}

/// Makes a step. The transaction is begun for writing, so that nothing moves between the reads and the writes.
pub(super) async fn step(sql: &mut Sql<'_>, step: Transition) -> Result<u64, CommitError> {
    let found = query("SELECT version FROM jobs WHERE id = ?").bind(step.job.as_str());
    let found = sql.first(found, |row| number(row, "version")).await?;
    let version = rules::next_version(&step, found)?;
    let update = query("UPDATE jobs SET version = ?, status = ?, ended = ?, state = ? WHERE id = ?")
        .bind(int(version))
        .bind(&step.status)
        .bind(step.ended)
        .bind(&step.state)
        .bind(step.job.as_str());
    sql.execute(update).await?;
    append_events(sql, &step.job, &step.events).await?;
    append_ledger(sql, &step.ledger).await?;
    for upload in &step.uploads {
        add_upload(sql, upload).await?;
    }
    if let Some(release) = &step.release {
        add_release(sql, release).await?;
    }
    Ok(version)
}

async fn append_events(sql: &mut Sql<'_>, job: &JobId, events: &[NewEvent]) -> Result<(), StoreError> {
    if events.is_empty() {
        return Ok(());
    }
    let last = query("SELECT coalesce(max(seq), 0) AS last FROM events WHERE job = ?").bind(job.as_str());
    let last: u64 = sql.first(last, |row| number(row, "last")).await?.unwrap_or(0);
    for (seq, event) in (last + 1..).zip(events) {
        let insert = query("INSERT INTO events (job, seq, unix_ms, document) VALUES (?, ?, ?, ?)")
            .bind(job.as_str())
            .bind(int(seq))
            .bind(int(event.unix_ms))
            .bind(&event.document);
        sql.execute(insert).await?;
    }
    Ok(())
}

async fn append_ledger(sql: &mut Sql<'_>, rows: &[LedgerRow]) -> Result<(), CommitError> {
    if rows.is_empty() {
        return Ok(());
    }
    let last = query("SELECT coalesce(max(seq), 0) AS last FROM privacy_ledger");
    let last = sql.first(last, |row| number(row, "last")).await?.unwrap_or(0);
    rules::check_ledger(rows, last)?;
    for row in rows {
        let insert = query("INSERT INTO privacy_ledger (seq, document) VALUES (?, ?)");
        sql.execute(insert.bind(int(row.seq)).bind(&row.document)).await?;
    }
    Ok(())
}

async fn add_upload(sql: &mut Sql<'_>, upload: &UploadRecord) -> Result<(), CommitError> {
    let key = &upload.key;
    let insert = query(
        "INSERT INTO uploads (job, round, attempt, client, blob, bytes, weight, claim)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (job, round, attempt, client) DO NOTHING",
    )
    .bind(key.job.as_str())
    .bind(key.round.0)
    .bind(key.attempt.0)
    .bind(upload.client.as_str())
    .bind(upload.blob.to_string())
    .bind(int(upload.bytes))
    .bind(upload.weight)
    .bind(upload.claim.map(|claim| claim.to_string()));
    if sql.execute(insert).await? > 0 {
        return Ok(());
    }
    let stored = self::upload(sql, key, &upload.client).await?;
    stored.map_or(Ok(()), |stored| rules::check_upload(&stored, upload))
}

async fn add_release(sql: &mut Sql<'_>, release: &ReleaseRecord) -> Result<(), CommitError> {
    let insert = query(
        "INSERT INTO releases (job, round, model, bytes, unix_ms, document) VALUES (?, ?, ?, ?, ?, ?)
         ON CONFLICT (job, round) DO NOTHING",
    )
    .bind(release.job.as_str())
    .bind(release.round.0)
    .bind(release.model.to_string())
    .bind(int(release.bytes))
    .bind(int(release.unix_ms))
    .bind(&release.document);
    if sql.execute(insert).await? > 0 {
        return Ok(());
    }
    let stored = query("SELECT * FROM releases WHERE job = ? AND round = ?")
        .bind(release.job.as_str())
        .bind(release.round.0);
    let stored = sql.first(stored, release_row).await?;
    stored.map_or(Ok(()), |stored| rules::check_release(&stored, release))
}

pub(super) async fn events(
    sql: &mut Sql<'_>,
    job: &JobId,
    after_seq: u64,
    limit: u32,
) -> Result<Vec<EventRecord>, StoreError> {
    let select = query("SELECT * FROM events WHERE job = ? AND seq > ? ORDER BY seq LIMIT ?");
    sql.all(select.bind(job.as_str()).bind(int(after_seq)).bind(limit), event_row).await
}

pub(super) async fn ledger(
    sql: &mut Sql<'_>,
    after_seq: u64,
    limit: u32,
) -> Result<Vec<LedgerRow>, StoreError> {
    let select = query("SELECT * FROM privacy_ledger WHERE seq > ? ORDER BY seq LIMIT ?");
    sql.all(select.bind(int(after_seq)).bind(limit), |row| {
        Ok(LedgerRow { seq: number(row, "seq")?, document: parsed(row, "document")? })
    })
    .await
}

pub(super) async fn uploads(sql: &mut Sql<'_>, key: &AttemptKey) -> Result<Vec<UploadRecord>, StoreError> {
    let select = query("SELECT * FROM uploads WHERE job = ? AND round = ? AND attempt = ? ORDER BY client");
    let select = select.bind(key.job.as_str()).bind(key.round.0).bind(key.attempt.0);
    sql.all(select, upload_row).await
}

pub(super) async fn upload(
    sql: &mut Sql<'_>,
    key: &AttemptKey,
    client: &ClientId,
) -> Result<Option<UploadRecord>, StoreError> {
    let select = query("SELECT * FROM uploads WHERE job = ? AND round = ? AND attempt = ? AND client = ?")
        .bind(key.job.as_str())
        .bind(key.round.0)
        .bind(key.attempt.0)
        .bind(client.as_str());
    sql.first(select, upload_row).await
}

pub(super) async fn releases(sql: &mut Sql<'_>, job: &JobId) -> Result<Vec<ReleaseRecord>, StoreError> {
    let select = query("SELECT * FROM releases WHERE job = ? ORDER BY round").bind(job.as_str());
    sql.all(select, release_row).await
}

pub(super) async fn released_models(sql: &mut Sql<'_>) -> Result<Vec<Digest>, StoreError> {
    sql.all(query("SELECT DISTINCT model FROM releases"), |row| parsed(row, "model")).await
}

fn job_row(row: &SqliteRow) -> sqlx::Result<JobRecord> {
    Ok(JobRecord {
        id: parsed(row, "id")?,
        document: parsed(row, "document")?,
        document_digest: parsed(row, "document_digest")?,
        version: number(row, "version")?,
        status: parsed(row, "status")?,
        ended: number::<i64>(row, "ended")? != 0,
        state: parsed(row, "state")?,
        created_unix_s: number(row, "created_unix_s")?,
    })
}

fn event_row(row: &SqliteRow) -> sqlx::Result<EventRecord> {
    Ok(EventRecord {
        seq: number(row, "seq")?,
        unix_ms: number(row, "unix_ms")?,
        document: parsed(row, "document")?,
    })
}

fn upload_row(row: &SqliteRow) -> sqlx::Result<UploadRecord> {
    Ok(UploadRecord {
        key: AttemptKey {
            job: parsed(row, "job")?,
            round: Round(number(row, "round")?),
            attempt: Attempt(number(row, "attempt")?),
        },
        client: parsed(row, "client")?,
        blob: parsed(row, "blob")?,
        bytes: number(row, "bytes")?,
        weight: number(row, "weight")?,
        claim: optional(row, "claim")?,
    })
}

fn release_row(row: &SqliteRow) -> sqlx::Result<ReleaseRecord> {
    Ok(ReleaseRecord {
        job: parsed(row, "job")?,
        round: Round(number(row, "round")?),
        model: parsed(row, "model")?,
        bytes: number(row, "bytes")?,
        unix_ms: number(row, "unix_ms")?,
        document: parsed(row, "document")?,
    })
}
