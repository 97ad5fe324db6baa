//! Transfers that are not what they claim: refused, counted where the operator sees it, explained; the round goes on.

use crate::{behind_a_line, job};
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use undertone::v1::upload_reply::Kind as Reply;
use undertone::v1::{self, BlobRef, Chunk, UploadHeader, upload_message::Kind};
use undertone_core::digest::Digest;
use undertone_core::id::ClientRole;
use undertone_harness::{Deployment, FnTrainer, RawClient, Wire, receipt};
use undertone_round::event::{JobEvent, Outcome};

/// 49,156 bytes.
const VALUES: usize = 3 * 4096 + 1;

/// One honest client and one that the test speaks for, asked for an update of [`VALUES`] values.
struct Scene {
    d: Deployment,
    id: String,
    raw: RawClient,
    attempt: v1::AttemptRef,
    bytes: Vec<u8>,
    /// Of the honest one.
    line: Arc<Wire>,
}

impl Scene {
    async fn new() -> Self {
        Self::with(16, Duration::ZERO).await
    }

    /// With so many places for uploads, and an honest client that takes its time.
    async fn with(places: usize, training: Duration) -> Self {
        let text =
            job("rounds = 2", "rounds = 1").replace("kind = \"logistic\"", "kind = \"mlp\"\nhidden = [4096]");
        let mut d = Deployment::start_with(|config| config.limits.uploads_in_flight = places).await;
        let (config, line) = behind_a_line(&d, "honest").await;
        d.run(config, FnTrainer::slow(training));
        let mut raw = d.raw("raw", ClientRole::Trainer).await;
        raw.hello(1, 1).await.unwrap();
        d.wait_connected(2).await;
        let id = d.operator().await.submit(&text).await.unwrap();
        let attempt = raw.offer().await.attempt.unwrap();
        let bytes = (0..VALUES as i32).flat_map(|u| (u % 1000).to_le_bytes()).collect();
        Self { d, id, raw, attempt, bytes, line }
    }

    fn header(&self, digest: Digest, bytes: u64) -> Kind {
        Kind::Header(UploadHeader {
            attempt: Some(self.attempt.clone()),
            update: Some(BlobRef::new(digest, bytes)),
            weight: 1,
            within_clip_norm: None,
            number: None,
        })
    }

    fn honest_header(&self) -> Kind {
        self.header(Digest::of(&self.bytes), self.bytes.len() as u64)
    }

    fn chunk(&self, from: usize, to: usize) -> Kind {
        Kind::Chunk(Chunk { offset: from as u64, data: self.bytes[from..to].to_vec().into() })
    }

    /// Sends all that, which must be refused with this code and these words.
    async fn refused(&mut self, kinds: Vec<Kind>, code: Code, words: &str) {
        let e = self.raw.upload_messages(kinds).await.unwrap_err();
        assert_eq!(e.code(), code, "{e}");
        assert!(e.message().contains(words), "no \"{words}\" in: {e}");
    }

    /// How many unfinished uploads lie on the coordinator's disk.
    fn unfinished(&self) -> usize {
        let folder = self.d.path().join("deployment/state/blobs/unfinished");
        std::fs::read_dir(folder).map_or(0, Iterator::count)
    }

    /// Sends what the coordinator misses, and returns where that began.
    async fn send_rest(&mut self) -> u64 {
        let Kind::Header(header) = self.honest_header() else { unreachable!() };
        self.raw.upload_when_told(header, &self.bytes).await.unwrap().0
    }

    /// The operator sees so many refusals of the client, the last one with these words, and none of the honest one.
    async fn counted(&self, count: u64, words: &str) {
        let mut operator = self.d.operator().await;
        let all = operator.client.list_clients(v1::ListClientsRequest {}).await.unwrap().into_inner().clients;
        let of = |name: &str| all.iter().find(|c| c.client == name).unwrap();
        assert_eq!(of("raw").uploads_refused, count, "{}", of("raw").last_refusal);
        assert!(of("raw").last_refusal.contains(words), "no \"{words}\" in: {}", of("raw").last_refusal);
        assert_eq!((of("honest").uploads_refused, of("honest").last_refusal.as_str()), (0, ""));
    }

    /// The job completes on so many updates.
    async fn went_on_with(&self, updates: u32) {
        let events = self.d.operator().await.watch_to_end(&self.id).await;
        assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
        let released = |e: &JobEvent| match e {
            JobEvent::Released { clients, received_bytes, sent_bytes, .. } => {
                Some((*clients, received_bytes.unwrap(), sent_bytes.unwrap()))
            }
            _ => None,
        };
        let (clients, received, sent) = events.0.iter().find_map(released).unwrap();
        assert_eq!(clients, updates, "{}", events.text());
        assert_eq!(received, u64::from(updates) * 4 * VALUES as u64);
        // The honest client fetched the model, which is a little longer than its values.
        let model = 4 * VALUES as u64;
        assert!(sent > model && sent < model + 4096, "{sent}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_beyond_all_measure_is_refused_before_its_first_byte() {
    for declared in [4 * VALUES as u64 + 1, 1 << 40, u64::MAX] {
        let mut s = Scene::new().await;
        let header = s.header(Digest::of(b""), declared);
        s.refused(vec![header], Code::InvalidArgument, "does not fit the model").await;
        s.counted(1, "does not fit the model").await;
        s.went_on_with(1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_digest_counts_and_the_update_may_be_sent_again() {
    let mut s = Scene::new().await;
    let (all, whole) = (s.bytes.len(), 4 * VALUES as u64);
    let kinds = vec![s.header(Digest::of(b"other"), whole), s.chunk(0, all)];
    s.refused(kinds, Code::Unavailable, "damaged").await;
    s.counted(1, "damaged").await;
    assert_eq!(s.send_rest().await, 0);
    s.counted(1, "damaged").await;
    s.went_on_with(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_that_overlap_or_leave_a_gap_count_and_nothing_is_taken_twice() {
    let mut s = Scene::new().await;
    let mut n = 0;
    // Back by a byte, back to the start, the same again, and ahead.
    for (from, to) in [(999, 2000), (0, 1000), (0, 4 * VALUES), (1001, 2000)] {
        let mut kinds = vec![s.honest_header(), s.chunk(from, to)];
        // What came before the first one that was refused is kept.
        if n == 0 {
            kinds.insert(1, s.chunk(0, 1000));
        }
        let words = format!("chunk at {from} of {} bytes, expected one at 1000", to - from);
        s.refused(kinds, Code::InvalidArgument, &words).await;
        n += 1;
        s.counted(n, &words).await;
    }
    assert_eq!(s.send_rest().await, 1000);
    s.went_on_with(2).await;
}

/// Each claim of its own would be a file of its own, up to the size of an update, until the round is over.
#[tokio::test(flavor = "multi_thread")]
async fn halves_of_many_claims_are_one_file() {
    let mut s = Scene::with(16, Duration::from_secs(1)).await;
    for n in 0..5u8 {
        let kinds = vec![s.header(Digest::of(&[n]), 4 * VALUES as u64), s.chunk(0, 1000)];
        s.refused(kinds, Code::Unavailable, "broke off after 1000").await;
        assert_eq!(s.unfinished(), 1);
    }
    assert_eq!(s.send_rest().await, 0);
    assert_eq!(s.unfinished(), 0);
    s.went_on_with(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_nobody_waits_for_any_more_is_cut_and_leaves_nothing() {
    let s = Scene::with(16, Duration::from_secs(1)).await;
    let (tx, rx) = tokio::sync::mpsc::channel(2);
    for kind in [s.honest_header(), s.chunk(0, 1000)] {
        tx.send(v1::UploadMessage { kind: Some(kind) }).await.unwrap();
    }
    let mut client = s.raw.client.clone();
    let upload = tokio::spawn(async move { receipt(&mut client, ReceiverStream::new(rx)).await });
    while s.unfinished() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let request = v1::CancelJobRequest { job: s.id.clone(), reason: "seen enough".into() };
    s.d.operator().await.client.cancel_job(request).await.unwrap();
    // Though the client never ends it, and long before its deadline of 30 s.
    let e = upload.await.unwrap().unwrap_err();
    assert!(e.code() == Code::FailedPrecondition && e.message().contains("ended"), "{e}");
    assert_eq!(s.unfinished(), 0);
    drop(tx);
}

/// A byte just within every limit of inactivity, for ever: it would hold its place in the pool until the deadline, and
/// with a pool of one keep everybody else out.
#[tokio::test(flavor = "multi_thread")]
async fn an_endless_slow_trickle_is_cut_and_gives_its_place_back() {
    let mut s = Scene::with(1, Duration::from_millis(700)).await;
    let (tx, rx) = tokio::sync::mpsc::channel(1);
    let (first, bytes) = (s.honest_header(), s.bytes.clone());
    let trickle = tokio::spawn(async move {
        let send = |kind| tx.send(v1::UploadMessage { kind: Some(kind) });
        send(first).await.unwrap();
        for (at, byte) in bytes.into_iter().enumerate() {
            let chunk = Chunk { offset: at as u64, data: vec![byte].into() };
            if send(Kind::Chunk(chunk)).await.is_err() {
                return at;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        panic!("all of it was taken");
    });
    let begun = std::time::Instant::now();
    let e = receipt(&mut s.raw.client, ReceiverStream::new(rx)).await.unwrap_err();
    let took = begun.elapsed();
    assert!(e.code() == Code::Unavailable && e.message().contains("the upload is too slow"), "{e}");
    // The job's transfer_idle is 2 s, its deadline 30 s.
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(10), "{took:?}");
    assert!(trickle.await.unwrap() < 50);
    s.counted(1, "the upload is too slow").await;
    let honest = |e: &JobEvent| matches!(e, JobEvent::Received { client, .. } if client.as_str() == "honest");
    let events = s.d.operator().await.watch_until(&s.id, honest).await;
    assert!(events.0.last().is_some_and(honest), "the other one got its place: {}", events.text());
    // On a faster line it may still be in time.
    assert!(s.send_rest().await > 0);
    s.went_on_with(2).await;
}

/// What waits for a place waits at its client: thousands may, and take no memory here.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_place_is_not_told_to_send() {
    let mut s = Scene::with(1, Duration::from_millis(300)).await;
    let (tx, rx) = tokio::sync::mpsc::channel(2);
    tx.send(v1::UploadMessage { kind: Some(s.honest_header()) }).await.unwrap();
    let mut replies = s.raw.client.upload_update(ReceiverStream::new(rx)).await.unwrap().into_inner();
    let go = replies.message().await.unwrap().unwrap().kind.unwrap();
    // The job's transfer_idle, and from the start.
    assert_eq!(go, Reply::Go(v1::Go { offset: 0, idle_ms: 2000 }));
    // The place is taken: the honest one, whose training has long ended, is not told to send.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(s.unfinished(), 1, "one file, and it is the raw client's");
    let up = s.line.up();
    assert!(up > 0 && up < s.bytes.len() as u64 / 2, "{up} bytes went up, of an update of {}", s.bytes.len());
    tx.send(v1::UploadMessage { kind: Some(s.chunk(0, 1000)) }).await.unwrap();
    drop(tx);
    let e = replies.message().await.unwrap_err();
    assert!(e.message().contains("broke off after 1000"), "{e}");
    let honest = |e: &JobEvent| matches!(e, JobEvent::Received { client, .. } if client.as_str() == "honest");
    let events = s.d.operator().await.watch_until(&s.id, honest).await;
    assert!(events.0.last().is_some_and(honest), "{}", events.text());
    assert!(s.line.up() > s.bytes.len() as u64, "now it went up");
    assert_eq!(s.send_rest().await, 1000);
    s.went_on_with(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_update_with_other_bytes_counts_as_refused_and_the_first_as_the_update() {
    let text = job("rounds = 2", "rounds = 1");
    let mut d = Deployment::start().await;
    d.trainer("honest", FnTrainer::slow(Duration::from_secs(2))).await;
    let mut raw = d.raw("raw", ClientRole::Trainer).await;
    raw.hello(1, 1).await.unwrap();
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let id = operator.submit(&text).await.unwrap();
    let attempt = raw.offer().await.attempt.unwrap();
    raw.upload(&attempt, &[3 << 16, 3 << 16], 1).await.unwrap();
    let e = raw.upload(&attempt, &[9 << 16, 9 << 16], 1).await.unwrap_err();
    assert_eq!(e.code(), Code::FailedPrecondition, "{e}");
    let all = operator.client.list_clients(v1::ListClientsRequest {}).await.unwrap().into_inner().clients;
    let refused = all.iter().find(|c| c.client == "raw").unwrap();
    assert_eq!((refused.uploads_refused, refused.last_refusal.as_str()), (1, e.message()));
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert_eq!(operator.model(&id).await, [2.0, 2.0], "the mean of 3 and 1");
}

#[tokio::test(flavor = "multi_thread")]
async fn floats_that_are_not_finite_are_refused_with_their_place() {
    for (kind, bad) in [
        ("f32", f32::NAN.to_le_bytes().to_vec()),
        ("f32", f32::INFINITY.to_le_bytes().to_vec()),
        ("bf16", 0x7fc0_u16.to_le_bytes().to_vec()),
    ] {
        let text = job("rounds = 2", "rounds = 1").replace(
            "[deadlines]",
            &format!("[transport]\nupdates = {{ kind = \"{kind}\" }}\n\n[deadlines]"),
        );
        let mut d = Deployment::start().await;
        d.trainer("honest", FnTrainer::constant(1.0)).await;
        let mut raw = d.raw("raw", ClientRole::Trainer).await;
        raw.hello(1, 1).await.unwrap();
        d.wait_connected(2).await;
        let mut operator = d.operator().await;
        let id = operator.submit(&text).await.unwrap();
        let attempt = raw.offer().await.attempt.unwrap();
        let bytes = [vec![0; bad.len()], bad].concat();
        let header = Kind::Header(UploadHeader {
            attempt: Some(attempt),
            update: Some(BlobRef::new(Digest::of(&bytes), bytes.len() as u64)),
            weight: 1,
            within_clip_norm: None,
            number: None,
        });
        let chunk = Kind::Chunk(Chunk { offset: 0, data: bytes.into() });
        let e = raw.upload_messages(vec![header, chunk]).await.unwrap_err();
        assert!(e.code() == Code::InvalidArgument && e.message().contains("value 1 "), "{e}");
        let events = operator.watch_to_end(&id).await;
        assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
        assert!(events.text().contains(r#""kind":"refused","round":1,"client":"raw""#), "{}", events.text());
        assert_eq!(operator.model(&id).await, [1.0, 1.0]);
    }
}

/// A client that opens downloads and reads none of them: its own places are all that it holds.
#[tokio::test(flavor = "multi_thread")]
async fn one_client_has_a_few_downloads_at_once_and_no_more() {
    // 8 MB, which the windows of a connection (5 MB, 2 MB of them for each call) do not hold.
    let text = job("rounds = 2", "rounds = 1")
        .replace("kind = \"logistic\"", "kind = \"mlp\"\nhidden = [2000, 1000]")
        .replace("transfer_idle = \"2s\"", "transfer_idle = \"20s\"");
    let mut d = Deployment::start().await;
    let mut raw = d.raw("raw", ClientRole::Trainer).await;
    raw.hello(1, 1).await.unwrap();
    d.trainer("honest", FnTrainer::constant(0.1)).await;
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let id = operator.submit(&text).await.unwrap();
    let offer = raw.offer().await;
    let digest = offer.model.unwrap().digest;
    let ask = |offset| v1::DownloadRequest { digest: digest.clone(), offset };
    let mut open = vec![];
    for _ in 0..4 {
        open.push(raw.client.download_model(ask(0)).await.unwrap().into_inner());
    }
    for refused in 1..=2 {
        let e = raw.client.download_model(ask(0)).await.unwrap_err();
        let words =
            "raw has 4 downloads under way, as many as one client may: read one to its end or cancel it";
        assert!(e.code() == Code::Unavailable && e.message().contains(words), "{e}");
        let all = operator.client.list_clients(v1::ListClientsRequest {}).await.unwrap().into_inner().clients;
        let of = |name: &str| all.iter().find(|c| c.client == name).unwrap();
        assert_eq!((of("raw").downloads_refused, of("raw").uploads_refused), (refused, 0));
        assert!(of("raw").last_refusal.contains(words));
        assert_eq!((of("honest").downloads_refused, of("honest").last_refusal.as_str()), (0, ""));
    }
    // Others have theirs.
    let honest = |e: &JobEvent| matches!(e, JobEvent::Received { client, .. } if client.as_str() == "honest");
    let events = operator.watch_until(&id, honest).await;
    assert!(events.0.last().is_some_and(honest), "{}", events.text());
    // One that is cancelled, and one that is read to its end, make room.
    open.pop();
    let mut whole = None;
    for _ in 0..100 {
        match raw.client.download_model(ask(0)).await {
            Ok(stream) => {
                whole = Some(stream.into_inner());
                break;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    let mut whole = whole.expect("the place of the cancelled one");
    open.clear();
    let mut bytes = 0;
    while let Some(chunk) = whole.message().await.unwrap() {
        bytes += chunk.data.len();
    }
    assert!(bytes > 8_000_000, "{bytes}");
    for _ in 0..20 {
        let mut stream = raw.client.download_model(ask(bytes as u64 - 10)).await.unwrap().into_inner();
        assert_eq!(stream.message().await.unwrap().unwrap().data.len(), 10);
        assert!(stream.message().await.unwrap().is_none());
    }
}

/// A client that is asked to train from a model of 40 chunks.
async fn large_model(text: &str) -> (Deployment, String, RawClient, BlobRef) {
    let text = text.replace("kind = \"logistic\"", "kind = \"mlp\"\nhidden = [1600, 1600]");
    let d = Deployment::start().await;
    let mut raw = d.raw("raw", ClientRole::Trainer).await;
    raw.hello(1, 1).await.unwrap();
    d.wait_connected(1).await;
    let id = d.operator().await.submit(&text).await.unwrap();
    let model = raw.offer().await.model.unwrap();
    (d, id, raw, model)
}

/// The same that reads one chunk each `pause`.
async fn slow_reader(text: &str, pause: Duration) -> (Deployment, String, tokio::task::JoinHandle<Status>) {
    let (d, id, mut raw, model) = large_model(text).await;
    let request = v1::DownloadRequest { digest: model.digest, offset: 0 };
    let mut pieces = raw.client.download_model(request).await.unwrap().into_inner();
    let reading = tokio::spawn(async move {
        let _session = raw;
        loop {
            match pieces.message().await {
                Ok(Some(_)) => tokio::time::sleep(pause).await,
                Ok(None) => panic!("all of it was sent"),
                Err(e) => return e,
            }
        }
    });
    (d, id, reading)
}

async fn downloads_refused(d: &Deployment) -> (u64, String) {
    let mut operator = d.operator().await;
    let all = operator.client.list_clients(v1::ListClientsRequest {}).await.unwrap().into_inner().clients;
    (all[0].downloads_refused, all[0].last_refusal.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_cannot_end_in_time_is_cut_and_counted() {
    let text = job("round = \"30s\"", "round = \"8s\"").replace("size = 2", "size = 1");
    let (d, _, reading) = slow_reader(&text, Duration::from_secs(1)).await;
    let e = reading.await.unwrap();
    assert!(e.code() == Code::Unavailable && e.message().contains("the download is too slow"), "{e}");
    assert_eq!(downloads_refused(&d).await, (1, e.message().to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_ends_with_what_it_is_for() {
    let text = job("size = 2", "size = 1");
    let (d, id, reading) = slow_reader(&text, Duration::from_millis(200)).await;
    let request = v1::CancelJobRequest { job: id, reason: "seen enough".into() };
    d.operator().await.client.cancel_job(request).await.unwrap();
    let e = reading.await.unwrap();
    assert!(e.code() == Code::NotFound && e.message().contains("is not a model that raw is asked"), "{e}");
    assert_eq!(downloads_refused(&d).await, (0, String::new()), "it did nothing wrong");
}

/// The model of an attempt that ends is that of the next one: who reads it goes on, and is judged by the time that there is then.
#[tokio::test(flavor = "multi_thread")]
async fn a_download_outlives_its_attempt_where_the_next_one_asks_for_the_same() {
    // Its speed counts from transfer_idle on: in the second attempt, for which it is fast enough.
    let text = job("round = \"30s\"", "round = \"4s\"").replace("size = 2", "size = 1");
    let text = text.replace("transfer_idle = \"2s\"", "transfer_idle = \"5s\"");
    let (d, id, mut raw, model) = large_model(&text).await;
    let (mut at, mut pieces) = (0, None);
    let mut begun_later = 0;
    while at < model.bytes {
        let reading = match &mut pieces {
            Some(reading) => reading,
            None => {
                let request = v1::DownloadRequest { digest: model.digest.clone(), offset: at };
                match raw.client.download_model(request).await {
                    Ok(answer) => pieces.insert(answer.into_inner()),
                    // Between the attempts nobody is asked for anything.
                    Err(e) => {
                        assert_eq!(e.code(), Code::NotFound, "{e}");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        continue;
                    }
                }
            }
        };
        match reading.message().await {
            Ok(piece) => at += piece.unwrap().data.len() as u64,
            Err(e) => {
                assert_eq!(e.code(), Code::NotFound, "{e}");
                (pieces, begun_later) = (None, begun_later + 1);
            }
        }
        tokio::time::sleep(Duration::from_millis(170)).await;
    }
    assert!(begun_later <= 1, "looked at between two attempts, once at most");
    let aborted = |e: &JobEvent| matches!(e, JobEvent::Aborted { .. });
    let events = d.operator().await.watch_until(&id, aborted).await;
    assert!(events.0.last().is_some_and(aborted), "its first attempt ended: {}", events.text());
    assert_eq!(downloads_refused(&d).await, (0, String::new()));
}
