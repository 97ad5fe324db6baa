//! Sessions: versions, replacements, who may download what.

use std::time::Duration;
use tonic::Code;
use undertone::v1::{DownloadRequest, server_message};
use undertone_core::digest::Digest;
use undertone_core::id::ClientRole;
use undertone_harness::{Deployment, FnTrainer, RawClient, SAMPLE_JOB};

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_client_is_told_which_version_to_get() {
    let d = Deployment::start().await;
    let mut raw = d.raw("a", ClientRole::Trainer).await;
    let e = raw.hello(2, 5).await.unwrap_err();
    assert_eq!(e.code(), Code::FailedPrecondition);
    assert!(e.message().contains("install undertone-client 0.1.0"), "{e}");
    // One that still speaks ours is welcome.
    let welcome = raw.hello(1, 5).await.unwrap();
    assert!(matches!(welcome, server_message::Kind::Welcome(w) if w.protocol == 1 && w.client == "a"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_session_of_a_client_wins() {
    let d = Deployment::start().await;
    let config = d.enrol("a", ClientRole::Trainer).await;
    let mut first = RawClient::connect(&config).await;
    first.hello(1, 1).await.unwrap();
    let mut second = RawClient::connect(&config).await;
    second.hello(1, 1).await.unwrap();
    let told = first.next().await.unwrap();
    assert!(
        matches!(told, server_message::Kind::Goodbye(g) if !g.retry && g.reason.contains("another session"))
    );
    // The older one's end is not the end of the newer one.
    drop(first);
    tokio::time::sleep(Duration::from_millis(200)).await;
    d.wait_connected(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_published_models_can_be_downloaded() {
    let mut d = Deployment::start().await;
    d.trainer("honest", FnTrainer::constant(1.0)).await;
    let mut raw = d.raw("curious", ClientRole::Trainer).await;
    raw.hello(1, 1).await.unwrap();
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let id = operator.submit(SAMPLE_JOB).await.unwrap();
    let offer = raw.offer().await;
    let events =
        operator.watch_until(&id, |e| matches!(e, undertone_round::event::JobEvent::Received { .. })).await;
    assert!(events.text().contains("honest"));
    // The spooled update of the other client is in the blob store, but not for anybody.
    let blobs = d.path().join("deployment/state/blobs");
    let mut tried = 0;
    let model = offer.model.unwrap();
    for digest in blob_digests(&blobs) {
        let request = DownloadRequest { digest: digest.as_bytes().to_vec().into(), offset: 0 };
        let answer = raw.client.download_model(request).await;
        if digest.as_bytes()[..] == model.digest[..] {
            assert!(answer.is_ok());
        } else {
            assert_eq!(answer.unwrap_err().code(), Code::NotFound);
            tried += 1;
        }
    }
    assert!(tried > 0, "the spooled update was there to be tried");
    let beyond = DownloadRequest { digest: model.digest.clone(), offset: model.bytes + 1 };
    assert_eq!(raw.client.download_model(beyond).await.unwrap_err().code(), Code::InvalidArgument);
    // From an offset: the rest, and nothing else.
    let request = DownloadRequest { digest: model.digest, offset: model.bytes - 3 };
    let mut stream = raw.client.download_model(request).await.unwrap().into_inner();
    let chunk = stream.message().await.unwrap().unwrap();
    assert_eq!((chunk.offset, chunk.data.len()), (model.bytes - 3, 3));
}

/// The digests of all blobs, from the names of their files and folders.
fn blob_digests(folder: &std::path::Path) -> Vec<Digest> {
    let mut found = vec![];
    let mut open = vec![folder.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            if entry.path().is_dir() {
                open.push(entry.path());
            } else {
                found.extend(std::fs::read(entry.path()).ok().map(|bytes| Digest::of(&bytes)));
            }
        }
    }
    found
}
