//! The state in an SQL database. Statements are written once, in the SQL that SQLite and PostgreSQL share; an [`Engine`] is what
//! one of them does in its own way: connections, transactions, what its errors mean.

pub(crate) mod connection;
mod deployment;
pub(crate) mod fleet;
mod identity;
mod jobs;
pub(crate) mod leases;
#[cfg(test)]
mod model_tests;
pub(crate) mod schema;

use crate::error::{CommitError, EnrolError, StoreError};
use crate::postgres::Listener;
use crate::records::{
    ClientRecord, EnrolRequest, EventRecord, JobRecord, Lease, LedgerRow, NewEvent, ReleaseRecord,
    TokenRecord, Transition, UploadRecord,
};
use crate::rules;
use crate::store::Store;
use async_trait::async_trait;
use connection::Sql;
use std::fmt::Debug;
use std::time::Duration;
use tokio::sync::Semaphore;
use undertone_core::digest::Digest;
use undertone_core::id::{AttemptKey, ClientId, JobId};

/// What a database is told that was set back. (Statements about leases name it too.)
const UNSETTLED: &str = "unsettled";

/// How much work elsewhere may rest on leases at once.
const GUARDING: usize = 2;

/// A [`Store`] in an SQL database: [`SqlStore::sqlite`] or [`SqlStore::postgres`].
#[derive(Debug)]
pub struct SqlStore {
    pub(crate) engine: Box<dyn Engine>,
    /// For work elsewhere that rests on a lease: it holds a connection for as long as that lasts.
    guarding: Semaphore,
}

/// A database.
#[async_trait]
pub(crate) trait Engine: Send + Sync + Debug {
    /// A connection that sees what is committed.
    async fn read(&self) -> Result<Box<dyn Read + '_>, StoreError>;

    /// A transaction that has begun.
    async fn write(&self) -> Result<Box<dyn Write + '_>, StoreError>;

    /// What tells of changes that other programs make, if the database can.
    async fn listen(&self) -> Result<Listener, StoreError>;

    /// Lets go of all connections; what is asked for later is refused as [`StoreError::Closed`].
    async fn close(&self);
}

/// A connection to read by.
pub(crate) trait Read: Send {
    fn sql(&mut self) -> Sql<'_>;
}

/// A transaction. Dropped, it is undone.
#[async_trait]
pub(crate) trait Write: Send {
    fn sql(&mut self) -> Sql<'_>;

    /// Makes the transaction durable.
    async fn commit(self: Box<Self>) -> Result<(), StoreError>;

    /// Undoes it, and gives the connection back if it is in order.
    async fn undo(self: Box<Self>);
}

impl SqlStore {
    pub(crate) fn over(engine: impl Engine + 'static) -> Self {
        Self { engine: Box::new(engine), guarding: Semaphore::new(GUARDING) }
    }

    /// Does work elsewhere that rests on a lease, such as deleting what only its holder may: whoever takes the lease waits for it.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if the lease was taken by another; then nothing was done.
    pub async fn guarded<T>(
        &self,
        name: &str,
        lease: &Lease,
        work: impl Future<Output = T> + Send,
    ) -> Result<T, StoreError> {
        let _place = self.guarding.acquire().await.expect("it is never closed");
        let mut write = self.engine.write().await?;
        let held = leases::is_held(&mut write.sql(), name, lease).await;
        let done = match held {
            Ok(true) => Ok(work.await),
            Ok(false) => Err(StoreError::Fenced { at: write.sql().at().to_owned() }),
            Err(e) => Err(e),
        };
        write.undo().await;
        done
    }

    /// Hears of changes that other programs make, from now on.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be reached, or is no database for several programs.
    pub async fn listen(&self) -> Result<Listener, StoreError> {
        self.engine.listen().await
    }

    /// What this database has been told of `name`, if anything.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn told(&self, name: &str) -> Result<Option<String>, StoreError> {
        deployment::told(&mut self.engine.read().await?.sql(), name).await
    }

    /// What this database has been told of `name` first, which is `value` if it was told nothing before.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn once(&self, name: &str, value: &str) -> Result<String, StoreError> {
        let mut write = self.engine.write().await?;
        let outcome = deployment::once(&mut write.sql(), name, value).await;
        finish(write, outcome).await
    }

    /// Says, durably, that this state was set back and is not settled yet: until it is, no lease of a coordinator is renewed or given,
    /// no step is made by one, and no coordinator should begin. `why` is kept.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn unsettle(&self, why: &str) -> Result<(), StoreError> {
        self.once(UNSETTLED, why).await.map(drop)
    }

    /// Why this state is not settled, if it is not.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn unsettled(&self) -> Result<Option<String>, StoreError> {
        self.told(UNSETTLED).await
    }

    /// Settles a state that was set back, in one transaction: lines of newer ledgers, the steps that end jobs, more lines; all join tokens
    /// are forgotten. Says how many there were.
    ///
    /// # Errors
    /// [`CommitError`]; then nothing is changed, and the state is as unsettled as it was.
    pub async fn settle(
        &self,
        lines: &[LedgerRow],
        steps: Vec<Transition>,
        more: &[LedgerRow],
    ) -> Result<usize, CommitError> {
        for step in &steps {
            rules::check_transition(step)?;
        }
        let mut write = self.engine.write().await?;
        let outcome = async {
            let sql = &mut write.sql();
            jobs::append_ledger(sql, lines).await?;
            for step in steps {
                jobs::step(sql, step).await?;
            }
            jobs::append_ledger(sql, more).await?;
            let tokens = identity::tokens(sql).await?;
            for token in &tokens {
                identity::delete_token(sql, &token.id).await?;
            }
            deployment::forget(sql, UNSETTLED).await?;
            Ok(tokens.len())
        };
        let outcome = outcome.await;
        finish(write, outcome).await
    }
}

/// Ends a transaction as its work went.
pub(crate) async fn finish<T, E: From<StoreError>>(
    write: Box<dyn Write + '_>,
    outcome: Result<T, E>,
) -> Result<T, E> {
    match outcome {
        Ok(done) => write.commit().await.map(|()| done).map_err(E::from),
        Err(error) => {
            write.undo().await;
            Err(error)
        }
    }
}

#[async_trait]
impl Store for SqlStore {
    async fn create_token(&self, token: TokenRecord) -> Result<(), StoreError> {
        rules::check_token(&token)?;
        let mut write = self.engine.write().await?;
        let outcome = identity::create_token(&mut write.sql(), token).await;
        finish(write, outcome).await
    }

    async fn list_tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        identity::tokens(&mut self.engine.read().await?.sql()).await
    }

    async fn delete_token(&self, id: &str) -> Result<bool, StoreError> {
        let mut write = self.engine.write().await?;
        let outcome = identity::delete_token(&mut write.sql(), id).await;
        finish(write, outcome).await
    }

    async fn enrol(
        &self,
        secret_digest: Digest,
        now_unix_s: u64,
        request: EnrolRequest,
    ) -> Result<ClientRecord, EnrolError> {
        let mut write = self.engine.write().await?;
        let outcome = identity::enrol(&mut write.sql(), secret_digest, now_unix_s, request).await;
        finish(write, outcome).await
    }

    async fn client(&self, id: &ClientId) -> Result<Option<ClientRecord>, StoreError> {
        identity::client(&mut self.engine.read().await?.sql(), id).await
    }

    async fn clients(&self) -> Result<Vec<ClientRecord>, StoreError> {
        identity::clients(&mut self.engine.read().await?.sql()).await
    }

    async fn touch_client(&self, id: &ClientId, now_unix_s: u64) -> Result<bool, StoreError> {
        StoreError::check_number("the time", now_unix_s)?;
        let mut write = self.engine.write().await?;
        let outcome = identity::touch(&mut write.sql(), id, now_unix_s).await;
        finish(write, outcome).await
    }

    async fn insert_job(&self, job: JobRecord, events: Vec<NewEvent>) -> Result<(), StoreError> {
        rules::check_job(&job, &events)?;
        let mut write = self.engine.write().await?;
        let outcome = jobs::insert(&mut write.sql(), job, &events).await;
        finish(write, outcome).await
    }

    async fn job(&self, id: &JobId) -> Result<Option<JobRecord>, StoreError> {
        jobs::job(&mut self.engine.read().await?.sql(), id).await
    }

    async fn jobs(&self) -> Result<Vec<JobRecord>, StoreError> {
        jobs::jobs(&mut self.engine.read().await?.sql()).await
    }

    async fn open_jobs(&self) -> Result<Vec<JobRecord>, StoreError> {
        jobs::open_jobs(&mut self.engine.read().await?.sql()).await
    }

    async fn commit(&self, transition: Transition) -> Result<u64, CommitError> {
        rules::check_transition(&transition)?;
        let mut write = self.engine.write().await?;
        let outcome = jobs::step(&mut write.sql(), transition).await;
        finish(write, outcome).await
    }

    async fn events(&self, job: &JobId, after_seq: u64, limit: u32) -> Result<Vec<EventRecord>, StoreError> {
        jobs::events(&mut self.engine.read().await?.sql(), job, after_seq, limit).await
    }

    async fn ledger(&self, after_seq: u64, limit: u32) -> Result<Vec<LedgerRow>, StoreError> {
        jobs::ledger(&mut self.engine.read().await?.sql(), after_seq, limit).await
    }

    async fn uploads(&self, key: &AttemptKey) -> Result<Vec<UploadRecord>, StoreError> {
        jobs::uploads(&mut self.engine.read().await?.sql(), key).await
    }

    async fn upload(&self, key: &AttemptKey, client: &ClientId) -> Result<Option<UploadRecord>, StoreError> {
        jobs::upload(&mut self.engine.read().await?.sql(), key, client).await
    }

    async fn releases(&self, job: &JobId) -> Result<Vec<ReleaseRecord>, StoreError> {
        jobs::releases(&mut self.engine.read().await?.sql(), job).await
    }

    async fn released_models(&self) -> Result<Vec<Digest>, StoreError> {
        jobs::released_models(&mut self.engine.read().await?.sql()).await
    }

    async fn take_lease(&self, name: &str, holder: &str, ttl: Duration) -> Result<Lease, StoreError> {
        rules::check_holder(holder)?;
        let ttl_ms = rules::lease_ms(ttl)?;
        let mut write = self.engine.write().await?;
        let outcome = leases::take(&mut write.sql(), name, holder, ttl_ms).await;
        finish(write, outcome).await
    }

    async fn renew_lease(&self, name: &str, lease: &Lease, ttl: Duration) -> Result<bool, StoreError> {
        let ttl_ms = rules::lease_ms(ttl)?;
        let mut write = self.engine.write().await?;
        let outcome = leases::renew(&mut write.sql(), name, lease, ttl_ms).await;
        finish(write, outcome).await
    }

    async fn end_lease(&self, name: &str, lease: &Lease) -> Result<(), StoreError> {
        let mut write = self.engine.write().await?;
        let outcome = leases::end(&mut write.sql(), name, lease).await;
        finish(write, outcome).await
    }

    async fn close(&self) {
        self.engine.close().await;
    }
}
