//! Asynchronous rounds, end to end: fast and slow clients, restarts, and the exact result.

use crate::job;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use undertone::v1::server_message;
use undertone_core::id::ClientRole;
use undertone_harness::{Deployment, Events, FnTrainer, RawClient};
use undertone_round::event::{JobEvent, Outcome};

/// Buffers of two, from up to three at work.
fn buffered(rounds: u32, max_staleness: u32) -> String {
    let rule = format!("rule = \"buffered\"\nconcurrency = 3\nbuffer = 2\nmax_staleness = {max_staleness}");
    let text = job("rule = \"all\"\nsize = 2\nmin_clients = 1", &rule);
    text.replace("rounds = 2", &format!("rounds = {rounds}"))
        .replace("reconnect = \"2s\"", "reconnect = \"20s\"")
}

/// What a client's training adds to each value: exact on the grid, and another for each client.
const STEPS: [(&str, f32); 3] = [("a", 1.0), ("b", 0.5), ("slow", 0.25)];

fn step(client: &str) -> f32 {
    STEPS.iter().find(|(name, _)| *name == client).unwrap().1
}

/// Trains in a moment.
fn fast(client: &'static str) -> FnTrainer {
    steady(client, Duration::from_millis(100))
}

/// Always takes as long.
fn steady(client: &'static str, pause: Duration) -> FnTrainer {
    FnTrainer::new(move |_, weights| {
        std::thread::sleep(pause);
        Ok(vec![step(client); weights.len()])
    })
}

/// Trains until it is let go.
fn held(client: &'static str, go: &Arc<AtomicBool>) -> FnTrainer {
    let go = go.clone();
    FnTrainer::new(move |_, weights| {
        while !go.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(vec![step(client); weights.len()])
    })
}

/// Which updates count in which round, and how stale.
fn counted(events: &Events) -> BTreeMap<u32, Vec<(String, u32)>> {
    let mut rounds = BTreeMap::<u32, Vec<_>>::new();
    for event in &events.0 {
        if let JobEvent::Received { round, client, staleness, .. } = event {
            rounds.entry(round.0).or_default().push((client.to_string(), staleness.unwrap()));
        }
    }
    rounds
}

/// The model that the released rounds come to, computed from what the events say: the sum of w(s) times the step over the
/// whole weight of a buffer of two, on the grid of 2^-16.
fn reference(events: &Events, rounds: u32) -> f32 {
    let counted = counted(events);
    (1..=rounds).fold(0.0f32, |model, round| {
        let updates = &counted[&round];
        assert_eq!(updates.len(), 2, "{}", events.text());
        let clients: BTreeSet<_> = updates.iter().map(|(client, _)| client).collect();
        assert_eq!(clients.len(), 2, "one update of a client: {}", events.text());
        let sum: i64 = updates
            .iter()
            .map(|(client, staleness)| {
                let weight = (65_536.0 / f64::from(1 + staleness).sqrt()).round() as i64;
                weight * (f64::from(step(client)) * 65_536.0) as i64
            })
            .sum();
        (f64::from(model) + sum as f64 / (65_536.0 * 2.0 * 65_536.0)) as f32
    })
}

/// Blobs on the coordinator's disk: models, and updates that nobody deleted.
fn blobs(d: &Deployment) -> usize {
    let root = d.config().storage.folder.join("blobs");
    let (mut blobs, mut folders) = (0, vec![root.clone()]);
    while let Some(folder) = folders.pop() {
        // What is deleted meanwhile is not there.
        for path in std::fs::read_dir(folder).unwrap().filter_map(|entry| Some(entry.ok()?.path())) {
            if path.is_file() {
                blobs += 1;
            } else if path.is_dir() && path != root.join("tmp") {
                folders.push(path);
            }
        }
    }
    blobs
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_go_at_the_pace_of_the_fast_and_the_slow_ones_update_counts_less() {
    let mut d = Deployment::start().await;
    let go = Arc::new(AtomicBool::new(false));
    d.trainer("a", fast("a")).await;
    d.trainer("b", fast("b")).await;
    d.trainer("slow", held("slow", &go)).await;
    d.wait_connected(3).await;
    let mut operator = d.operator().await;
    let id = operator.submit(&buffered(6, 10)).await.unwrap();
    // Three models come out while the slow one trains on.
    operator.watch_until(&id, |e| matches!(e, JobEvent::Released { round, .. } if round.0 == 3)).await;
    go.store(true, Ordering::SeqCst);
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    let counted = counted(&events);
    let (round, staleness) = counted
        .iter()
        .find_map(|(round, updates)| updates.iter().find(|(c, _)| c == "slow").map(|(_, s)| (*round, *s)))
        .unwrap_or_else(|| panic!("the slow one counts: {}", events.text()));
    assert!(round >= 4 && staleness == round - 1, "{round} {staleness}: {}", events.text());
    let model = operator.model(&id).await;
    assert!(model.iter().all(|w| *w == reference(&events, 6)), "{model:?}: {}", events.text());
    // Spooled updates are gone: what is left are the models, the initial one among them.
    tokio::time::timeout(Duration::from_secs(10), async {
        while blobs(&d) > 7 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("nothing but models is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_leaves_the_slow_one_at_work_and_every_update_counts_once() {
    let mut d = Deployment::start().await;
    let go = Arc::new(AtomicBool::new(false));
    d.trainer("a", fast("a")).await;
    d.trainer("b", fast("b")).await;
    d.trainer("slow", held("slow", &go)).await;
    d.wait_connected(3).await;
    let mut operator = d.operator().await;
    let id = operator.submit(&buffered(8, 10)).await.unwrap();
    for round in [1, 3] {
        operator.watch_until(&id, |e| matches!(e, JobEvent::Released { round: r, .. } if r.0 == round)).await;
        drop(operator);
        d.restart().await;
        operator = d.operator().await;
    }
    go.store(true, Ordering::SeqCst);
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    let undisturbed = events.0.iter().all(|e| match e {
        JobEvent::Aborted { .. } | JobEvent::Refused { .. } => false,
        JobEvent::Lost { reason, .. } => reason.contains("the updates of the last round are in"),
        _ => true,
    });
    assert!(undisturbed, "{}", events.text());
    let asked = events.0.iter().filter(|e| match e {
        JobEvent::Offered { cohort, .. } => cohort.iter().any(|c| c.as_str() == "slow"),
        JobEvent::Asked { client, .. } => client.as_str() == "slow",
        _ => false,
    });
    let slow = counted(&events).into_values().flatten().filter(|(c, _)| c == "slow").collect::<Vec<_>>();
    assert!(slow[0].1 >= 3, "it was at work over two restarts: {slow:?}");
    // Asked once for each update; the last one may still be at work.
    assert!(asked.count() - slow.len() <= 1, "{}", events.text());
    assert_eq!(operator.model(&id).await, [reference(&events, 8); 2], "{}", events.text());
}

/// Waits for the coordinator's word that it goes on without this client.
async fn withdrawal(raw: &mut RawClient) -> String {
    loop {
        if let server_message::Kind::Withdraw(withdraw) = raw.next().await.expect("the session goes on") {
            return withdraw.reason;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_too_slow_is_told_before_it_has_trained_in_vain() {
    let mut d = Deployment::start().await;
    let config = d.enrol("slow", ClientRole::Trainer).await;
    let mut raw = RawClient::connect(&config).await;
    raw.hello(1, 1).await.unwrap();
    d.trainer("a", steady("a", Duration::from_millis(500))).await;
    d.trainer("b", steady("b", Duration::from_millis(500))).await;
    d.wait_connected(3).await;
    let mut operator = d.operator().await;
    let id = operator.submit(&buffered(4, 1)).await.unwrap();
    let offer = raw.offer().await;
    let attempt = offer.attempt.clone().unwrap();
    assert_eq!(attempt.round, 1);
    let reason = withdrawal(&mut raw).await;
    assert!(reason.contains("2 models ago") && reason.contains("older than 1"), "{reason}");
    let e = raw.upload(&attempt, &[1 << 16, 1 << 16], 1).await.unwrap_err();
    assert!(
        e.message().contains("round 1 goes on without slow") || e.message().contains("slow is at work for"),
        "{e}"
    );
    // Its place was filled with itself, from a newer model: that counts.
    let again = raw.offer().await;
    let newer = again.attempt.unwrap();
    assert!(newer.round >= 3 && again.model != offer.model, "{newer:?}");
    raw.upload(&newer, &[1 << 14, 1 << 14], 1).await.unwrap();
    // Twice is once.
    raw.upload(&newer, &[1 << 14, 1 << 14], 1).await.unwrap_or_else(|e| {
        assert!(e.message().contains("is over") || e.message().contains("is at work for"), "{e}");
        Default::default()
    });
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    let lost = events.0.iter().find_map(|e| match e {
        JobEvent::Lost { client, reason, .. } if client.as_str() == "slow" => Some(reason.clone()),
        _ => None,
    });
    assert!(lost.unwrap().contains("it would come too late"), "{}", events.text());
    let slow = counted(&events).into_values().flatten().filter(|(c, _)| c == "slow").count();
    assert_eq!(slow, 1, "{}", events.text());
    assert_eq!(operator.model(&id).await, [reference(&events, 4); 2], "{}", events.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stalls_frees_its_place() {
    let mut d = Deployment::start().await;
    let config = d.enrol("stalled", ClientRole::Trainer).await;
    let mut raw = RawClient::connect(&config).await;
    raw.hello(1, 1).await.unwrap();
    d.wait_connected(1).await;
    let mut operator = d.operator().await;
    // One place, so the round stands while it is held.
    let text = buffered(2, 4).replace("concurrency = 3", "concurrency = 1");
    let text = text.replace("round = \"30s\"", "round = \"3s\"").replace("buffer = 2", "buffer = 1");
    let id = operator.submit(&text).await.unwrap();
    raw.offer().await;
    d.trainer("a", fast("a")).await;
    let reason = withdrawal(&mut raw).await;
    assert!(reason.contains("[deadlines] round"), "{reason}");
    let events = operator.watch_until(&id, |e| matches!(e, JobEvent::Released { .. })).await;
    assert_eq!(counted(&events)[&1], [("a".to_owned(), 0)], "{}", events.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn contracts_keep_their_promises_and_their_price() {
    let mut d = Deployment::start().await;
    for (name, step) in STEPS {
        d.trainer(name, FnTrainer::constant(step)).await;
    }
    d.wait_connected(3).await;
    let mut operator = d.operator().await;
    let central = "unit = \"client\"\ntrust = \"central\"\nclip_norm = 0.5\nnoise_multiplier = 1.0\ndelta = 1e-5\nbudget_epsilon = 20.0";
    let local = central.replace("central", "local");
    let record = "unit = \"record\"\ntrust = \"local\"\nclip_norm = 0.5\nsampling_rate = 0.5\nnoise_multiplier = 1.0\ndelta = 1e-5\nbudget_epsilon = 20.0";
    for (contract, wide) in [(central, true), (&*local, false), (record, false)] {
        let text = buffered(3, 5).replace("unit = \"none\"", contract);
        let text =
            if wide { text.replace("kind = \"logistic\"", "kind = \"mlp\"\nhidden = [64]") } else { text };
        let id = operator.submit(&text).await.unwrap();
        let events = operator.watch_to_end(&id).await;
        assert_eq!(*events.outcome(), Outcome::Completed, "{contract}: {}", events.text());
        let spent = operator.privacy(&id).await["epsilon"].as_f64().unwrap();
        // The same as of rounds of everyone: no draw is counted in anybody's favour.
        let same = text.replace(
            "rule = \"buffered\"\nconcurrency = 3\nbuffer = 2\nmax_staleness = 5",
            "rule = \"all\"\nsize = 2\nmin_clients = 1",
        );
        let plan = undertone_round::job::JobSpec::from_toml(&same, "job.toml").unwrap().resolve().unwrap();
        assert_eq!(Some(spent), plan.contract().epsilon_after(3), "{contract}");
        if wide {
            // Three releases of noise with σ = 0.5 over a denominator of two whole updates.
            let model = operator.model(&id).await;
            let moved = model.iter().zip(plan.initial_values()).map(|(w, from)| f64::from(w - from));
            let moved: Vec<f64> = moved.collect();
            let len = moved.len() as f64;
            let mean = moved.iter().sum::<f64>() / len;
            let deviation = (moved.iter().map(|w| (w - mean).powi(2)).sum::<f64>() / len).sqrt();
            let expected = 3f64.sqrt() * 0.5 / 2.0;
            assert!((deviation / expected - 1.0).abs() < 0.25, "{deviation} of {len} values, not {expected}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_go_with_buffers_is_refused_at_submit() {
    let d = Deployment::start().await;
    let mut operator = d.operator().await;
    let central = "unit = \"client\"\ntrust = \"central\"\nclip_norm = 0.5\nnoise_multiplier = 4.0\ndelta = 1e-5\nbudget_epsilon = 9.0";
    let with = |aggregation: &str, privacy: &str| {
        buffered(2, 1)
            .replace("[deadlines]", &format!("[aggregation]\n{aggregation}\n\n[deadlines]"))
            .replace("unit = \"none\"", privacy)
    };
    let none = "unit = \"none\"";
    let adaptive = format!(
        "{central}\nadaptive_clip = {{ min = 0.1, max = 1.0, target_quantile = 0.5, learning_rate = 0.2, count_noise = 9.0 }}"
    );
    for (text, words) in [
        (with("rule = { kind = \"median\" }", none), "made from one model"),
        (with("weights = \"declared_rows\"", none), "max_weight must be 1 to 8192"),
        (with("", &format!("{central}\nmechanism = \"blt\"")), "does not go with rule = \"buffered\""),
        (with("", &adaptive), "clipped to the norm of an older round"),
        (
            with("", central).replace("local_steps = 1", "local_epochs = 1\nbatch_size = 2"),
            "needs local_steps",
        ),
        (buffered(2, 1).replace("concurrency = 3", "concurrency = 0"), "concurrency must be 1 to"),
    ] {
        let e = operator.submit(&text).await.unwrap_err().to_string();
        assert!(e.contains(words), "{words}: {e}");
    }
}
