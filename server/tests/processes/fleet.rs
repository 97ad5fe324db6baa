//! Coordinators that share a PostgreSQL database and a bucket: any serves any client, and each job is driven by one of them.

use crate::csv;
use std::process::Command;
use std::time::{Duration, Instant};
use undertone::v1::{CancelJobRequest, GetJobRequest, ListJobsRequest};
use undertone_harness::{Fleet, Operator, Process, Processes, SAMPLE_JOB};
use undertone_round::event::{JobEvent, Outcome};
use undertone_test_servers::{PostgresServer, S3Bucket, S3Server};

/// Rounds that take a while, and clients that have the time to come back.
pub(crate) fn job(rounds: u32) -> String {
    SAMPLE_JOB
        .replace("rounds = 2", &format!("rounds = {rounds}"))
        .replace("min_clients = 1", "min_clients = 2")
        .replace("round = \"30s\"", "round = \"60s\"")
        .replace("reconnect = \"2s\"", "reconnect = \"40s\"")
        .replace("gather = \"20s\"", "gather = \"60s\"")
        .replace("local_steps = 1", "local_steps = 3000")
}

/// The trainers' names, how many rows they have, and which.
pub(crate) const TRAINERS: [(&str, usize, f64); 2] = [("a", 200, 0.0), ("b", 160, 0.05)];

/// All trainers.
fn trainers(d: &Processes) -> Vec<Process> {
    TRAINERS.iter().map(|(name, rows, shift)| trainer(d, name, *rows, *shift)).collect()
}

/// A trainer that takes the same rows in every run.
pub(crate) fn trainer(d: &Processes, name: &str, rows: usize, shift: f64) -> Process {
    let output = d.enrol(name, "trainer", &csv(rows, shift), rows as u64);
    assert!(output.status.success(), "{output:?}");
    let file = d.client_folder(name).join("client.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text.replace("allow_no_privacy = false", "allow_no_privacy = true");
    std::fs::write(&file, format!("{text}\n[study]\nsampling_seed = 1\n")).unwrap();
    d.run_client(name)
}

/// `[storage]` with a new database and a bucket, and what opens the bucket.
pub(crate) fn storage(postgres: &PostgresServer, bucket: &S3Bucket) -> (String, [(&'static str, String); 2]) {
    let storage = format!(
        "database = \"{}\"\nbucket = {{ url = \"{}/models\", endpoint = \"{}\", region = \"{}\" }}",
        postgres.new_database(),
        bucket.url,
        bucket.endpoint,
        bucket.region
    );
    let environment =
        [("AWS_ACCESS_KEY_ID", bucket.key_id.clone()), ("AWS_SECRET_ACCESS_KEY", bucket.secret.clone())];
    (storage, environment)
}

/// The environment as processes take it.
pub(crate) fn borrowed<'a>(environment: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    environment.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

/// What a coordinator says that does not start.
fn refused(storage: &str, environment: &[(&str, &str)]) -> String {
    let folder = tempfile::TempDir::new().unwrap();
    let server = || Command::new(undertone_harness::binary("undertone-server"));
    let made =
        server().args(["init", "--listen", "127.0.0.1:0", "--dir"]).arg(folder.path()).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let file = folder.path().join("server.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("[storage]\n", &format!("[storage]\n{storage}\n"), 1)).unwrap();
    let mut run = server();
    run.args(["run", "--dir"]).arg(folder.path()).envs(environment.iter().copied());
    let ended = run.output().unwrap();
    assert!(!ended.status.success(), "it ran");
    String::from_utf8_lossy(&ended.stderr).into_owned()
}

/// The model of a job that nothing happened to, on one machine.
pub(crate) async fn undisturbed(rounds: u32) -> Vec<f32> {
    let d = Processes::start();
    let _clients = trainers(&d);
    let mut operator = d.operator().await;
    let id = operator.submit(&job(rounds)).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    operator.model(&id).await
}

/// Every coordinator is killed or told to end once, and comes back; the job goes on where it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_with_other_coordinators_and_comes_to_the_same_bits() {
    const ROUNDS: u32 = 6;
    let expected = undisturbed(ROUNDS).await;

    let postgres = PostgresServer::start();
    let s3 = S3Server::start().await;
    let (storage, environment) = storage(&postgres, &s3.bucket("fleet"));
    let environment = borrowed(&environment);
    let mut fleet = Fleet::start(3, &storage, &environment).await;
    let _clients = trainers(&fleet.deployment);
    let mut operator = fleet.deployment.operator().await;
    let id = operator.submit(&job(ROUNDS)).await.unwrap();
    drop(operator);
    for n in 0..3 {
        released_more(&fleet.deployment, &id).await;
        match n {
            // One that ends in order gives up what it has at once.
            1 => assert!(fleet.coordinator(n).terminate().success(), "{}", fleet.logs()),
            _ => fleet.coordinator(n).kill(),
        }
        released_more(&fleet.deployment, &id).await;
        fleet.start_again(n);
    }
    let events = fleet.deployment.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert_eq!(events.released(), ROUNDS as usize, "{}", events.text());
    assert!(!events.text().contains("aborted"), "every attempt went on: {}", events.text());
    let model = fleet.deployment.operator().await.model(&id).await;
    assert_eq!(model, expected, "not the bits of a run without faults");
    // Not one of them for all, with the others beside it.
    assert!(fleet.who_said("session opened").len() > 1, "{}", fleet.logs());
    assert!(fleet.who_said("driving the job from here").len() > 1, "{}", fleet.logs());
}

/// Waits until the job has released one more round, or has ended.
async fn released_more(d: &Processes, id: &str) {
    let profile = d.path().join("deployment/operator");
    let begun = Instant::now();
    let mut first = None;
    loop {
        if let Ok(mut operator) = Operator::try_connect(d.url(), &profile).await
            && let Ok(found) = operator.client.get_job(GetJobRequest { job: id.into() }).await
        {
            let summary = found.into_inner().summary.expect("a summary");
            if summary.rounds_released > *first.get_or_insert(summary.rounds_released)
                || summary.rounds_released == summary.rounds_planned
            {
                return;
            }
        }
        assert!(begun.elapsed() < 2 * undertone_harness::PATIENCE, "no round is released");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Clients at one coordinator, the driver at another: what each says reaches the other.
#[tokio::test(flavor = "multi_thread")]
async fn any_coordinator_serves_any_client() {
    let postgres = PostgresServer::start();
    let s3 = S3Server::start().await;
    let (storage, environment) = storage(&postgres, &s3.bucket("any"));
    let environment = borrowed(&environment);
    let fleet = Fleet::start(3, &storage, &environment).await;
    let clients = trainers(&fleet.deployment);
    let mut operator = fleet.deployment.operator().await;
    let id = operator.submit(&job(3)).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}\n{}", events.text(), fleet.logs());
    drop(clients);
    let (sessions, drivers) = (fleet.who_said("session opened"), fleet.who_said("job accepted"));
    assert!(sessions.len() > 1, "all clients are at one coordinator: {}", fleet.logs());
    assert_eq!(drivers.len(), 1);

    // Every coordinator tells the same of it, and of who is connected; a job is cancelled at any of them.
    let waiting = job(3).replace("min_clients = 2", "min_clients = 3").replace("size = 2", "size = 3");
    let waits = operator.submit(&waiting).await.unwrap();
    let mut seen = vec![];
    for _ in 0..3 {
        let mut operator = fleet.deployment.operator().await;
        let detail = operator.detail(&id).await;
        let summary = detail.summary.expect("a summary");
        let jobs = operator.client.list_jobs(ListJobsRequest {}).await.unwrap().into_inner().jobs;
        assert_eq!(jobs.len(), 2, "{jobs:?}");
        seen.push((summary.status, summary.rounds_released, detail.privacy, operator.model(&id).await));
    }
    assert!(seen.iter().all(|one| *one == seen[0]), "{seen:?}");
    assert_eq!(seen[0].1, 3);
    for by in 0..2 {
        let mut operator = fleet.deployment.operator().await;
        let cancelled = operator
            .client
            .cancel_job(CancelJobRequest { job: waits.clone(), reason: format!("no need ({by})") })
            .await;
        // The second one comes too late, wherever it comes.
        assert_eq!(cancelled.is_ok(), by == 0, "{cancelled:?}");
    }
    let events = fleet.deployment.watch_to_end(&waits).await;
    assert!(events.text().contains("no need (0)"), "{}", events.text());
}

/// A large round: each coordinator sums the updates that it took in, and the one that releases the round adds these sums up.
#[tokio::test(flavor = "multi_thread")]
async fn a_round_is_summed_by_all_coordinators_to_the_same_bits() {
    let many: Vec<(String, usize, f64)> =
        (0..6).map(|n| (format!("c{n}"), 60 + 10 * n, 0.01 * n as f64)).collect();
    let six = job(2).replace("size = 2", "size = 6").replace("min_clients = 2", "min_clients = 6");
    let six = six.replace("local_steps = 3000", "local_steps = 20");
    let all = |d: &Processes| -> Vec<Process> {
        many.iter().map(|(name, rows, shift)| trainer(d, name, *rows, *shift)).collect()
    };
    let expected = {
        let d = Processes::start();
        let _clients = all(&d);
        let mut operator = d.operator().await;
        let id = operator.submit(&six).await.unwrap();
        assert_eq!(*operator.watch_to_end(&id).await.outcome(), Outcome::Completed);
        operator.model(&id).await
    };
    let postgres = PostgresServer::start();
    let s3 = S3Server::start().await;
    let (storage, environment) = storage(&postgres, &s3.bucket("sums"));
    let environment = borrowed(&environment);
    let every_round = |text: String| {
        assert!(text.contains("partial_sums_mib = 256"), "{text}");
        text.replace("partial_sums_mib = 256", "partial_sums_mib = 0")
    };
    let fleet = Fleet::start_with(3, &storage, &environment, every_round).await;
    let _clients = all(&fleet.deployment);
    let mut operator = fleet.deployment.operator().await;
    let id = operator.submit(&six).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}\n{}", events.text(), fleet.logs());
    assert_eq!(operator.model(&id).await, expected, "not the bits of one coordinator");
    let helped = fleet.who_said("summed what is at hand");
    assert!(!helped.is_empty(), "{}", fleet.logs());
    assert!(fleet.logs().contains(&format!("sums={}", helped.len())), "{}", fleet.logs());
}

/// A database that stops answering holds up the job, no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_killed_holds_up_the_job_no_more() {
    let mut postgres = PostgresServer::start();
    let storage = format!("database = \"{}\"", postgres.new_database());
    let d = Processes::start_on(&storage, &[]);
    let _clients = trainers(&d);
    let mut operator = d.operator().await;
    let id = operator.submit(&job(4)).await.unwrap();
    operator.watch_until(&id, |e| matches!(e, JobEvent::Released { .. })).await;
    drop(operator);
    postgres.kill();
    tokio::time::sleep(Duration::from_secs(1)).await;
    postgres.resume();
    let events = d.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert_eq!(events.released(), 4);
}

/// Coordinators that cannot reach their database for longer than a lease lasts send their clients away, say so to load balancers,
/// and go on when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn coordinators_outlive_a_database_that_is_away_for_long() {
    let mut postgres = PostgresServer::start();
    let s3 = S3Server::start().await;
    let (storage, environment) = storage(&postgres, &s3.bucket("again"));
    let environment = borrowed(&environment);
    let mut fleet = Fleet::start(2, &storage, &environment).await;
    let _clients = trainers(&fleet.deployment);
    let id = fleet.deployment.operator().await.submit(&job(4)).await.unwrap();
    released_more(&fleet.deployment, &id).await;
    postgres.kill();
    for n in 0..2 {
        fleet.coordinator(n).wait_for("the database is out of reach");
    }
    postgres.resume();
    let events = fleet.deployment.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert_eq!(events.released(), 4);
    assert!((0..2).all(|n| fleet.coordinator(n).is_running()));
}

/// Without a bucket the blobs are in a folder, and a copy of that is no second right to work on them.
#[tokio::test(flavor = "multi_thread")]
async fn a_copied_folder_stands_by() {
    let postgres = PostgresServer::start();
    let mut d = Processes::start_on(&format!("database = \"{}\"", postgres.new_database()), &[]);
    let copied =
        Command::new("cp").arg("-r").arg(d.path().join("deployment")).arg(d.path().join("copy")).status();
    assert!(copied.unwrap().success());
    let mut copy = d.start_coordinator("copy");
    copy.wait_for("standing by");
    // Longer than a lease lasts.
    std::thread::sleep(Duration::from_secs(12));
    assert!(!copy.log().contains("listening on"), "{}", copy.log());
    assert!(d.server().is_running() && copy.is_running());
    // Paused for so long that the other one took its place, it ends when it wakes.
    d.server().signal("STOP");
    copy.wait_for_any(&["listening on", "cannot listen on"]);
    d.server().signal("CONT");
    assert!(!d.server().wait().success());
    let log = d.server().log();
    assert!(log.contains("another coordinator has taken over its database"), "{log}");
}

/// A coordinator that was paused for so long that others took its jobs changes nothing of them when it wakes, and goes on.
#[tokio::test(flavor = "multi_thread")]
async fn who_was_paused_for_long_goes_on_as_one_of_several() {
    const ROUNDS: u32 = 4;
    let expected = undisturbed(ROUNDS).await;
    let postgres = PostgresServer::start();
    let s3 = S3Server::start().await;
    let (storage, environment) = storage(&postgres, &s3.bucket("paused"));
    let environment = borrowed(&environment);
    let mut fleet = Fleet::start(2, &storage, &environment).await;
    let _clients = trainers(&fleet.deployment);
    let id = fleet.deployment.operator().await.submit(&job(ROUNDS)).await.unwrap();
    released_more(&fleet.deployment, &id).await;
    let driver = fleet.who_said("driving the job from here")[0];
    fleet.coordinator(driver).signal("STOP");
    fleet.coordinator(1 - driver).wait_for("driving the job from here");
    fleet.coordinator(driver).signal("CONT");
    fleet.coordinator(driver).wait_for("another coordinator drives the job now");
    let events = fleet.deployment.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}\n{}", events.text(), fleet.logs());
    assert_eq!(events.released(), ROUNDS as usize);
    assert!((0..2).all(|n| fleet.coordinator(n).is_running()));
    let model = fleet.deployment.operator().await.model(&id).await;
    assert_eq!(model, expected, "not the bits of a run without faults");
}

/// Two deployments must not share a place of a bucket: each would delete what it does not know.
#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_of_another_deployment_is_refused() {
    let s3 = S3Server::start().await;
    let bucket = s3.bucket("owned");
    let postgres = PostgresServer::start();
    let (first, environment) = storage(&postgres, &bucket);
    let environment = borrowed(&environment);
    let _d = Processes::start_on(&first, &environment);
    for (other, words) in [
        (storage(&postgres, &bucket).0, ["s3://owned/models", "holds the blobs of another deployment"]),
        (
            first.lines().next().unwrap().to_owned(),
            ["are in the bucket s3://owned/models at ", "and not in the folder of "],
        ),
    ] {
        let told = refused(&other, &environment);
        assert!(words.iter().all(|word| told.contains(word)), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_or_a_bucket_that_cannot_be_used_is_told_at_the_start() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let told = refused(&format!("database = \"postgres://u:secret@{nobody}/undertone\""), &[]);
    assert!(told.contains(&format!("PostgreSQL database undertone at {nobody} cannot be reached")), "{told}");
    assert!(!told.contains("secret"), "{told}");
    let told = refused("database = \"mysql://u@db/undertone\"", &[]);
    assert!(told.contains("does not begin with postgres://"), "{told}");
    let told = refused("bucket = { url = \"models\" }", &[]);
    assert!(told.contains("not of the form s3://bucket/prefix"), "{told}");
    let told = refused("bucket = { ur = \"s3://models\" }", &[]);
    assert!(told.contains("did you mean \"url\"?"), "{told}");
}
