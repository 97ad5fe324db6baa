//! What a job that trains a part of the model sends down: that part, and the rest once.

use crate::downlink::{Counted, REST, with};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use undertone::v1;
use undertone_core::id::ClientRole;
use undertone_core::part::Part;
use undertone_harness::{Deployment, FaultyStorage, FnTrainer};
use undertone_round::event::{JobEvent, Outcome};
use undertone_round::job::{Job, JobSpec};
use undertone_store::Blobs as _;

/// Values of the head, which is trained, and of the body.
const HEAD: u64 = 20_001;
const BODY: u64 = 40_000;

fn head(transport: &str, rounds: u32) -> (String, Job) {
    let text = with(transport, rounds).replace("local_steps = 1", "local_steps = 1\ntensors = [\"2.*\"]");
    let job = JobSpec::from_toml(&text, "job.toml").unwrap().resolve().unwrap();
    assert_eq!((job.part().len() as u64, job.part().frozen_len() as u64), (HEAD, BODY));
    (text, job)
}

/// These values with the head of others.
fn with_head(part: &Part, body: &[f32], head: &[f32]) -> Vec<f32> {
    let mut values = body.to_vec();
    part.scatter(&part.gather(head), &mut values);
    values
}

/// Each way down: what it takes of the head in the first round and in the later ones; the body is fetched in the first, and
/// never again, not even for the next job.
#[tokio::test(flavor = "multi_thread")]
async fn the_head_comes_down_alone_and_the_body_once() {
    // In thousandths of a byte for each value of the head.
    for (transport, whole, later) in [
        ("", 4000, 4000),
        ("deltas = true", 4000, 3300),
        ("models = { kind = \"bf16\" }", 2000, 2000),
        ("models = { kind = \"bf16\" }\ndeltas = true", 2000, 1300),
        ("models = { kind = \"block\", bits = 4 }", 540, 540),
        ("deltas = { kind = \"block\", bits = 8 }", 4000, 1040),
    ] {
        let storage = FaultyStorage::new();
        let mut d = Deployment::start_on(&storage).await;
        let a = Counted::enrol(&mut d, "a", Duration::ZERO).await;
        let b = Counted::enrol(&mut d, "b", Duration::ZERO).await;
        let measured: Arc<Mutex<Vec<Vec<f32>>>> = Arc::default();
        let kept = measured.clone();
        let evaluator = FnTrainer::constant(0.0).loss(move |weights| {
            kept.lock().unwrap().push(weights.to_vec());
            1.0
        });
        d.evaluator("e", evaluator).await;
        d.wait_connected(3).await;
        let (text, job) = head(transport, 4);
        let (first, part) = (job.initial_values(), job.part());
        let mut operator = d.operator().await;
        for (n, body) in [BODY, 0].into_iter().enumerate() {
            let id = operator.submit(&text).await.unwrap();
            let events = operator.watch_to_end(&id).await;
            assert_eq!(*events.outcome(), Outcome::Completed, "{transport}: {}", events.text());
            let model = operator.model(&id).await;
            assert_eq!(with_head(part, &model, &first), first, "{transport}: the body has every bit");
            assert_ne!(model, first, "{transport}");
            for client in [&a, &b] {
                let rounds = client.rounds()[4 * n..].to_vec();
                let most = |thousandths: u64| HEAD * thousandths / 1000;
                let least = 4 * body + most(whole);
                eprintln!("{transport:50} {rounds:?} bytes down");
                assert!(rounds[0] > least && rounds[0] < least + REST, "{transport} {n}: {rounds:?}");
                for round in &rounds[1..] {
                    assert!(*round < most(later) + REST, "{transport}: {rounds:?}");
                }
                let held = client.weights.lock().unwrap().clone();
                assert_eq!(
                    with_head(part, &held, &first),
                    first,
                    "{transport}: and so it has at the clients"
                );
                assert_ne!(held, first, "{transport}");
                assert_eq!(client.files("frozen").len(), 1, "{transport}");
                assert!(client.files("message").is_empty() && client.files("tmp").is_empty());
            }
            let measured = std::mem::take(&mut *measured.lock().unwrap());
            assert!(!measured.is_empty(), "{transport}");
            for values in measured {
                assert_eq!(with_head(part, &values, &first), first, "{transport}: and at the evaluator");
            }
        }
        // The body's file goes with its job, as versions do.
        let left = async || storage.blobs().list().await.unwrap().len();
        for _ in 0..100 {
            if left().await <= 9 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(left().await, 9, "{transport}: the initial model and twice four releases");
    }
}

/// Who was away has the body and fetches the head; who comes late fetches both; a body that rotted is fetched again. A
/// coordinator that was restarted goes on with the same files.
#[tokio::test(flavor = "multi_thread")]
async fn late_comers_get_the_body_too() {
    let mut d = Deployment::start().await;
    let a = Counted::enrol(&mut d, "a", Duration::from_millis(200)).await;
    let mut b = Counted::enrol(&mut d, "b", Duration::ZERO).await;
    d.wait_connected(2).await;
    let (text, job) = head("deltas = { kind = \"block\", bits = 8 }", 200);
    let text = text.replace("reconnect = \"2s\"", "reconnect = \"200ms\"");
    let mut operator = d.operator().await;
    let id = operator.submit(&text).await.unwrap();
    let released = |n: u32| move |e: &JobEvent| matches!(e, JobEvent::Released { round, .. } if round.0 == n);
    operator.watch_until(&id, released(2)).await;
    drop(operator);
    d.restart().await;
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    for (case, body) in [("away", 0), ("rotten", BODY), ("late", BODY)] {
        b.vanish(&mut d);
        d.wait_connected(1).await;
        let at = operator.detail(&id).await.summary.unwrap().rounds_released;
        operator.watch_until(&id, released(at + 2)).await;
        match case {
            "rotten" => {
                for path in b.files("frozen") {
                    let mut bytes = std::fs::read(&path).unwrap();
                    bytes[1000] ^= 4;
                    std::fs::write(&path, bytes).unwrap();
                }
            }
            "late" => b = Counted::enrol(&mut d, "c", Duration::ZERO).await,
            _ => {}
        }
        let (before, held) = (b.trained(), b.wire.down());
        if case != "late" {
            b.run(&mut d);
        }
        while b.trained() < before + 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let rounds = b.rounds()[before..].to_vec();
        // A rotten body is noticed once the head is there: that is fetched twice.
        let heads = if case == "rotten" { 2 } else { 1 };
        let least = 4 * body + 4 * HEAD * heads;
        let first = b.seen()[before] - held;
        assert!(first > least && first < least + 2 * REST, "{case}: {first} of {least} bytes, {rounds:?}");
        for later in &rounds[1..] {
            assert!(*later < HEAD * 1040 / 1000 + REST, "{case}: {rounds:?}");
        }
        let (first, held) = (job.initial_values(), b.weights.lock().unwrap().clone());
        assert_eq!(with_head(job.part(), &held, &first), first, "{case}: every bit of the body");
    }
    operator
        .client
        .cancel_job(v1::CancelJobRequest { job: id.clone(), reason: "seen enough".into() })
        .await
        .unwrap();
    operator.watch_to_end(&id).await;
    let rounds = a.rounds();
    assert!(rounds[1..].iter().all(|bytes| *bytes < HEAD * 1040 / 1000 + 2 * REST), "{rounds:?}");
}

/// A client that knows of no parts is offered the file, and may have it.
#[tokio::test(flavor = "multi_thread")]
async fn the_file_is_there_for_clients_that_know_of_no_parts() {
    let d = Deployment::start().await;
    let mut raw = d.raw("old", ClientRole::Trainer).await;
    raw.hello(1, 1).await.unwrap();
    let mut operator = d.operator().await;
    let (text, job) = head("", 1);
    operator.submit(&text.replace("size = 2", "size = 1")).await.unwrap();
    let offer = raw.offer().await;
    let (model, part) = (offer.model.clone().unwrap(), offer.part.clone().unwrap());
    assert!(offer.version.is_none() && offer.delta.is_none());
    assert!(model.bytes > 4 * (HEAD + BODY));
    assert_eq!(part.whole.as_ref().unwrap().bytes, 40 + 4 * HEAD);
    assert_eq!(part.frozen_file.as_ref().unwrap().bytes, 40 + 4 * BODY);
    let request = v1::DownloadRequest { digest: model.digest, offset: 0 };
    let mut pieces = raw.client.download_model(request).await.unwrap().into_inner();
    let mut file = vec![];
    while let Some(piece) = pieces.message().await.unwrap() {
        file.extend_from_slice(&piece.data);
    }
    assert_eq!(job.layout().from_safetensors(&file).unwrap(), job.initial_values());
}
