//! What goes into the machine and what comes out.

use super::{Acceptance, Account, Decision, Offer, OfferedModel, Parcel, Refusal, Sealed};
use crate::job::Job;
use std::sync::Arc;
use undertone_core::id::AttemptKey;
use undertone_core::trainer::{DataReport, TrainerError};

/// Something that happened to the client.
#[derive(Debug, Clone)]
pub enum Input {
    /// The session is up: the coordinator has welcomed the client.
    SessionUp,
    /// The session broke. Work goes on; offers not begun are forgotten, the coordinator repeats them.
    SessionLost,
    /// An offer that could be read.
    Offered(Box<Offer>),
    /// The coordinator goes on without the client, or the attempt is over.
    Withdrawn(AttemptKey),
    /// The data was checked; or could not be, and why.
    Inspected(AttemptKey, Result<DataReport, TrainerError>),
    /// The model is on the disk, verified.
    ModelReady(AttemptKey),
    /// Training ended, and the update is clipped (or within its bound) and on the grid.
    Trained(AttemptKey, Parcel),
    /// The update and the account are durable.
    Stored(AttemptKey, Sealed),
    /// The coordinator has made the update durable, now or earlier.
    Uploaded(AttemptKey),
    /// The step that the attempt is in did not succeed.
    Failed(AttemptKey, Failure),
}

/// Why a step did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Trying the same again may help (uploads and questions about them only).
    Transient(String),
    /// The attempt is over on the coordinator's side: nobody is waiting.
    Closed(String),
    /// It will not work. The sentence is told to the coordinator: it holds nothing of the data.
    Final(String),
}

impl Failure {
    /// Tells the coordinator, unless it knows: nobody waits for a closed attempt.
    pub(super) fn report(self, key: &AttemptKey, out: &mut Vec<Effect>) {
        match self {
            Self::Transient(reason) | Self::Final(reason) => {
                out.push(Effect::ReportFailure(key.clone(), reason));
            }
            Self::Closed(_) => {}
        }
    }
}

/// Something that the shell must do, in the order given.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Append to the client's own log, durably, before anything that follows.
    Record(Box<Decision>),
    /// Tell the coordinator yes.
    Accept(AttemptKey),
    /// Tell the coordinator no.
    Decline(AttemptKey, Refusal),
    /// Check the data against the job's contract; answer [`Input::Inspected`].
    Inspect(AttemptKey, Arc<Job>),
    /// Bring the model here; answer [`Input::ModelReady`] or [`Input::Failed`].
    Fetch(AttemptKey, OfferedModel, Arc<Job>),
    /// Train; answer [`Input::Trained`] or [`Input::Failed`].
    Train(Box<Acceptance>),
    /// Stop what is done for the attempt; its result will be ignored.
    Abandon(AttemptKey),
    /// Make the update's bytes, then the account with them, durable; answer [`Input::Stored`] or [`Input::Failed`].
    Store {
        /// The account, the update counted, still without its bytes.
        account: Account,
        /// The update.
        parcel: Parcel,
        /// The job, which says how it is encoded.
        job: Arc<Job>,
        /// Its weight.
        weight: u32,
    },
    /// Send the stored bytes; answer [`Input::Uploaded`] or [`Input::Failed`].
    Upload {
        /// The attempt.
        key: AttemptKey,
        /// The stored update.
        sealed: Sealed,
        /// Times that this was tried before: wait longer each time.
        tries: u32,
    },
    /// Ask whether an update counted whose receipt never came, without sending it; answer [`Input::Uploaded`], or
    /// [`Input::Failed`]: [`Failure::Closed`] is the coordinator's word that it does not have it.
    Settle {
        /// The attempt.
        key: AttemptKey,
        /// The stored update.
        sealed: Sealed,
        /// Times that this was tried before: wait longer each time.
        tries: u32,
    },
    /// Make the account durable, then remove its update's bytes: the attempt is closed.
    Discard {
        /// The account.
        account: Account,
        /// Whether the coordinator has the update, or may have it. Else what an encoding left out of it was not sent, and
        /// neither was the rest.
        delivered: bool,
    },
    /// Tell the coordinator that the client had accepted but cannot deliver.
    ReportFailure(AttemptKey, String),
}
