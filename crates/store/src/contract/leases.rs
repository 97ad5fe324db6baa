//! Leases.

use super::{full_step, job};
use crate::records::{JobRecord, Transition};
use crate::{CommitError, Store, StoreError};
use std::sync::Arc;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(150);

pub(super) async fn one_at_a_time_has_a_lease(store: &dyn Store) {
    let first = store.take_lease("x", "a", LONG).await.unwrap();
    assert_eq!((first.holder.as_str(), first.number), ("a", 1));
    assert!((59_000..=60_000).contains(&first.left_ms), "{first:?}");
    // Whoever asks meanwhile is told who has it; another lease is another one.
    let refused = store.take_lease("x", "b", SHORT).await.unwrap();
    assert_eq!((refused.holder.as_str(), refused.number), ("a", 1));
    assert!(refused.left_ms > 1_000, "{refused:?}");
    assert_eq!(store.take_lease("y", "b", LONG).await.unwrap().holder, "b");
    // Renewed, it lasts as long as was asked for now.
    assert!(store.renew_lease("x", &first, SHORT).await.unwrap());
    tokio::time::sleep(SHORT * 2).await;
    // Late, and nobody has taken it.
    assert!(store.renew_lease("x", &first, SHORT).await.unwrap());
    tokio::time::sleep(SHORT * 2).await;
    let taken = store.take_lease("x", "b", LONG).await.unwrap();
    assert_eq!((taken.holder.as_str(), taken.number), ("b", 2));
    assert!(!store.renew_lease("x", &first, LONG).await.unwrap(), "it came too late");
    assert_eq!(store.take_lease("x", "a", LONG).await.unwrap().holder, "b");
    // A name is no right: a program that comes again waits for its own end like any other.
    assert_eq!(store.take_lease("x", "b", LONG).await.unwrap().number, 2);
    // Ended before its time; not by one who has it not.
    store.end_lease("x", &first).await.unwrap();
    assert_eq!(store.take_lease("x", "a", LONG).await.unwrap().holder, "b");
    store.end_lease("x", &taken).await.unwrap();
    store.end_lease("none", &taken).await.unwrap();
    assert!(!store.renew_lease("x", &taken, LONG).await.unwrap(), "what was ended is renewed");
    let back = store.take_lease("x", "a", LONG).await.unwrap();
    assert_eq!((back.holder.as_str(), back.number), ("a", 3));
    assert!(matches!(store.take_lease("z", "", LONG).await, Err(StoreError::OutOfRange { .. })), "nobody");
    for ttl in [Duration::ZERO, Duration::MAX] {
        let refused = store.take_lease("x", "a", ttl).await;
        assert!(matches!(refused, Err(StoreError::OutOfRange { .. })), "{refused:?}");
        let refused = store.renew_lease("x", &back, ttl).await;
        assert!(matches!(refused, Err(StoreError::OutOfRange { .. })), "{refused:?}");
    }
}

pub(super) async fn of_many_who_ask_one_gets_it(store: Arc<dyn Store>) {
    for round in 1..=5 {
        let asking: Vec<_> = (0..8)
            .map(|n| {
                let (store, name) = (store.clone(), format!("{round}-{n}"));
                tokio::spawn(async move { (store.take_lease("x", &name, LONG).await.unwrap(), name) })
            })
            .collect();
        let mut holders = vec![];
        for one in asking {
            let (lease, name) = one.await.unwrap();
            assert_eq!(lease.number, round, "{lease:?}");
            if lease.holder == name {
                holders.push(lease);
            }
        }
        assert_eq!(holders.len(), 1, "{holders:?}");
        store.end_lease("x", &holders[0]).await.unwrap();
    }
}

pub(super) async fn a_step_by_a_lost_lease_is_refused(store: &dyn Store) {
    let job = job("a");
    store.insert_job(job.clone(), vec![]).await.unwrap();
    let name = JobRecord::lease_name(&job.id);
    let by = |lease, version| Transition { lease: Some(lease), ..full_step(&job.id, version) };
    let first = store.take_lease(&name, "x", SHORT).await.unwrap();
    assert_eq!(store.commit(by(first.clone(), 1)).await.unwrap(), 2);
    tokio::time::sleep(SHORT * 2).await;
    // Run out, and nobody's: nobody can have done anything meanwhile.
    assert_eq!(store.commit(by(first.clone(), 2)).await.unwrap(), 3);
    let second = store.take_lease(&name, "y", LONG).await.unwrap();
    assert_eq!(second.holder, "y");
    let before = store.job(&job.id).await.unwrap();
    let refused = store.commit(by(first.clone(), 3)).await;
    assert!(matches!(refused, Err(CommitError::Store(StoreError::Fenced { .. }))), "{refused:?}");
    assert_eq!(store.job(&job.id).await.unwrap(), before, "a refused step leaves nothing");
    assert_eq!(store.commit(by(second, 3)).await.unwrap(), 4);
}
