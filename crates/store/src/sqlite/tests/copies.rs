//! Copies of a file in use, and looking at it.

use super::open;
use crate::contract::{full_step, job, token};
use crate::{Durability, LedgerRow, SqlStore, Store, StoreError, Transition};
use tempfile::TempDir;

#[tokio::test]
async fn a_copy_is_what_was_committed_and_nothing_later() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    store.insert_job(job("a"), vec![]).await.unwrap();
    store.commit(full_step(&job("a").id, 1)).await.unwrap();
    let before = (store.jobs().await.unwrap(), store.ledger(0, 100).await.unwrap());
    let (from, to) = (folder.path().join("state.db"), folder.path().join("copy.db"));
    SqlStore::copy_sqlite(&from, &to).await.unwrap();
    store.commit(full_step(&job("a").id, 2)).await.unwrap();

    let copy = SqlStore::sqlite(&to, Durability::Process).await.unwrap();
    assert_eq!((copy.jobs().await.unwrap(), copy.ledger(0, 100).await.unwrap()), before);
    assert_eq!(store.job(&job("a").id).await.unwrap().unwrap().version, 3, "the file itself goes on");
    let refused = SqlStore::copy_sqlite(&from, &to).await.unwrap_err();
    assert!(refused.to_string().contains("copy.db"), "nothing is written over: {refused}");
    let absent =
        SqlStore::copy_sqlite(&folder.path().join("absent.db"), &folder.path().join("other.db")).await;
    assert!(matches!(absent, Err(StoreError::NotOpened { .. })), "{absent:?}");
}

#[tokio::test]
async fn a_state_is_settled_whole_or_not_at_all() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    store.insert_job(job("a"), vec![]).await.unwrap();
    store.create_token(token("t", 2)).await.unwrap();
    let line = |seq: u64| LedgerRow { seq, document: format!("line {seq}") };
    let end = |version| Transition {
        ended: true,
        ledger: vec![line(3)],
        ..Transition::new(job("a").id, version, "failed", "{}")
    };
    store.unsettle("set back").await.unwrap();
    store.unsettle("again").await.unwrap();
    // Lines that do not follow, a step of another version: nothing is changed, and it is unsettled still.
    for (lines, version, more) in [
        (vec![line(2)], 1, vec![]),
        (vec![line(1), line(2)], 2, vec![]),
        (vec![line(1), line(2)], 1, vec![line(5)]),
    ] {
        assert!(store.settle(&lines, vec![end(version)], &more).await.is_err());
        assert_eq!(store.unsettled().await.unwrap().as_deref(), Some("set back"));
        assert_eq!(store.ledger(0, 10).await.unwrap(), []);
        assert_eq!(
            (store.open_jobs().await.unwrap().len(), store.list_tokens().await.unwrap().len()),
            (1, 1)
        );
    }
    let tokens = store.settle(&[line(1), line(2)], vec![end(1)], &[line(4)]).await.unwrap();
    assert_eq!((tokens, store.unsettled().await.unwrap()), (1, None));
    assert_eq!(store.ledger(0, 10).await.unwrap(), [line(1), line(2), line(3), line(4)]);
    assert_eq!((store.open_jobs().await.unwrap().len(), store.list_tokens().await.unwrap().len()), (0, 0));
}

#[tokio::test]
async fn whoever_looks_sees_what_it_is_and_what_is_broken() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("state.db");
    let absent = SqlStore::look_at_sqlite(&path).await;
    assert!(matches!(absent, Err(StoreError::NotOpened { .. })), "{absent:?}");
    assert!(!path.exists(), "looking made it");
    let store = open(&folder).await;
    for n in 0..200 {
        store.insert_job(job(&format!("j{n}")), vec![]).await.unwrap();
    }
    let found = SqlStore::look_at_sqlite(&path).await.unwrap();
    assert_eq!((found.schema, found.coordinators.len(), found.damage.len()), (Some(found.known), 0, 0));
    assert!(found.version.starts_with("SQLite 3."), "{}", found.version);
    store.close().await;
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    match SqlStore::look_at_sqlite(&path).await {
        Ok(found) => assert!(!found.damage.is_empty(), "nothing was found"),
        Err(e) => assert!(matches!(e, StoreError::Damaged { .. }), "{e}"),
    }
    std::fs::write(&path, "no database at all, but long enough to be taken for one of some kind").unwrap();
    let other = SqlStore::look_at_sqlite(&path).await;
    assert!(matches!(other, Err(StoreError::Damaged { .. })), "{other:?}");
}
