//! What is kept, row by row.
//!
//! Numbers are kept as signed 64-bit integers by every database: none may pass [`MAX_NUMBER`].

use undertone_core::digest::Digest;
use undertone_core::id::{AttemptKey, ClientId, ClientRole, JobId, Round};

/// The largest number that a store keeps.
pub const MAX_NUMBER: u64 = i64::MAX as u64;

/// A join token. The secret itself is never stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// What operators call it; not secret.
    pub id: String,
    /// The digest of the secret that the client shows.
    pub secret_digest: Digest,
    /// The role of those who join with it.
    pub role: ClientRole,
    /// The name that its only user gets, if the operator fixed one.
    pub name: Option<ClientId>,
    /// How many may still join; at most `max_uses`.
    pub uses_left: u32,
    /// How many might join at first.
    pub max_uses: u32,
    /// From this second of Unix time on it is worth nothing.
    pub expires_unix_s: u64,
    /// When it was made, in seconds of Unix time.
    pub created_unix_s: u64,
}

/// What a client says of itself when it joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrolRequest {
    /// The name it would like; needed unless the token fixes one.
    pub name: Option<ClientId>,
    /// The digest of its public key.
    pub key_digest: Digest,
    /// The serial number of the certificate that it will get.
    pub certificate_serial: String,
    /// Its program and version.
    pub software: String,
}

/// An enrolled client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientRecord {
    /// Its name.
    pub id: ClientId,
    /// Its role, from the token.
    pub role: ClientRole,
    /// The digest of its public key.
    pub key_digest: Digest,
    /// The serial number of its certificate.
    pub certificate_serial: String,
    /// When it joined, in seconds of Unix time.
    pub enrolled_unix_s: u64,
    /// When it was last heard of, in seconds of Unix time.
    pub last_seen_unix_s: Option<u64>,
    /// Its program and version when it joined.
    pub software: String,
    /// The token that it joined with; kept when the token is deleted.
    pub token_id: String,
}

/// A job, and where its round machine stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRecord {
    /// Its name.
    pub id: JobId,
    /// The job as submitted, canonical JSON; never changes.
    pub document: String,
    /// The digest of the job.
    pub document_digest: Digest,
    /// Counts the transitions, from [`JobRecord::FIRST_VERSION`].
    pub version: u64,
    /// One word for lists.
    pub status: String,
    /// Nothing will happen to it any more.
    pub ended: bool,
    /// The round machine, JSON.
    pub state: String,
    /// When it was submitted, in seconds of Unix time.
    pub created_unix_s: u64,
}

impl JobRecord {
    /// The version of a job that has made no transition.
    pub const FIRST_VERSION: u64 = 1;

    /// What the lease of a job's driver is called, where several coordinators work.
    pub fn lease_name(id: &JobId) -> String {
        format!("job/{id}")
    }
}

/// One step of a job with everything that must become true at the same instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// The job.
    pub job: JobId,
    /// The lease of the job ([`JobRecord::lease_name`]) by which the step is made, where several coordinators work: if another one has
    /// taken it, nothing is written.
    pub lease: Option<Lease>,
    /// The version that the step was decided on. If the job has moved since, nothing is written.
    pub expected_version: u64,
    /// The new [`JobRecord::status`].
    pub status: String,
    /// The new [`JobRecord::ended`].
    pub ended: bool,
    /// The new [`JobRecord::state`].
    pub state: String,
    /// What happened, in order; each gets the job's next number.
    pub events: Vec<NewEvent>,
    /// New ledger rows, which follow those that are there.
    pub ledger: Vec<LedgerRow>,
    /// Updates accepted. A row that is there already counts once.
    pub uploads: Vec<UploadRecord>,
    /// The model that this step publishes, if it does.
    pub release: Option<ReleaseRecord>,
}

impl Transition {
    /// A step that changes the machine and carries nothing else yet.
    pub fn new(
        job: JobId,
        expected_version: u64,
        status: impl Into<String>,
        state: impl Into<String>,
    ) -> Self {
        Self {
            job,
            lease: None,
            expected_version,
            status: status.into(),
            ended: false,
            state: state.into(),
            events: Vec::new(),
            ledger: Vec::new(),
            uploads: Vec::new(),
            release: None,
        }
    }
}

/// Something that happened in a job, before it has a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// When, in milliseconds of Unix time.
    pub unix_ms: u64,
    /// What, JSON.
    pub document: String,
}

/// Something that happened in a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRecord {
    /// Its place among the events of the job: 1, 2, 3, without gaps.
    pub seq: u64,
    /// When, in milliseconds of Unix time.
    pub unix_ms: u64,
    /// What, JSON.
    pub document: String,
}

/// A line of the population's privacy ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerRow {
    /// Its place in the chain.
    pub seq: u64,
    /// The entry, JSON.
    pub document: String,
}

/// An update that was accepted into an attempt; one for each client and attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadRecord {
    /// The attempt.
    pub key: AttemptKey,
    /// Who sent it.
    pub client: ClientId,
    /// Where its bytes lie.
    pub blob: Digest,
    /// How many bytes the update has.
    pub bytes: u64,
    /// Its weight in the sum.
    pub weight: u32,
    /// Digest of all that its sender claimed of it when it arrived; none in rows from before it was kept.
    pub claim: Option<Digest>,
}

/// A published model; one for each round of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseRecord {
    /// The job.
    pub job: JobId,
    /// The round that made it.
    pub round: Round,
    /// Where its bytes lie.
    pub model: Digest,
    /// How many bytes the model file has.
    pub bytes: u64,
    /// When, in milliseconds of Unix time.
    pub unix_ms: u64,
    /// What else is to be known of it, JSON.
    pub document: String,
}

/// Whose a lease is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Who has it.
    pub holder: String,
    /// Grows whenever it is taken: who has it with this number has it still, or nobody has.
    pub number: u64,
    /// How long it lasts unless it is renewed, in milliseconds.
    pub left_ms: u64,
}
