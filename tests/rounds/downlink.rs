//! What models travel down as: encoded, and as differences from what a client has.

use crate::job;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use undertone_client::ClientConfig;
use undertone_core::id::ClientRole;
use undertone_harness::{Deployment, FaultyStorage, FnTrainer, Wire};
use undertone_round::event::{JobEvent, Outcome};
use undertone_store::Blobs as _;

/// Values of the model.
const VALUES: u64 = 3 * 20_000 + 1;
/// What else comes down in a round: the offer with the job, a receipt, frames. (And the handshake, once.)
pub(crate) const REST: u64 = 16_000;

pub(crate) fn with(transport: &str, rounds: u32) -> String {
    job("kind = \"logistic\"", "kind = \"mlp\"\nhidden = [20000]")
        .replace("rounds = 2", &format!("rounds = {rounds}"))
        .replace("[deadlines]", &format!("[transport]\n{transport}\n\n[deadlines]"))
}

/// A client whose values go a fiftieth of the way to their targets in each round, on a line that counts.
pub(crate) struct Counted {
    pub(crate) wire: Arc<Wire>,
    config: ClientConfig,
    /// Bytes that had come down when training began, round by round.
    seen: Arc<Mutex<Vec<u64>>>,
    /// What it trained from last.
    pub(crate) weights: Arc<Mutex<Vec<f32>>>,
    pause: Duration,
    number: usize,
}

impl Counted {
    pub(crate) async fn enrol(d: &mut Deployment, name: &str, pause: Duration) -> Self {
        let wire = Arc::new(Wire::to(&d.config().public_url).await);
        let mut config = d.enrol(name, ClientRole::Trainer).await;
        config.server = wire.url();
        let mut client =
            Self { wire, config, seen: Arc::default(), weights: Arc::default(), pause, number: 0 };
        client.run(d);
        client
    }

    pub(crate) fn run(&mut self, d: &mut Deployment) {
        let (wire, seen, pause) = (self.wire.clone(), self.seen.clone(), self.pause);
        let held = self.weights.clone();
        let trainer = FnTrainer::new(move |_, weights| {
            *held.lock().unwrap() = weights.to_vec();
            seen.lock().unwrap().push(wire.down());
            std::thread::sleep(pause);
            let target = |i: usize| ((i % 200) as f32 - 100.0) / 100.0;
            Ok(weights.iter().enumerate().map(|(i, w)| (target(i) - w) / 50.0).collect())
        });
        self.number = d.run(self.config.clone(), trainer);
    }

    /// The client vanishes.
    pub(crate) fn vanish(&self, d: &mut Deployment) {
        drop(d.take(self.number));
    }

    /// Bytes that had come down when training began, round by round.
    pub(crate) fn seen(&self) -> Vec<u64> {
        self.seen.lock().unwrap().clone()
    }

    /// Bytes that came down before each training, since the one before.
    pub(crate) fn rounds(&self) -> Vec<u64> {
        let seen = self.seen.lock().unwrap();
        let before = std::iter::once(0).chain(seen.iter().copied());
        seen.iter().zip(before).map(|(now, before)| now - before).collect()
    }

    pub(crate) fn trained(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    fn models(&self) -> PathBuf {
        self.config.folder.models()
    }

    /// Its files of this kind.
    pub(crate) fn files(&self, extension: &str) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.models()).map(|dir| dir.flatten().map(|e| e.path()).collect());
        let mut files: Vec<PathBuf> = files.unwrap_or_default();
        files.retain(|path| path.extension().is_some_and(|e| e == extension));
        files
    }
}

/// A job to its end: its model.
async fn run(d: &Deployment, text: &str) -> Vec<f32> {
    let mut operator = d.operator().await;
    let id = operator.submit(text).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert!(!events.text().contains("aborted"), "{}", events.text());
    operator.model(&id).await
}

fn farthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Each way down: what it takes in the first round and in the later ones, and how near the run comes to that in f32.
#[tokio::test(flavor = "multi_thread")]
async fn models_come_down_in_fewer_bytes() {
    let mut plain = vec![];
    // The whole, and the difference, in thousandths of a byte for each value.
    for (transport, whole, delta, within) in [
        ("", 4000, 4000, 0.0),
        ("deltas = true", 4000, 3200, 0.0),
        ("models = { kind = \"bf16\" }", 2000, 2000, 2e-3),
        ("models = { kind = \"bf16\" }\ndeltas = true", 2000, 1300, 2e-3),
        ("models = { kind = \"fixed\", bits = 10 }", 1260, 1260, 2e-3),
        ("models = { kind = \"block\", bits = 8 }", 1040, 1040, 2e-3),
        ("models = { kind = \"block\", bits = 4 }", 540, 540, 2e-2),
        ("deltas = { kind = \"block\", bits = 8 }", 4000, 1040, 1e-4),
        ("deltas = { kind = \"fixed\", bits = 6 }", 4000, 760, 2e-3),
    ] {
        let mut d = Deployment::start().await;
        let a = Counted::enrol(&mut d, "a", Duration::ZERO).await;
        let b = Counted::enrol(&mut d, "b", Duration::ZERO).await;
        d.evaluator("e", FnTrainer::constant(0.0)).await;
        d.wait_connected(3).await;
        let mut operator = d.operator().await;
        let id = operator.submit(&with(transport, 4)).await.unwrap();
        let events = operator.watch_to_end(&id).await;
        assert_eq!(*events.outcome(), Outcome::Completed, "{transport}: {}", events.text());
        let model = operator.model(&id).await;
        if plain.is_empty() {
            plain.clone_from(&model);
        }
        let far = farthest(&model, &plain);
        assert!(far <= within, "{transport}: {far}");
        assert!(within == 0.0 || far > 0.0, "{transport}: it was trained from other values");
        for client in [&a, &b] {
            let rounds = client.rounds();
            let most = |thousandths: u64| VALUES * thousandths / 1000;
            eprintln!("{transport:50} {rounds:?} bytes down");
            assert!(rounds[0] > most(whole) && rounds[0] < most(whole) + REST, "{transport}: {rounds:?}");
            assert_eq!(rounds.len(), 4, "{transport}");
            for later in &rounds[1..] {
                assert!(*later < most(delta) + REST, "{transport}: {rounds:?}");
            }
            assert!(client.files("message").is_empty() && client.files("tmp").is_empty());
        }
        // Evaluators measure the released model with all its bits.
        let measured = events.0.iter().rev().find_map(|e| match e {
            JobEvent::Evaluated { metrics, .. } => Some(metrics.loss),
            _ => None,
        });
        let mean = model.iter().map(|w| f64::from(*w)).sum::<f64>() / model.len() as f64;
        assert_eq!(measured, Some(mean), "{transport}");
    }
}

/// Restarts between rounds and within one: the same bytes go on, nobody fetches a whole again, and the model is the one that
/// it would have been.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on_with_the_same_broadcast() {
    // Both in thousandths of a byte for each value.
    for (transport, whole, delta) in [
        ("models = { kind = \"bf16\" }\ndeltas = true", 2000, 1400),
        ("deltas = { kind = \"fixed\", bits = 8 }", 4000, 1040),
    ] {
        let text = with(transport, 4).replace("reconnect = \"2s\"", "reconnect = \"20s\"");
        let mut d = Deployment::start().await;
        let mut clients = vec![];
        for name in ["a", "b"] {
            clients.push(Counted::enrol(&mut d, name, Duration::from_millis(400)).await);
        }
        d.wait_connected(2).await;
        let undisturbed = run(&d, &text).await;
        let (rounds, held) = (clients[0].trained(), clients[0].wire.down());
        let mut operator = d.operator().await;
        let id = operator.submit(&text).await.unwrap();
        for released in 1..=2 {
            operator
                .watch_until(&id, |e| matches!(e, JobEvent::Released { round, .. } if round.0 == released))
                .await;
            drop(operator);
            d.restart().await;
            operator = d.operator().await;
            let state = operator.detail(&id).await.state;
            assert!(state.contains("\"version\""), "the broadcast is in the job's state: {state}");
        }
        let events = operator.watch_to_end(&id).await;
        assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
        assert!(!events.text().contains("aborted"), "{}", events.text());
        assert_eq!(operator.model(&id).await, undisturbed, "{transport}");
        for client in &clients {
            assert!(client.trained() >= rounds + 4);
        }
        // One whole, three differences, and the handshakes of three connections.
        let again = clients[0].wire.down() - held;
        let most = VALUES * (whole + 3 * delta) / 1000 + 6 * REST;
        assert!(again < most, "{transport}: {again} of at most {most} bytes");
    }
}

/// A client that was away for a round fetches the whole once, and differences from then on; one whose copy rotted or was
/// deleted does the same.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_cannot_use_a_difference_fetches_the_whole() {
    let transport = "deltas = { kind = \"block\", bits = 8 }";
    let whole = 4 * VALUES;
    let mut d = Deployment::start().await;
    let a = Counted::enrol(&mut d, "a", Duration::from_millis(250)).await;
    let mut b = Counted::enrol(&mut d, "b", Duration::ZERO).await;
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let text = with(transport, 40).replace("reconnect = \"2s\"", "reconnect = \"50ms\"");
    let id = operator.submit(&text).await.unwrap();
    let released = |n: u32| move |e: &JobEvent| matches!(e, JobEvent::Released { round, .. } if round.0 == n);
    operator.watch_until(&id, released(2)).await;
    for (case, change) in [("away", None), ("deleted", Some(false)), ("damaged", Some(true))] {
        b.vanish(&mut d);
        d.wait_connected(1).await;
        let at = operator.detail(&id).await.summary.unwrap().rounds_released;
        operator.watch_until(&id, released(at + 2)).await;
        let before = b.trained();
        let held = b.wire.down();
        match change {
            None => {}
            Some(false) => b.files("values").iter().for_each(|path| std::fs::remove_file(path).unwrap()),
            // All that it will ever be offered a difference from is damaged, from now on for one round.
            Some(true) => {
                b.run(&mut d);
                while b.trained() < before + 2 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                for path in b.files("values") {
                    let mut bytes = std::fs::read(&path).unwrap();
                    bytes[1000] ^= 4;
                    std::fs::write(&path, bytes).unwrap();
                }
                let (before, held) = (b.trained(), b.wire.down());
                while b.trained() < before + 3 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                let moved = b.wire.down() - held;
                assert!(moved > whole, "{case}: {moved} bytes");
                continue;
            }
        }
        b.run(&mut d);
        while b.trained() < before + 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let rounds = b.rounds()[before..].to_vec();
        let first = b.seen.lock().unwrap()[before] - held;
        assert!(first > whole && first < whole + 2 * REST, "{case}: {first} of {whole} bytes");
        for later in &rounds[1..] {
            assert!(*later < VALUES * 1040 / 1000 + REST, "{case}: {rounds:?}");
        }
    }
    operator
        .client
        .cancel_job(undertone::v1::CancelJobRequest { job: id.clone(), reason: "seen enough".into() })
        .await
        .unwrap();
    let events = operator.watch_to_end(&id).await;
    let aborted = events.0.iter().filter(|e| matches!(e, JobEvent::Aborted { .. })).count();
    assert_eq!(aborted, 1, "the one that was cancelled: {}", events.text());
    // Who was never away had one whole.
    let rounds = a.rounds();
    assert!(rounds[1..].iter().all(|bytes| *bytes < VALUES * 1040 / 1000 + REST), "{rounds:?}");
}

/// A client that is killed with half a version on its disk goes on from there; and what it has it does not fetch again.
#[tokio::test(flavor = "multi_thread")]
async fn half_a_download_is_gone_on_with_and_a_whole_one_is_kept() {
    let text = with("models = { kind = \"bf16\" }", 1)
        .replace("[20000]", "[2000, 600]")
        .replace("reconnect = \"2s\"", "reconnect = \"20s\"");
    let text =
        text.replace("size = 2", "size = 1").replace("transfer_idle = \"2s\"", "transfer_idle = \"20s\"");
    let whole = 2 * (2 * 2000 + 2001 * 600 + 601);
    let mut d = Deployment::start().await;
    let mut a = Counted::enrol(&mut d, "a", Duration::ZERO).await;
    d.wait_connected(1).await;
    let mut operator = d.operator().await;
    a.wire.stop_after(whole / 2);
    let id = operator.submit(&text).await.unwrap();
    a.wire.stopped().await;
    let part = || a.files("part").first().map_or(0, |path| std::fs::metadata(path).unwrap().len());
    for _ in 0..200 {
        if part() > whole / 4 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let had = part();
    assert!(had > whole / 4 && had < whole, "{had} of {whole} bytes");
    a.vanish(&mut d);
    d.wait_connected(0).await;
    a.wire.mend();
    let before = a.wire.down();
    a.run(&mut d);
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    let again = a.wire.down() - before;
    assert!(again < whole - had + whole / 10, "{again} bytes after {had} of {whole}");
    // Another job that starts from the same values: they are here.
    let before = a.wire.down();
    run(&d, &text).await;
    let again = a.wire.down() - before;
    assert!(again < REST, "{again} bytes");
}

/// Nothing that was made for one round outlives it, and a disk that fails makes a job wait.
#[tokio::test(flavor = "multi_thread")]
async fn versions_are_discarded_with_their_rounds() {
    let storage = FaultyStorage::new();
    let mut d = Deployment::start_on(&storage).await;
    let pause = Duration::from_millis(300);
    let clients = [Counted::enrol(&mut d, "a", pause).await, Counted::enrol(&mut d, "b", pause).await];
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let id = operator.submit(&with("models = { kind = \"bf16\" }\ndeltas = true", 3)).await.unwrap();
    operator.watch_until(&id, |e| matches!(e, JobEvent::Offered { .. })).await;
    // The initial model and its version: one whole of it for the two clients.
    assert_eq!(storage.blobs().list().await.unwrap().len(), 2);
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    let left = async || storage.blobs().list().await.unwrap().len();
    for _ in 0..100 {
        if left().await <= 4 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(left().await, 4, "the initial model and three releases");
    for client in &clients {
        assert!(client.files("values").len() <= 3, "the cache is bounded");
    }
}

/// Asynchronous rounds: a slow client works from a version that others have left behind, restarts in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_has_its_version_through_the_releases_of_others() {
    let storage = FaultyStorage::new();
    let mut d = Deployment::start_on(&storage).await;
    let mut clients = vec![];
    for (name, pause) in [("a", 100), ("b", 120), ("slow", 1500)] {
        clients.push(Counted::enrol(&mut d, name, Duration::from_millis(pause)).await);
    }
    d.wait_connected(3).await;
    let rule = "rule = \"buffered\"\nconcurrency = 3\nbuffer = 2\nmax_staleness = 20";
    let text = with("models = { kind = \"bf16\" }\ndeltas = true", 12)
        .replace("rule = \"all\"\nsize = 2\nmin_clients = 1", rule)
        .replace("reconnect = \"2s\"", "reconnect = \"20s\"");
    let mut operator = d.operator().await;
    let id = operator.submit(&text).await.unwrap();
    for released in [2, 5] {
        operator
            .watch_until(&id, |e| matches!(e, JobEvent::Released { round, .. } if round.0 == released))
            .await;
        drop(operator);
        d.restart_on(&storage).await;
        operator = d.operator().await;
    }
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    let stale = events.0.iter().any(|e| match e {
        JobEvent::Received { client, staleness, .. } => {
            client.as_str() == "slow" && staleness.is_some_and(|s| s > 0)
        }
        _ => false,
    });
    assert!(stale, "{}", events.text());
    assert!(!events.text().contains("\"aborted\""), "{}", events.text());
    for _ in 0..100 {
        if storage.blobs().list().await.unwrap().len() <= 13 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let left = storage.blobs().list().await.unwrap().len();
    // A start sweeps the initial model, unless the slow one works from it just then.
    assert!((12..=13).contains(&left), "twelve releases, perhaps the initial model, and no version: {left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_carry_models_is_refused_at_submit() {
    let d = Deployment::start().await;
    let mut operator = d.operator().await;
    for (transport, words) in [
        ("models = { kind = \"top-k\", fraction = 0.1 }", "all weights but a few would arrive as zero"),
        ("models = { kind = \"fixed32\" }", "its range is that of updates"),
        ("deltas = { kind = \"top-k\" }", "chooses among all values"),
        ("models = { kind = \"block\" }\ndeltas = true", "no value stays where it was"),
        ("models = { kind = \"bf16\" }\ndeltas = { kind = \"block\" }", "what they lead to is not bf16"),
    ] {
        let e = operator.submit(&with(transport, 2)).await.unwrap_err().to_string();
        assert!(e.contains("[transport]") && e.contains(words), "{transport}: {e}");
    }
}
