//! Partial sums among coordinators: each sums those updates of a round that it has at hand, so that the one that releases the round
//! need not fetch them all.

use super::{Fleet, RENEWAL};
use crate::coordinator::Shared;
use crate::driver::{FIRST_PAUSE, Handle};
use crate::release::{Wanted, partial};
use crate::sweep::let_go;
use std::sync::Arc;
use std::time::{Duration, Instant};
use undertone_core::digest::Digest;
use undertone_core::id::AttemptKey;
use undertone_round::coordinator::{BlobRef, JobState, Phase, Update};
use undertone_round::job::Job;
use undertone_store::StoreError;

/// How long another coordinator may take to begin: it hears of the release at once.
const BEGUN_IN: Duration = RENEWAL;
/// How often is looked whether sums are made.
const LOOK: Duration = Duration::from_millis(100);

/// How long others may take at least, and the pace below which they are not waited for.
const AT_LEAST: Duration = Duration::from_secs(60);
const SLOW_BYTES_PER_S: u64 = 10 << 20;

/// What a job releases just now.
pub(super) fn releasing(job: &Handle, state: &JobState) -> Option<(AttemptKey, Vec<Update>)> {
    let Phase::Releasing(p) = &state.phase else { return None };
    Some((AttemptKey { job: job.id().clone(), round: p.round, attempt: p.attempt }, p.updates.clone()))
}

impl Fleet {
    /// Whether a round's updates are so large that summing them is shared out. All coordinators come to the same.
    fn is_shared_out(&self, shared: &Shared, job: &Job, updates: &[Update]) -> bool {
        let bytes: u64 = updates.iter().map(|update| update.bytes).sum();
        self.shares_blobs()
            && !job.spec().aggregation.rule.needs_all_rows()
            && bytes >= u64::from(shared.config.limits.partial_sums_mib) << 20
    }

    /// Sums what this coordinator has at hand of a round that another one releases.
    pub(super) async fn help(
        self: Arc<Self>,
        shared: Arc<Shared>,
        job: Handle,
        key: AttemptKey,
        updates: Vec<Update>,
    ) {
        if !self.is_shared_out(&shared, &job.job, &updates) {
            return;
        }
        if let Err(e) = self.sum(&shared, &job, &key, updates).await {
            tracing::warn!(error = %e, "cannot tell of a partial sum; the updates are summed elsewhere");
        }
    }

    async fn sum(
        &self,
        shared: &Shared,
        job: &Handle,
        key: &AttemptKey,
        updates: Vec<Update>,
    ) -> Result<(), StoreError> {
        let Some(bucket) = &self.bucket else { return Ok(()) };
        let near: Vec<Update> = updates.into_iter().filter(|update| bucket.is_near(&update.blob)).collect();
        if !job.snapshot().state.is_releasing(key) || !self.store.begin_partial_sum(key, &self.me).await? {
            return Ok(());
        }
        let begun = Instant::now();
        // One alone is as large as its sum.
        let blob = match near.len() {
            0 | 1 => None,
            _ => match partial::make(&job.job, key, &near, &shared.blobs).await {
                Ok(BlobRef { digest, bytes }) => Some((digest, bytes)),
                Err(trouble) => {
                    tracing::warn!(?trouble, "cannot sum what is at hand; it is summed elsewhere");
                    None
                }
            },
        };
        if blob.is_some() {
            let seconds = begun.elapsed().as_secs_f64();
            tracing::info!(attempt = %key, updates = near.len(), seconds, "summed what is at hand");
        }
        // Whoever releases the round waits for it.
        let mut pause = FIRST_PAUSE;
        let is_wanted = loop {
            match self.store.end_partial_sum(key, &self.me, blob).await {
                Ok(is_wanted) => break is_wanted,
                Err(e) => {
                    tracing::warn!(error = %e, "cannot tell of a partial sum yet; trying again");
                    if shared.wait_or_stop(&mut pause).await.is_err() {
                        return Err(e);
                    }
                }
            }
        };
        if let Some((digest, _)) = blob.filter(|_| !is_wanted) {
            let_go(&*shared.blobs, [digest], "a partial sum that came too late").await;
        }
        Ok(())
    }

    /// What other coordinators summed of a round that is released here. Waits for those that are at it, for none that is gone, and
    /// not for ever. `None`: the daemon shuts down, or the round is not wanted any more.
    pub(crate) async fn sums(
        &self,
        shared: &Shared,
        job: &Job,
        key: &AttemptKey,
        updates: &[Update],
        wanted: &dyn Wanted,
    ) -> Option<Vec<BlobRef>> {
        let Some(bucket) = &self.bucket else { return Some(vec![]) };
        let far: Vec<&Update> = updates.iter().filter(|update| !bucket.is_near(&update.blob)).collect();
        if far.len() < 2 || !self.is_shared_out(shared, job, updates) {
            return Some(vec![]);
        }
        let bytes: u64 = far.iter().map(|update| update.bytes).sum();
        let patience = AT_LEAST + Duration::from_secs(bytes / SLOW_BYTES_PER_S);
        let waiting = tokio::time::timeout(patience, self.made(key));
        tokio::select! {
            made = waiting => {
                let sums = match made {
                    Ok(Ok(sums)) => sums,
                    // The updates themselves are there.
                    Ok(Err(e)) => {
                        tracing::warn!(error = %e, "cannot see what other coordinators summed; fetching all updates");
                        vec![]
                    }
                    Err(_) => {
                        tracing::warn!("another coordinator does not come to its end; fetching all updates");
                        vec![]
                    }
                };
                let far = far.len();
                tracing::info!(attempt = %key, far, sums = sums.len(), "summing, with what other coordinators summed");
                Some(sums)
            }
            () = shared.stopping() => None,
            () = unwanted(wanted) => None,
        }
    }

    async fn made(&self, key: &AttemptKey) -> Result<Vec<BlobRef>, StoreError> {
        let begun = Instant::now();
        loop {
            let (sums, mut others) = (self.store.partial_sums(key).await?, self.store.replicas().await?);
            others.remove(&self.me);
            let at_it = sums.iter().any(|sum| !sum.made && others.contains(&sum.replica));
            others.retain(|other| sums.iter().all(|sum| sum.replica != *other));
            if !at_it && (others.is_empty() || begun.elapsed() >= BEGUN_IN) {
                let blobs = sums.into_iter().filter_map(|sum| sum.blob);
                return Ok(blobs.map(|(digest, bytes)| BlobRef { digest, bytes }).collect());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Forgets the partial sums of an attempt that is over; gives their blobs.
    ///
    /// # Errors
    /// [`StoreError`]; then what is left is swept some day.
    pub(crate) async fn forget_sums(&self, key: &AttemptKey) -> Result<Vec<Digest>, StoreError> {
        self.store.forget_partial_sums(key).await
    }
}

/// Resolves when a release is not wanted any more.
async fn unwanted(wanted: &dyn Wanted) {
    while wanted.is_wanted() {
        tokio::time::sleep(LOOK).await;
    }
}
