//! Jobs and their steps.

use super::{attempt, event, full_step, job, release, upload};
use crate::records::{EventRecord, JobRecord, LedgerRow, MAX_NUMBER, NewEvent, Transition};
use crate::{CommitError, Store, StoreError};
use std::sync::Arc;
use undertone_core::digest::Digest;
use undertone_core::id::JobId;

pub(super) async fn a_step_takes_all_its_effects_along(store: &dyn Store) {
    let first = job("a");
    let id = first.id.clone();
    store.insert_job(first.clone(), vec![]).await.unwrap();
    assert_eq!(store.job(&id).await.unwrap(), Some(first.clone()));
    let again = store.insert_job(JobRecord { state: "{}".into(), ..first.clone() }, vec![]).await;
    assert!(matches!(again, Err(StoreError::Exists { what: "job", .. })), "{again:?}");
    let late = store.insert_job(JobRecord { version: 2, ..job("late") }, vec![]).await;
    assert!(matches!(late, Err(StoreError::OutOfRange { .. })), "{late:?}");

    assert_eq!(store.commit(full_step(&id, 1)).await.unwrap(), 2);
    let mut second = full_step(&id, 2);
    second.events = vec![event("x"), event("y")];
    second.ledger = vec![line(2, "two"), line(3, "three")];
    assert_eq!(store.commit(second.clone()).await.unwrap(), 3);

    let now = store.job(&id).await.unwrap().unwrap();
    let expected = JobRecord { version: 3, status: second.status, state: second.state, ..first };
    assert_eq!(now, expected);
    let seen = |seq, what| {
        let event = event(what);
        EventRecord { seq, unix_ms: event.unix_ms, document: event.document }
    };
    let all = [seen(1, "step 1"), seen(2, "x"), seen(3, "y")];
    assert_eq!(store.events(&id, 0, 100).await.unwrap(), all);
    assert_eq!(store.events(&id, 1, 1).await.unwrap(), all[1..2]);
    assert_eq!(store.events(&id, 3, 100).await.unwrap(), []);
    assert_eq!(store.events(&id, u64::MAX, 100).await.unwrap(), []);
    let lines = [line(1, "{\"at\":1}"), line(2, "two"), line(3, "three")];
    assert_eq!(store.ledger(0, 100).await.unwrap(), lines);
    assert_eq!(store.ledger(1, 1).await.unwrap(), lines[1..2]);
    assert_eq!(store.ledger(3, 100).await.unwrap(), []);
    let (one, two) = (attempt(&id, 1), attempt(&id, 2));
    assert_eq!(store.uploads(&one).await.unwrap(), [upload(&one, "cleveland", "update 1")]);
    assert_eq!(store.releases(&id).await.unwrap(), [release(&one, "model 1"), release(&two, "model 2")]);
}

fn line(seq: u64, document: &str) -> LedgerRow {
    LedgerRow { seq, document: document.into() }
}

/// Everything that can be read of a job.
async fn everything(store: &dyn Store, id: &JobId) -> impl PartialEq + std::fmt::Debug + use<> {
    let mut uploads = Vec::new();
    for round in 1..5 {
        uploads.extend(store.uploads(&attempt(id, round)).await.unwrap());
    }
    let ledger = store.ledger(0, u32::MAX).await.unwrap();
    let events = store.events(id, 0, u32::MAX).await.unwrap();
    (store.job(id).await.unwrap(), events, ledger, uploads, store.releases(id).await.unwrap())
}

pub(super) async fn a_refused_step_leaves_nothing(store: &dyn Store) {
    let id = job("a").id;
    store.insert_job(job("a"), vec![]).await.unwrap();
    store.commit(full_step(&id, 1)).await.unwrap();
    let before = everything(store, &id).await;

    for expected in [0, 1, 3, u64::MAX] {
        let refused = store.commit(Transition { expected_version: expected, ..full_step(&id, 2) }).await;
        let right = |e: &CommitError| matches!(e, CommitError::Conflict { expected: e, found: 2, .. } if *e == expected);
        assert!(refused.as_ref().is_err_and(right), "{refused:?}");
    }
    let none = JobId::new("none").expect("a valid name");
    let refused = store.commit(full_step(&none, 1)).await;
    assert!(matches!(&refused, Err(CommitError::UnknownJob(id)) if *id == none), "{refused:?}");

    let (one, two) = (attempt(&id, 1), attempt(&id, 2));
    let mut step = full_step(&id, 2);
    step.uploads.push(upload(&one, "cleveland", "another update"));
    let refused = store.commit(step).await;
    assert!(matches!(&refused, Err(CommitError::UploadDiffers { .. })), "{refused:?}");

    let mut step = full_step(&id, 2);
    step.uploads = vec![upload(&two, "hungary", "one"), upload(&two, "hungary", "two")];
    let refused = store.commit(step).await;
    assert!(matches!(&refused, Err(CommitError::UploadDiffers { .. })), "{refused:?}");

    let mut step = full_step(&id, 2);
    step.release = Some(release(&one, "another model"));
    let refused = store.commit(step).await;
    assert!(matches!(&refused, Err(CommitError::ReleaseDiffers { .. })), "{refused:?}");

    for stray in [
        Transition { uploads: vec![upload(&attempt(&none, 1), "hungary", "x")], ..full_step(&id, 2) },
        Transition { release: Some(release(&attempt(&none, 1), "x")), ..full_step(&id, 2) },
    ] {
        let refused = store.commit(stray).await;
        assert!(
            matches!(&refused, Err(CommitError::OtherJob { other, .. }) if *other == none),
            "{refused:?}"
        );
    }

    let mut step = full_step(&id, 2);
    step.events[0].unix_ms = MAX_NUMBER + 1;
    let refused = store.commit(step).await;
    assert!(matches!(&refused, Err(CommitError::Store(StoreError::OutOfRange { .. }))), "{refused:?}");

    assert_eq!(everything(store, &id).await, before);
    assert_eq!(store.commit(full_step(&id, 2)).await.unwrap(), 3);
}

pub(super) async fn a_row_that_comes_twice_counts_once(store: &dyn Store) {
    let id = job("a").id;
    store.insert_job(job("a"), vec![]).await.unwrap();
    store.commit(full_step(&id, 1)).await.unwrap();
    let one = attempt(&id, 1);
    let mut later = release(&one, "model 1");
    later.unix_ms += 60_000;
    let step = Transition {
        uploads: vec![
            upload(&one, "cleveland", "update 1"),
            upload(&one, "hungary", "h"),
            upload(&one, "hungary", "h"),
            upload(&one, "basel", "b"),
        ],
        release: Some(later),
        ..Transition::new(id.clone(), 2, "running", "{}")
    };
    store.commit(step).await.unwrap();
    assert_eq!(
        store.uploads(&one).await.unwrap(),
        [upload(&one, "basel", "b"), upload(&one, "cleveland", "update 1"), upload(&one, "hungary", "h")]
    );
    assert_eq!(store.releases(&id).await.unwrap(), [release(&one, "model 1")]);
}

pub(super) async fn jobs_do_not_mix(store: &dyn Store) {
    let (a, b) = (job("a"), JobRecord { created_unix_s: 10, ..job("b") });
    for job in [&a, &b] {
        store.insert_job(job.clone(), vec![]).await.unwrap();
    }
    assert_eq!(store.jobs().await.unwrap(), [b.clone(), a.clone()]);
    store.commit(full_step(&a.id, 1)).await.unwrap();
    assert_eq!(store.job(&b.id).await.unwrap(), Some(b.clone()));
    store.commit(Transition { ledger: vec![], ..full_step(&b.id, 1) }).await.unwrap();
    assert_eq!(store.events(&b.id, 0, 9).await.unwrap().len(), 1);
    assert_eq!(store.uploads(&attempt(&b.id, 1)).await.unwrap().len(), 1);
    let unknown = JobId::new("unknown").expect("a valid name");
    assert_eq!(store.job(&unknown).await.unwrap(), None);
    assert_eq!(store.events(&unknown, 0, 9).await.unwrap(), []);
    assert_eq!(store.uploads(&attempt(&unknown, 1)).await.unwrap(), []);
    assert_eq!(store.releases(&unknown).await.unwrap(), []);
}

pub(super) async fn one_step_wins_each_version(store: Arc<dyn Store>) {
    const RACERS: usize = 8;
    const STEPS: u64 = 6;
    let id = job("a").id;
    store.insert_job(job("a"), vec![]).await.unwrap();
    // Each racer tries every version once, until it sees that the version is taken.
    let racers: Vec<_> = (0..RACERS)
        .map(|racer| {
            let (store, id) = (store.clone(), id.clone());
            tokio::spawn(async move {
                let mut won = Vec::new();
                let mut version = 1;
                while version <= STEPS {
                    let mut step = Transition::new(id.clone(), version, "running", format!("by {racer}"));
                    step.events = vec![event(&format!("version {version} by {racer}"))];
                    match store.commit(step).await {
                        Ok(next) => {
                            won.push(version);
                            version = next;
                        }
                        Err(CommitError::Conflict { expected, found, .. }) => {
                            assert_eq!(expected, version);
                            assert!(found > version, "a conflict at {found} with {version}");
                            version += 1;
                        }
                        Err(other) => panic!("{other:?}"),
                    }
                }
                won
            })
        })
        .collect();
    let mut won = Vec::new();
    for racer in racers {
        won.extend(racer.await.unwrap());
    }
    won.sort_unstable();
    assert_eq!(won, (1..=STEPS).collect::<Vec<_>>());
    let events = store.events(&id, 0, 100).await.unwrap();
    assert_eq!(events.iter().map(|e| e.seq).collect::<Vec<_>>(), (1..=STEPS).collect::<Vec<_>>());
    for event in events {
        assert!(event.document.contains(&format!("version {} ", event.seq)), "{event:?}");
    }
}

pub(super) async fn a_job_begins_with_its_events(store: &dyn Store) {
    let id = job("a").id;
    store.insert_job(job("a"), vec![event("first"), event("second")]).await.unwrap();
    let refused = store.insert_job(job("a"), vec![event("third")]).await;
    assert!(matches!(refused, Err(StoreError::Exists { .. })), "{refused:?}");
    store.commit(full_step(&id, 1)).await.unwrap();
    let events = store.events(&id, 0, 9).await.unwrap();
    let seen: Vec<_> = events.iter().map(|e| (e.seq, e.document.as_str())).collect();
    let expected = ["first", "second", "step 1"].map(|what| event(what).document);
    assert_eq!(seen, [(1, &*expected[0]), (2, &*expected[1]), (3, &*expected[2])]);
    let late = NewEvent { unix_ms: MAX_NUMBER + 1, ..event("late") };
    let refused = store.insert_job(job("b"), vec![late]).await;
    assert!(matches!(refused, Err(StoreError::OutOfRange { .. })), "{refused:?}");
    assert_eq!(store.job(&job("b").id).await.unwrap(), None);
}

/// The ledger is one chain of the whole population: a line has one place, whatever job it is of.
pub(super) async fn a_line_of_the_ledger_is_written_once(store: &dyn Store) {
    for name in ["a", "b"] {
        store.insert_job(job(name), vec![]).await.unwrap();
    }
    let step = |name: &str, version, lines: &[LedgerRow]| Transition {
        ledger: lines.to_vec(),
        ..Transition::new(job(name).id, version, "running", "{}")
    };
    store.commit(step("a", 1, &[line(1, "one"), line(2, "two")])).await.unwrap();
    // Decided on what was there before: taken, in the past, with a gap, doubled.
    for seqs in [&[2, 3][..], &[1], &[0], &[4], &[3, 3], &[3, 5], &[u64::MAX]] {
        let lines: Vec<_> = seqs.iter().map(|seq| line(*seq, "other")).collect();
        let refused = store.commit(step("b", 1, &lines)).await;
        let told = matches!(
            refused,
            Err(CommitError::LedgerMoved { .. } | CommitError::Store(StoreError::OutOfRange { .. }))
        );
        assert!(told, "{seqs:?}: {refused:?}");
        assert_eq!(
            store.job(&job("b").id).await.unwrap().unwrap().version,
            1,
            "nothing of the step was kept"
        );
    }
    store.commit(step("b", 1, &[line(3, "three")])).await.unwrap();
    assert_eq!(store.ledger(0, 9).await.unwrap(), [line(1, "one"), line(2, "two"), line(3, "three")]);
}

pub(super) async fn ended_jobs_are_told_from_open_ones(store: &dyn Store) {
    for name in ["a", "b"] {
        store.insert_job(job(name), vec![]).await.unwrap();
    }
    let (a, b) = (job("a").id, job("b").id);
    let end = Transition { ended: true, ..Transition::new(a.clone(), 1, "completed", "{}") };
    store.commit(end).await.unwrap();
    let open: Vec<_> = store.open_jobs().await.unwrap().into_iter().map(|j| j.id).collect();
    assert_eq!(open, [b]);
    assert!(store.job(&a).await.unwrap().unwrap().ended);
    assert_eq!(store.jobs().await.unwrap().len(), 2);
}

pub(super) async fn released_models_are_of_all_jobs(store: &dyn Store) {
    let (a, b) = (job("a").id, job("b").id);
    for id in [&a, &b] {
        store.insert_job(job(id.as_str()), vec![]).await.unwrap();
    }
    store.commit(full_step(&a, 1)).await.unwrap();
    for version in [1, 2] {
        store.commit(Transition { ledger: vec![], ..full_step(&b, version) }).await.unwrap();
    }
    let mut models = store.released_models().await.unwrap();
    models.sort();
    models.dedup();
    let mut expected = [Digest::of(b"model 1"), Digest::of(b"model 2")];
    expected.sort();
    assert_eq!(models, expected);
}

pub(super) async fn texts_come_back_as_they_were(store: &dyn Store) {
    let id = job("a").id;
    let odd = "quote ' \" ; -- \u{1F3E5} end\n";
    let large = "x".repeat(5 << 20);
    store.insert_job(JobRecord { document: odd.into(), ..job("a") }, vec![]).await.unwrap();
    store.commit(Transition::new(id.clone(), 1, odd, large.clone())).await.unwrap();
    let back = store.job(&id).await.unwrap().unwrap();
    assert_eq!((back.document.as_str(), back.status.as_str()), (odd, odd));
    assert!(back.state == large, "a state of 5 MiB came back changed");
}
