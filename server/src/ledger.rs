//! The population's privacy ledger: one for all jobs of the deployment, in step with the store.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use tokio::sync::{Mutex, MutexGuard};
use undertone_core::digest::Digest;
use undertone_core::id::JobId;
use undertone_privacy::ledger::chain::{Chain, ClosedJob, Line};
use undertone_privacy::ledger::population::{Budgets, Totals};
use undertone_store::{LedgerRow, Store};

/// Lines read at once.
const PAGE: u32 = 1024;

/// Why the chain could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerFault {
    /// It may be read later.
    #[error(transparent)]
    Store(#[from] undertone_store::StoreError),
    /// What is stored is no ledger.
    #[error("{0}")]
    Damaged(String),
}

/// The chain behind a lock: whoever adds lines decides, saves and applies them under it, one after the other.
pub(crate) struct PopulationLedger {
    chain: Mutex<Chain>,
    view: RwLock<View>,
}

/// What can be seen without waiting for whoever saves a step, however long the disk takes; as new as the last line that was
/// applied.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) lines: u64,
    pub(crate) head: Digest,
    /// What is spent, and may be.
    pub(crate) totals: Arc<Totals>,
    /// What each job that ever reserved has spent.
    pub(crate) jobs: BTreeMap<JobId, ClosedJob>,
}

impl View {
    fn of(chain: &Chain) -> Self {
        Self {
            lines: chain.len(),
            head: chain.head(),
            totals: Arc::new(chain.totals().clone()),
            jobs: chain.jobs().map(|(id, job)| (id.clone(), job)).collect(),
        }
    }
}

impl PopulationLedger {
    /// Reads all lines and checks them.
    ///
    /// # Errors
    /// If the store cannot be read, or a line does not follow from those before it: then nothing may be spent.
    pub(crate) async fn open(store: &dyn Store, budgets: Budgets) -> Result<Self, String> {
        let mut chain = Chain::new(budgets);
        catch_up(&mut chain, store).await.map_err(|e| e.to_string())?;
        let view = RwLock::new(View::of(&chain));
        Ok(Self { chain: Mutex::new(chain), view })
    }

    /// What is spent, and may be.
    pub(crate) fn totals(&self) -> Arc<Totals> {
        self.view.read().expect("no panic while locked").totals.clone()
    }

    /// What a job spent, if it ever reserved.
    pub(crate) fn spent_by(&self, id: &JobId) -> Option<ClosedJob> {
        self.view.read().expect("no panic while locked").jobs.get(id).copied()
    }

    /// All that can be seen.
    pub(crate) fn view(&self) -> View {
        self.view.read().expect("no panic while locked").clone()
    }

    /// The chain, to add to.
    pub(crate) async fn lock(&self) -> MutexGuard<'_, Chain> {
        self.chain.lock().await
    }

    /// Takes in lines that are durable now.
    ///
    /// # Errors
    /// If one does not follow: this chain is not what is stored.
    pub(crate) fn apply(&self, chain: &mut Chain, lines: Vec<Line>) -> Result<(), String> {
        for line in lines {
            let job = line.entry.key.job.clone();
            chain.apply(line).map_err(|e| e.to_string())?;
            let mut view = self.view.write().expect("no panic while locked");
            (view.lines, view.head) = (chain.len(), chain.head());
            view.jobs.extend(chain.spent_by(&job).map(|spent| (job, spent)));
        }
        self.view.write().expect("no panic while locked").totals = Arc::new(chain.totals().clone());
        Ok(())
    }

    /// Reads the lines that others added.
    ///
    /// # Errors
    /// [`LedgerFault`].
    pub(crate) async fn catch_up(&self, chain: &mut Chain, store: &dyn Store) -> Result<(), LedgerFault> {
        catch_up(chain, store).await?;
        *self.view.write().expect("no panic while locked") = View::of(chain);
        Ok(())
    }

    /// A job has ended: only its sum stays in memory.
    pub(crate) async fn close(&self, job: &JobId) {
        self.chain.lock().await.close(job);
    }
}

async fn catch_up(chain: &mut Chain, store: &dyn Store) -> Result<(), LedgerFault> {
    loop {
        let rows = store.ledger(chain.len(), PAGE).await?;
        let whole = rows.len() == PAGE as usize;
        for row in rows {
            let line: Line = serde_json::from_str(&row.document).map_err(|e| {
                LedgerFault::Damaged(format!("line {} of the privacy ledger cannot be read: {e}", row.seq))
            })?;
            chain.apply(line).map_err(|e| LedgerFault::Damaged(e.to_string()))?;
        }
        if !whole {
            return Ok(());
        }
    }
}

/// A line as it is stored.
pub(crate) fn row(line: &Line) -> LedgerRow {
    LedgerRow { seq: line.seq, document: serde_json::to_string(line).expect("plain data") }
}
