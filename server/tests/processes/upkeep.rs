//! Backup, restore, doctor and health: the commands beside coordinators that run, and what a restored one does.

use crate::fleet::{borrowed, storage};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;
use undertone_harness::{Deployment, FnTrainer, Operator, PATIENCE, Processes, SAMPLE_JOB, binary};
use undertone_round::event::{JobEvent, Outcome};
use undertone_server::{Server, ServerConfig};
use undertone_test_servers::{PostgresServer, S3Server};

const CENTRAL: &str = "unit = \"client\"\ntrust = \"central\"\nclip_norm = 1.0\nnoise_multiplier = 4.0\n\
                       delta = 1e-5\nbudget_epsilon = 60.0";

/// Eight rounds with a promise.
fn central() -> String {
    SAMPLE_JOB.replace("unit = \"none\"", CENTRAL).replace("rounds = 2", "rounds = 8")
}

fn server(args: &[&str], paths: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(binary("undertone-server"));
    command.args(args);
    for (flag, path) in paths {
        command.arg(flag).arg(path);
    }
    command.output().unwrap()
}

#[track_caller]
fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

async fn spent(operator: &mut Operator, id: &str) -> f64 {
    operator.privacy(id).await["epsilon"].as_f64().unwrap()
}

fn released(round: u32) -> impl Fn(&JobEvent) -> bool {
    move |e| matches!(e, JobEvent::Released { round: r, .. } if r.0 == round)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_running_job_comes_back_with_all_that_was_published_counted() {
    let mut d = Deployment::start().await;
    for name in ["a", "b"] {
        d.trainer(name, FnTrainer::slow(Duration::from_millis(200))).await;
    }
    d.wait_connected(2).await;
    let (dir, backup) = (d.path().join("deployment"), d.path().join("backup"));
    let mut operator = d.operator().await;
    let id = operator.submit(&central()).await.unwrap();
    operator.watch_until(&id, released(2)).await;
    let made = server(&["backup", "--json"], &[("--dir", &dir), ("--to", &backup)]);
    assert!(made.status.success(), "{made:?}");
    let made = json(&made);
    assert_eq!(made["open_jobs"], serde_json::json!([id]));
    let lines = made["manifest"]["ledger_lines"].as_u64().unwrap();
    // It goes on, and more is published than the backup knows.
    operator.watch_until(&id, released(5)).await;
    let published = spent(&mut operator, &id).await;
    drop(operator);
    d.stop().await;

    let back = d.path().join("back");
    let unsaid = server(&["restore"], &[("--dir", &back), ("--from", &backup)]);
    assert!(!unsaid.status.success());
    assert!(
        said(&unsaid).contains("--count-the-worst") && said(&unsaid).contains("--old-database"),
        "{unsaid:?}"
    );
    assert!(!back.exists());
    let over = server(&["restore", "--count-the-worst"], &[("--dir", &dir), ("--from", &backup)]);
    assert!(!over.status.success());
    assert!(said(&over).contains("holds something already"), "{over:?}");

    let restored =
        server(&["restore", "--count-the-worst", "--json"], &[("--dir", &back), ("--from", &backup)]);
    assert!(restored.status.success(), "{restored:?}");
    let settled = json(&restored)["settled"].clone();
    assert_eq!(settled["lines_before"], lines);
    assert!(settled["jobs"][0]["epsilon"].as_f64().unwrap() >= published, "{settled}");
    let exact = d.path().join("exact");
    let old = dir.join("state/undertone.sqlite");
    let restored =
        server(&["restore", "--json"], &[("--dir", &exact), ("--from", &backup), ("--old-database", &old)]);
    assert!(restored.status.success(), "{restored:?}");
    let known = json(&restored)["settled"]["jobs"][0]["epsilon"].as_f64().unwrap();
    assert!(known >= published, "{known} {published}");

    // At the old address, with the old keys: clients come back by themselves, and take new jobs.
    let running = Server::start(ServerConfig::load(&back).unwrap()).await.unwrap();
    let mut operator = d.operator().await;
    let events = operator.watch_to_end(&id).await;
    let Outcome::Failed { reason } = events.outcome() else { panic!("{}", events.text()) };
    assert!(reason.contains("restored from a backup"), "{reason}");
    assert!(spent(&mut operator, &id).await >= published);
    assert!(!operator.release(&id, 2).await.is_empty(), "what was released is kept");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while running.connected() < 2 {
        assert!(tokio::time::Instant::now() < deadline, "they do not come back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let next = operator.submit(SAMPLE_JOB).await.unwrap();
    assert_eq!(*operator.watch_to_end(&next).await.outcome(), Outcome::Completed);
    let healthy = server(&["doctor"], &[("--dir", &back)]);
    assert!(healthy.status.success(), "{}", String::from_utf8_lossy(&healthy.stdout));
    running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_with_one_bit_wrong_is_refused() {
    let d = Deployment::start().await;
    let (dir, backup) = (d.path().join("deployment"), d.path().join("backup"));
    assert!(server(&["backup"], &[("--dir", &dir), ("--to", &backup)]).status.success());
    let state = backup.join("state.sqlite");
    let mut bytes = std::fs::read(&state).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(&state, bytes).unwrap();
    let back = d.path().join("back");
    let refused = server(&["restore", "--count-the-worst"], &[("--dir", &back), ("--from", &backup)]);
    assert!(!refused.status.success());
    assert!(said(&refused).contains("its bytes are not those that were written"), "{refused:?}");
    assert!(!back.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_and_health_say_how_a_deployment_is() {
    let mut d = Deployment::start().await;
    let dir = d.path().join("deployment");
    let report = server(&["doctor", "--json"], &[("--dir", &dir)]);
    assert!(report.status.success(), "{report:?}");
    let checks = json(&report)["checks"].clone();
    let checks = checks.as_array().unwrap();
    assert!(checks.iter().all(|check| check["verdict"] != "fail"), "{checks:#?}");
    let of = |name: &str| checks.iter().find(|check| check["name"] == name).unwrap().clone();
    assert!(of("port")["found"].as_str().unwrap().contains("serves here"), "{checks:#?}");
    for name in ["authority", "certificate", "chain", "database", "ledger", "jobs", "blobs", "schema"] {
        assert_eq!(of(name)["verdict"], "ok", "{name}: {checks:#?}");
    }
    let health = |more: &[&str]| server(&[&["health", "--timeout", "2"], more].concat(), &[("--dir", &dir)]);
    assert!(health(&[]).status.success());
    assert!(health(&["--alive"]).status.success());

    d.stop().await;
    assert!(!health(&[]).status.success(), "it does not serve");
    assert!(health(&["--alive"]).status.success(), "for one that starts or stands by");
    // One that hangs: it takes calls and never answers.
    let _hung = std::net::TcpListener::bind(d.config().listen).unwrap();
    assert!(!health(&["--alive"]).status.success());

    let file = dir.join("server.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("[limits]", "[limits]\nsessionz = 1")).unwrap();
    let report = server(&["doctor"], &[("--dir", &dir)]);
    assert_eq!(report.status.code(), Some(1));
    let text = String::from_utf8_lossy(&report.stdout).into_owned();
    assert!(text.contains("FAIL  configuration") && text.contains("did you mean \"sessions\"?"), "{text}");
    assert!(text.contains("-> mend server.toml"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_is_examined_and_its_database_settled() {
    let postgres = PostgresServer::start();
    let s3 = S3Server::start().await;
    let (storage, environment) = storage(&postgres, &s3.bucket("examined"));
    let environment = borrowed(&environment);
    let mut d = Processes::start_on(&storage, &environment);
    let dir = d.path().join("deployment");
    let run = |args: &[&str]| {
        Command::new(binary("undertone-server"))
            .args(args)
            .arg("--dir")
            .arg(&dir)
            .envs(environment.iter().copied())
            .output()
            .unwrap()
    };
    let report = run(&["doctor", "--json"]);
    let checks = json(&report)["checks"].clone();
    let checks = checks.as_array().unwrap();
    let of = |name: &str| checks.iter().find(|check| check["name"] == name).unwrap().clone();
    for name in ["database", "coordinators", "bucket", "blobs", "schema"] {
        assert_eq!(of(name)["verdict"], "ok", "{name}: {checks:#?}");
    }
    assert!(of("database")["found"].as_str().unwrap().contains("for a commit"), "{checks:#?}");
    assert!(of("bucket")["found"].as_str().unwrap().contains("is ours"), "{checks:#?}");

    let refused = run(&["restore", "--in-place", "--count-the-worst"]);
    assert!(!refused.status.success(), "{refused:?}");
    assert!(said(&refused).contains("a coordinator works on it"), "{refused:?}");
    assert!(d.server().terminate().success());
    let settled = run(&["restore", "--in-place", "--count-the-worst", "--json"]);
    assert!(settled.status.success(), "{settled:?}");
    assert_eq!(json(&settled)["settled"]["jobs"], serde_json::json!([]));
    assert_eq!(
        json(&run(&["doctor", "--json"]))["checks"]
            .as_array()
            .unwrap()
            .iter()
            .find(|c| c["name"] == "coordinators")
            .unwrap()["verdict"],
        "warn"
    );
    d.start_server();
}
