//! Uploads that break off and go on.

use crate::job;
use std::sync::atomic::{AtomicU32, Ordering};
use undertone::v1::{self, Chunk, UploadHeader, upload_message};
use undertone_core::digest::Digest;
use undertone_core::id::ClientRole;
use undertone_core::trainer::TrainerError;
use undertone_harness::{Deployment, FnTrainer, RawClient};
use undertone_round::event::{JobEvent, Outcome};

/// A job whose update is some ten thousand values.
fn large() -> String {
    let text = job("size = 2", "size = 1").replace("rounds = 2", "rounds = 1");
    text.replace("kind = \"logistic\"", "kind = \"mlp\"\nhidden = [4096]")
}

const VALUES: usize = 3 * 4096 + 1;

fn update() -> (Vec<u8>, UploadHeader) {
    let bytes: Vec<u8> = (0..VALUES as i32).flat_map(|u| (u % 1000).to_le_bytes()).collect();
    let header = UploadHeader {
        attempt: None,
        update: Some(v1::BlobRef::new(Digest::of(&bytes), bytes.len() as u64)),
        weight: 1,
        within_clip_norm: None,
        number: None,
    };
    (bytes, header)
}

async fn offered(d: &Deployment, raw: &mut RawClient) -> Option<v1::AttemptRef> {
    // After a restart the old connection breaks once.
    for _ in 0..50 {
        if raw.hello(1, 1).await.is_ok() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    d.wait_connected(1).await;
    raw.offer().await.attempt
}

/// Sends one piece and hangs up, as a line that breaks does.
async fn piece(raw: &mut RawClient, header: &UploadHeader, bytes: &[u8], from: usize, to: usize) {
    let chunk = Chunk { offset: from as u64, data: bytes[from..to].to_vec().into() };
    let messages = vec![upload_message::Kind::Header(header.clone()), upload_message::Kind::Chunk(chunk)];
    let e = raw.upload_messages(messages).await.unwrap_err();
    assert!(e.message().contains("broke off"), "{e}");
}

/// The connection is cut at every chunk, and the coordinator killed and started in between: what was sent is not sent
/// again, and the update counts once.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_cut_at_every_chunk_goes_on() {
    let mut d = Deployment::start().await;
    let mut operator = d.operator().await;
    let id = operator.submit(&large()).await.unwrap();
    let mut raw = d.raw("a", ClientRole::Trainer).await;
    let (bytes, mut header) = update();
    header.attempt = offered(&d, &mut raw).await;
    let mut at = 0;
    for size in [1, 3, 4, 1000, 4097, 16_384] {
        assert_eq!(raw.uploaded(&header).await.unwrap(), at as u64);
        piece(&mut raw, &header, &bytes, at, at + size).await;
        at += size;
    }
    d.restart().await;
    let again = offered(&d, &mut raw).await;
    assert_eq!(again, header.attempt, "the same attempt goes on");
    assert_eq!(raw.uploaded(&header).await.unwrap(), at as u64);
    // A wrong place is refused and costs nothing.
    let wrong = upload_message::Kind::Chunk(Chunk { offset: at as u64 + 4, data: vec![1; 4].into() });
    let e = raw.upload_messages(vec![upload_message::Kind::Header(header.clone()), wrong]).await.unwrap_err();
    assert!(e.message().contains(&format!("expected one at {at}")), "{e}");
    let chunk = Chunk { offset: at as u64, data: bytes[at..].to_vec().into() };
    let messages = vec![upload_message::Kind::Header(header), upload_message::Kind::Chunk(chunk)];
    raw.upload_messages(messages).await.unwrap();
    let mut operator = d.operator().await;
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    let initial = undertone_round::job::JobSpec::from_toml(&large(), "job.toml").unwrap().resolve().unwrap();
    let model = operator.model(&id).await;
    for (i, (now, before)) in model.iter().zip(initial.initial_values()).enumerate() {
        let moved = (i % 1000) as f32 / 65_536.0;
        assert!((now - before - moved).abs() < 1e-5, "value {i}");
    }
    let left = std::fs::read_dir(d.path().join("deployment/state/blobs/unfinished"));
    assert_eq!(left.map_or(0, Iterator::count), 0, "nothing is left over");
}

/// What was kept may have rotted: then the whole is sent again, and only that.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_part_is_sent_again_from_the_start() {
    let d = Deployment::start().await;
    let mut operator = d.operator().await;
    let id = operator.submit(&large()).await.unwrap();
    let mut raw = d.raw("a", ClientRole::Trainer).await;
    let (bytes, mut header) = update();
    header.attempt = offered(&d, &mut raw).await;
    piece(&mut raw, &header, &bytes, 0, 20_000).await;
    let folder = d.path().join("deployment/state/blobs/unfinished");
    let file = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let mut kept = std::fs::read(&file).unwrap();
    let last = kept.len() - 3;
    kept[last] ^= 1;
    std::fs::write(&file, kept).unwrap();
    let chunk = Chunk { offset: 20_000, data: bytes[20_000..].to_vec().into() };
    let kinds = vec![upload_message::Kind::Header(header.clone()), upload_message::Kind::Chunk(chunk)];
    let e = raw.upload_messages(kinds).await.unwrap_err();
    assert!(e.message().contains("damaged") && e.message().contains("send it again"), "{e}");
    assert_eq!(raw.uploaded(&header).await.unwrap(), 0);
    let chunk = Chunk { offset: 0, data: bytes.into() };
    raw.upload_messages(vec![upload_message::Kind::Header(header), upload_message::Kind::Chunk(chunk)])
        .await
        .unwrap();
    assert_eq!(*operator.watch_to_end(&id).await.outcome(), Outcome::Completed);
}

/// What was fetched may have rotted before it is used: it is fetched again, and no round is lost by it.
#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_rots_on_the_clients_disk_is_fetched_again() {
    let mut d = Deployment::start().await;
    let config = d.enrol("a", ClientRole::Trainer).await;
    let (models, calls) = (config.folder.models(), AtomicU32::new(0));
    let trainer = FnTrainer::new(move |_, weights| {
        if calls.fetch_add(1, Ordering::SeqCst) > 0 {
            return Ok(vec![1.0; weights.len()]);
        }
        let files = std::fs::read_dir(&models).unwrap().map(|entry| entry.unwrap().path());
        let model =
            files.into_iter().find(|path| path.extension().is_some_and(|e| e == "safetensors")).unwrap();
        let mut bytes = std::fs::read(&model).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&model, bytes).unwrap();
        // The next attempt begins from the same model, which is here already.
        Err(TrainerError::Numerical("as the test asks".into()))
    });
    d.run(config, trainer);
    d.wait_connected(1).await;
    let mut operator = d.operator().await;
    let id = operator.submit(&job("rounds = 2", "rounds = 1").replace("size = 2", "size = 1")).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    let lost = events.0.iter().filter(|e| matches!(e, JobEvent::Lost { .. })).count();
    assert_eq!(lost, 1, "once as the test asks: {}", events.text());
    assert_eq!(operator.model(&id).await, [1.0, 1.0]);
}
