//! Receipts that were lost: a client that asks after an attempt has closed, or its job has ended, is told that its update counted.
//!
//! A client that believed otherwise would send the update twice: with an encoding that leaves things out for later it goes
//! back to what waits. The record of an accepted update is made in the transaction that accepts it and is never deleted, so
//! the answer stands over closed rounds, ended jobs and restarts. What it cannot tell:
//! - whether the update is that of then, where it was accepted by a version that kept no digest of what was claimed: length and
//!   weight are compared;
//! - anything from after the moment at which a deployment's folder was copied, if it is set back to that copy.

use crate::coordinator::{Shared, UpdateTurn};
use crate::spool::Claim;
use undertone::v1::{UploadHeader, UploadReceipt};
use undertone::{ApiError, Fault};
use undertone_core::id::{AttemptKey, ClientId};
use undertone_store::UploadRecord;

impl Shared {
    /// The update of a client that was accepted into an attempt, whatever became of that.
    ///
    /// # Errors
    /// If it cannot be looked up: then nobody may conclude anything.
    pub(crate) async fn taken_in(
        &self,
        key: &AttemptKey,
        client: &ClientId,
    ) -> Result<Option<UploadRecord>, ApiError> {
        self.store.upload(key, client).await.map_err(|e| {
            tracing::error!(error = %e, "cannot look up an accepted update");
            ApiError::new(
                Fault::Unavailable,
                "the coordinator cannot look up now whether this update counts: ask again later",
            )
        })
    }

    /// Whether what is claimed was accepted before. A "yes" stands for ever.
    ///
    /// # Errors
    /// As of [`Self::taken_in`].
    pub(crate) async fn counts_already(&self, claim: &Claim) -> Result<bool, ApiError> {
        let record = self.taken_in(&claim.key, &claim.client).await?;
        Ok(record.is_some_and(|record| is_claimed(&record, claim)))
    }

    /// The turn of an update that does not count: while it is held, that stands. `None` if it counts, which stands for ever.
    ///
    /// # Errors
    /// As of [`Self::update_turn`] and [`Self::taken_in`].
    pub(crate) async fn turn_unless_counted(&self, claim: &Claim) -> Result<Option<UpdateTurn>, ApiError> {
        let turn = self.update_turn(&claim.key, &claim.client).await?;
        Ok((!self.counts_already(claim).await?).then_some(turn))
    }

    /// The receipt for an update whose attempt is `over`, if it was accepted while it was not.
    ///
    /// # Errors
    /// That it is over, or that another update of the client counts in it.
    pub(crate) async fn receipt_of_before(
        &self,
        claim: &Claim,
        header: &UploadHeader,
        over: ApiError,
    ) -> Result<UploadReceipt, ApiError> {
        // Of a job that stands still nobody knows what it may still take.
        if over.fault != Fault::NotNow {
            return Err(over);
        }
        match self.taken_in(&claim.key, &claim.client).await? {
            Some(record) if is_claimed(&record, claim) => {
                tracing::info!(attempt = %claim.key, "an update counted already: its receipt was lost");
                Ok(UploadReceipt { update: header.update.clone(), counted_already: true })
            }
            Some(_) => {
                let text = format!("another update of {} for {} counts already", claim.client, claim.key);
                Err(ApiError::new(Fault::NotNow, text))
            }
            None => Err(over),
        }
    }
}

/// Whether a record is of what is claimed.
fn is_claimed(record: &UploadRecord, claim: &Claim) -> bool {
    match record.claim {
        Some(accepted) => accepted == claim.fingerprint(),
        None => (record.bytes, record.weight) == (claim.bytes, claim.weight),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use undertone_core::digest::Digest;
    use undertone_core::id::{Attempt, JobId, Round};

    #[test]
    fn a_record_without_a_digest_is_told_by_length_and_weight() {
        let key = AttemptKey { job: JobId::new("a").unwrap(), round: Round(1), attempt: Attempt(1) };
        let client = ClientId::new("basel").unwrap();
        let claim = Claim {
            key: key.clone(),
            client: client.clone(),
            digest: Digest::of(b"values"),
            bytes: 6,
            weight: 2,
            within: None,
            number: None,
        };
        let record =
            UploadRecord { key, client, blob: Digest::of(b"blob"), bytes: 6, weight: 2, claim: None };
        assert!(is_claimed(&record, &claim));
        assert!(!is_claimed(&UploadRecord { weight: 3, ..record.clone() }, &claim));
        let exact = UploadRecord { claim: Some(claim.fingerprint()), ..record };
        assert!(is_claimed(&exact, &claim));
        assert!(!is_claimed(&exact, &Claim { digest: Digest::of(b"others"), ..claim }));
    }
}
