//! The state of a fleet, in a PostgreSQL database.
//!
//! Transactions run at PostgreSQL's default isolation, read committed; what a step decides on is a row that it locks first, and
//! what two may add at once is a row that only one of them can add. So nothing is tried again here, and no transaction waits for
//! one that waits for it.

#[cfg(test)]
mod fleet_tests;
mod listen;
mod look;
#[cfg(test)]
mod tests;
mod work;

pub use listen::Listener;

use crate::durability::Durability;
use crate::error::StoreError;
use crate::sql::connection::{Sql, parsed, statement};
use crate::sql::schema::{self, Schema};
use crate::sql::{self, Engine, Read, SqlStore, Write};
use async_trait::async_trait;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgSslMode};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _};
use std::net::IpAddr;
use std::str::FromStr as _;
use std::time::Duration;
use work::{Reading, Work};

/// Connections of one program; more calls wait.
const CONNECTIONS: u32 = 8;
/// How long a call waits for a connection, and for a server that does not answer.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer may take; the server gives up sooner, but for a migration.
pub(crate) const PATIENCE: Duration = Duration::from_secs(70);
/// What every connection is told first. A program that stops in the middle of a transaction must not stop the others for long.
const MANNERS: &str = "SET statement_timeout = '60s'; SET idle_in_transaction_session_timeout = '15s'";

const SCHEMA: Schema = Schema {
    // Whoever's they are and whether we may read them; without views and without what extensions brought.
    tables: "SELECT relname::text AS name FROM pg_class c
             WHERE relnamespace = to_regnamespace(current_schema()::text) AND relkind IN ('r', 'p') AND NOT EXISTS
                 (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')",
    versions: "CREATE TABLE schema_versions (number BIGINT NOT NULL PRIMARY KEY, digest TEXT NOT NULL)",
    migrations: &[include_str!("../migrations/postgres/0001_start.sql")],
};

/// Held by whoever looks at the schema to bring it up to date: programs that start at once do it one after another. The number
/// is "undertone" in ASCII, cut to 64 bits.
const SCHEMA_LOCK: &str = "SELECT pg_advisory_xact_lock(x'756e646572746f6e'::bigint)";

/// A PostgreSQL database in use.
#[derive(Debug)]
struct Postgres {
    pool: PgPool,
    at: String,
}

impl SqlStore {
    /// Opens the store in the database at `url`, `postgres://user:password@host:5432/database`, and brings its schema up to date
    /// if need be. Any number of programs may have it open. Over a network the server has to prove who it is, by a certificate that
    /// the system trusts or that `?sslrootcert=FILE` names, unless the URL's `sslmode` asks for less. A pooler in between must keep a
    /// session on one connection (pgbouncer: `pool_mode = session`).
    ///
    /// How durable a commit is, the server says; [`Durability::Disk`] overrides a server that would lose the last commits
    /// in a crash (`synchronous_commit = off`).
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be reached or opened, belongs to another program or to a newer one.
    pub async fn postgres(url: &str, durability: Durability) -> Result<Self, StoreError> {
        let options = parse(url)?;
        let at = named(&options);
        // A connection of its own first: a pool would try for long, and not say what was wrong.
        let first = tokio::time::timeout(ACQUIRE_TIMEOUT, options.connect()).await;
        let first = first.unwrap_or(Err(sqlx::Error::PoolTimedOut)).map_err(|e| fault(&at, e))?;
        let _ = first.close().await;
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    connection.execute(sqlx::raw_sql(MANNERS)).await?;
                    if durability == Durability::Disk {
                        connection.execute(sqlx::raw_sql(AT_LEAST_ON)).await?;
                    }
                    Ok(())
                })
            })
            .connect_lazy_with(options);
        let engine = Postgres { pool, at };
        engine.migrate().await?;
        engine.tell_of_risks().await?;
        Ok(Self::over(engine))
    }
}

/// Stronger settings (`remote_apply`) stay.
const AT_LEAST_ON: &str = "SELECT set_config('synchronous_commit', 'on', false)
    WHERE current_setting('synchronous_commit') = 'off'";

fn parse(url: &str) -> Result<PgConnectOptions, StoreError> {
    // Not the URL itself: there is a password in it.
    let refused = |why: String| StoreError::NotOpened {
        at: "the PostgreSQL database".into(),
        detail: format!("its URL {why}; write postgres://user:password@host:5432/database"),
    };
    if !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err(refused("does not begin with postgres://".into()));
    }
    let mut options =
        PgConnectOptions::from_str(url).map_err(|e| refused(format!("is not understood: {e}")))?;
    let host = options.get_host();
    let here = options.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    // Left to itself, sqlx takes what it gets: no encryption, and any server.
    if !here && !url.contains("sslmode=") && std::env::var_os("PGSSLMODE").is_none() {
        options = options.ssl_mode(PgSslMode::VerifyFull);
    }
    Ok(options.application_name("undertone").disable_statement_logging())
}

/// Where it is, without secrets.
fn named(options: &PgConnectOptions) -> String {
    let host = options.get_socket().map_or(options.get_host().to_owned(), |path| path.display().to_string());
    let database = options.get_database().unwrap_or(options.get_username());
    format!("PostgreSQL database {database} at {host}:{}", options.get_port())
}

impl Postgres {
    async fn begin(&self) -> Result<Work<'_>, StoreError> {
        let connection = self.pool.acquire().await.map_err(|e| fault(&self.at, e))?;
        Work::begin(connection, &self.at).await
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        let mut work = self.begin().await?;
        let outcome = migrate(&mut work.sql(), SCHEMA.migrations).await;
        sql::finish(Box::new(work), outcome).await
    }

    /// A server that was told not to care is one to be warned of.
    async fn tell_of_risks(&self) -> Result<(), StoreError> {
        let mut reading = self.read().await?;
        let asked = statement("SELECT current_setting('fsync') AS fsync");
        let fsync = reading.sql().first(asked, |row| parsed::<String>(row, "fsync")).await?;
        if fsync.as_deref() == Some("off") {
            tracing::warn!(
                at = self.at,
                "the database server has fsync off: a power loss loses what it acknowledged, the privacy ledger too"
            );
        }
        Ok(())
    }
}

async fn migrate(sql: &mut Sql<'_>, migrations: &[&'static str]) -> Result<(), StoreError> {
    sql.batch("SET LOCAL statement_timeout = 0").await?;
    sql.batch(SCHEMA_LOCK).await?;
    schema::apply(sql, &SCHEMA, migrations).await
}

#[async_trait]
impl Engine for Postgres {
    async fn read(&self) -> Result<Box<dyn Read + '_>, StoreError> {
        let connection = self.pool.acquire().await.map_err(|e| fault(&self.at, e))?;
        Ok(Box::new(Reading::by(connection, &self.at)))
    }

    async fn write(&self) -> Result<Box<dyn Write + '_>, StoreError> {
        Ok(Box::new(self.begin().await?))
    }

    async fn listen(&self) -> Result<Listener, StoreError> {
        Listener::begin(&self.pool, &self.at).await
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}

/// What an error of the database means. Codes: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
pub(crate) fn fault(at: &str, error: sqlx::Error) -> StoreError {
    let at = at.to_owned();
    let detail = match &error {
        sqlx::Error::Database(e) => e.message().to_owned(),
        sqlx::Error::PoolTimedOut => {
            format!("no connection came about within {} s", ACQUIRE_TIMEOUT.as_secs())
        }
        other => other.to_string(),
    };
    match &error {
        sqlx::Error::Database(e) => match e.code().unwrap_or_default().as_ref() {
            "25006" | "42501" => StoreError::NotWritable { at, detail },
            // Deadlocks, conflicts, locks not given, statements that took too long.
            "40001" | "40P01" | "55P03" | "57014" => StoreError::Busy { at, detail },
            "53100" => StoreError::Full { at },
            // Too many connections, and a server that starts or stops.
            "53300" | "57P01" | "57P02" | "57P03" => StoreError::Unreachable { at, detail },
            "XX001" | "XX002" => StoreError::Damaged { at, detail },
            "3D000" | "3F000" => StoreError::NotOpened { at, detail },
            code if code.starts_with("28") => StoreError::NotOpened { at, detail },
            code if code.starts_with("08") => StoreError::Unreachable { at, detail },
            _ => StoreError::Failed { at, source: error.into() },
        },
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => StoreError::Damaged { at, detail },
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::Protocol(_) => {
            StoreError::Unreachable { at, detail }
        }
        sqlx::Error::Tls(_) => StoreError::NotOpened {
            at,
            detail: format!(
                "{detail}; over a network the server's certificate is checked: name its authority by ?sslrootcert=FILE"
            ),
        },
        sqlx::Error::PoolClosed => StoreError::Closed { at },
        _ => StoreError::Failed { at, source: error.into() },
    }
}
