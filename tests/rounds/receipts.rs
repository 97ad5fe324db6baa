//! The update was taken in, and the receipt is lost: the client asks again after the round has closed, and is told that it
//! counted. With an encoding that leaves things out for later it would else send all of it twice.

use crate::{behind_a_line, job};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tonic::Code;
use undertone::v1::{BlobRef, UploadHeader, upload_message};
use undertone_core::digest::Digest;
use undertone_core::id::ClientRole;
use undertone_harness::{Deployment, FnTrainer, Operator, RawClient, Wire};
use undertone_round::event::{JobEvent, Outcome};
use undertone_round::job::JobSpec;

/// Enough for an update that is longer than all that goes before it.
const VALUES: usize = 3 * 4096 + 1;

/// Half of the values are sent, the larger ones; the rest waits for the next update.
fn top_k(rounds: u32) -> String {
    job("rounds = 2", &format!("rounds = {rounds}"))
        .replace("size = 2", "size = 1")
        .replace("[deadlines]", "[transport]\nupdates = { kind = \"top-k\", fraction = 0.5 }\n\n[deadlines]")
        .replace("reconnect = \"2s\"", "reconnect = \"20s\"")
}

/// Has something to say in its first round only, and the line is cut while it says it: its update still goes up, and nothing comes
/// down any more.
fn speaks_once(line: &Arc<Wire>) -> FnTrainer {
    let (line, calls) = (line.clone(), AtomicU32::new(0));
    FnTrainer::new(move |_, _| {
        if calls.fetch_add(1, Ordering::SeqCst) > 0 {
            return Ok(vec![0.0; VALUES]);
        }
        // More than what comes before the update's first byte, and less than the update.
        line.deafen_after(10_000);
        Ok((0..VALUES).map(said).collect())
    })
}

/// The larger ones first.
fn said(value: usize) -> f32 {
    if value <= VALUES / 2 { 1.0 / 64.0 } else { 1.0 / 256.0 }
}

/// How often each part of what was said is in the model: once is right.
async fn times(operator: &mut Operator, id: &str, text: &str) -> [f32; 2] {
    let initial = JobSpec::from_toml(text, "job.toml").unwrap().resolve().unwrap();
    let model = operator.model(id).await;
    let times = |value: usize| (model[value] - initial.initial_values()[value]) / said(value);
    for value in 0..VALUES {
        let like = if value <= VALUES / 2 { 0 } else { VALUES - 1 };
        assert!((times(value) - times(like)).abs() < 0.01, "value {value}");
    }
    [times(0).round(), times(VALUES - 1).round()]
}

/// The round closes without the client's knowledge, and the next one is offered as soon as it is back; with and without a
/// restart of the coordinator, and of the client, in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_receipt_sends_nothing_twice() {
    for (coordinator, client) in [(false, false), (true, false), (false, true)] {
        let mut d = Deployment::start().await;
        let (config, line) = behind_a_line(&d, "far").await;
        let mut running = d.run(config.clone(), speaks_once(&line));
        d.wait_connected(1).await;
        let mut operator = d.operator().await;
        let text = top_k(3).replace("kind = \"logistic\"", "kind = \"mlp\"\nhidden = [4096]");
        let id = operator.submit(&text).await.unwrap();
        operator.watch_until(&id, |e| matches!(e, JobEvent::Released { .. })).await;
        drop(operator);
        if coordinator {
            d.restart().await;
        }
        if client {
            drop(d.take(running));
            line.mend();
            running = d.run(config, FnTrainer::constant(0.0));
        }
        line.cut();
        line.mend();
        let mut operator = d.operator().await;
        let events = operator.watch_to_end(&id).await;
        assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
        let received = events.0.iter().filter(|e| matches!(e, JobEvent::Received { .. })).count();
        assert_eq!((events.released(), received), (3, 3), "{}", events.text());
        let times = times(&mut operator, &id, &text).await;
        assert_eq!(times, [1.0, 1.0], "{coordinator} {client}: {}", events.text());
        d.take(running).stop().await.unwrap();
    }
}

/// The other way round: what did not arrive before its round closed goes back to what waits, and is sent.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_never_arrived_is_sent_later() {
    let mut d = Deployment::start().await;
    let (config, line) = behind_a_line(&d, "far").await;
    let (cut, calls) = (line.clone(), AtomicU32::new(0));
    let trainer = FnTrainer::new(move |_, _| {
        if calls.fetch_add(1, Ordering::SeqCst) > 0 {
            return Ok(vec![0.0, 0.0]);
        }
        cut.hold();
        cut.cut();
        Ok(vec![1.0, 0.25])
    });
    d.run(config, trainer);
    d.wait_connected(1).await;
    let mut operator = d.operator().await;
    let text = top_k(2).replace("reconnect = \"20s\"", "reconnect = \"1s\"");
    let id = operator.submit(&text).await.unwrap();
    // Its session broke and it did not come back in time: the attempt is over.
    operator.watch_until(&id, |e| matches!(e, JobEvent::Aborted { .. })).await;
    line.mend();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert_eq!(operator.model(&id).await, [1.0, 0.25], "nothing is lost: {}", events.text());
}

/// What any client is told, those that know nothing of the new fields among them.
#[tokio::test(flavor = "multi_thread")]
async fn what_counted_is_acknowledged_for_ever() {
    let mut d = Deployment::start().await;
    let config = d.enrol("raw", ClientRole::Trainer).await;
    let mut raw = RawClient::connect(&config).await;
    raw.hello(1, 1).await.unwrap();
    d.wait_connected(1).await;
    let text = job("size = 2", "size = 1");
    let mut operator = d.operator().await;
    let id = operator.submit(&text).await.unwrap();
    let (first, units) = (raw.offer().await.attempt.unwrap(), [1 << 16, 1 << 16]);
    let receipt = raw.upload(&first, &units, 1).await.unwrap();
    assert!(!receipt.counted_already);
    // The next round is open, and the one before is over.
    let second = raw.offer().await.attempt.unwrap();
    assert_eq!(second.round, 2);
    let bytes: Vec<u8> = units.iter().flat_map(|u: &i32| u.to_le_bytes()).collect();
    let header = |attempt: &undertone::v1::AttemptRef| UploadHeader {
        attempt: Some(attempt.clone()),
        update: Some(BlobRef::new(Digest::of(&bytes), bytes.len() as u64)),
        weight: 1,
        ..UploadHeader::default()
    };
    for restart in [false, true] {
        if restart {
            drop(raw);
            d.restart().await;
            raw = RawClient::connect(&config).await;
            raw.hello(1, 1).await.unwrap();
        }
        let again = raw.upload(&first, &units, 1).await.unwrap();
        assert!(again.counted_already && again.update == receipt.update);
        let progress = raw.client.resume_upload(header(&first)).await.unwrap().into_inner();
        assert!(progress.counted_already && progress.offset == 8);
        // Neither with another weight nor with other values is it what counted. And the open round has nothing yet.
        for (units, weight, said) in [(units, 2, "is over"), ([1 << 16, 2 << 16], 1, "another update")] {
            let e = raw.upload(&first, &units, weight).await.unwrap_err();
            assert!(e.code() == Code::FailedPrecondition && e.message().contains(said), "{e}");
        }
        assert!(!raw.client.resume_upload(header(&second)).await.unwrap().into_inner().counted_already);
    }
    raw.upload(&second, &units, 1).await.unwrap();
    let mut operator = d.operator().await;
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    // The job is over; somebody else's update it never was.
    for attempt in [&first, &second] {
        assert!(raw.upload(attempt, &units, 1).await.unwrap().counted_already);
        assert!(raw.client.resume_upload(header(attempt)).await.unwrap().into_inner().counted_already);
    }
    let mut other = d.raw("other", ClientRole::Trainer).await;
    let e = other.upload(&first, &units, 1).await.unwrap_err();
    assert!(e.code() == Code::FailedPrecondition && e.message().contains("has ended"), "{e}");
    assert_eq!(operator.model(&id).await, [2.0, 2.0], "each counted once");
}

/// While the attempt is open the bytes need not travel again either, whether the client asks first or not.
#[tokio::test(flavor = "multi_thread")]
async fn what_counts_in_an_open_round_need_not_travel_again() {
    let mut d = Deployment::start().await;
    let mut raw = d.raw("raw", ClientRole::Trainer).await;
    raw.hello(1, 1).await.unwrap();
    d.trainer("slow", FnTrainer::slow(Duration::from_secs(3))).await;
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let id = operator.submit(&job("rounds = 2", "rounds = 1")).await.unwrap();
    let attempt = raw.offer().await.attempt.unwrap();
    raw.upload(&attempt, &[1 << 16, 1 << 16], 1).await.unwrap();
    let bytes: Vec<u8> = [1i32 << 16; 2].iter().flat_map(|u| u.to_le_bytes()).collect();
    let header = UploadHeader {
        attempt: Some(attempt),
        update: Some(BlobRef::new(Digest::of(&bytes), 8)),
        weight: 1,
        ..UploadHeader::default()
    };
    assert_eq!(raw.uploaded(&header).await.unwrap(), 8);
    let receipt = raw.upload_messages(vec![upload_message::Kind::Header(header)]).await.unwrap();
    assert!(receipt.counted_already);
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert_eq!(operator.model(&id).await, [1.0, 1.0]);
}

/// Asynchronous rounds: a client whose update is in a model already is at work for the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_buffered_update_is_acknowledged_after_its_release() {
    let mut d = Deployment::start().await;
    d.trainer("other", FnTrainer::constant(1.0)).await;
    let mut raw = d.raw("raw", ClientRole::Trainer).await;
    raw.hello(1, 1).await.unwrap();
    d.wait_connected(2).await;
    let rule = "rule = \"buffered\"\nconcurrency = 2\nbuffer = 2\nmax_staleness = 2";
    let text = job("rule = \"all\"\nsize = 2\nmin_clients = 1", rule);
    let mut operator = d.operator().await;
    let id = operator.submit(&text).await.unwrap();
    let first = raw.offer().await.attempt.unwrap();
    raw.upload(&first, &[1 << 16, 1 << 16], 1).await.unwrap();
    let second = raw.offer().await.attempt.unwrap();
    assert!(second.round > first.round);
    assert!(raw.upload(&first, &[1 << 16, 1 << 16], 1).await.unwrap().counted_already);
    raw.upload(&second, &[1 << 16, 1 << 16], 1).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    let raws = |e: &&JobEvent| matches!(e, JobEvent::Received { client, .. } if client.as_str() == "raw");
    assert_eq!(events.0.iter().filter(raws).count(), 2, "{}", events.text());
}
