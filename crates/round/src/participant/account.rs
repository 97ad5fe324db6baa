//! What the client has given to each job, durable beside its outbox.
//!
//! A coordinator that forgets, restarts from an old copy or lies could ask for the same attempt twice, or for more
//! attempts than the job's budget pays for. The client keeps its own count.

use serde::{Deserialize, Serialize};
use undertone_core::digest::Digest;
use undertone_core::id::{Attempt, AttemptKey, JobId, Round};
use undertone_core::participation::{History, MayNotJoin, Participation};

/// One job's account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    job: JobId,
    document: Digest,
    updates: u32,
    round: Round,
    attempt: Attempt,
    /// The rounds that the client took part in, for the job's rule on participation.
    #[serde(default)]
    taken_part: History,
    sealed: Option<Sealed>,
}

/// An update that is encoded and durable in the outbox. These bytes, and no others, are what the attempt gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sealed {
    /// Digest of the bytes.
    pub update: Digest,
    /// Their number.
    pub bytes: u64,
    /// The weight that goes with them.
    pub weight: u32,
    /// Whether the update was within the clip norm, where that is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<bool>,
    /// The number that goes beside it, where the job rescales updates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
}

impl Account {
    /// The account after one more update, for `key`: counted before the update is stored, so that a crash can
    /// only count too much.
    ///
    /// # Errors
    /// [`MayNotJoin`] if the job's `rule` keeps the client out of the round.
    pub(crate) fn charge(
        before: Option<&Self>,
        key: &AttemptKey,
        document: Digest,
        rule: Option<Participation>,
    ) -> Result<Self, MayNotJoin> {
        let history = before.map_or(History::default(), |a| a.taken_part);
        Ok(Self {
            job: key.job.clone(),
            document,
            updates: before.map_or(0, |a| a.updates).saturating_add(1),
            round: key.round,
            attempt: key.attempt,
            taken_part: match rule {
                Some(rule) => rule.join(&history, key.round.0)?,
                None => history,
            },
            sealed: None,
        })
    }

    /// The rounds that the client took part in.
    pub fn taken_part(&self) -> &History {
        &self.taken_part
    }

    /// The account with the update's bytes in the outbox.
    pub fn with_sealed(self, sealed: Sealed) -> Self {
        Self { sealed: Some(sealed), ..self }
    }

    /// The account with the outbox empty: the attempt is closed.
    pub fn closed(self) -> Self {
        Self { sealed: None, ..self }
    }

    /// The job.
    pub fn job(&self) -> &JobId {
        &self.job
    }

    /// Digest of the job document that the updates were made under.
    pub fn document(&self) -> Digest {
        self.document
    }

    /// Updates made for this job, delivered or not.
    pub fn updates(&self) -> u32 {
        self.updates
    }

    /// The attempt that the newest update was made for.
    pub fn last(&self) -> AttemptKey {
        AttemptKey { job: self.job.clone(), round: self.round, attempt: self.attempt }
    }

    /// The update in the outbox, if the attempt is still open.
    pub fn sealed(&self) -> Option<&Sealed> {
        self.sealed.as_ref()
    }
}
