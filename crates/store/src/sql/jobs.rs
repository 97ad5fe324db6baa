//! Jobs, their steps, and what steps leave behind.

use super::connection::{Row, Sql, number, optional, parsed, statement};
use super::leases;
use crate::error::{CommitError, StoreError};
use crate::fleet::Note;
use crate::records::{EventRecord, JobRecord, LedgerRow, NewEvent, ReleaseRecord, Transition, UploadRecord};
use crate::rules;
use undertone_core::digest::Digest;
use undertone_core::id::{Attempt, AttemptKey, ClientId, JobId, Round};

// Columns by name: a program that still runs when a newer one adds a column reads on as before.
const JOB_ROWS: &str =
    "SELECT id, document, document_digest, version, status, ended, state, created_unix_s FROM jobs";
const RELEASE_ROWS: &str = "SELECT job, round, model, bytes, unix_ms, document FROM releases";
const EVENT_ROWS: &str = "SELECT seq, unix_ms, document FROM events";
const LINE_ROWS: &str = "SELECT seq, document FROM privacy_ledger";
const UPLOAD_ROWS: &str = "SELECT job, round, attempt, client, blob, bytes, weight, claim FROM uploads";

pub(super) async fn insert(sql: &mut Sql<'_>, job: JobRecord, events: &[NewEvent]) -> Result<(), StoreError> {
    let insert = statement(
        "INSERT INTO jobs (id, document, document_digest, version, status, ended, state, created_unix_s)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO NOTHING",
    )
    .bind(job.id.as_str())
    .bind(&job.document)
    .bind(job.document_digest.to_string())
    .bind(job.version)
    .bind(&job.status)
    .bind(job.ended)
    .bind(&job.state)
    .bind(job.created_unix_s);
    match sql.execute(insert).await? {
        0 => Err(StoreError::Exists { what: "job", id: job.id.into() }),
        _ => {
            append_events(sql, &job.id, events).await?;
            let free = statement(
                "INSERT INTO leases (name, holder, number, expires_ms) VALUES ($1, '', 0, 0) ON CONFLICT (name) DO NOTHING",
            );
            sql.execute(free.bind(JobRecord::lease_name(&job.id))).await?;
            sql.notify(&Note::Job(job.id)).await
        }
    }
}

pub(super) async fn job(sql: &mut Sql<'_>, id: &JobId) -> Result<Option<JobRecord>, StoreError> {
    sql.first(statement(JOB_ROWS).and("WHERE id = $1").bind(id.as_str()), job_row).await
}

pub(super) async fn jobs(sql: &mut Sql<'_>) -> Result<Vec<JobRecord>, StoreError> {
    sql.all(statement(JOB_ROWS).and("ORDER BY created_unix_s, id"), job_row).await
}

pub(super) async fn open_jobs(sql: &mut Sql<'_>) -> Result<Vec<JobRecord>, StoreError> {
    sql.all(statement(JOB_ROWS).and("WHERE ended = 0 ORDER BY created_unix_s, id"), job_row).await
}

/// Makes a step. The row of the job is locked first, so that nothing of the job moves between the reads and the writes.
pub(super) async fn step(sql: &mut Sql<'_>, step: Transition) -> Result<u64, CommitError> {
    if let Some(lease) = &step.lease
        && !leases::is_held(sql, &JobRecord::lease_name(&step.job), lease).await?
    {
        return Err(StoreError::Fenced { at: sql.at().to_owned() }.into());
    }
    let found = statement("SELECT version FROM jobs WHERE id = $1").bind(step.job.as_str()).locking();
    let found = sql.first(found, |row| number(row, "version")).await?;
    let version = rules::next_version(&step, found)?;
    let update = statement("UPDATE jobs SET version = $1, status = $2, ended = $3, state = $4 WHERE id = $5")
        .bind(version)
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
    sql.notify(&Note::Job(step.job)).await?;
    Ok(version)
}

async fn append_events(sql: &mut Sql<'_>, job: &JobId, events: &[NewEvent]) -> Result<(), StoreError> {
    if events.is_empty() {
        return Ok(());
    }
    let last =
        statement("SELECT coalesce(max(seq), 0) AS last FROM events WHERE job = $1").bind(job.as_str());
    let last: u64 = sql.first(last, |row| number(row, "last")).await?.unwrap_or(0);
    for (seq, event) in (last + 1..).zip(events) {
        let insert = statement("INSERT INTO events (job, seq, unix_ms, document) VALUES ($1, $2, $3, $4)")
            .bind(job.as_str())
            .bind(seq)
            .bind(event.unix_ms)
            .bind(&event.document);
        sql.execute(insert).await?;
    }
    Ok(())
}

/// Adds lines that follow the last one. Steps of other jobs add theirs at the same time: whoever is first has the place, and a
/// place is never free again.
pub(super) async fn append_ledger(sql: &mut Sql<'_>, rows: &[LedgerRow]) -> Result<(), CommitError> {
    if rows.is_empty() {
        return Ok(());
    }
    rules::check_ledger(rows, last_line(sql).await?)?;
    for row in rows {
        let insert = statement(
            "INSERT INTO privacy_ledger (seq, document) VALUES ($1, $2) ON CONFLICT (seq) DO NOTHING",
        );
        if sql.execute(insert.bind(row.seq).bind(&row.document)).await? == 0 {
            return Err(CommitError::LedgerMoved { offered: row.seq, expected: last_line(sql).await? + 1 });
        }
    }
    Ok(())
}

async fn last_line(sql: &mut Sql<'_>) -> Result<u64, StoreError> {
    let last = statement("SELECT coalesce(max(seq), 0) AS last FROM privacy_ledger");
    Ok(sql.first(last, |row| number(row, "last")).await?.unwrap_or(0))
}

async fn add_upload(sql: &mut Sql<'_>, upload: &UploadRecord) -> Result<(), CommitError> {
    let key = &upload.key;
    let insert = statement(
        "INSERT INTO uploads (job, round, attempt, client, blob, bytes, weight, claim)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (job, round, attempt, client) DO NOTHING",
    )
    .bind(key.job.as_str())
    .bind(key.round.0)
    .bind(key.attempt.0)
    .bind(upload.client.as_str())
    .bind(upload.blob.to_string())
    .bind(upload.bytes)
    .bind(upload.weight)
    .bind(upload.claim.map(|claim| claim.to_string()));
    if sql.execute(insert).await? > 0 {
        return Ok(());
    }
    let stored = self::upload(sql, key, &upload.client).await?;
    stored.map_or(Ok(()), |stored| rules::check_upload(&stored, upload))
}

async fn add_release(sql: &mut Sql<'_>, release: &ReleaseRecord) -> Result<(), CommitError> {
    let insert = statement(
        "INSERT INTO releases (job, round, model, bytes, unix_ms, document) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (job, round) DO NOTHING",
    )
    .bind(release.job.as_str())
    .bind(release.round.0)
    .bind(release.model.to_string())
    .bind(release.bytes)
    .bind(release.unix_ms)
    .bind(&release.document);
    if sql.execute(insert).await? > 0 {
        return Ok(());
    }
    let stored = statement(RELEASE_ROWS)
        .and("WHERE job = $1 AND round = $2")
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
    let select = statement(EVENT_ROWS).and("WHERE job = $1 AND seq > $2 ORDER BY seq LIMIT $3");
    sql.all(select.bind(job.as_str()).bind(after_seq).bind(limit), event_row).await
}

pub(super) async fn ledger(
    sql: &mut Sql<'_>,
    after_seq: u64,
    limit: u32,
) -> Result<Vec<LedgerRow>, StoreError> {
    let select = statement(LINE_ROWS).and("WHERE seq > $1 ORDER BY seq LIMIT $2");
    sql.all(select.bind(after_seq).bind(limit), |row| {
        Ok(LedgerRow { seq: number(row, "seq")?, document: parsed(row, "document")? })
    })
    .await
}

pub(super) async fn uploads(sql: &mut Sql<'_>, key: &AttemptKey) -> Result<Vec<UploadRecord>, StoreError> {
    let select = statement(UPLOAD_ROWS).and("WHERE job = $1 AND round = $2 AND attempt = $3 ORDER BY client");
    let select = select.bind(key.job.as_str()).bind(key.round.0).bind(key.attempt.0);
    sql.all(select, upload_row).await
}

pub(super) async fn upload(
    sql: &mut Sql<'_>,
    key: &AttemptKey,
    client: &ClientId,
) -> Result<Option<UploadRecord>, StoreError> {
    let select = statement(UPLOAD_ROWS)
        .and("WHERE job = $1 AND round = $2 AND attempt = $3 AND client = $4")
        .bind(key.job.as_str())
        .bind(key.round.0)
        .bind(key.attempt.0)
        .bind(client.as_str());
    sql.first(select, upload_row).await
}

pub(super) async fn releases(sql: &mut Sql<'_>, job: &JobId) -> Result<Vec<ReleaseRecord>, StoreError> {
    let select = statement(RELEASE_ROWS).and("WHERE job = $1 ORDER BY round").bind(job.as_str());
    sql.all(select, release_row).await
}

pub(super) async fn released_models(sql: &mut Sql<'_>) -> Result<Vec<Digest>, StoreError> {
    sql.all(statement("SELECT DISTINCT model FROM releases"), |row| parsed(row, "model")).await
}

fn job_row(row: &Row) -> sqlx::Result<JobRecord> {
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

fn event_row(row: &Row) -> sqlx::Result<EventRecord> {
    Ok(EventRecord {
        seq: number(row, "seq")?,
        unix_ms: number(row, "unix_ms")?,
        document: parsed(row, "document")?,
    })
}

fn upload_row(row: &Row) -> sqlx::Result<UploadRecord> {
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

fn release_row(row: &Row) -> sqlx::Result<ReleaseRecord> {
    Ok(ReleaseRecord {
        job: parsed(row, "job")?,
        round: Round(number(row, "round")?),
        model: parsed(row, "model")?,
        bytes: number(row, "bytes")?,
        unix_ms: number(row, "unix_ms")?,
        document: parsed(row, "document")?,
    })
}
