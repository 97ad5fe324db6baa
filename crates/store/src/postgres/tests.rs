//! What the contract cannot say: several programs at once, a server that dies, databases of others.

use super::{SCHEMA, migrate};
use crate::contract::{event, full_step, job, store_contract};
use crate::records::{JobRecord, LedgerRow, Transition};
use crate::sql::connection::{parsed, statement};
use crate::sql::finish;
use crate::{CommitError, Durability, SqlStore, Store, StoreError};
use std::sync::Arc;
use std::time::Duration;
use undertone_core::digest::Digest;
use undertone_test_servers::PostgresServer;

async fn open(url: &str) -> SqlStore {
    SqlStore::postgres(url, Durability::Disk).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn keeps_the_contract() {
    let server = PostgresServer::start();
    store_contract(async || Arc::new(open(&server.new_database()).await) as Arc<dyn Store>).await;
}

/// Merged migrations never change: databases in the field came by them. A new one adds a line here.
#[test]
fn merged_migrations_are_frozen() {
    let digests: Vec<_> =
        SCHEMA.migrations.iter().map(|text| Digest::of(text.as_bytes()).to_string()).collect();
    assert_eq!(digests, ["3197a8e0543f77816052ac3d5b5ae62e8d7bfca2b70a39998225f4e8514de2fa"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn programs_that_start_at_once_make_one_schema() {
    let server = PostgresServer::start();
    let url = server.new_database();
    let opening = (0..6).map(|_| {
        let url = url.clone();
        tokio::spawn(async move { open(&url).await })
    });
    let stores: Vec<_> = opening.collect();
    for (n, store) in stores.into_iter().enumerate() {
        let store = store.await.unwrap();
        store.insert_job(job(&format!("j{n}")), vec![]).await.unwrap();
        assert!(store.jobs().await.unwrap().len() > n);
    }
}

/// Steps of one job from two programs: each version is won once, and what a step leaves behind is whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_programs_may_write_at_once() {
    const LAST: u64 = 60;
    let server = PostgresServer::start();
    let url = server.new_database();
    let stores = [Arc::new(open(&url).await), Arc::new(open(&url).await)];
    let id = job("a").id;
    stores[0].insert_job(job("a"), vec![]).await.unwrap();
    let programs = stores.clone().map(|store| {
        tokio::spawn(async move {
            let id = job("a").id;
            let (mut version, mut won) = (1, 0);
            while version < LAST {
                match store.commit(full_step(&id, version)).await {
                    Ok(next) => (version, won) = (next, won + 1),
                    Err(CommitError::Conflict { found, .. }) => version = found,
                    Err(other) => panic!("{other:?}"),
                }
            }
            won
        })
    });
    let mut won = 0;
    for program in programs {
        won += program.await.unwrap();
    }
    assert_eq!(won, LAST - 1);
    assert_eq!(stores[1].job(&id).await.unwrap().unwrap().version, LAST);
    assert_eq!(stores[1].events(&id, 0, 100).await.unwrap().len() as u64, LAST - 1);
    assert_eq!(stores[1].ledger(0, 100).await.unwrap().len() as u64, LAST - 1);
}

/// Steps of several jobs add to one ledger: no line is lost, none comes twice, and a step whose line was taken leaves nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn jobs_of_several_programs_add_to_one_ledger() {
    const STEPS: u64 = 25;
    let server = PostgresServer::start();
    let url = server.new_database();
    let jobs = ["a", "b", "c", "d"];
    let first = open(&url).await;
    for name in jobs {
        first.insert_job(job(name), vec![]).await.unwrap();
    }
    let programs = jobs.map(|name| {
        let url = url.clone();
        tokio::spawn(async move {
            let store = open(&url).await;
            let (id, mut line, mut moved) = (job(name).id, 1, 0);
            for version in 1..=STEPS {
                loop {
                    let step = Transition {
                        events: vec![event("x")],
                        ledger: vec![
                            LedgerRow { seq: line, document: format!("{name} {version}") },
                            LedgerRow { seq: line + 1, document: format!("{name} {version} too") },
                        ],
                        ..Transition::new(id.clone(), version, "running", "{}")
                    };
                    match store.commit(step).await {
                        Ok(_) => break line += 2,
                        Err(CommitError::LedgerMoved { offered, expected }) => {
                            assert!(expected > offered, "{expected} after {offered}");
                            // At first nobody knows where the ledger stands.
                            moved += u32::from(version > 1);
                            line = expected;
                        }
                        Err(other) => panic!("{other:?}"),
                    }
                }
            }
            moved
        })
    });
    let mut moved = 0;
    for program in programs {
        moved += program.await.unwrap();
    }
    assert!(moved > 0, "no two programs met: the test tests nothing");
    let lines = first.ledger(0, 1_000).await.unwrap();
    let seqs: Vec<_> = lines.iter().map(|row| row.seq).collect();
    assert_eq!(seqs, (1..=2 * STEPS * jobs.len() as u64).collect::<Vec<_>>());
    // The two lines of a step stand together.
    for pair in lines.chunks(2) {
        assert_eq!(format!("{} too", pair[0].document), pair[1].document);
    }
    for name in jobs {
        assert_eq!(first.events(&job(name).id, 0, 100).await.unwrap().len() as u64, STEPS, "{name}");
    }
}

/// Every step of the tests leaves one event and one ledger row, so what is there must fit its version.
async fn whole_steps(store: &SqlStore) -> u64 {
    let id = job("a").id;
    let steps = store.job(&id).await.unwrap().unwrap().version - 1;
    assert_eq!(store.events(&id, 0, u32::MAX).await.unwrap().len() as u64, steps, "events of {steps} steps");
    assert_eq!(store.ledger(0, u32::MAX).await.unwrap().len() as u64, steps, "ledger of {steps} steps");
    steps
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_goes_away_leaves_a_whole_step_or_none() {
    let server = PostgresServer::start();
    let store = open(&server.new_database()).await;
    let id = job("a").id;
    store.insert_job(job("a"), vec![]).await.unwrap();
    let (mut dropped, mut version) = (0, 1);
    for n in 0..60 {
        let step = Transition { state: "x".repeat(100_000), ..full_step(&id, version) };
        let outcome = tokio::time::timeout(Duration::from_micros(n * 100), store.commit(step)).await;
        dropped += u32::from(outcome.is_err());
        // The server may be at it still: the next step waits for the row, and is then told where the job is.
        version = loop {
            match store.commit(full_step(&id, version)).await {
                Ok(next) => break next,
                Err(CommitError::Conflict { found, .. }) => version = found,
                Err(other) => panic!("{other:?}"),
            }
        };
        assert_eq!(whole_steps(&store).await, version - 1);
    }
    assert!(dropped > 0, "no caller went away: the test tests nothing");
}

/// What was acknowledged is there after the server was killed, and the same store goes on when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_is_killed_loses_no_acknowledged_step() {
    let mut server = PostgresServer::start();
    let store = Arc::new(open(&server.new_database()).await);
    let id = job("a").id;
    store.insert_job(job("a"), vec![]).await.unwrap();
    let mut acknowledged = 1;
    for _ in 0..2 {
        let steps = tokio::spawn({
            let (store, id) = (store.clone(), id.clone());
            async move {
                let mut version = acknowledged;
                loop {
                    match store.commit(full_step(&id, version)).await {
                        Ok(next) => version = next,
                        Err(CommitError::Store(
                            e @ (StoreError::Unreachable { .. } | StoreError::Unsure { .. }),
                        )) => {
                            return (version, e.to_string());
                        }
                        Err(other) => panic!("{other:?}"),
                    }
                }
            }
        });
        while store.job(&id).await.unwrap().unwrap().version < acknowledged + 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server.kill();
        let (version, told) = steps.await.unwrap();
        assert!(version > acknowledged, "no step was made before the server died");
        assert!(told.contains("PostgreSQL database undertone_0 at "), "{told}");
        server.resume();
        // The step under way was made or not, as a whole.
        let found = whole_steps(&store).await + 1;
        assert!(found == version || found == version + 1, "{found} after {version} was acknowledged");
        acknowledged = found;
    }
}

#[tokio::test]
async fn no_statement_changes_or_removes_a_line_of_the_ledger() {
    let server = PostgresServer::start();
    let url = server.new_database();
    let store = open(&url).await;
    store.insert_job(job("a"), vec![]).await.unwrap();
    store.commit(full_step(&job("a").id, 1)).await.unwrap();
    for text in
        ["DELETE FROM privacy_ledger", "UPDATE privacy_ledger SET document = '{}'", "TRUNCATE privacy_ledger"]
    {
        let mut write = store.engine.write().await.unwrap();
        let outcome = write.sql().batch(text).await;
        let told = finish(write, outcome).await.unwrap_err().to_string();
        assert!(told.contains("only added to"), "{told}");
    }
    assert_eq!(store.ledger(0, 9).await.unwrap().len(), 1);
}

#[tokio::test]
async fn schemas_only_go_forward_and_by_one_way() {
    let server = PostgresServer::start();
    let url = server.new_database();
    let store = open(&url).await;
    let to = async |migrations: &[&'static str]| {
        let mut write = store.engine.write().await.unwrap();
        let outcome = migrate(&mut write.sql(), migrations).await;
        finish(write, outcome).await
    };
    let next =
        [SCHEMA.migrations, &["ALTER TABLE jobs ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'"]].concat();
    to(&next).await.unwrap();
    // A program that was there before reads and writes on, by statements that it has prepared.
    store.insert_job(job("a"), vec![]).await.unwrap();
    assert_eq!(store.job(&job("a").id).await.unwrap(), Some(job("a")));

    // A step of several statements that fails in the middle leaves the schema that was.
    let broken = [next.as_slice(), &["CREATE TABLE half (a TEXT); CREATE TABLE jobs (a TEXT)"]].concat();
    assert!(to(&broken).await.is_err());
    to(&next).await.expect("applied already");
    let other = [&["SELECT 1"], &next[1..]].concat();
    let error = to(&other).await.unwrap_err();
    assert!(matches!(error, StoreError::OtherSchema { number: 1, .. }), "{error:?}");

    let error = SqlStore::postgres(&url, Durability::Disk).await.unwrap_err();
    assert!(matches!(error, StoreError::NewerSchema { .. }), "{error:?}");
    assert!(error.to_string().contains("run the newer program"), "{error}");
}

/// What is told when it cannot be opened: where it is, what to do, and no password.
#[tokio::test]
async fn what_is_no_store_is_refused() {
    let server = PostgresServer::start();
    let url = server.new_database();
    server.sql(&url, "CREATE TABLE bookmarks (url TEXT)");
    let error = SqlStore::postgres(&url, Durability::Disk).await.unwrap_err();
    assert!(matches!(error, StoreError::Foreign { .. }), "{error:?}");

    let error = SqlStore::postgres(&url.replace("undertone_0", "none"), Durability::Disk).await.unwrap_err();
    assert!(matches!(error, StoreError::NotOpened { .. }), "{error:?}");
    assert!(error.to_string().contains("database none at "), "{error}");

    for url in ["postgres:/u:secret@db", "u:secret@db/undertone", "postgres://u:secret@db:port/undertone"] {
        let error = SqlStore::postgres(url, Durability::Disk).await.unwrap_err();
        assert!(error.to_string().contains("write postgres://user:password@host:5432/database"), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("postgres://u:secret@{nobody}/undertone");
    let told = SqlStore::postgres(&url, Durability::Disk).await.unwrap_err().to_string();
    assert!(told.contains(&format!("database undertone at {nobody} cannot be reached (")), "{told}");
    assert!(told.contains("refused") && !told.contains("secret"), "{told}");

    // A user that may read and not write.
    let url = server.new_database();
    open(&url).await.close().await;
    server.sql(&url, "CREATE ROLE reader LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader");
    let reader = open(&url.replace("undertone@", "reader@")).await;
    let error = reader.insert_job(job("a"), vec![]).await.unwrap_err();
    assert!(matches!(error, StoreError::NotWritable { .. }), "{error:?}");
    assert_eq!(reader.jobs().await.unwrap(), []);
}

#[tokio::test]
async fn a_value_that_no_store_wrote_is_told() {
    let server = PostgresServer::start();
    let url = server.new_database();
    let store = open(&url).await;
    store.insert_job(job("a"), vec![]).await.unwrap();
    server.sql(&url, "UPDATE jobs SET document_digest = 'abc'");
    let told = store.job(&job("a").id).await.unwrap_err().to_string();
    assert!(
        told.contains("is damaged") && told.contains("document_digest") && told.contains("abc"),
        "{told}"
    );
}

/// The server's setting gives way where it would lose what it acknowledged.
#[tokio::test]
async fn a_commit_is_on_disk_whatever_the_server_is_set_to() {
    let server = PostgresServer::start();
    let url = server.new_database();
    for (set, durability, expected) in [
        ("off", Durability::Disk, "on"),
        ("off", Durability::Process, "off"),
        ("remote_apply", Durability::Disk, "remote_apply"),
    ] {
        server.sql(&url, &format!("ALTER DATABASE undertone_0 SET synchronous_commit = {set}"));
        let store = SqlStore::postgres(&url, durability).await.unwrap();
        let mut read = store.engine.read().await.unwrap();
        let asked = statement("SELECT current_setting('synchronous_commit') AS now");
        let found = read.sql().first(asked, |row| parsed::<String>(row, "now")).await;
        assert_eq!(found.unwrap().as_deref(), Some(expected), "{set}, {durability:?}");
    }
}

#[tokio::test]
async fn a_database_is_told_once() {
    let server = PostgresServer::start();
    let url = server.new_database();
    let (one, other) = (open(&url).await, open(&url).await);
    assert_eq!(one.once("deployment", "a").await.unwrap(), "a");
    assert_eq!(other.once("deployment", "b").await.unwrap(), "a");
    assert_eq!(other.once("blobs", "b").await.unwrap(), "b");
}

/// Managed servers put views and extensions into a new database.
#[tokio::test]
async fn what_is_no_table_of_anybody_is_not_looked_at() {
    let server = PostgresServer::start();
    let url = server.new_database();
    server.sql(&url, "CREATE VIEW now AS SELECT clock_timestamp(); CREATE EXTENSION pg_stat_statements");
    open(&url).await.insert_job(job("a"), vec![]).await.unwrap();
}

/// Over a network a server must show who it is; on this machine it need not.
#[test]
fn a_server_elsewhere_is_verified() {
    assert!(std::env::var_os("PGSSLMODE").is_none(), "it would decide here: unset it");
    let mode = |url: &str| format!("{:?}", super::parse(url).unwrap().get_ssl_mode());
    assert_eq!(mode("postgres://u@db.example/undertone"), "VerifyFull");
    assert_eq!(mode("postgres://u@10.0.0.7/undertone"), "VerifyFull");
    assert_eq!(mode("postgres://u@db.example/undertone?sslmode=disable"), "Disable");
    for here in ["localhost", "127.0.0.1", "[::1]", "localhost/undertone?host=/run/postgresql&x=localhost"] {
        assert_eq!(
            mode(&format!("postgres://u@{}", here.replacen("&x=localhost", "", 1))),
            "Prefer",
            "{here}"
        );
    }
}

/// What a step decides on stays as it is until the step is made.
#[tokio::test]
async fn a_step_waits_for_another_ones_row() {
    let server = PostgresServer::start();
    let url = server.new_database();
    let (store, other) = (open(&url).await, open(&url).await);
    store.insert_job(job("a"), vec![]).await.unwrap();
    let mut held = other.engine.write().await.unwrap();
    held.sql().batch("SELECT version FROM jobs WHERE id = 'a' FOR UPDATE").await.unwrap();
    let id = job("a").id;
    let waiting = tokio::time::timeout(Duration::from_millis(300), store.commit(full_step(&id, 1))).await;
    assert!(waiting.is_err(), "the row was not locked: {waiting:?}");
    // Readers wait for nobody.
    assert_eq!(store.job(&id).await.unwrap().map(|j| j.version), Some(JobRecord::FIRST_VERSION));
    drop(held);
    let version = store.job(&id).await.unwrap().unwrap().version;
    store.commit(full_step(&id, version)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_looks_changes_nothing() {
    let server = PostgresServer::start();
    let url = server.new_database();
    let look = async || SqlStore::look_at_postgres(&url).await.unwrap();
    let empty = look().await;
    assert_eq!((empty.schema, empty.coordinators.len()), (None, 0));
    assert!(empty.version.starts_with("PostgreSQL 1"), "{}", empty.version);
    assert!(empty.commit.is_some());

    let store = open(&url).await;
    assert_eq!(look().await.schema, Some(SCHEMA.migrations.len()));
    let name = SqlStore::replica_lease("one");
    let lease = store.take_lease(&name, "one", Duration::from_secs(60)).await.unwrap();
    assert_eq!(look().await.coordinators.into_iter().collect::<Vec<_>>(), ["one"]);
    store.end_lease(&name, &lease).await.unwrap();
    let free = look().await;
    assert!(free.coordinators.is_empty(), "it has ended");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    assert!(now.abs_diff(free.clock_ms.into()) < 60_000, "the same machine has the same clock");
    store.close().await;
}
