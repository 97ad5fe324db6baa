//! The coordinator stops and starts in the middle of things.

use crate::job;
use std::time::Duration;
use undertone_core::id::ClientRole;
use undertone_harness::{Deployment, FnTrainer, SAMPLE_JOB};
use undertone_round::event::{JobEvent, Outcome};

#[tokio::test(flavor = "multi_thread")]
async fn a_round_goes_on_where_it_was() {
    let mut d = Deployment::start().await;
    d.trainer("a", FnTrainer::constant(1.0)).await;
    d.trainer("b", FnTrainer::slow(Duration::from_secs(2))).await;
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let text = job("reconnect = \"2s\"", "reconnect = \"20s\"");
    let id = operator.submit(&text).await.unwrap();
    operator.watch_until(&id, |e| matches!(e, JobEvent::Received { .. })).await;
    drop(operator);
    d.restart().await;
    let mut operator = d.operator().await;
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert_eq!(events.released(), 2);
    assert!(!events.text().contains("aborted"), "the same attempt went on: {}", events.text());
    assert_eq!(operator.model(&id).await, [2.0, 2.0], "every update counts once");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_job_is_still_there_after_a_restart() {
    let mut d = Deployment::start().await;
    d.trainer("a", FnTrainer::constant(1.0)).await;
    d.wait_connected(1).await;
    let id = d.operator().await.submit(&job("size = 2", "size = 1")).await.unwrap();
    let before = d.operator().await.watch_to_end(&id).await;
    d.restart().await;
    let mut operator = d.operator().await;
    assert_eq!(operator.watch_to_end(&id).await.0, before.0);
    assert_eq!(operator.model(&id).await, [2.0, 2.0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_bytes_after_a_restart_count_once() {
    let mut d = Deployment::start().await;
    d.trainer("honest", FnTrainer::slow(Duration::from_secs(3))).await;
    let config = d.enrol("raw", ClientRole::Trainer).await;
    let mut raw = undertone_harness::RawClient::connect(&config).await;
    raw.hello(1, 1).await.unwrap();
    d.wait_connected(2).await;
    let text =
        SAMPLE_JOB.replace("rounds = 2", "rounds = 1").replace("reconnect = \"2s\"", "reconnect = \"20s\"");
    let id = d.operator().await.submit(&text).await.unwrap();
    let attempt = raw.offer().await.attempt.unwrap();
    raw.upload(&attempt, &[1 << 16, 1 << 16], 1).await.unwrap();
    drop(raw);
    d.restart().await;
    let mut raw = undertone_harness::RawClient::connect(&config).await;
    raw.hello(1, 1).await.unwrap();
    // The receipt was lost with the connection: sent again, acknowledged again.
    raw.upload(&attempt, &[1 << 16, 1 << 16], 1).await.unwrap();
    let mut operator = d.operator().await;
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert_eq!(operator.model(&id).await, [1.0, 1.0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named() {
    let d = Deployment::start().await;
    let e = undertone_server::Server::start(d.config().clone()).await.err().expect("the port is taken");
    let text = e.to_string();
    assert!(text.contains("cannot listen on 127.0.0.1") && text.contains("server.toml"), "{text}");
}
