//! Tokens, certificates, and those who have the wrong ones.

use std::time::Duration;
use tonic::Code;
use undertone::join_token::JoinToken;
use undertone_client::{Client, ClientConfig, EnrolError, Enrolment, enrol};
use undertone_core::id::ClientRole;
use undertone_harness::{Deployment, FnTrainer, RawClient};

fn request(d: &Deployment, folder: &str, name: &str, token: &JoinToken) -> Enrolment {
    Enrolment {
        dir: d.path().join("clients").join(folder),
        token: token.clone(),
        name: Some(name.parse().unwrap()),
        data: None,
        declared_rows: None,
        force: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_used_once_expires_and_can_be_revoked() {
    let d = Deployment::start().await;
    let mut operator = d.operator().await;
    let once = operator.token(ClientRole::Trainer, 1, Duration::from_secs(60)).await;
    enrol(request(&d, "a", "a", &once)).await.unwrap();
    let again = enrol(request(&d, "b", "b", &once)).await.unwrap_err();
    assert!(matches!(&again, EnrolError::TokenRefused(text) if text.contains("used already")), "{again}");

    let short = operator.token(ClientRole::Trainer, 1, Duration::from_secs(1)).await;
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let late = enrol(request(&d, "b", "b", &short)).await.unwrap_err();
    assert!(late.to_string().contains("expired"), "{late}");

    let revoked = operator.token(ClientRole::Trainer, 1, Duration::from_secs(60)).await;
    let list = operator.client.list_tokens(undertone::v1::ListTokensRequest {}).await.unwrap().into_inner();
    let id = list.tokens.iter().find(|t| t.uses_left == 1 && t.expires_unix_s > 0).unwrap();
    for token in &list.tokens {
        let request = undertone::v1::RevokeTokenRequest { id: token.id.clone() };
        operator.client.revoke_token(request).await.unwrap();
    }
    let gone = enrol(request(&d, "b", "b", &revoked)).await.unwrap_err();
    assert!(gone.to_string().contains("does not know the join token"), "{gone}");
    let request = undertone::v1::RevokeTokenRequest { id: id.id.clone() };
    assert_eq!(operator.client.revoke_token(request).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_taken_once_and_a_lost_answer_can_be_repeated() {
    let d = Deployment::start().await;
    let mut operator = d.operator().await;
    let token = operator.token(ClientRole::Trainer, 5, Duration::from_secs(60)).await;
    enrol(request(&d, "a", "a", &token)).await.unwrap();
    let taken = enrol(request(&d, "other", "a", &token)).await.unwrap_err();
    assert!(matches!(taken, EnrolError::NameTaken(_)), "{taken}");
    // The same folder again: refused before anything is sent.
    let again = enrol(request(&d, "a", "a", &token)).await.unwrap_err();
    assert!(matches!(again, EnrolError::AlreadyEnrolled(_)), "{again}");
    // The answer was lost: the key is there, the certificate is not.
    let identity = d.path().join("clients/a/identity");
    let pending = d.path().join("clients/a/identity.new");
    std::fs::create_dir_all(&pending).unwrap();
    std::fs::rename(identity.join("client.key"), pending.join("client.key")).unwrap();
    std::fs::remove_dir_all(&identity).unwrap();
    assert_eq!(enrol(request(&d, "a", "a", &token)).await.unwrap().client.as_str(), "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_deployment_is_refused_on_both_sides() {
    let (here, there) = (Deployment::start().await, Deployment::start().await);
    let config = there.enrol("a", ClientRole::Trainer).await;
    // The stranger's client is pointed at this coordinator.
    let lost = ClientConfig { server: here.config().public_url.clone(), ..config.clone() };
    let client = Client::new(lost, Box::new(FnTrainer::constant(1.0)));
    let e = tokio::time::timeout(Duration::from_secs(20), client.run(std::future::pending()))
        .await
        .expect("it gives up at once")
        .unwrap_err();
    assert!(e.to_string().contains("is not the coordinator that this client enrolled with"), "{e}");
    // It trusts this CA, but its certificate is still the other deployment's.
    let ca = std::fs::read(here.path().join("deployment/pki/ca.crt")).unwrap();
    std::fs::write(config.folder.identity().join("ca.crt"), ca).unwrap();
    let lost = ClientConfig { server: here.config().public_url.clone(), ..config };
    let client = Client::new(lost, Box::new(FnTrainer::constant(1.0)));
    let e = tokio::time::timeout(Duration::from_secs(20), client.run(std::future::pending()))
        .await
        .expect("it gives up at once")
        .unwrap_err();
    assert!(e.to_string().contains("does not accept this client's certificate"), "{e}");
    // And the coordinator is well.
    here.operator().await.client.list_jobs(undertone::v1::ListJobsRequest {}).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn participants_are_no_operators_and_operators_no_participants() {
    let d = Deployment::start().await;
    let config = d.enrol("a", ClientRole::Trainer).await;
    let read = |name: &str| std::fs::read(config.folder.identity().join(name)).unwrap();
    let tls = tonic::transport::ClientTlsConfig::new()
        .ca_certificate(tonic::transport::Certificate::from_pem(read("ca.crt")));
    let identity = tonic::transport::Identity::from_pem(read("client.crt"), read("client.key"));
    let as_client = tls.clone().identity(identity);
    let endpoint = || tonic::transport::Endpoint::from_shared(config.server.clone()).unwrap();
    let channel = endpoint().tls_config(as_client).unwrap().connect().await.unwrap();
    let mut fake = undertone::v1::operator_client::OperatorClient::new(channel);
    let e = fake.list_clients(undertone::v1::ListClientsRequest {}).await.unwrap_err();
    assert_eq!(e.code(), Code::PermissionDenied, "{e}");
    let nobody = endpoint().tls_config(tls).unwrap().connect().await.unwrap();
    let mut nobody = undertone::v1::operator_client::OperatorClient::new(nobody);
    let e = nobody.list_clients(undertone::v1::ListClientsRequest {}).await.unwrap_err();
    assert_eq!(e.code(), Code::Unauthenticated, "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_whose_client_is_gone_is_told_to_enrol_again() {
    let mut d = Deployment::start().await;
    let config = d.enrol("a", ClientRole::Trainer).await;
    d.stop().await;
    // The state was lost (a restore from an old backup), the CA was not.
    for file in ["undertone.sqlite", "undertone.sqlite-wal", "undertone.sqlite-shm"] {
        let _ = std::fs::remove_file(d.path().join("deployment/state").join(file));
    }
    d.restart().await;
    let mut raw = RawClient::connect(&config).await;
    let e = raw.hello(1, 1).await.unwrap_err();
    assert!(e.message().contains("enrol again"), "{e}");
}
