//! What can go wrong with the state, one small enum for each kind of operation.

use crate::records::MAX_NUMBER;
use undertone_core::id::{ClientId, JobId, Round};

/// The store could not do it. Nothing of a failed operation is kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No space.
    #[error("the disk of {at} is full; the change was not made: free space, then go on")]
    Full {
        /// The database.
        at: String,
    },
    /// No right to write.
    #[error("{at} cannot be written ({detail}): let this user write it, and mount its disk writable")]
    NotWritable {
        /// The database.
        at: String,
        /// What the system said.
        detail: String,
    },
    /// It cannot be opened at all.
    #[error("{at} cannot be opened ({detail}): check that its folder exists and that this user may use it")]
    NotOpened {
        /// The database.
        at: String,
        /// What the system said.
        detail: String,
    },
    /// Another program holds it.
    #[error("{at} is held by another program ({detail}): end that program, or wait and try again")]
    Busy {
        /// The database.
        at: String,
        /// What the database said.
        detail: String,
    },
    /// It does not answer.
    #[error("{at} cannot be reached ({detail}): check that it runs and that this machine may connect to it")]
    Unreachable {
        /// The database.
        at: String,
        /// What the system said.
        detail: String,
    },
    /// The connection broke while a change was made durable: it was made, or it was not.
    #[error("{at} did not say whether the change was made ({detail}): look before it is tried again")]
    Unsure {
        /// The database.
        at: String,
        /// What the system said.
        detail: String,
    },
    /// Another program has taken the lease that changes rest on.
    #[error("another program works on {at} now: this one must stop")]
    Fenced {
        /// The database.
        at: String,
    },
    /// It holds what no store wrote.
    #[error("{at} is damaged ({detail}): stop, keep a copy of the file, and restore a backup")]
    Damaged {
        /// The database.
        at: String,
        /// What was found.
        detail: String,
    },
    /// A newer program has been here.
    #[error(
        "{at} has schema {found}, and this program knows schemas up to {known}: run the newer program that \
         wrote it"
    )]
    NewerSchema {
        /// The database.
        at: String,
        /// Its schema.
        found: u32,
        /// The newest schema known here.
        known: u32,
    },
    /// It came to its schema by another way.
    #[error(
        "{at} came to schema {number} by another way than this program knows (an unreleased build?): run the \
         build that made it, or start with an empty one"
    )]
    OtherSchema {
        /// The database.
        at: String,
        /// The migration that differs.
        number: u32,
    },
    /// It belongs to something else.
    #[error("{at} is a database of another program: name another one")]
    Foreign {
        /// The database.
        at: String,
    },
    /// There is one already.
    #[error("a {what} \"{id}\" exists already: choose another")]
    Exists {
        /// What kind of thing.
        what: &'static str,
        /// Its name.
        id: String,
    },
    /// A number that cannot be kept.
    #[error("{what} is {value}, which no store keeps: use {min} to {max}")]
    OutOfRange {
        /// Which number.
        what: &'static str,
        /// What it was.
        value: u64,
        /// The smallest allowed.
        min: u64,
        /// The largest allowed.
        max: u64,
    },
    /// It was closed before.
    #[error("the store {at} is closed: open it again")]
    Closed {
        /// The database.
        at: String,
    },
    /// Anything else.
    #[error("{at} failed ({source}): check its disk, then try again")]
    Failed {
        /// The database.
        at: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// Refuses a number that the databases cannot keep.
    pub(crate) fn check_number(what: &'static str, value: u64) -> Result<(), Self> {
        Self::check_range(what, value, 0, MAX_NUMBER)
    }

    /// Refuses a number outside `min..=max`.
    pub(crate) fn check_range(what: &'static str, value: u64, min: u64, max: u64) -> Result<(), Self> {
        if (min..=max).contains(&value) { Ok(()) } else { Err(Self::OutOfRange { what, value, min, max }) }
    }
}

/// A client may not join.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// No such token.
    #[error("the join token is not known here: check the address and the token, or ask for a new one")]
    UnknownToken,
    /// Too late.
    #[error("the join token expired at {expired_unix_s} (Unix seconds): ask for a new one")]
    Expired {
        /// When, in seconds of Unix time.
        expired_unix_s: u64,
    },
    /// Somebody was faster.
    #[error("the join token has been used {max_uses} of {max_uses} times: ask for a new one")]
    UsedUp {
        /// How many might join with it.
        max_uses: u32,
    },
    /// A client of that name exists, with another key.
    #[error("another client is called \"{0}\" already: choose another name")]
    NameTaken(ClientId),
    /// The token, or an earlier use of it with the same key, fixes another name.
    #[error(
        "the join token is for \"{fixed}\", not for \"{asked}\": leave the name out, or ask for a new token"
    )]
    NameMismatch {
        /// The name that it must be.
        fixed: ClientId,
        /// The name that was asked for.
        asked: ClientId,
    },
    /// Neither side gave a name.
    #[error("the join token fixes no name and the client gave none: give one")]
    NameMissing,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A transition was not made.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The job has moved since the step was decided. Read it again and decide again.
    #[error("job {job} is at version {found}, the step was decided at {expected}: read it again")]
    Conflict {
        /// The job.
        job: JobId,
        /// The version that the step was decided on.
        expected: u64,
        /// The version of the job.
        found: u64,
    },
    /// No such job.
    #[error("there is no job \"{0}\"")]
    UnknownJob(JobId),
    /// A row of another job in the transition of this one: a mistake of the caller.
    #[error("a step of job {job} carries a row of job {other}")]
    OtherJob {
        /// The job of the transition.
        job: JobId,
        /// The job of the row.
        other: JobId,
    },
    /// The client has another update in this attempt already. The first one counts.
    #[error("{client} has another update in {attempt} already: the first one counts")]
    UploadDiffers {
        /// The attempt, as text.
        attempt: String,
        /// The client.
        client: ClientId,
    },
    /// The round has published another model already. It is never replaced.
    #[error("round {round} of {job} has published another model already: publish that one again")]
    ReleaseDiffers {
        /// The job.
        job: JobId,
        /// The round.
        round: Round,
    },
    /// Another line came into the privacy ledger since the step was decided. Read it again and decide again.
    #[error(
        "the privacy ledger goes on at line {expected}, the step was decided for line {offered}: read it again"
    )]
    LedgerMoved {
        /// The line that the step would add.
        offered: u64,
        /// The line that comes next.
        expected: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
