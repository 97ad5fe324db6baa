//! The right to drive a job.

use crate::storage::GuardedBlobs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use undertone_core::id::JobId;
use undertone_store::{Blobs, JobRecord, Lease, SqlStore, StoreError};

/// How long giving up a seat may take: another coordinator takes it after a while anyway.
const GIVING_UP: Duration = Duration::from_secs(4);

/// The right to drive a job. Whatever a driver believes: what it changes rests on the lease, which the store looks at.
#[derive(Debug)]
pub(crate) struct Seat {
    leased: Option<Leased>,
    lost: watch::Sender<bool>,
    /// Nobody drives by it any more.
    left: AtomicBool,
}

#[derive(Debug)]
struct Leased {
    store: Arc<SqlStore>,
    name: String,
    lease: Lease,
}

impl Seat {
    /// Where nobody else could drive it.
    pub(crate) fn alone() -> Arc<Self> {
        Arc::new(Self { leased: None, lost: watch::channel(false).0, left: AtomicBool::new(false) })
    }

    /// By a lease of the job.
    pub(crate) fn leased(store: Arc<SqlStore>, id: &JobId, lease: Lease) -> Arc<Self> {
        let leased = Leased { store, name: JobRecord::lease_name(id), lease };
        Arc::new(Self { leased: Some(leased), lost: watch::channel(false).0, left: AtomicBool::new(false) })
    }

    /// The lease that steps are made by.
    pub(crate) fn lease(&self) -> Option<&Lease> {
        self.leased.as_ref().map(|leased| &leased.lease)
    }

    /// Blobs that are deleted only while the seat is taken.
    pub(crate) fn guard(&self, blobs: &Arc<dyn Blobs>) -> Arc<dyn Blobs> {
        match &self.leased {
            None => blobs.clone(),
            Some(Leased { store, name, lease }) => {
                Arc::new(GuardedBlobs::new(blobs.clone(), store.clone(), name.clone(), lease.clone()))
            }
        }
    }

    /// Tells its driver that another one has it.
    pub(crate) fn lose(&self) {
        self.lost.send_replace(true);
    }

    /// Whether another one has it.
    pub(crate) fn is_lost(&self) -> bool {
        *self.lost.borrow()
    }

    /// Resolves when another one has it.
    pub(crate) async fn lost(&self) {
        let mut lost = self.lost.subscribe();
        let _ = lost.wait_for(|lost| *lost).await;
    }

    /// Whether the lease is ours in the database, now. A driver that refuses something changes nothing, and so would not be told.
    ///
    /// # Errors
    /// If that cannot be looked up.
    pub(crate) async fn is_ours(&self) -> Result<bool, StoreError> {
        match &self.leased {
            None => Ok(true),
            Some(Leased { store, name, lease }) => Ok(!self.is_lost() && store.holds(name, lease).await?),
        }
    }

    /// Whether nobody drives by it any more.
    pub(crate) fn is_left(&self) -> bool {
        self.left.load(Ordering::SeqCst)
    }

    /// Gives it up, unless it is lost.
    pub(crate) async fn give_up(&self) {
        self.left.store(true, Ordering::SeqCst);
        let Some(Leased { store, name, lease }) = &self.leased else { return };
        use undertone_store::Store as _;
        if !self.is_lost() && tokio::time::timeout(GIVING_UP, store.end_lease(name, lease)).await.is_err() {
            tracing::warn!(
                name,
                "cannot give up the lease of a job; the next coordinator waits some seconds for it"
            );
        }
    }
}
