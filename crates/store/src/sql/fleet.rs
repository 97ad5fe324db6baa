//! What coordinators that share a database tell each other: sessions, mail, inputs for jobs that another one drives.

use super::connection::{Row, Sql, number, optional, optional_number, parsed, statement};
use super::{SqlStore, finish, leases};
use crate::error::StoreError;
use crate::fleet::{Asked, JobStanding, Mail, Note, PartialSum, SessionRow};
use crate::records::{JobRecord, Lease};
use crate::rules;
use std::collections::BTreeSet;
use std::time::Duration;
use undertone_core::digest::Digest;
use undertone_core::id::{AttemptKey, ClientId, JobId};

/// What the lease of a coordinator that is there is called, before its name.
const REPLICA: &str = "replica/";
/// How long somebody may wait for an answer: whoever asked has given up by then.
const STALE_MS: u64 = 600_000;
const DAY_MS: u64 = 86_400_000;

const SESSION_ROWS: &str = "SELECT client, role, replica, number FROM sessions";

/// One transaction of a statement or more.
macro_rules! transaction {
    ($store:expr, $sql:ident => $work:expr) => {{
        let mut write = $store.engine.write().await?;
        let outcome: Result<_, StoreError> = async {
            let $sql = &mut write.sql();
            $work
        }
        .await;
        finish(write, outcome).await
    }};
}

/// For coordinators that share a database; of PostgreSQL only.
impl SqlStore {
    /// The lease of a coordinator that is there.
    pub fn replica_lease(replica: &str) -> String {
        format!("{REPLICA}{replica}")
    }

    /// The coordinators that are there now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn replicas(&self) -> Result<BTreeSet<String>, StoreError> {
        replicas(&mut self.engine.read().await?.sql()).await
    }

    /// Whether a lease is still its holder's.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn holds(&self, name: &str, lease: &Lease) -> Result<bool, StoreError> {
        leases::holds(&mut self.engine.read().await?.sql(), name, lease).await
    }

    /// Has all leases of a holder last for `ttl` from now. Gives those that it has, with their numbers: what is missing was taken by
    /// another.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn renew_leases(&self, holder: &str, ttl: Duration) -> Result<Vec<(String, u64)>, StoreError> {
        let ttl_ms = rules::lease_ms(ttl)?;
        transaction!(self, sql => leases::renew_all(sql, holder, ttl_ms).await)
    }

    /// Ends all leases of a holder: they are free at once.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn end_leases(&self, holder: &str) -> Result<(), StoreError> {
        transaction!(self, sql => {
            let end = statement("UPDATE leases SET expires_ms = 0, holder = $1 WHERE holder = $2");
            sql.execute(end.bind("").bind(holder)).await?;
            sql.notify(&Note::Lease).await
        })
    }

    /// Takes the leases of up to `limit` open jobs that nobody drives, of none of `except`. Coordinators that ask at once get different
    /// ones.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn take_jobs(
        &self,
        holder: &str,
        ttl: Duration,
        limit: u32,
        except: &BTreeSet<JobId>,
    ) -> Result<Vec<(JobId, Lease)>, StoreError> {
        rules::check_holder(holder)?;
        let ttl_ms = rules::lease_ms(ttl)?;
        transaction!(self, sql => {
            let now = leases::now_ms(sql).await?;
            // Each has a row from its beginning. Rows of jobs are not locked: steps lock the lease's first.
            let free = statement(
                "SELECT substr(l.name, 5) AS id FROM leases l WHERE l.name LIKE 'job/%' AND l.expires_ms <= $1 AND EXISTS
                     (SELECT 1 FROM jobs j WHERE j.id = substr(l.name, 5) AND j.ended = 0)
                     AND NOT EXISTS (SELECT 1 FROM deployment d WHERE d.name = 'unsettled')
                 ORDER BY l.name LIMIT $2",
            );
            let free = free.bind(now).bind(limit.saturating_add(except.len() as u32)).skipping();
            let mut taken = vec![];
            let free = sql.all(free, |row| parsed::<JobId>(row, "id")).await?;
            for id in free.into_iter().filter(|id| !except.contains(id)).take(limit as usize) {
                let lease = leases::take(sql, &JobRecord::lease_name(&id), holder, ttl_ms).await?;
                if lease.holder == holder {
                    taken.push((id, lease));
                }
            }
            Ok(taken)
        })
    }

    /// Notes that a participant is connected here, whatever was noted of it before.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn session_opened(&self, session: &SessionRow) -> Result<(), StoreError> {
        transaction!(self, sql => {
            let note = statement(
                "INSERT INTO sessions (client, role, replica, number) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (client) DO UPDATE SET
                     role = excluded.role, replica = excluded.replica, number = excluded.number",
            );
            let note = note
                .bind(session.client.as_str())
                .bind(session.role.as_str())
                .bind(&session.replica)
                .bind(session.number);
            sql.execute(note).await?;
            sql.notify(&Note::Session(session.client.clone())).await
        })
    }

    /// Notes that this session of a participant has ended, unless another one was noted since.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn session_ended(
        &self,
        client: &ClientId,
        replica: &str,
        number: u64,
    ) -> Result<(), StoreError> {
        transaction!(self, sql => {
            let gone = statement("DELETE FROM sessions WHERE client = $1 AND replica = $2 AND number = $3");
            match sql.execute(gone.bind(client.as_str()).bind(replica).bind(number)).await? {
                0 => Ok(()),
                _ => sql.notify(&Note::Session(client.clone())).await,
            }
        })
    }

    /// Forgets all sessions of a coordinator: it has just begun, or ends.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn sessions_ended(&self, replica: &str) -> Result<(), StoreError> {
        transaction!(self, sql => {
            sql.execute(statement("DELETE FROM sessions WHERE replica = $1").bind(replica)).await?;
            sql.notify(&Note::Missed).await
        })
    }

    /// Where a participant is connected now, if it is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn session(&self, client: &ClientId) -> Result<Option<SessionRow>, StoreError> {
        let one = statement(SESSION_ROWS).and("WHERE client = $1").bind(client.as_str());
        self.engine.read().await?.sql().first(one, session_row).await
    }

    /// Who is connected to any coordinator; those of coordinators that are gone are among them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn sessions(&self) -> Result<Vec<SessionRow>, StoreError> {
        self.engine.read().await?.sql().all(statement(SESSION_ROWS), session_row).await
    }

    /// Leaves mail at other coordinators.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn post(&self, mail: &[(String, Mail)]) -> Result<(), StoreError> {
        transaction!(self, sql => {
            for (replica, mail) in mail {
                let put = statement(
                    "INSERT INTO mail (replica, client, job, version, message) VALUES ($1, $2, $3, $4, $5)",
                );
                let put = put.bind(replica).bind(mail.client.as_str()).bind(mail.job.as_str());
                sql.execute(put.bind(mail.version).bind(&mail.message)).await?;
            }
            let replicas: BTreeSet<&String> = mail.iter().map(|(replica, _)| replica).collect();
            for replica in replicas {
                sql.notify(&Note::Mail(replica.clone())).await?;
            }
            Ok(())
        })
    }

    /// Up to `limit` pieces of a coordinator's mail, the oldest first, each with what it is deleted by.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn mail(&self, replica: &str, limit: u32) -> Result<Vec<(u64, Mail)>, StoreError> {
        let oldest = statement(
            "SELECT id, client, job, version, message FROM mail WHERE replica = $1 ORDER BY id LIMIT $2",
        );
        self.engine.read().await?.sql().all(oldest.bind(replica).bind(limit), mail_row).await
    }

    /// Deletes mail that was delivered.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn mail_delivered(&self, ids: &[u64]) -> Result<(), StoreError> {
        transaction!(self, sql => {
            for id in ids {
                sql.execute(statement("DELETE FROM mail WHERE id = $1").bind(*id)).await?;
            }
            Ok(())
        })
    }

    /// Asks something of a job that another coordinator drives; gives what the answer will be known by.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn ask(&self, job: &JobId, replica: &str, input: &str) -> Result<u64, StoreError> {
        transaction!(self, sql => {
            let now = leases::now_ms(sql).await?;
            let put = statement(
                "INSERT INTO inbox (job, replica, asked_ms, input) VALUES ($1, $2, $3, $4) RETURNING id",
            );
            let put = put.bind(job.as_str()).bind(replica).bind(now).bind(input);
            let id = sql.first(put, |row| number(row, "id")).await?.unwrap_or_default();
            sql.notify(&Note::Inbox(job.clone())).await?;
            Ok(id)
        })
    }

    /// What waits for a job's driver, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn asked(&self, job: &JobId, limit: u32) -> Result<Vec<Asked>, StoreError> {
        let open =
            statement("SELECT id, input FROM inbox WHERE job = $1 AND answer IS NULL ORDER BY id LIMIT $2");
        let open = open.bind(job.as_str()).bind(limit);
        self.engine
            .read()
            .await?
            .sql()
            .all(open, |row| Ok(Asked { id: number(row, "id")?, input: parsed(row, "input")? }))
            .await
    }

    /// Answers what was asked.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn answer(&self, answers: &[(u64, String)]) -> Result<(), StoreError> {
        transaction!(self, sql => {
            let mut askers = BTreeSet::new();
            for (id, answer) in answers {
                let put = statement("UPDATE inbox SET answer = $1 WHERE id = $2 RETURNING replica");
                let asker = sql.first(put.bind(answer).bind(*id), |row| parsed::<String>(row, "replica")).await?;
                askers.extend(asker);
            }
            for asker in askers {
                sql.notify(&Note::Answers(asker)).await?;
            }
            Ok(())
        })
    }

    /// Takes the answers to what a coordinator asked.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn collect_answers(&self, replica: &str) -> Result<Vec<(u64, String)>, StoreError> {
        transaction!(self, sql => {
            let take = statement(
                "DELETE FROM inbox WHERE replica = $1 AND answer IS NOT NULL RETURNING id, answer",
            );
            sql.all(take.bind(replica), |row| Ok((number(row, "id")?, parsed(row, "answer")?))).await
        })
    }

    /// Notes what a job's driver says of it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_standing(&self, job: &JobId, standing: &JobStanding) -> Result<(), StoreError> {
        transaction!(self, sql => {
            let put = statement(
                "INSERT INTO standings (job, halted, waits_for) VALUES ($1, $2, $3)
                 ON CONFLICT (job) DO UPDATE SET halted = excluded.halted, waits_for = excluded.waits_for",
            );
            let put = put.bind(job.as_str()).bind(standing.halted.as_deref());
            sql.execute(put.bind(standing.waits_for.as_deref())).await?;
            sql.notify(&Note::Job(job.clone())).await
        })
    }

    /// What a job's driver says of it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn standing(&self, job: &JobId) -> Result<JobStanding, StoreError> {
        let found = statement("SELECT halted, waits_for FROM standings WHERE job = $1").bind(job.as_str());
        let found = self.engine.read().await?.sql().first(found, standing_row).await?;
        Ok(found.unwrap_or_default())
    }

    /// Notes that a coordinator begins to sum what it has of an attempt. False: it does already, or did.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn begin_partial_sum(&self, key: &AttemptKey, replica: &str) -> Result<bool, StoreError> {
        transaction!(self, sql => {
            let now = leases::now_ms(sql).await?;
            let put = statement(
                "INSERT INTO partial_sums (job, round, attempt, replica, begun_ms, made) VALUES ($1, $2, $3, $4, $5, 0)
                 ON CONFLICT (job, round, attempt, replica) DO NOTHING",
            );
            let put = put.bind(key.job.as_str()).bind(key.round.0).bind(key.attempt.0).bind(replica).bind(now);
            Ok(sql.execute(put).await? > 0)
        })
    }

    /// Notes what came of a sum that was begun. False: the attempt is over and its sums are forgotten.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn end_partial_sum(
        &self,
        key: &AttemptKey,
        replica: &str,
        blob: Option<(Digest, u64)>,
    ) -> Result<bool, StoreError> {
        transaction!(self, sql => {
            let put = statement(
                "UPDATE partial_sums SET made = 1, blob = $1, bytes = $2
                 WHERE job = $3 AND round = $4 AND attempt = $5 AND replica = $6",
            );
            let put = put.bind(blob.map(|(digest, _)| digest.to_string())).bind(blob.map(|(_, bytes)| bytes));
            let put = put.bind(key.job.as_str()).bind(key.round.0).bind(key.attempt.0).bind(replica);
            Ok(sql.execute(put).await? > 0)
        })
    }

    /// The partial sums of an attempt, by coordinator.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn partial_sums(&self, key: &AttemptKey) -> Result<Vec<PartialSum>, StoreError> {
        let all = statement(
            "SELECT replica, made, blob, bytes FROM partial_sums WHERE job = $1 AND round = $2 AND attempt = $3
             ORDER BY replica",
        );
        let all = all.bind(key.job.as_str()).bind(key.round.0).bind(key.attempt.0);
        self.engine.read().await?.sql().all(all, partial_row).await
    }

    /// Forgets the partial sums of an attempt; gives their blobs.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn forget_partial_sums(&self, key: &AttemptKey) -> Result<Vec<Digest>, StoreError> {
        transaction!(self, sql => {
            let gone = statement(
                "DELETE FROM partial_sums WHERE job = $1 AND round = $2 AND attempt = $3
                 RETURNING replica, made, blob, bytes",
            );
            let gone = gone.bind(key.job.as_str()).bind(key.round.0).bind(key.attempt.0);
            let gone = sql.all(gone, partial_row).await?;
            Ok(gone.into_iter().filter_map(|sum| sum.blob).map(|(digest, _)| digest).collect())
        })
    }

    /// Tells all coordinators where to look.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn notify(&self, note: &Note) -> Result<(), StoreError> {
        transaction!(self, sql => sql.notify(note).await)
    }

    /// Deletes what coordinators left that are gone, and questions that nobody waits for any more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn tidy(&self) -> Result<(), StoreError> {
        transaction!(self, sql => {
            let now = leases::now_ms(sql).await?;
            for gone in [
                "DELETE FROM sessions s WHERE NOT EXISTS
                     (SELECT 1 FROM leases l WHERE l.name = 'replica/' || s.replica AND l.expires_ms > $1)",
                "DELETE FROM mail m WHERE NOT EXISTS
                     (SELECT 1 FROM leases l WHERE l.name = 'replica/' || m.replica AND l.expires_ms > $1)",
            ] {
                sql.execute(statement(gone).bind(now)).await?;
            }
            let then = now.saturating_sub(STALE_MS);
            sql.execute(statement("DELETE FROM inbox WHERE asked_ms < $1").bind(then)).await?;
            // A day: whoever comes back later begins anew.
            let then = now.saturating_sub(DAY_MS);
            let ended = "DELETE FROM standings s WHERE NOT EXISTS
                 (SELECT 1 FROM jobs j WHERE j.id = s.job AND j.ended = 0)";
            sql.execute(statement(ended)).await?;
            for gone in [
                "DELETE FROM leases WHERE name LIKE 'replica/%' AND expires_ms < $1",
                "DELETE FROM leases l WHERE l.name LIKE 'job/%' AND l.expires_ms < $1 AND EXISTS
                     (SELECT 1 FROM jobs j WHERE j.id = substr(l.name, 5) AND j.ended = 1)",
            ] {
                sql.execute(statement(gone).bind(then)).await?;
            }
            // Their blobs are swept.
            let gone = statement("DELETE FROM partial_sums WHERE begun_ms < $1");
            sql.execute(gone.bind(then)).await.map(drop)
        })
    }
}

/// The coordinators that are there now.
pub(crate) async fn replicas(sql: &mut Sql<'_>) -> Result<BTreeSet<String>, StoreError> {
    let now = leases::now_ms(sql).await?;
    let there = statement("SELECT name FROM leases WHERE name LIKE 'replica/%' AND expires_ms > $1");
    let names = sql.all(there.bind(now), |row| parsed::<String>(row, "name")).await?;
    Ok(names.iter().filter_map(|name| name.strip_prefix(REPLICA)).map(str::to_owned).collect())
}

fn session_row(row: &Row) -> sqlx::Result<SessionRow> {
    Ok(SessionRow {
        client: parsed(row, "client")?,
        role: parsed(row, "role")?,
        replica: parsed(row, "replica")?,
        number: number(row, "number")?,
    })
}

fn standing_row(row: &Row) -> sqlx::Result<JobStanding> {
    Ok(JobStanding { halted: optional(row, "halted")?, waits_for: optional(row, "waits_for")? })
}

fn partial_row(row: &Row) -> sqlx::Result<PartialSum> {
    let (blob, bytes) = (optional(row, "blob")?, optional_number(row, "bytes")?);
    Ok(PartialSum {
        replica: parsed(row, "replica")?,
        made: number::<i64>(row, "made")? != 0,
        blob: blob.zip(bytes),
    })
}

fn mail_row(row: &Row) -> sqlx::Result<(u64, Mail)> {
    let mail = Mail {
        client: parsed(row, "client")?,
        job: parsed(row, "job")?,
        version: number(row, "version")?,
        message: parsed(row, "message")?,
    };
    Ok((number(row, "id")?, mail))
}
