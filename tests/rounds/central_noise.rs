//! The coordinator's other noise, end to end: correlated over the rounds, under a clip norm that moves, fast.

use crate::job;
use std::time::Duration;
use undertone_core::digest::Digest;
use undertone_core::id::ClientRole;
use undertone_harness::{Deployment, FaultyStorage, FnTrainer, Operator};
use undertone_round::event::{JobEvent, Outcome};
use undertone_store::Blobs as _;

const CENTRAL: &str = "unit = \"client\"\ntrust = \"central\"\nclip_norm = 0.5\nnoise_multiplier = 1.5\ndelta = 1e-5\nbudget_epsilon = 9.0";

/// The sample job for four rounds of correlated noise, for clients that may be in all of them.
fn correlated() -> String {
    let text = job("unit = \"none\"", &format!("{CENTRAL}\nmechanism = \"blt\""))
        .replace("rounds = 2", "rounds = 4");
    let text = text.replace("kind = \"logistic\"", "kind = \"mlp\"\nhidden = [64]");
    text.replace("min_clients = 1", "min_clients = 1\nparticipations = 4\nseparation = 1")
}

async fn state(operator: &mut Operator, id: &str) -> serde_json::Value {
    serde_json::from_str(&operator.detail(id).await.state).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn correlated_noise_goes_on_over_a_restart_and_is_charged_once() {
    let mut d = Deployment::start().await;
    for name in ["a", "b"] {
        d.trainer(name, FnTrainer::slow(Duration::from_millis(150))).await;
    }
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let id = operator.submit(&correlated()).await.unwrap();
    operator.watch_until(&id, |e| matches!(e, JobEvent::Released { .. })).await;
    let noise = state(&mut operator, &id).await["carried"]["noise"]["digest"].clone();
    assert!(noise.is_string(), "the noise that goes on is part of the job");
    d.restart().await;
    let mut operator = d.operator().await;
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    let told: Vec<f64> = events
        .0
        .iter()
        .filter_map(|e| if let JobEvent::Released { epsilon, .. } = e { *epsilon } else { None })
        .collect();
    // One Gaussian of 1.5 for the whole run, paid with the first round.
    assert_eq!(told.len(), 4);
    assert!(told.iter().all(|&e| e == told[0]) && (2.0..4.0).contains(&told[0]), "{told:?}");
    let state = state(&mut operator, &id).await;
    assert_eq!(state["carried"], serde_json::Value::Null, "nobody may take the noise off afterwards");
    // Four releases and at most the initial model: no old state of the noise lies about, once the last is deleted.
    let noise = noise.as_str().unwrap().trim_start_matches("sha256:").to_owned();
    let mut left = vec![];
    for _ in 0..100 {
        left = walk(&d.path().join("deployment/state/blobs"));
        if left.len() <= 5 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(
        left.len() <= 5 && !left.iter().any(|f| f.replace('/', "").contains(&noise)),
        "{noise}: {left:?}"
    );
}

fn walk(dir: &std::path::Path) -> Vec<String> {
    let mut found = vec![];
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path.display().to_string()) }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_noise_is_lost_ends_and_says_so() {
    let storage = FaultyStorage::new();
    let mut d = Deployment::start_on(&storage).await;
    for name in ["a", "b"] {
        d.trainer(name, FnTrainer::slow(Duration::from_millis(300))).await;
    }
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let id = operator.submit(&correlated()).await.unwrap();
    operator.watch_until(&id, |e| matches!(e, JobEvent::Released { .. })).await;
    let noise = state(&mut operator, &id).await["carried"]["noise"]["digest"].clone();
    let noise: Digest = serde_json::from_value(noise).unwrap();
    storage.blobs().delete(&noise).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    let Outcome::Failed { reason } = events.outcome() else { panic!("{}", events.text()) };
    assert!(reason.contains("the noise of the rounds before cannot be read"), "{reason}");
    // At once: no other attempt could do better.
    let aborted = events.0.iter().filter(|e| matches!(e, JobEvent::Aborted { .. })).count();
    assert_eq!((events.released(), aborted), (1, 1), "{}", events.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clip_norm_follows_the_updates_and_each_side_holds_to_it() {
    let d = Deployment::start().await;
    let mut raw = d.raw("a", ClientRole::Trainer).await;
    raw.hello(1, 1).await.unwrap();
    d.wait_connected(1).await;
    let mut operator = d.operator().await;
    let rule = "adaptive_clip = { min = 0.25, max = 2.0, learning_rate = 1.0, target_quantile = 0.9, count_noise = 1.0 }";
    let text = job("unit = \"none\"", &format!("{CENTRAL}\n{rule}")).replace("size = 2", "size = 1");
    let id = operator.submit(&text).await.unwrap();
    let offer = raw.offer().await;
    assert_eq!(offer.clip_norm, Some(0.5));
    let attempt = offer.attempt.unwrap();
    // Beyond this round's norm: refused, and the client is out of the attempt.
    let e = raw.upload_within(&attempt, &[1 << 15, 1 << 10], 1, Some(false)).await.unwrap_err();
    assert!(e.message().contains("at most 0.5"), "{e}");
    let attempt = raw.offer().await.attempt.unwrap();
    raw.upload_within(&attempt, &[1 << 14, 1 << 14], 1, Some(false)).await.unwrap();
    let offer = raw.offer().await;
    let norm = offer.clip_norm.unwrap();
    assert!(
        offer.attempt.as_ref().unwrap().round == 2 && norm != 0.5 && (0.25..=2.0).contains(&norm),
        "{norm}"
    );
    let state = state(&mut operator, &id).await;
    assert_eq!(state["carried"]["clip"]["clip_norm"], norm);
    // Neither the answer nor a digest that it could be guessed from is in a state that operators see.
    assert!(!state.to_string().contains("within") && !state.to_string().contains("\"blob\""), "{state}");
    let attempt = offer.attempt.unwrap();
    let units = (norm * 65_536.0) as i32;
    let e = raw.upload_within(&attempt, &[units + 1, 1 << 10], 1, Some(true)).await.unwrap_err();
    assert!(e.message().contains("the job allows at most"), "{e}");
}

/// The real client: it clips to the round's norm and answers.
#[tokio::test(flavor = "multi_thread")]
async fn clients_take_part_under_a_clip_norm_that_moves() {
    let mut d = Deployment::start().await;
    d.trainer("large", FnTrainer::constant(100.0)).await;
    d.trainer("nan", FnTrainer::constant(f32::NAN)).await;
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let rule = "adaptive_clip = { min = 0.25, max = 2.0, count_noise = 1.0 }";
    let contract = format!("{CENTRAL}\nmechanism = \"fast-gaussian\"\n{rule}");
    let text = job("unit = \"none\"", &contract).replace("rounds = 2", "rounds = 3");
    let id = operator.submit(&text).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    let clients: Vec<u32> = events
        .0
        .iter()
        .filter_map(|e| if let JobEvent::Released { clients, .. } = e { Some(*clients) } else { None })
        .collect();
    assert_eq!(clients, [2, 2, 2]);
    let privacy = operator.privacy(&id).await;
    assert_eq!(privacy["mechanism"], "fast-gaussian");
}

#[tokio::test(flavor = "multi_thread")]
async fn correlated_noise_without_participation_limits_is_refused() {
    let d = Deployment::start().await;
    let mut operator = d.operator().await;
    let text = correlated().replace("participations = 4\nseparation = 1", "");
    let e = operator.submit(&text).await.unwrap_err().to_string();
    assert!(e.contains("[privacy] mechanism = \"blt\" needs [cohort] participations and separation"), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_under_a_central_contract_are_bounded_by_it() {
    let mut d = Deployment::start().await;
    for name in ["a", "b"] {
        let mut config = d.enrol(name, ClientRole::Trainer).await;
        config.policy.declared_rows = Some(if name == "a" { 20 } else { 500 });
        d.run(config, FnTrainer::constant(1.0));
    }
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let weighed = "\n[aggregation]\nweights = \"declared_rows\"\nmax_weight = 100\n\n[deadlines]";
    let text = job("unit = \"none\"", CENTRAL).replace("[deadlines]", weighed);
    let e = operator.submit(&text).await.unwrap_err().to_string();
    assert!(e.contains("[privacy] max_weight = 100"), "{e}");
    let text = text.replace(CENTRAL, &format!("{CENTRAL}\nmax_weight = 100"));
    let id = operator.submit(&text).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert_eq!(events.released(), 2);
}
