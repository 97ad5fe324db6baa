//! The file: whose it is, what is in it, what it survives.

use super::open;
use crate::contract::{attempt, full_step, job, joins, secret, token};
use crate::sql::connection::statement;
use crate::sql::{Write as _, finish, schema};
use crate::sqlite::SCHEMA;
use crate::sqlite::writer::Writer;
use crate::{CommitError, Durability, SqlStore, Store, StoreError, UploadRecord};
use sqlx::sqlite::SqliteConnectOptions;
use std::sync::Arc;
use tempfile::TempDir;
use undertone_core::digest::Digest;

/// Merged migrations never change: files in the field came by them. A new one adds a line here.
#[test]
fn merged_migrations_are_frozen() {
    let digests: Vec<_> =
        SCHEMA.migrations.iter().map(|text| Digest::of(text.as_bytes()).to_string()).collect();
    assert_eq!(
        digests,
        [
            "01464825ec07b3d2d59c8f91d4f4080b1603b50bbcaae0b8aaa8c1bc835cb124",
            "688cc7d1226807816b359d77e726ab113f4a14411e1b38b92cd99d6c00a35fe7",
            "9639c9a317828849aa41fae4909e677a3bcdd2314858520194d8156ab0db3c67",
            "e149de3374d14ea33af81e3f2c60a3176914c91f3d65b6d83d3c421eaeab233c",
            "bb083b06af6a3d746d1b6fa550f7b9754a0cf108eac0bffdfcfbe61541e95f4f",
        ]
    );
}

#[tokio::test]
async fn reopened_it_knows_everything() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    store.create_token(token("t", 1)).await.unwrap();
    let client = store.enrol(secret("t"), 1_500, joins("a", "a")).await.unwrap();
    store.insert_job(job("a"), vec![]).await.unwrap();
    store.commit(full_step(&job("a").id, 1)).await.unwrap();
    let before = (store.jobs().await.unwrap(), store.list_tokens().await.unwrap());
    store.close().await;
    assert!(!folder.path().join("state.db-wal").exists(), "closing folds the log into the file");

    let store = open(&folder).await;
    assert_eq!((store.jobs().await.unwrap(), store.list_tokens().await.unwrap()), before);
    assert_eq!(store.clients().await.unwrap(), [client]);
    assert_eq!(store.commit(full_step(&job("a").id, 2)).await.unwrap(), 3);
}

#[cfg(unix)]
#[tokio::test]
async fn nobody_else_may_read_it() {
    use std::os::unix::fs::PermissionsExt;
    let folder = TempDir::new().unwrap();
    let mode = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
    let store = open(&folder).await;
    store.insert_job(job("a"), vec![]).await.unwrap();
    for name in ["state.db", "state.db-wal", "state.db-shm"] {
        assert_eq!(mode(name), 0o600, "{name}");
    }
    store.close().await;
    std::fs::set_permissions(folder.path().join("state.db"), PermissionsExt::from_mode(0o644)).unwrap();
    let _store = open(&folder).await;
    assert_eq!(mode("state.db"), 0o600);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_programs_may_write_at_once() {
    const LAST: u64 = 60;
    let folder = TempDir::new().unwrap();
    let stores = [Arc::new(open(&folder).await), Arc::new(open(&folder).await)];
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
}

#[tokio::test]
async fn a_full_disk_is_told_and_got_over() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    let id = job("a").id;
    store.insert_job(job("a"), vec![]).await.unwrap();
    // SQLite's own way to be full. The limit is the connection's, so the next connection is free of it again,
    // as after space was freed.
    let mut write = store.engine.write().await.unwrap();
    let limit = statement("PRAGMA max_page_count = 1");
    let outcome = write.sql().execute(limit).await;
    finish(write, outcome).await.unwrap();

    let mut large = full_step(&id, 1);
    large.state = "x".repeat(1 << 20);
    let refused = store.commit(large.clone()).await;
    assert!(matches!(&refused, Err(CommitError::Store(StoreError::Full { .. }))), "{refused:?}");
    let text = refused.unwrap_err().to_string();
    assert!(text.ends_with("state.db is full; the change was not made: free space, then go on"), "{text}");
    assert_eq!(store.job(&id).await.unwrap(), Some(job("a")));
    assert_eq!(store.events(&id, 0, 9).await.unwrap(), []);

    store.engine.write().await.map(drop).unwrap();
    assert_eq!(store.commit(large).await.unwrap(), 2);
}

#[tokio::test]
async fn a_write_that_is_not_permitted_is_told() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    let mut write = store.engine.write().await.unwrap();
    let outcome = write.sql().execute(statement("PRAGMA query_only = ON")).await;
    finish(write, outcome).await.unwrap();
    let refused = store.insert_job(job("a"), vec![]).await;
    assert!(matches!(&refused, Err(StoreError::NotWritable { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_file_of_the_first_schema_is_brought_up_to_date() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("state.db");
    let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let writer = Writer::new(options, "old");
    let mut write = writer.begin().await.unwrap();
    let outcome = schema::apply(&mut write.sql(), &SCHEMA, &SCHEMA.migrations[..1]).await;
    finish(Box::new(write), outcome).await.unwrap();
    for (id, status) in [("a", "completed"), ("b", "collecting"), ("c", "budget-spent")] {
        let mut write = writer.begin().await.unwrap();
        let insert = statement("INSERT INTO jobs VALUES (?, '{}', ?, 1, ?, '{}', 7)");
        let digest = Digest::of(b"{}").to_string();
        let outcome = write.sql().execute(insert.bind(id).bind(digest).bind(status)).await;
        finish(Box::new(write), outcome).await.unwrap();
    }
    // Of the open ones the last has spent before the ledger was a chain.
    for sql in [
        "INSERT INTO jobs VALUES ('e', '{}', (SELECT document_digest FROM jobs LIMIT 1), 1, 'waiting', '{}', 9)",
        "INSERT INTO ledger VALUES ('e', 1, 'spent')",
        "INSERT INTO uploads VALUES ('b', 1, 1, 'basel', (SELECT document_digest FROM jobs LIMIT 1), 8, 3)",
    ] {
        let mut write = writer.begin().await.unwrap();
        let outcome = write.sql().execute(statement(sql)).await;
        finish(Box::new(write), outcome).await.unwrap();
    }
    writer.close().await;

    let store = open(&folder).await;
    let open: Vec<_> = store.open_jobs().await.unwrap().into_iter().map(|j| j.id.to_string()).collect();
    assert_eq!(open, ["b"]);
    assert_eq!(store.jobs().await.unwrap().len(), 4);
    let uploads = store.uploads(&attempt(&job("b").id, 1)).await.unwrap();
    assert!(matches!(&uploads[..], [UploadRecord { bytes: 8, weight: 3, claim: None, .. }]), "{uploads:?}");
    store.insert_job(job("d"), vec![]).await.unwrap();
}

#[tokio::test]
async fn no_statement_changes_or_removes_a_line_of_the_ledger() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    store.insert_job(job("a"), vec![]).await.unwrap();
    store.commit(full_step(&job("a").id, 1)).await.unwrap();
    for sql in ["DELETE FROM privacy_ledger", "UPDATE privacy_ledger SET document = '{}'"] {
        let mut write = store.engine.write().await.unwrap();
        let outcome = write.sql().execute(statement(sql)).await;
        let text = finish(write, outcome).await.unwrap_err().to_string();
        assert!(text.contains("only added to"), "{text}");
    }
    assert_eq!(store.ledger(0, 9).await.unwrap().len(), 1);
}

/// Opens `path` and expects an error.
async fn refused(path: &std::path::Path) -> StoreError {
    SqlStore::sqlite(path, Durability::Disk).await.expect_err("it opened")
}

#[tokio::test]
async fn what_is_no_store_is_refused() {
    let folder = TempDir::new().unwrap();
    let error = refused(&folder.path().join("no folder").join("state.db")).await;
    assert!(matches!(error, StoreError::NotOpened { .. }), "{error:?}");
    let error = refused(folder.path()).await;
    assert!(matches!(error, StoreError::NotOpened { .. }), "{error:?}");

    let noise = folder.path().join("noise.db");
    std::fs::write(&noise, "this is no database. ".repeat(500)).unwrap();
    let error = refused(&noise).await;
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");

    let foreign = folder.path().join("foreign.db");
    let options = SqliteConnectOptions::new().filename(&foreign).create_if_missing(true);
    let writer = Writer::new(options, "foreign");
    let mut write = writer.begin().await.unwrap();
    let outcome = write.sql().execute(statement("CREATE TABLE bookmarks (url TEXT)")).await;
    finish(Box::new(write), outcome).await.unwrap();
    writer.close().await;
    let error = refused(&foreign).await;
    assert!(matches!(error, StoreError::Foreign { .. }), "{error:?}");
}

#[tokio::test]
async fn a_value_that_no_store_wrote_is_told() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    store.insert_job(job("a"), vec![]).await.unwrap();
    let mut write = store.engine.write().await.unwrap();
    let outcome = write.sql().execute(statement("UPDATE jobs SET document_digest = 'abc'")).await;
    finish(write, outcome).await.unwrap();
    let text = store.job(&job("a").id).await.unwrap_err().to_string();
    assert!(
        text.contains("is damaged") && text.contains("document_digest") && text.contains("abc"),
        "{text}"
    );
}

#[tokio::test]
async fn schemas_only_go_forward_and_by_one_way() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder).await;
    let mut write = store.engine.write().await.unwrap();
    let next = [SCHEMA.migrations, &["ALTER TABLE jobs ADD COLUMN colour TEXT"]].concat();
    let outcome = schema::apply(&mut write.sql(), &SCHEMA, &next).await;
    finish(write, outcome).await.unwrap();

    // A step of several statements that fails in the middle leaves the schema that was.
    let mut write = store.engine.write().await.unwrap();
    let broken = [next.as_slice(), &["CREATE TABLE half (a TEXT); CREATE TABLE jobs (a TEXT)"]].concat();
    let outcome = schema::apply(&mut write.sql(), &SCHEMA, &broken).await;
    assert!(finish(write, outcome).await.is_err());

    let mut write = store.engine.write().await.unwrap();
    let outcome = schema::apply(&mut write.sql(), &SCHEMA, &next).await;
    finish(write, outcome).await.expect("applied already");

    let mut other = next.clone();
    other[1] = "SELECT 1";
    let mut write = store.engine.write().await.unwrap();
    let outcome = schema::apply(&mut write.sql(), &SCHEMA, &other).await;
    let error = finish(write, outcome).await.unwrap_err();
    assert!(matches!(error, StoreError::OtherSchema { number: 2, .. }), "{error:?}");
    store.close().await;

    let error = refused(&folder.path().join("state.db")).await;
    let known = SCHEMA.migrations.len() as u32;
    assert!(
        matches!(error, StoreError::NewerSchema { found, known: k, .. } if found == known + 1 && k == known)
    );
    assert!(error.to_string().contains("run the newer program"), "{error}");
}
