//! The state of a deployment, behind one trait.

use crate::error::{CommitError, EnrolError, StoreError};
use crate::records::{
    ClientRecord, EnrolRequest, EventRecord, JobRecord, Lease, LedgerRow, NewEvent, ReleaseRecord,
    TokenRecord, Transition, UploadRecord,
};
use async_trait::async_trait;
use std::fmt::Debug;
use std::time::Duration;
use undertone_core::digest::Digest;
use undertone_core::id::{AttemptKey, ClientId, JobId};

/// The durable state: tokens, clients, jobs and what belongs to them.
///
/// Every method is one transaction. When it returns `Ok`, what it wrote is durable (see
/// [`Durability`](crate::Durability)) and every later read sees it; when it returns an error, nothing was
/// written, but after [`StoreError::Unsure`]. A call that is dropped before it returns happened whole or not at all.
#[async_trait]
pub trait Store: Send + Sync + Debug {
    /// Keeps a new token.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if its id or its secret is in use.
    async fn create_token(&self, token: TokenRecord) -> Result<(), StoreError>;

    /// All tokens, used up and expired ones too; the oldest first, then by id.
    async fn list_tokens(&self) -> Result<Vec<TokenRecord>, StoreError>;

    /// Forgets a token; its clients stay. Says whether there was one.
    async fn delete_token(&self, id: &str) -> Result<bool, StoreError>;

    /// Lets a client join: checks the token with this secret, counts it down and inserts the client.
    ///
    /// A client that comes again with the same token and the same key (it never got the answer) gets the
    /// record of the first time, serial included, whatever became of the token's uses and expiry.
    ///
    /// # Errors
    /// [`EnrolError`] says why not; then neither token nor clients changed.
    async fn enrol(
        &self,
        secret_digest: Digest,
        now_unix_s: u64,
        request: EnrolRequest,
    ) -> Result<ClientRecord, EnrolError>;

    /// A client, if there is one of this name.
    async fn client(&self, id: &ClientId) -> Result<Option<ClientRecord>, StoreError>;

    /// All clients by name.
    async fn clients(&self) -> Result<Vec<ClientRecord>, StoreError>;

    /// Notes that a client was heard of; an earlier time than the one noted changes nothing. Says whether
    /// there is such a client.
    async fn touch_client(&self, id: &ClientId, now_unix_s: u64) -> Result<bool, StoreError>;

    /// Keeps a new job, at version [`JobRecord::FIRST_VERSION`], with its first events.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if there is one of this name.
    async fn insert_job(&self, job: JobRecord, events: Vec<NewEvent>) -> Result<(), StoreError>;

    /// A job, if there is one of this name.
    async fn job(&self, id: &JobId) -> Result<Option<JobRecord>, StoreError>;

    /// All jobs, the oldest first, then by name.
    async fn jobs(&self) -> Result<Vec<JobRecord>, StoreError>;

    /// The jobs that have not ended, the oldest first, then by name.
    async fn open_jobs(&self) -> Result<Vec<JobRecord>, StoreError>;

    /// Makes one step of a job with all its effects, if the job is still at the expected version. Returns the
    /// new version.
    ///
    /// # Errors
    /// [`CommitError::Conflict`] if another step came first, [`CommitError::LedgerMoved`] if another line did.
    async fn commit(&self, transition: Transition) -> Result<u64, CommitError>;

    /// The events of a job after `after_seq` (0 for all), in order, at most `limit`. None for an unknown job.
    async fn events(&self, job: &JobId, after_seq: u64, limit: u32) -> Result<Vec<EventRecord>, StoreError>;

    /// The lines of the population's privacy ledger after `after_seq` (0 for all), in order, at most `limit`.
    async fn ledger(&self, after_seq: u64, limit: u32) -> Result<Vec<LedgerRow>, StoreError>;

    /// The updates accepted into an attempt, by client.
    async fn uploads(&self, key: &AttemptKey) -> Result<Vec<UploadRecord>, StoreError>;

    /// The update of one client that was accepted into an attempt. Records stay, whatever becomes of the attempt.
    async fn upload(&self, key: &AttemptKey, client: &ClientId) -> Result<Option<UploadRecord>, StoreError> {
        Ok(self.uploads(key).await?.into_iter().find(|upload| upload.client == *client))
    }

    /// The models that a job published, by round.
    async fn releases(&self, job: &JobId) -> Result<Vec<ReleaseRecord>, StoreError>;

    /// The digests of all models that any job published.
    async fn released_models(&self) -> Result<Vec<Digest>, StoreError>;

    /// Takes a lease that nobody has: from now on, for `ttl`, it is `holder`'s. If somebody has it, whose it is. Every program needs a
    /// name of its own. Time is the store's own: the clocks of programs need not agree.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`] for no time at all, or more than a day.
    async fn take_lease(&self, name: &str, holder: &str, ttl: Duration) -> Result<Lease, StoreError>;

    /// Has a lease last for `ttl` from now. False: it was taken by another since; nothing changed.
    async fn renew_lease(&self, name: &str, lease: &Lease, ttl: Duration) -> Result<bool, StoreError>;

    /// Ends a lease before its time, unless it was taken by another since.
    async fn end_lease(&self, name: &str, lease: &Lease) -> Result<(), StoreError>;

    /// Lets go of files and connections, after writes in flight. Later calls fail with [`StoreError::Closed`].
    async fn close(&self);
}
