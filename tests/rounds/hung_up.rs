//! Clients that hang up, and those that ask while the coordinator is still busy with what they sent: every update counts once or not at
//! all, and nobody is told otherwise.

use crate::{job, met};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use undertone::v1::upload_reply::Kind as Reply;
use undertone::v1::{self, AttemptRef, BlobRef, Chunk, UploadHeader, upload_message::Kind};
use undertone_core::digest::Digest;
use undertone_core::id::ClientRole;
use undertone_harness::{Deployment, FaultyStorage, FnTrainer, HeldAt, RawClient, receipt};
use undertone_round::event::{JobEvent, Outcome};

fn update(attempt: &AttemptRef, bytes: &[u8]) -> (UploadHeader, Vec<Kind>) {
    let header = UploadHeader {
        attempt: Some(attempt.clone()),
        update: Some(BlobRef::new(Digest::of(bytes), bytes.len() as u64)),
        weight: 1,
        ..UploadHeader::default()
    };
    let chunk = Chunk { offset: 0, data: bytes.to_vec().into() };
    (header.clone(), vec![Kind::Header(header), Kind::Chunk(chunk)])
}

fn values(units: [i32; 2]) -> Vec<u8> {
    units.iter().flat_map(|units| units.to_le_bytes()).collect()
}

/// A client whose updates the coordinator's disk is slow to take.
struct Slow {
    d: Deployment,
    storage: FaultyStorage,
    raw: RawClient,
    id: String,
    attempt: AttemptRef,
    /// Lets the other client, who moves every value by one, go on.
    go: std::sync::mpsc::Sender<()>,
}

impl Slow {
    async fn new(text: &str) -> Self {
        let storage = FaultyStorage::new();
        let mut d = Deployment::start_on(&storage).await;
        let (other, go) = FnTrainer::told();
        d.trainer("other", other).await;
        let mut raw = d.raw("raw", ClientRole::Trainer).await;
        raw.hello(1, 1).await.unwrap();
        d.wait_connected(2).await;
        let id = d.operator().await.submit(text).await.unwrap();
        let attempt = raw.offer().await.attempt.unwrap();
        Self { d, storage, raw, id, attempt, go }
    }

    /// Sends all of an update; returns once the coordinator waits for its disk.
    async fn send(&self, bytes: &[u8], held: HeldAt) -> JoinHandle<Result<v1::UploadReceipt, tonic::Status>> {
        let before = self.storage.hits();
        self.storage.hold_blobs(Some(held));
        let (mut client, kinds) = (self.raw.client.clone(), update(&self.attempt, bytes).1);
        let messages = kinds.into_iter().map(|kind| v1::UploadMessage { kind: Some(kind) });
        let messages = tokio_stream::iter(messages.collect::<Vec<_>>());
        let call = tokio::spawn(async move { receipt(&mut client, messages).await });
        met(&self.storage, before).await;
        call
    }

    /// Sends all of an update and hangs up before the coordinator's disk has taken it.
    async fn send_and_hang_up(&self, bytes: &[u8], held: HeldAt) {
        let call = self.send(bytes, held).await;
        // All that was sent is there, before its end is.
        tokio::time::sleep(Duration::from_millis(300)).await;
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        // Until that is there as well.
        tokio::time::sleep(Duration::from_millis(300)).await;
        self.storage.hold_blobs(None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_refused_though_its_sender_hung_up() {
    let text = job("rounds = 2", "rounds = 1")
        .replace("[deadlines]", "[transport]\nupdates = { kind = \"f32\" }\n\n[deadlines]");
    for held in [HeldAt::Write, HeldAt::Settle] {
        let s = Slow::new(&text).await;
        let bytes: Vec<u8> = [0.0, f32::NAN].iter().flat_map(|value: &f32| value.to_le_bytes()).collect();
        s.send_and_hang_up(&bytes, held).await;
        let mut operator = s.d.operator().await;
        let refused =
            |e: &JobEvent| matches!(e, JobEvent::Refused { client, .. } if client.as_str() == "raw");
        let events = operator.watch_until(&s.id, refused).await;
        assert!(events.0.last().is_some_and(refused), "{held:?}: {}", events.text());
        // Counted a moment after the round knows of it.
        let mut raw = v1::ClientSummary::default();
        for _ in 0..100 {
            let all = operator.client.list_clients(v1::ListClientsRequest {}).await.unwrap().into_inner();
            raw = all.clients.into_iter().find(|c| c.client == "raw").unwrap();
            if raw.uploads_refused > 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(raw.uploads_refused == 1 && raw.last_refusal.contains("value 1 "), "{raw:?}");
        s.go.send(()).unwrap();
        let events = operator.watch_to_end(&s.id).await;
        assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_whole_counts_though_its_sender_hung_up() {
    for held in [HeldAt::Write, HeldAt::Settle] {
        let mut s = Slow::new(&job("rounds = 2", "rounds = 1")).await;
        let bytes = values([3 << 16, 3 << 16]);
        s.send_and_hang_up(&bytes, held).await;
        let mut operator = s.d.operator().await;
        let raws = |e: &JobEvent| matches!(e, JobEvent::Received { client, .. } if client.as_str() == "raw");
        let events = operator.watch_until(&s.id, raws).await;
        assert!(events.0.last().is_some_and(raws), "{held:?}: {}", events.text());
        let progress = s.raw.client.resume_upload(update(&s.attempt, &bytes).0).await.unwrap().into_inner();
        assert!(progress.counted_already);
        s.go.send(()).unwrap();
        let events = operator.watch_to_end(&s.id).await;
        assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
        assert_eq!(operator.model(&s.id).await, [2.0, 2.0], "the mean of 3 and 1");
    }
}

/// A client that is told that its update does not count takes it back, and sends it with the next one.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_taken_in_is_not_said_not_to_count() {
    let mut s = Slow::new(&job("rounds = 2", "rounds = 1")).await;
    let bytes = values([3 << 16, 3 << 16]);
    let call = s.send(&bytes, HeldAt::Settle).await;
    let (header, again) = update(&s.attempt, &bytes);
    // As over another connection, after the first one broke.
    let (mut client, asked) = (s.raw.client.clone(), header.clone());
    let asking = tokio::spawn(async move { client.resume_upload(asked).await });
    let e = s.raw.upload_messages(again.clone()).await.unwrap_err();
    assert!(e.code() == Code::Unavailable && e.message().contains("is under way: try again"), "{e}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!asking.is_finished(), "neither yes nor no: {:?}", asking.await);
    // Of another job or attempt the coordinator knows at once that it does not count.
    let other = AttemptRef { round: s.attempt.round + 1, ..s.attempt.clone() };
    let e = s.raw.client.resume_upload(update(&other, &bytes).0).await.unwrap_err();
    assert_eq!(e.code(), Code::FailedPrecondition, "{e}");
    s.storage.hold_blobs(None);
    assert!(!call.await.unwrap().unwrap().counted_already);
    assert!(asking.await.unwrap().unwrap().into_inner().counted_already);
    assert!(s.raw.client.resume_upload(header).await.unwrap().into_inner().counted_already);
    assert!(s.raw.upload_messages(again).await.unwrap().counted_already);
    s.go.send(()).unwrap();
    let mut operator = s.d.operator().await;
    assert_eq!(*operator.watch_to_end(&s.id).await.outcome(), Outcome::Completed);
    assert_eq!(operator.model(&s.id).await, [2.0, 2.0]);
}

/// Who hangs up while it waits for a place gives its turn back at once, and may stand in line again.
#[tokio::test(flavor = "multi_thread")]
async fn who_hangs_up_in_line_leaves_the_line() {
    let text = job("rounds = 2", "rounds = 1").replace("transfer_idle = \"2s\"", "transfer_idle = \"20s\"");
    let d = Deployment::start_with(|config| config.limits.uploads_in_flight = 1).await;
    let (mut first, mut second) =
        (d.raw("first", ClientRole::Trainer).await, d.raw("second", ClientRole::Trainer).await);
    for raw in [&mut first, &mut second] {
        raw.hello(1, 1).await.unwrap();
    }
    d.wait_connected(2).await;
    let id = d.operator().await.submit(&text).await.unwrap();
    let bytes = values([1 << 16, 1 << 16]);
    let message = |kind| v1::UploadMessage { kind: Some(kind) };

    // The first one has the place.
    let [header, chunk] = update(&first.offer().await.attempt.unwrap(), &bytes).1.try_into().unwrap();
    let (of_first, rx) = mpsc::channel(2);
    of_first.send(message(header)).await.unwrap();
    let mut first_hears = first.client.upload_update(ReceiverStream::new(rx)).await.unwrap().into_inner();
    assert!(matches!(first_hears.message().await.unwrap().unwrap().kind, Some(Reply::Go(_))));
    // The second one waits, and hangs up.
    let (asked, [header, _]) = {
        let (asked, kinds) = update(&second.offer().await.attempt.unwrap(), &bytes);
        (asked, <[Kind; 2]>::try_from(kinds).unwrap())
    };
    {
        let (of_second, rx) = mpsc::channel(2);
        of_second.send(message(header)).await.unwrap();
        let mut hears = second.client.upload_update(ReceiverStream::new(rx)).await.unwrap().into_inner();
        let silence = tokio::time::timeout(Duration::from_millis(500), hears.message()).await;
        assert!(silence.is_err(), "no place, no word: {silence:?}");
    }
    // It stands in line again, the place being taken still, and gets it when the first one is through.
    let again = tokio::spawn(async move {
        let begun = std::time::Instant::now();
        loop {
            match second.upload_when_told(asked.clone(), &bytes).await {
                // Until it is noticed that it hung up.
                Err(e) if e.code() == Code::Unavailable && begun.elapsed() < Duration::from_secs(5) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                other => break (other, begun.elapsed()),
            }
        }
    });
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(!again.is_finished(), "{:?}", again.await);
    of_first.send(message(chunk)).await.unwrap();
    drop(of_first);
    assert!(matches!(first_hears.message().await.unwrap().unwrap().kind, Some(Reply::Receipt(_))));
    let (sent, took) = again.await.unwrap();
    assert_eq!(sent.unwrap().0, 0, "{took:?}");
    let events = d.operator().await.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
}
