//! Several programs on one database: leases of jobs, sessions, mail, questions and answers.

use crate::contract::{full_step, job};
use crate::fleet::{JobStanding, Mail, Note, PartialSum, SessionRow};
use crate::records::{JobRecord, Transition};
use crate::{CommitError, Durability, Listener, SqlStore, Store, StoreError};
use std::collections::BTreeSet;
use std::time::Duration;
use undertone_core::digest::Digest;
use undertone_core::id::{Attempt, AttemptKey, ClientId, ClientRole, JobId, Round};
use undertone_test_servers::PostgresServer;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(1);

async fn open(url: &str) -> SqlStore {
    SqlStore::postgres(url, Durability::Disk).await.unwrap()
}

fn client(name: &str) -> ClientId {
    ClientId::new(name).unwrap()
}

fn session(name: &str, replica: &str, number: u64) -> SessionRow {
    SessionRow { client: client(name), role: ClientRole::Trainer, replica: replica.into(), number }
}

fn mail(name: &str, message: &str) -> Mail {
    Mail { client: client(name), job: JobId::new("a").unwrap(), version: 3, message: message.into() }
}

/// Hears notes until this one comes.
async fn heard(listener: &mut Listener, wanted: &Note) {
    let hearing = async { while listener.next().await.unwrap() != *wanted {} };
    tokio::time::timeout(Duration::from_secs(20), hearing).await.unwrap_or_else(|_| panic!("{wanted:?}"));
}

/// Whoever takes a lease waits for what rests on it and is under way; renewing it does not. What comes later is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_lost_its_lease_changes_nothing() {
    let server = PostgresServer::start();
    let url = server.new_database();
    let (one, other) = (open(&url).await, open(&url).await);
    one.insert_job(job("a"), vec![]).await.unwrap();
    let id = job("a").id;
    let name = JobRecord::lease_name(&id);
    let lease = one.take_lease(&name, "one", LONG).await.unwrap();
    let by = |lease, version| Transition { lease: Some(lease), ..full_step(&id, version) };
    assert_eq!(one.commit(by(lease.clone(), 1)).await.unwrap(), 2);

    let taking = one
        .guarded(&name, &lease, async {
            assert!(one.renew_lease(&name, &lease, SHORT).await.unwrap());
            tokio::time::sleep(SHORT * 20).await;
            let taking_name = name.clone();
            let taking = tokio::spawn(async move {
                let taken = other.take_lease(&taking_name, "other", LONG).await.unwrap();
                (other, taken)
            });
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert!(!taking.is_finished(), "the lease was taken in the middle of what rests on it");
            [taking]
        })
        .await
        .unwrap();
    let [taking] = taking;
    let (other, taken) = taking.await.unwrap();
    assert_eq!(taken.number, lease.number + 1);

    let told = one.commit(by(lease.clone(), 2)).await.unwrap_err();
    assert!(matches!(&told, CommitError::Store(StoreError::Fenced { .. })), "{told:?}");
    let refused = one.guarded(&name, &lease, async { panic!("done without the lease") }).await;
    assert!(matches!(refused, Err(StoreError::Fenced { .. })), "{refused:?}");
    assert_eq!(one.job(&id).await.unwrap().unwrap().version, 2);
    assert_eq!(other.commit(by(taken, 2)).await.unwrap(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_free_job_is_taken_by_one() {
    let server = PostgresServer::start();
    let url = server.new_database();
    let stores: Vec<_> = [open(&url).await, open(&url).await, open(&url).await].into();
    for n in 0..12 {
        stores[0].insert_job(job(&format!("j{n:02}")), vec![]).await.unwrap();
    }
    let ended = JobId::new("j05").unwrap();
    let end = Transition { ended: true, ..Transition::new(ended.clone(), 1, "completed", "{}") };
    stores[0].commit(end).await.unwrap();
    let asking = stores.into_iter().enumerate().map(|(n, store)| {
        tokio::spawn(async move {
            let mut taken = vec![];
            // Some are passed over while another one looks at them.
            for _ in 0..20 {
                taken.extend(store.take_jobs(&format!("r{n}"), LONG, 2, &BTreeSet::new()).await.unwrap());
            }
            (store, n, taken)
        })
    });
    let (mut all, mut stores) = (vec![], vec![]);
    for asked in asking.collect::<Vec<_>>() {
        let (store, n, taken) = asked.await.unwrap();
        assert!(
            taken.iter().all(|(_, lease)| lease.holder == format!("r{n}") && lease.number == 1),
            "{taken:?}"
        );
        all.extend(taken);
        stores.push(store);
    }
    let jobs: BTreeSet<&JobId> = all.iter().map(|(id, _)| id).collect();
    assert_eq!((jobs.len(), all.len()), (11, 11), "each once: {all:?}");
    assert!(!jobs.contains(&ended));

    // All of a holder's are renewed at once, and what was given up is free at once.
    let (id, lease) = all.iter().find(|(_, lease)| lease.holder == "r0").unwrap();
    let renewed = stores[0].renew_leases("r0", LONG).await.unwrap();
    assert_eq!(renewed.len(), all.iter().filter(|(_, lease)| lease.holder == "r0").count());
    assert!(renewed.contains(&(JobRecord::lease_name(id), 1)));
    let mut listener = stores[1].listen().await.unwrap();
    stores[0].end_lease(&JobRecord::lease_name(id), lease).await.unwrap();
    heard(&mut listener, &Note::Lease).await;
    let except = BTreeSet::from([id.clone()]);
    assert_eq!(stores[1].take_jobs("r1", LONG, 9, &except).await.unwrap(), []);
    assert!(!stores[1].holds(&JobRecord::lease_name(id), lease).await.unwrap());
    let again = stores[1].take_jobs("r1", LONG, 9, &BTreeSet::new()).await.unwrap();
    assert!(stores[0].holds(&JobRecord::lease_name(id), &again[0].1).await.unwrap());
    assert_eq!(again.iter().map(|(id, lease)| (id, lease.number)).collect::<Vec<_>>(), [(id, 2)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_newest_session_counts_wherever_it_is() {
    let server = PostgresServer::start();
    let url = server.new_database();
    let (one, other) = (open(&url).await, open(&url).await);
    let mut listener = other.listen().await.unwrap();
    one.session_opened(&session("basel", "r1", 1)).await.unwrap();
    heard(&mut listener, &Note::Session(client("basel"))).await;
    one.session_opened(&session("bern", "r1", 2)).await.unwrap();
    other.session_opened(&session("basel", "r2", 1)).await.unwrap();
    // The late end of the first does not end the second.
    one.session_ended(&client("basel"), "r1", 1).await.unwrap();
    other.session_ended(&client("basel"), "r2", 7).await.unwrap();
    assert_eq!(one.session(&client("basel")).await.unwrap(), Some(session("basel", "r2", 1)));
    one.session_ended(&client("bern"), "r1", 2).await.unwrap();
    heard(&mut listener, &Note::Session(client("bern"))).await;
    assert_eq!(other.session(&client("bern")).await.unwrap(), None);

    // Those of a coordinator that is gone are tidied away; of one that is there they stay.
    let here = SqlStore::replica_lease("r2");
    let lease = other.take_lease(&here, "r2", LONG).await.unwrap();
    one.session_opened(&session("zug", "r1", 3)).await.unwrap();
    one.post(&[("r1".into(), mail("zug", "x")), ("r2".into(), mail("basel", "y"))]).await.unwrap();
    one.tidy().await.unwrap();
    assert_eq!(one.sessions().await.unwrap(), [session("basel", "r2", 1)]);
    assert_eq!(one.mail("r1", 9).await.unwrap(), []);
    assert_eq!(one.mail("r2", 9).await.unwrap().len(), 1);
    assert_eq!(one.replicas().await.unwrap(), BTreeSet::from(["r2".to_owned()]));
    other.end_lease(&here, &lease).await.unwrap();
    assert_eq!(one.replicas().await.unwrap(), BTreeSet::new());
    other.sessions_ended("r2").await.unwrap();
    assert_eq!(one.sessions().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn mail_comes_once_and_in_order() {
    let server = PostgresServer::start();
    let url = server.new_database();
    let (one, other) = (open(&url).await, open(&url).await);
    let mut listener = other.listen().await.unwrap();
    let all: Vec<_> = (0..50).map(|n| ("r2".to_owned(), mail("basel", &n.to_string()))).collect();
    one.post(&all).await.unwrap();
    heard(&mut listener, &Note::Mail("r2".into())).await;
    let mut got = vec![];
    loop {
        let some = other.mail("r2", 20).await.unwrap();
        assert!(some.len() <= 20);
        // Until it is delivered it is there.
        assert_eq!(other.mail("r2", 20).await.unwrap(), some);
        if some.is_empty() {
            break;
        }
        let (ids, mail): (Vec<_>, Vec<_>) = some.into_iter().unzip();
        other.mail_delivered(&ids).await.unwrap();
        got.extend(mail);
    }
    assert_eq!(got, all.into_iter().map(|(_, mail)| mail).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_question_finds_its_answer() {
    let server = PostgresServer::start();
    let url = server.new_database();
    let (asker, driver) = (open(&url).await, open(&url).await);
    let (mut at_driver, mut at_asker) = (driver.listen().await.unwrap(), asker.listen().await.unwrap());
    let id = JobId::new("a").unwrap();
    let first = asker.ask(&id, "r1", "{\"n\":1}").await.unwrap();
    let second = asker.ask(&id, "r1", "{\"n\":2}").await.unwrap();
    asker.ask(&JobId::new("b").unwrap(), "r1", "other").await.unwrap();
    heard(&mut at_driver, &Note::Inbox(id.clone())).await;
    let asked = driver.asked(&id, 9).await.unwrap();
    assert_eq!(
        asked.iter().map(|a| (a.id, a.input.as_str())).collect::<Vec<_>>(),
        [(first, "{\"n\":1}"), (second, "{\"n\":2}")]
    );
    // Until it is answered it is there for whoever drives the job next.
    driver.answer(&[(second, "no".into())]).await.unwrap();
    heard(&mut at_asker, &Note::Answers("r1".into())).await;
    assert_eq!(driver.asked(&id, 9).await.unwrap().iter().map(|a| a.id).collect::<Vec<_>>(), [first]);
    assert_eq!(asker.collect_answers("r2").await.unwrap(), []);
    assert_eq!(asker.collect_answers("r1").await.unwrap(), [(second, "no".to_owned())]);
    assert_eq!(asker.collect_answers("r1").await.unwrap(), [], "once");
    // An answer to what nobody asked any more is no error.
    driver.answer(&[(second, "no".into()), (first, "yes".into())]).await.unwrap();
    assert_eq!(asker.collect_answers("r1").await.unwrap(), [(first, "yes".to_owned())]);
}

/// A step is heard of by all, and after a connection that broke one looks everywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_step_is_heard_of() {
    let server = PostgresServer::start();
    let url = server.new_database();
    let (one, other) = (open(&url).await, open(&url).await);
    let mut listener = other.listen().await.unwrap();
    one.insert_job(job("a"), vec![]).await.unwrap();
    let id = job("a").id;
    heard(&mut listener, &Note::Job(id.clone())).await;
    one.commit(full_step(&id, 1)).await.unwrap();
    heard(&mut listener, &Note::Job(id.clone())).await;
    server.sql(&url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND query LIKE 'LISTEN%'");
    heard(&mut listener, &Note::Missed).await;
    one.commit(full_step(&id, 2)).await.unwrap();
    heard(&mut listener, &Note::Job(id)).await;
}

#[tokio::test]
async fn partial_sums_are_of_one_attempt() {
    let server = PostgresServer::start();
    let store = open(&server.new_database()).await;
    let key = |round| AttemptKey { job: JobId::new("a").unwrap(), round: Round(round), attempt: Attempt(1) };
    let sum = |replica: &str, made, blob: Option<&str>| PartialSum {
        replica: replica.into(),
        made,
        blob: blob.map(|text| (Digest::of(text.as_bytes()), 9)),
    };
    assert!(store.begin_partial_sum(&key(1), "r2").await.unwrap());
    assert!(store.begin_partial_sum(&key(1), "r1").await.unwrap());
    assert!(!store.begin_partial_sum(&key(1), "r1").await.unwrap(), "twice");
    assert!(store.begin_partial_sum(&key(2), "r1").await.unwrap());
    let x = (Digest::of(b"x"), 9);
    assert!(store.end_partial_sum(&key(2), "r1", Some((Digest::of(b"other"), 9))).await.unwrap());
    assert!(store.end_partial_sum(&key(1), "r1", Some(x)).await.unwrap());
    let found = store.partial_sums(&key(1)).await.unwrap();
    assert_eq!(found, [sum("r1", true, Some("x")), sum("r2", false, None)]);
    assert_eq!(store.forget_partial_sums(&key(1)).await.unwrap(), [Digest::of(b"x")]);
    assert_eq!(store.partial_sums(&key(1)).await.unwrap(), []);
    assert!(!store.end_partial_sum(&key(1), "r2", None).await.unwrap(), "it is forgotten");
    assert_eq!(store.partial_sums(&key(2)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_a_driver_says_of_a_job_is_read_by_all() {
    let server = PostgresServer::start();
    let url = server.new_database();
    let (driver, other) = (open(&url).await, open(&url).await);
    let id = job("a").id;
    driver.insert_job(job("a"), vec![]).await.unwrap();
    let mut listener = other.listen().await.unwrap();
    assert_eq!(other.standing(&id).await.unwrap(), JobStanding::default());
    for standing in [
        JobStanding { halted: Some("the ledger is damaged".into()), waits_for: None },
        JobStanding { halted: None, waits_for: Some("a disk".into()) },
        JobStanding::default(),
    ] {
        driver.put_standing(&id, &standing).await.unwrap();
        heard(&mut listener, &Note::Job(id.clone())).await;
        assert_eq!(other.standing(&id).await.unwrap(), standing);
    }
    driver.tidy().await.unwrap();
}

/// A database that was set back has leases of another day, of coordinators that may run still.
#[tokio::test]
async fn nobody_drives_in_a_state_that_is_not_settled() {
    let server = PostgresServer::start();
    let store = open(&server.new_database()).await;
    store.insert_job(job("a"), vec![]).await.unwrap();
    let id = job("a").id;
    let taken = store.take_jobs("r1", LONG, 9, &BTreeSet::new()).await.unwrap();
    let lease = taken[0].1.clone();
    assert_eq!(store.renew_leases("r1", LONG).await.unwrap().len(), 1);
    store.unsettle("its database was restored").await.unwrap();
    assert_eq!(store.renew_leases("r1", LONG).await.unwrap(), []);
    let refused = store.commit(Transition { lease: Some(lease.clone()), ..full_step(&id, 1) }).await;
    assert!(matches!(refused, Err(CommitError::Store(StoreError::Fenced { .. }))), "{refused:?}");
    store.end_lease(&JobRecord::lease_name(&id), &lease).await.unwrap();
    assert_eq!(store.take_jobs("r1", LONG, 9, &BTreeSet::new()).await.unwrap(), []);
    store.settle(&[], vec![], &[]).await.unwrap();
    assert_eq!(store.take_jobs("r1", LONG, 9, &BTreeSet::new()).await.unwrap().len(), 1);
}
