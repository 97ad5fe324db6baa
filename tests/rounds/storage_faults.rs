//! A disk that fails, and a coordinator that ends, in the middle of things: nothing is lost, nothing is spent twice.

use crate::{job, met};
use bytes::Bytes;
use std::time::Duration;
use undertone::v1;
use undertone_core::id::JobId;
use undertone_harness::{Deployment, FaultyStorage, FnTrainer, Operator};
use undertone_round::event::{JobEvent, Outcome};
use undertone_store::{Blobs as _, JobRecord, Store as _, Transition};

const CENTRAL: &str = "unit = \"client\"\ntrust = \"central\"\nclip_norm = 0.5\nnoise_multiplier = 1.0\ndelta = 1e-5\nbudget_epsilon = 60.0";

/// Two clients that move every value by one.
async fn deployment(storage: &FaultyStorage) -> (Deployment, Operator) {
    let mut d = Deployment::start_on(storage).await;
    d.trainers([1.0, 1.0], |step, weights| vec![*step; weights.len()]).await;
    let operator = d.operator().await;
    (d, operator)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_makes_a_job_wait_and_nothing_else() {
    let storage = FaultyStorage::new();
    let (_d, mut operator) = deployment(&storage).await;
    storage.fail_steps(true);
    let id = operator.submit(&job("rounds = 2", "rounds = 3")).await.unwrap();
    met(&storage, 1).await;
    assert_eq!(operator.detail(&id).await.summary.unwrap().rounds_released, 0);
    // Looking waits for no disk: the listing and the ledger answer, and say what is wrong.
    let looked = tokio::time::timeout(Duration::from_secs(5), async {
        let jobs = operator.client.list_jobs(v1::ListJobsRequest {}).await.unwrap().into_inner().jobs;
        assert!(jobs[0].problem.contains("cannot be saved"), "{}", jobs[0].problem);
        operator.client.get_ledger(v1::GetLedgerRequest {}).await.unwrap().into_inner()
    });
    assert_eq!(looked.await.expect("an answer").lines, 0);
    storage.fail_steps(false);
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert_eq!(operator.model(&id).await, [3.0, 3.0], "every update counts once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_whose_answer_was_lost_is_made_once() {
    let storage = FaultyStorage::new();
    let (_d, mut operator) = deployment(&storage).await;
    storage.lose_answers(4);
    let id = operator.submit(&job("rounds = 2", "rounds = 2")).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert_eq!(storage.hits(), 4);
    assert_eq!(operator.model(&id).await, [2.0, 2.0]);
    let offers = events.0.iter().filter(|e| matches!(e, JobEvent::Offered { .. })).count();
    assert_eq!(offers, 2, "no event is told twice: {}", events.text());
}

/// A job whose first step cannot be saved, with its record as it lies in the store.
async fn unsaved(storage: &FaultyStorage) -> (Deployment, Operator, String, JobRecord) {
    let (d, mut operator) = deployment(storage).await;
    storage.fail_steps(true);
    let id = operator.submit(&job("rounds = 2", "rounds = 2")).await.unwrap();
    met(storage, 0).await;
    let record = storage.store().job(&JobId::new(id.clone()).unwrap()).await.unwrap().unwrap();
    (d, operator, id, record)
}

/// A job whose first update is in, and whose last client trains until it is let go.
struct AlmostDone {
    deployment: Deployment,
    operator: Operator,
    job: String,
    go: std::sync::mpsc::Sender<()>,
}

async fn almost_done(storage: &FaultyStorage) -> AlmostDone {
    let mut deployment = Deployment::start_on(storage).await;
    deployment.trainer("quick", FnTrainer::constant(1.0)).await;
    let (last, go) = FnTrainer::told();
    deployment.trainer("last", last).await;
    deployment.wait_connected(2).await;
    let mut operator = deployment.operator().await;
    let text = job("unit = \"none\"", CENTRAL).replace("rounds = 2", "rounds = 1");
    let text = text.replace("reconnect = \"2s\"", "reconnect = \"20s\"");
    let job = operator.submit(&text).await.unwrap();
    operator.watch_until(&job, |e| matches!(e, JobEvent::Received { .. })).await;
    AlmostDone { deployment, operator, job, go }
}

impl AlmostDone {
    /// Lets the last update come in while nothing can be read, so that the release is ordered and stuck.
    async fn stick(&mut self, storage: &FaultyStorage) {
        let before = storage.hits();
        storage.fail_blob_reads(true);
        self.go.send(()).unwrap();
        met(storage, before).await;
        assert_eq!(self.operator.detail(&self.job).await.summary.unwrap().status, "releasing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_while_a_model_is_released_costs_no_attempt() {
    let storage = FaultyStorage::new();
    let mut run = almost_done(&storage).await;
    run.stick(&storage).await;
    // Read again, and now the new model cannot be kept: the noise is drawn and must not be drawn again.
    storage.fail_blob_commits(true);
    storage.fail_blob_reads(false);
    for _ in 0..600 {
        if storage.refused().len() >= 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let waiting = run.operator.detail(&run.job).await.summary.unwrap();
    assert!(waiting.problem.contains("the new model cannot be stored"), "{}", waiting.problem);
    storage.fail_blob_commits(false);
    let events = run.operator.watch_to_end(&run.job).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert!(!events.text().contains("aborted"), "{}", events.text());
    assert_eq!(run.operator.privacy(&run.job).await["attempts"], 1, "one draw, one charge");
    let released = storage.store().released_models().await.unwrap();
    let tried = storage.refused();
    assert!(
        tried.len() >= 2 && tried.iter().all(|d| *d == released[0]),
        "every try wrote the same noise: {tried:?}"
    );
    assert_eq!(
        run.operator.detail(&run.job).await.summary.unwrap().problem,
        "",
        "it waits for nothing any more"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_ends_while_it_releases_spends_the_attempt_and_goes_on() {
    let storage = FaultyStorage::new();
    let mut run = almost_done(&storage).await;
    run.stick(&storage).await;
    let AlmostDone { mut deployment, operator, job, go } = run;
    drop(operator);
    deployment.stop().await;
    storage.fail_blob_reads(false);
    deployment.restart_on(&storage).await;
    // The second attempt trains again.
    go.send(()).unwrap();
    let mut operator = deployment.operator().await;
    let events = operator.watch_to_end(&job).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert!(events.text().contains("restarted while it drew noise"), "{}", events.text());
    let privacy = operator.privacy(&job).await;
    assert_eq!(privacy["attempts"], 2, "the attempt without a release is charged too");
    let one = events.0.iter().find_map(|e| match e {
        JobEvent::Offered { epsilon, .. } => *epsilon,
        _ => None,
    });
    assert!(privacy["epsilon"].as_f64() > one, "{privacy}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_whose_job_was_changed_begins_again_from_what_is_stored() {
    let storage = FaultyStorage::new();
    let (_d, mut operator, id, record) = unsaved(&storage).await;
    // Somebody else makes a step (here one that changes nothing).
    let step = Transition::new(record.id, record.version, record.status, record.state);
    storage.store().commit(step).await.unwrap();
    storage.fail_steps(false);
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert_eq!(operator.model(&id).await, [2.0, 2.0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_makes_no_sense_stands_still_and_keeps_no_other_from_going_on() {
    let storage = FaultyStorage::new();
    let (mut d, mut operator) = deployment(&storage).await;
    storage.fail_steps(true);
    let broken = operator.submit(&job("name = \"sample\"", "name = \"broken\"")).await.unwrap();
    let sound = operator.submit(&job("name = \"sample\"", "name = \"sound\"")).await.unwrap();
    drop(operator);
    d.stop().await;
    let id = JobId::new(broken.clone()).unwrap();
    let record = storage.store().job(&id).await.unwrap().unwrap();
    let nonsense = Transition::new(id, record.version, record.status, "{\"from\":\"the future\"}");
    storage.store().commit(nonsense).await.unwrap();
    storage.fail_steps(false);
    let orphan = storage.blobs().put(Bytes::from_static(b"what a crash left")).await.unwrap().0;
    d.restart_on(&storage).await;
    let mut operator = d.operator().await;
    assert_eq!(*operator.watch_to_end(&sound).await.outcome(), Outcome::Completed);
    let jobs = operator.client.list_jobs(v1::ListJobsRequest {}).await.unwrap().into_inner().jobs;
    let listed = jobs.iter().find(|j| j.job == broken).unwrap();
    assert_eq!(listed.status, "unreadable");
    assert!(listed.problem.contains("makes no sense to this version"), "{}", listed.problem);
    let e = operator.client.get_job(v1::GetJobRequest { job: broken.clone() }).await.unwrap_err();
    assert!(e.message().contains("makes no sense"), "{e}");
    // What the broken job needs is not known, so nothing was swept.
    assert!(storage.blobs().len(&orphan).await.is_ok());
    // Once its operator ends it, the way is free.
    let cancel = v1::CancelJobRequest { job: broken, reason: "of an unknown version".into() };
    operator.client.cancel_job(cancel).await.unwrap();
    drop(operator);
    d.restart_on(&storage).await;
    assert!(storage.blobs().len(&orphan).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_in_the_blobs_is_swept_at_the_next_start() {
    let storage = FaultyStorage::new();
    let (mut d, mut operator) = deployment(&storage).await;
    let id = operator.submit(&job("rounds = 2", "rounds = 2")).await.unwrap();
    operator.watch_to_end(&id).await;
    let released = storage.store().released_models().await.unwrap();
    let orphan = storage.blobs().put(Bytes::from_static(b"an update that no step took in")).await.unwrap().0;
    drop(operator);
    d.restart_on(&storage).await;
    assert!(storage.blobs().len(&orphan).await.is_err());
    let mut left = storage.blobs().list().await.unwrap();
    left.sort();
    let mut expected = released;
    expected.sort();
    assert_eq!(left, expected, "the released models and nothing else");
    assert_eq!(d.operator().await.model(&id).await, [2.0, 2.0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_panics_is_begun_again() {
    let storage = FaultyStorage::new();
    let (_d, mut operator) = deployment(&storage).await;
    storage.panic_at_steps(2);
    let id = operator.submit(&job("rounds = 2", "rounds = 2")).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert_eq!((storage.hits(), operator.model(&id).await), (2, vec![2.0, 2.0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_of_somebody_else_that_ends_the_job_is_seen() {
    let storage = FaultyStorage::new();
    let (_d, mut operator, id, record) = unsaved(&storage).await;
    let mut state: serde_json::Value = serde_json::from_str(&record.state).unwrap();
    let end = serde_json::json!({ "phase": "ended", "outcome": { "outcome": "completed" } });
    state["phase"] = end;
    let step = Transition {
        ended: true,
        ..Transition::new(record.id.clone(), record.version, "completed", state.to_string())
    };
    storage.store().commit(step).await.unwrap();
    storage.fail_steps(false);
    operator.watch_to_end(&id).await;
    for _ in 0..100 {
        if operator.detail(&id).await.summary.unwrap().status == "completed" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the job is never seen to have ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_does_not_add_up_stops_spending_until_a_person_looks() {
    let storage = FaultyStorage::new();
    let (mut d, mut operator, id, record) = unsaved(&storage).await;
    // Somebody writes a line that no ledger would.
    let forged = undertone_store::LedgerRow { seq: 1, document: "{\"seq\":1}".into() };
    let step = Transition {
        ledger: vec![forged],
        ..Transition::new(record.id, record.version, record.status, record.state)
    };
    storage.store().commit(step).await.unwrap();
    storage.fail_steps(false);
    // Whoever watches is told, instead of waiting for ever.
    let request = v1::WatchJobRequest { job: id.clone(), after: 0 };
    let mut watch = operator.client.watch_job(request).await.unwrap().into_inner();
    let told = loop {
        match watch.message().await {
            Ok(Some(_)) => continue,
            Ok(None) => panic!("the watch ended without a word"),
            Err(e) => break e,
        }
    };
    assert!(told.message().contains("stands still") && told.message().contains("line 1"), "{told}");
    let summary = operator.detail(&id).await.summary.unwrap();
    assert_eq!(summary.status, "halted");
    assert!(summary.problem.contains("line 1 of the privacy ledger"), "{}", summary.problem);
    // It can be ended; and the daemon does not start on such a ledger.
    let cancel = v1::CancelJobRequest { job: id.clone(), reason: "looked into it".into() };
    operator.client.cancel_job(cancel).await.unwrap();
    assert_eq!(operator.detail(&id).await.summary.unwrap().status, "cancelled");
    drop(operator);
    d.stop().await;
    let e = undertone_server::Server::start_with(
        d.config().clone(),
        std::sync::Arc::new(storage.clone()),
        std::sync::Arc::new(storage.clone()),
    );
    let e = e.await.err().expect("it does not start").to_string();
    assert!(e.contains("line 1 of the privacy ledger"), "{e}");
}
