//! What the contract cannot say: files, crashes, full disks, other programs.

mod copies;
mod crash;
mod files;

use crate::contract::store_contract;
use crate::{Durability, SqlStore, Store};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

/// Opens the store of a folder.
async fn open(folder: &TempDir) -> SqlStore {
    SqlStore::sqlite(&folder.path().join("state.db"), Durability::Process).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn keeps_the_contract() {
    let folder = TempDir::new().unwrap();
    let next = AtomicU32::new(0);
    for durability in [Durability::Disk, Durability::Process] {
        store_contract(async || {
            let path = folder.path().join(format!("{}.db", next.fetch_add(1, Ordering::Relaxed)));
            Arc::new(SqlStore::sqlite(&path, durability).await.unwrap()) as Arc<dyn Store>
        })
        .await;
    }
}
