//! The population's privacy ledger: one for all jobs of the deployment, in step with the store.

use std::sync::{Arc, RwLock};
use tokio::sync::{Mutex, MutexGuard};
use undertone_core::id::JobId;
use undertone_privacy::ledger::chain::{Chain, Line};
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
    /// For looks that need no lock; as new as the last line that was applied.
    totals: RwLock<Arc<Totals>>,
}

impl PopulationLedger {
    /// Reads all lines and checks them.
    ///
    /// # Errors
    /// If the store cannot be read, or a line does not follow from those before it: then nothing may be spent.
    pub(crate) async fn open(store: &dyn Store, budgets: Budgets) -> Result<Self, String> {
        let mut chain = Chain::new(budgets);
        catch_up(&mut chain, store).await.map_err(|e| e.to_string())?;
        let totals = RwLock::new(Arc::new(chain.totals().clone()));
        Ok(Self { chain: Mutex::new(chain), totals })
    }

    /// What is spent, and may be.
    pub(crate) fn totals(&self) -> Arc<Totals> {
        self.totals.read().expect("no panic while locked").clone()
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
            chain.apply(line).map_err(|e| e.to_string())?;
        }
        *self.totals.write().expect("no panic while locked") = Arc::new(chain.totals().clone());
        Ok(())
    }

    /// Reads the lines that others added.
    ///
    /// # Errors
    /// [`LedgerFault`].
    pub(crate) async fn catch_up(&self, chain: &mut Chain, store: &dyn Store) -> Result<(), LedgerFault> {
        catch_up(chain, store).await?;
        *self.totals.write().expect("no panic while locked") = Arc::new(chain.totals().clone());
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
