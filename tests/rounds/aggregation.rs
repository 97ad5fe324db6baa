//! Aggregation rules and server optimisers, end to end.

use crate::job;
use std::time::Duration;
use undertone_harness::{Deployment, FnTrainer};
use undertone_round::event::{JobEvent, Outcome};

fn with(aggregation: &str, size: u32) -> String {
    let text = job("[deadlines]", &format!("[aggregation]\n{aggregation}\n\n[deadlines]"));
    text.replace("size = 2", &format!("size = {size}"))
        .replace("min_clients = 1", &format!("min_clients = {size}"))
}

/// Five clients, of which one sends a hundred times the opposite: the mean is carried away, each robust rule stays with the
/// honest ones.
#[tokio::test(flavor = "multi_thread")]
async fn a_robust_rule_withstands_a_bad_client() {
    let mut d = Deployment::start().await;
    for (name, step) in [("a", 1.0), ("b", 1.01), ("c", 0.99), ("d", 1.02), ("evil", -100.0)] {
        d.trainer(name, FnTrainer::constant(step)).await;
    }
    d.wait_connected(5).await;
    let mut operator = d.operator().await;
    for (rule, stays) in [
        ("{ kind = \"mean\" }", false),
        ("{ kind = \"median\" }", true),
        ("{ kind = \"trimmed-mean\", beta = 0.2 }", true),
        ("{ kind = \"krum\", byzantine = 1 }", true),
        ("{ kind = \"multi-krum\", byzantine = 1 }", true),
        ("{ kind = \"geometric-median\", iterations = 20 }", true),
        ("{ kind = \"norm-bounded-mean\", bound = 2.0 }", true),
        ("{ kind = \"centred-clipping\", radius = 2.0 }", true),
    ] {
        let text = with(&format!("rule = {rule}"), 5);
        let id = operator.submit(&text).await.unwrap();
        let events = operator.watch_to_end(&id).await;
        assert_eq!(*events.outcome(), Outcome::Completed, "{rule}: {}", events.text());
        // Two rounds of a step of about 1 each.
        let model = operator.model(&id).await;
        let near = model.iter().all(|w| (0.5..=2.5).contains(w));
        assert_eq!(near, stays, "{rule}: {model:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_do_not_fit_are_refused_at_submit() {
    let d = Deployment::start().await;
    let mut operator = d.operator().await;
    let central = "unit = \"client\"\ntrust = \"central\"\nclip_norm = 0.5\nnoise_multiplier = 4.0\ndelta = 1e-5\nbudget_epsilon = 9.0";
    for (text, words) in [
        (with("rule = { kind = \"krum\", byzantine = 2 }", 5), "krum"),
        (with("rule = { kind = \"trimmed-mean\", beta = 0.5 }", 5), "beta"),
        (with("rule = { kind = \"bulyan\", byzantine = 1 }", 5), "bulyan"),
        (with("server = { kind = \"adam\", learning_rate = 0.0 }", 2), "learning_rate"),
        (
            with("rule = { kind = \"median\" }", 5).replace("unit = \"none\"", central),
            "does not go with trust = \"central\"",
        ),
    ] {
        let e = operator.submit(&text).await.unwrap_err().to_string();
        assert!(e.to_lowercase().contains(words), "{words}: {e}");
    }
}

/// The optimiser's momentum goes on over a restart: 1, then 1 + 0.9·1, then 1 + 0.9·1.9.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_optimisers_state_goes_on_over_a_restart() {
    let mut d = Deployment::start().await;
    for name in ["a", "b"] {
        let pause = Duration::from_millis(150);
        d.trainer(
            name,
            FnTrainer::new(move |_, weights| {
                std::thread::sleep(pause);
                Ok(vec![1.0; weights.len()])
            }),
        )
        .await;
    }
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let text = with("server = { kind = \"momentum\", learning_rate = 1.0, momentum = 0.9 }", 2);
    let id = operator.submit(&text.replace("rounds = 2", "rounds = 3")).await.unwrap();
    operator.watch_until(&id, |e| matches!(e, JobEvent::Released { .. })).await;
    d.restart().await;
    let mut operator = d.operator().await;
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    let model = operator.model(&id).await;
    let expected = 1.0 + 1.9 + 2.71;
    assert!(model.iter().all(|w| (w - expected).abs() < 1e-4), "{model:?}");
}

/// Each encoding brings an update over, in as many bytes as it says, with each kind of rule.
#[tokio::test(flavor = "multi_thread")]
async fn updates_travel_in_fewer_bytes() {
    let mut d = Deployment::start().await;
    for name in ["a", "b", "c"] {
        d.trainer(name, FnTrainer::constant(0.5)).await;
    }
    d.wait_connected(3).await;
    let mut operator = d.operator().await;
    let values = 64 * 3 + 1;
    for (encoding, most, rules) in [
        ("{ kind = \"f32\" }", 4 * values, &["mean"][..]),
        ("{ kind = \"bf16\" }", 2 * values, &["mean", "median"]),
        ("{ kind = \"fixed\", bits = 8 }", values + 16, &["mean", "median"]),
        ("{ kind = \"fixed\", bits = 5 }", values, &["mean"]),
        ("{ kind = \"block\", bits = 8 }", values + 64, &["mean", "median"]),
        ("{ kind = \"top-k\", fraction = 0.1 }", values, &["mean"]),
    ] {
        for rule in rules {
            let text = with(&format!("rule = {{ kind = \"{rule}\" }}\nmax_update_norm = 100.0"), 3);
            let text = text.replace("kind = \"logistic\"", "kind = \"mlp\"\nhidden = [64]");
            let text =
                text.replace("[deadlines]", &format!("[transport]\nupdates = {encoding}\n\n[deadlines]"));
            let id = operator.submit(&text).await.unwrap();
            let events = operator.watch_to_end(&id).await;
            assert_eq!(*events.outcome(), Outcome::Completed, "{encoding} {rule}: {}", events.text());
            for event in &events.0 {
                if let JobEvent::Received { bytes, .. } = event {
                    assert!(*bytes <= most && *bytes > 0, "{encoding}: {bytes} bytes");
                }
            }
            // Two rounds of 0.5 each above the initial values; top-k brings a tenth of it at a time.
            let model = operator.model(&id).await;
            let mean = model.iter().map(|w| f64::from(*w)).sum::<f64>() / model.len() as f64;
            let (low, high) = if encoding.contains("top-k") { (0.05, 0.35) } else { (0.85, 1.15) };
            assert!((low..high).contains(&mean), "{encoding} {rule}: {mean}");
        }
    }
    let text = with("rule = { kind = \"median\" }", 3);
    let top = "[transport]\nupdates = { kind = \"top-k\", fraction = 0.1 }\n\n[deadlines]";
    let e = operator.submit(&text.replace("[deadlines]", top)).await.unwrap_err().to_string();
    assert!(e.contains("[transport] top-k does not go with"), "{e}");
}
