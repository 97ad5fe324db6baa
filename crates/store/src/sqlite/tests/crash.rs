//! Death in the middle: of the machine, and of a caller.

use super::open;
use crate::contract::{event, full_step, job};
use crate::{SqlStore, Store, Transition};
use std::time::Duration;
use tempfile::TempDir;

/// Every step of the tests leaves one event and one ledger row, so what is there must fit its version.
async fn whole_steps(store: &SqlStore) -> u64 {
    let id = job("a").id;
    let Some(found) = store.job(&id).await.unwrap() else { return 0 };
    let steps = found.version - 1;
    assert_eq!(store.events(&id, 0, u32::MAX).await.unwrap().len() as u64, steps, "events of {steps} steps");
    assert_eq!(store.ledger(0, u32::MAX).await.unwrap().len() as u64, steps, "ledger of {steps} steps");
    steps
}

#[tokio::test]
async fn a_log_torn_anywhere_leaves_whole_steps() {
    let live = TempDir::new().unwrap();
    let store = open(&live).await;
    let id = job("a").id;
    store.insert_job(job("a"), vec![]).await.unwrap();
    let wal = |folder: &TempDir| folder.path().join("state.db-wal");
    // Where the log ends after each step: all that is acknowledged lies before it.
    let mut ends = Vec::new();
    for version in 1..=12 {
        store.commit(full_step(&id, version)).await.unwrap();
        ends.push(std::fs::metadata(wal(&live)).unwrap().len() as usize);
    }
    let main = std::fs::read(live.path().join("state.db")).unwrap();
    let log = std::fs::read(wal(&live)).unwrap();
    assert_eq!(ends.last(), Some(&log.len()), "a checkpoint came between: make the test shorter");

    for cut in (0..log.len()).step_by(3_001).chain([log.len()]).chain(ends.iter().copied()) {
        for garbage in [0, 5_000] {
            let dead = TempDir::new().unwrap();
            std::fs::write(dead.path().join("state.db"), &main).unwrap();
            let torn = [&log[..cut], &vec![0xA5; garbage]].concat();
            std::fs::write(wal(&dead), torn).unwrap();
            let store = open(&dead).await;
            let acknowledged = ends.iter().filter(|end| **end <= cut).count() as u64;
            let found = whole_steps(&store).await;
            assert_eq!(found, acknowledged, "cut at {cut}, then {garbage} bytes of garbage");
            // And it goes on from there.
            if found > 0 {
                assert_eq!(store.commit(full_step(&id, found + 1)).await.unwrap(), found + 2);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_goes_away_leaves_a_whole_step_or_none() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    let id = job("a").id;
    store.insert_job(job("a"), vec![]).await.unwrap();
    let (mut dropped, mut version) = (0, 1);
    for n in 0..120 {
        let mut step = full_step(&id, version);
        step.events = vec![event("x")];
        step.state = "x".repeat(100_000);
        let outcome = tokio::time::timeout(Duration::from_micros(n * 20), store.commit(step)).await;
        dropped += u32::from(outcome.is_err());
        version = store.commit(step_from(&store).await).await.unwrap();
        assert_eq!(whole_steps(&store).await, version - 1);
    }
    assert!(dropped > 0, "no caller went away: the test tests nothing");
}

/// The next step from where the job is now; asked again if a step that was dropped lands in between.
async fn step_from(store: &SqlStore) -> Transition {
    // A write waits for the dropped one to be undone or done; only then is the version settled.
    store.delete_token("none").await.unwrap();
    let id = job("a").id;
    let version = store.job(&id).await.unwrap().unwrap().version;
    full_step(&id, version)
}
