//! Nothing goes wrong.

use crate::job;
use undertone_core::id::ClientRole;
use undertone_harness::{Deployment, FnTrainer, SAMPLE_JOB};
use undertone_round::event::{JobEvent, Outcome};

#[tokio::test(flavor = "multi_thread")]
async fn two_clients_two_rounds_and_the_exact_mean() {
    let mut d = Deployment::start().await;
    d.trainer("a", FnTrainer::constant(1.0)).await;
    d.trainer("b", FnTrainer::constant(0.5)).await;
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let id = operator.submit(SAMPLE_JOB).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert_eq!(events.released(), 2);
    // From zero, twice the mean of 1 and 1/2: exact on the grid.
    assert_eq!(operator.model(&id).await, [1.5, 1.5]);
    let privacy = operator.privacy(&id).await;
    assert_eq!((&privacy["promise"], &privacy["epsilon"]), (&false.into(), &serde_json::Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_are_the_declared_rows() {
    let mut d = Deployment::start().await;
    for (name, rows, step) in [("a", 30, 1.0), ("b", 10, 0.0)] {
        let mut config = d.enrol(name, ClientRole::Trainer).await;
        config.policy.declared_rows = Some(rows);
        d.run(config, FnTrainer::constant(step));
    }
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let text =
        job("rounds = 2", "rounds = 1") + "\n[aggregation]\nweights = \"declared_rows\"\nmax_weight = 1000\n";
    let id = operator.submit(&text).await.unwrap();
    operator.watch_to_end(&id).await;
    assert_eq!(operator.model(&id).await, [0.75, 0.75]);
}

#[tokio::test(flavor = "multi_thread")]
async fn evaluators_measure_every_round_and_the_end_waits_for_them() {
    let mut d = Deployment::start().await;
    d.trainer("a", FnTrainer::constant(1.0)).await;
    d.trainer("b", FnTrainer::constant(1.0)).await;
    d.evaluator("e", FnTrainer::constant(0.0)).await;
    d.wait_connected(3).await;
    let mut operator = d.operator().await;
    let id = operator.submit(SAMPLE_JOB).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    let mut losses: Vec<(u32, f64)> = events
        .0
        .iter()
        .filter_map(|e| match e {
            JobEvent::Evaluated { round, metrics, .. } => Some((round.0, metrics.loss)),
            _ => None,
        })
        .collect();
    losses.sort_by_key(|l| l.0);
    assert_eq!(losses, [(1, 1.0), (2, 2.0)], "{}", events.text());
    assert_eq!(*events.outcome(), Outcome::Completed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_can_be_cancelled_and_its_clients_go_on_with_the_next() {
    let mut d = Deployment::start().await;
    d.trainer("a", FnTrainer::constant(1.0)).await;
    d.wait_connected(1).await;
    let mut operator = d.operator().await;
    // Two are needed, so this one waits.
    let waiting = operator.submit(&job("min_clients = 1", "min_clients = 2")).await.unwrap();
    let request = undertone::v1::CancelJobRequest { job: waiting.clone(), reason: "a typo".into() };
    operator.client.cancel_job(request.clone()).await.unwrap();
    let events = operator.watch_to_end(&waiting).await;
    assert!(
        matches!(events.outcome(), Outcome::Cancelled { by, reason } if by == "admin" && reason == "a typo")
    );
    let again = operator.client.cancel_job(request).await.unwrap_err();
    assert!(again.message().contains("ended"), "{again}");
    let next = operator.submit(SAMPLE_JOB).await.unwrap();
    assert_eq!(*operator.watch_to_end(&next).await.outcome(), Outcome::Completed);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_answer() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let d = Deployment::start().await;
    let ca = std::fs::read(d.path().join("deployment/pki/ca.crt")).unwrap();
    let tls =
        tonic::transport::ClientTlsConfig::new().ca_certificate(tonic::transport::Certificate::from_pem(ca));
    let endpoint = tonic::transport::Endpoint::from_shared(d.config().public_url.clone()).unwrap();
    let channel = endpoint.tls_config(tls).unwrap().connect().await.unwrap();
    let service = "undertone.v1.Participation".to_owned();
    let answer = HealthClient::new(channel.clone()).check(HealthCheckRequest { service }).await.unwrap();
    assert_eq!(answer.into_inner().status, 1, "serving");

    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_response::MessageResponse};
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut stream = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) =
        stream.message().await.unwrap().unwrap().message_response
    else {
        panic!("a list")
    };
    let names: Vec<_> = list.service.iter().map(|s| s.name.as_str()).collect();
    assert!(names.contains(&"undertone.v1.Operator"), "{names:?}");
}
