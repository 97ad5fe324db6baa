//! Each check where it fails, as far as that needs no network.

use super::state::{Known, blobs_of, bucket_of, coordinators, database, enough};
use super::{Check, Report, Verdict, examine, identity, machine, place};
use crate::ServerConfig;
use crate::init::{InitOptions, init};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use time::OffsetDateTime;
use undertone_core::digest::Digest;
use undertone_store::{Blobs as _, Inspection, MemoryBlobs, MemoryStore, SqlStore, Store as _};

fn deployment() -> (TempDir, ServerConfig) {
    let folder = TempDir::new().unwrap();
    let options = InitOptions {
        folder: folder.path().join("d"),
        name: "examined".into(),
        listen: "127.0.0.1:0".parse().unwrap(),
        hosts: vec!["localhost".into()],
    };
    let config = init(&options).unwrap();
    (folder, config)
}

fn one<'a>(checks: &'a [Check], name: &str) -> &'a Check {
    checks.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no check {name} in {checks:#?}"))
}

#[track_caller]
fn assert_is(check: &Check, verdict: Verdict, words: &str) {
    assert_eq!(check.verdict, verdict, "{check:#?}");
    assert!(check.found.contains(words), "{check:#?}");
    assert_eq!(check.next.is_none(), verdict == Verdict::Ok, "what to do: {check:#?}");
}

async fn report(dir: &Path) -> Report {
    examine(dir).await
}

#[tokio::test]
async fn a_new_deployment_has_nothing_wrong_with_it() {
    let (folder, _) = deployment();
    let report = report(&folder.path().join("d")).await;
    assert!(report.is_healthy(), "{report:#?}");
    assert_is(one(&report.checks, "database"), Verdict::Warn, "is not there");
    for name in ["configuration", "authority", "server key", "chain", "port", "folder", "open files", "clock"]
    {
        assert_ne!(one(&report.checks, name).verdict, Verdict::Fail, "{name}");
    }
}

#[tokio::test]
async fn a_configuration_that_cannot_be_read_is_all_that_is_told() {
    let (folder, _) = deployment();
    let file = folder.path().join("d/server.toml");
    fs::write(&file, fs::read_to_string(&file).unwrap().replace("listen", "listn")).unwrap();
    let report = report(&folder.path().join("d")).await;
    assert!(!report.is_healthy());
    assert_eq!(report.checks.len(), 1);
    assert_is(&report.checks[0], Verdict::Fail, "did you mean \"listen\"?");
    assert!(report.summary().contains("1 FAILED"), "{}", report.summary());
}

#[test]
fn certificates_that_clients_would_refuse_are_told() {
    let (_folder, config) = deployment();
    assert!(identity::checks(&config).iter().all(|check| check.verdict == Verdict::Ok));

    let other_host = ServerConfig { public_url: "https://elsewhere.example:7443".into(), ..config.clone() };
    assert_is(one(&identity::checks(&other_host), "chain"), Verdict::Fail, "not for the host");
    let no_host = ServerConfig { public_url: "https://:7443".into(), ..config.clone() };
    assert_is(one(&identity::checks(&no_host), "chain"), Verdict::Fail, "names no host");

    // Of another deployment, as after a careless copy.
    let (_other_folder, other) = deployment();
    for file in ["server.crt", "server.key"] {
        fs::copy(other.pki.join(file), config.pki.join(file)).unwrap();
    }
    let mixed = identity::checks(&config);
    assert_is(one(&mixed, "chain"), Verdict::Fail, "participants will refuse server.crt");
    assert_is(one(&mixed, "server key"), Verdict::Ok, "is the certificate's");
    fs::copy(other.pki.join("ca.key"), config.pki.join("ca.key")).unwrap();
    assert_is(one(&identity::checks(&config), "authority key"), Verdict::Fail, "is not the key of");
    fs::remove_file(config.pki.join("server.crt")).unwrap();
    assert_is(one(&identity::checks(&config), "certificate"), Verdict::Fail, "server.crt");
    fs::write(config.pki.join("ca.crt"), "no certificate").unwrap();
    assert_is(one(&identity::checks(&config), "authority"), Verdict::Fail, "ca.crt");
}

#[test]
fn certificates_that_end_and_keys_that_are_open_are_told() {
    let (_folder, config) = deployment();
    let now = OffsetDateTime::now_utc();
    for (made, verdict, words) in [
        (now - time::Duration::days(3651), Verdict::Fail, "ended"),
        (now - time::Duration::days(3640), Verdict::Warn, "ends"),
        (now + time::Duration::days(2), Verdict::Fail, "begins later than now"),
    ] {
        let authority = crate::identity::Authority::open(&config.pki).unwrap();
        let made = authority.server_certificate(&["localhost".into()], made).unwrap();
        fs::write(config.pki.join("server.crt"), made.certificate_pem).unwrap();
        fs::write(config.pki.join("server.key"), made.key_pem).unwrap();
        assert_is(one(&identity::checks(&config), "certificate"), verdict, words);
    }
    fs::set_permissions(config.pki.join("ca.key"), fs::Permissions::from_mode(0o644)).unwrap();
    assert_is(one(&identity::checks(&config), "authority key"), Verdict::Warn, "open to others (mode 044");
}

#[tokio::test]
async fn a_port_of_another_program_is_told() {
    let (_folder, config) = deployment();
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    // It says something, and not in TLS.
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = taken.accept().await {
            use tokio::io::AsyncWriteExt as _;
            let _ = stream.write_all(b"SSH-2.0-other\r\n").await;
        }
    });
    let config =
        ServerConfig { listen: address, public_url: "https://no-such-host.invalid:1".into(), ..config };
    let checks = place::checks(&config).await;
    assert_is(one(&checks, "port"), Verdict::Fail, "is not a coordinator of this deployment");
    assert_is(one(&checks, "address"), Verdict::Warn, "no-such-host.invalid");
}

#[test]
fn a_folder_that_takes_nothing_is_told() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert_is(&place::folder(&file)[0], Verdict::Fail, "cannot be written");
    assert_is(&place::folder(&folder.path().join("absent"))[0], Verdict::Warn, "is not there");
    let well = place::folder(folder.path());
    assert_ne!(well[0].verdict, Verdict::Fail, "{well:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "it leaves nothing behind");
}

#[test]
fn limits_that_are_too_low_are_told() {
    let (_folder, config) = deployment();
    assert_is(&machine::files(&config, Some(200)), Verdict::Fail, "only 200");
    assert_is(&machine::files(&config, Some(1024)), Verdict::Warn, "768 participants and not 20000");
    assert_is(&machine::files(&config, Some(1 << 20)), Verdict::Ok, "may be open");
    assert_is(&machine::files(&config, None), Verdict::Ok, "as many as");
    let known = Known { release_bytes: 1 << 30, ..Known::default() };
    assert_is(&machine::memory(&config, &known, Some(1 << 30)), Verdict::Warn, "there are 1024 MiB");
    assert_is(&machine::memory(&config, &known, Some(16 << 30)), Verdict::Ok, "of 16384 MiB");
    assert_is(&enough(10 << 20, 20 << 20), Verdict::Fail, "may need 20 MiB");
    assert_is(&enough(10 << 20, 1 << 20), Verdict::Warn, "only 10 MiB");
    assert_is(&enough(10 << 30, 1 << 20), Verdict::Ok, "are free");
}

#[test]
fn a_clock_that_was_set_back_is_told() {
    let known = Known { last_ms: 1_000_000_000, ..Known::default() };
    assert_is(&machine::clock(&known, 999_000_000), Verdict::Fail, "1000 s behind");
    assert_is(&machine::clock(&known, 1_000_000_001), Verdict::Ok, "not before");
    let known = Known { database_ms: Some(1_000_000_000), ..Known::default() };
    assert_is(&machine::clock(&known, 1_000_120_000), Verdict::Warn, "by 120 s");
}

fn inspection() -> Inspection {
    Inspection {
        at: "PostgreSQL database u at db:5432".into(),
        version: "PostgreSQL 15.2".into(),
        schema: Some(2),
        known: 2,
        clock_ms: 1,
        commit: Some(Duration::from_millis(3)),
        coordinators: Default::default(),
        damage: vec![],
    }
}

#[test]
fn a_database_that_is_slow_old_or_damaged_is_told() {
    let well = database(&inspection());
    assert_is(one(&well, "database"), Verdict::Ok, "3.0 ms for a commit");
    assert_is(one(&well, "schema"), Verdict::Ok, "2, the newest");
    let slow = Inspection { commit: Some(Duration::from_millis(400)), ..inspection() };
    assert_is(one(&database(&slow), "database"), Verdict::Warn, "takes 400 ms");
    let old = Inspection { schema: Some(1), ..inspection() };
    assert_is(one(&database(&old), "schema"), Verdict::Warn, "brings it to 2");
    let damaged = Inspection { damage: vec!["row 3 missing".into()], ..inspection() };
    assert_is(one(&database(&damaged), "integrity"), Verdict::Fail, "row 3 missing");

    assert_is(&coordinators(&inspection()), Verdict::Warn, "none works on this database");
    let there = ["north-1".to_owned(), "south-2".to_owned()].into();
    assert_is(
        &coordinators(&Inspection { coordinators: there, ..inspection() }),
        Verdict::Ok,
        "2 on this database: north-1, south-2",
    );
}

#[test]
fn a_bucket_of_somebody_else_is_told() {
    let of = |found, ours| bucket_of("s3://b/p", found, ours, Duration::from_millis(12));
    assert_is(&of(Some("us"), Some("us")), Verdict::Ok, "is ours; put, get, list and delete took 12 ms");
    assert_is(&of(None, None), Verdict::Ok, "nobody's yet");
    assert_is(&of(Some("them"), Some("us")), Verdict::Fail, "belongs to another");
    assert_is(&of(Some("them"), None), Verdict::Fail, "belongs to another");
    assert_is(&of(None, Some("us")), Verdict::Fail, "was it emptied?");
}

#[tokio::test]
async fn a_damaged_database_is_told_and_nothing_is_made_of_it() {
    let (folder, config) = deployment();
    let file = config.storage.file();
    let store = SqlStore::sqlite(&file, undertone_store::Durability::Process).await.unwrap();
    store.close().await;
    let dir = folder.path().join("d");
    assert_is(one(&report(&dir).await.checks, "schema"), Verdict::Ok, "the newest");
    assert_is(one(&report(&dir).await.checks, "ledger"), Verdict::Ok, "0 lines");

    let store = SqlStore::sqlite(&file, undertone_store::Durability::Process).await.unwrap();
    let forged = undertone_store::LedgerRow { seq: 1, document: "{}".into() };
    store.settle(&[forged], vec![], &[]).await.unwrap();
    store.close().await;
    assert_is(one(&report(&dir).await.checks, "ledger"), Verdict::Fail, "line 1 of the privacy ledger");

    fs::write(&file, "this is not what a database looks like, however long one looks at it").unwrap();
    let report = report(&dir).await;
    assert_is(one(&report.checks, "database"), Verdict::Fail, "undertone.sqlite");
    assert!(!report.is_healthy());
}

#[tokio::test]
async fn models_that_are_lost_or_cut_are_told() {
    let (store, blobs) = (MemoryStore::new(), MemoryBlobs::new());
    let well = blobs_of(&store, &blobs, &[]).await.unwrap();
    assert_is(&well, Verdict::Ok, "all 0");
    let (digest, bytes) = blobs.put(bytes::Bytes::from_static(b"a model")).await.unwrap();
    crate::backup::tests::publish(&store, "whole", digest, bytes).await;
    assert_is(&blobs_of(&store, &blobs, &[]).await.unwrap(), Verdict::Ok, "all 1");
    let (cut, bytes) = blobs.put(bytes::Bytes::from_static(b"half of")).await.unwrap();
    crate::backup::tests::publish(&store, "cut", cut, bytes + 1).await;
    assert_is(&blobs_of(&store, &blobs, &[]).await.unwrap(), Verdict::Fail, "has 7 bytes and not 8");
    crate::backup::tests::publish(&store, "lost", Digest::of(b"no model"), 8).await;
    assert_is(&blobs_of(&store, &blobs, &[]).await.unwrap(), Verdict::Fail, "2 of 3");
}
