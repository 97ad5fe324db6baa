//! How often a client takes part, and how it is drawn, end to end.

use crate::job;
use std::collections::BTreeSet;
use undertone_harness::{Deployment, FnTrainer};
use undertone_round::event::{JobEvent, Outcome};

#[tokio::test(flavor = "multi_thread")]
async fn participations_are_counted_by_both_sides_and_survive_a_restart() {
    let mut d = Deployment::start().await;
    for name in ["a", "b", "c", "d"] {
        d.trainer(name, FnTrainer::constant(1.0)).await;
    }
    d.wait_connected(4).await;
    let mut operator = d.operator().await;
    let limited = "min_clients = 2\nparticipations = 1\nseparation = 1";
    let text = job("min_clients = 1", limited).replace("rule = \"all\"", "rule = \"uniform\"");
    let text = text.replace("rounds = 2", "rounds = 3").replace("gather = \"20s\"", "gather = \"4s\"");
    let id = operator.submit(&text).await.unwrap();
    operator.watch_until(&id, |e| matches!(e, JobEvent::Released { .. })).await;
    d.restart().await;
    let mut operator = d.operator().await;
    let events = operator.watch_to_end(&id).await;
    // Four clients, two a round, each once: there is nobody for round 3.
    let Outcome::Failed { reason } = events.outcome() else { panic!("{}", events.text()) };
    assert!(reason.contains("only 0 of the 2") && reason.contains("take part again"), "{reason}");
    let released = events.0.iter().filter(|e| matches!(e, JobEvent::Released { .. })).count();
    assert_eq!(released, 2, "{}", events.text());
    let mut counted = BTreeSet::new();
    for event in &events.0 {
        if let JobEvent::Received { client, .. } = event {
            assert!(counted.insert(client.clone()), "{client} counts twice: {}", events.text());
        }
    }
    assert_eq!(counted.len(), 4);
    for name in ["a", "b", "c", "d"] {
        let account = d.path().join(format!("clients/{name}/outbox/{id}.account.json"));
        let account: serde_json::Value = serde_json::from_slice(&std::fs::read(account).unwrap()).unwrap();
        assert_eq!(account["taken_part"]["joined"], 1, "{account}");
    }
}

const CENTRAL: &str = "unit = \"client\"\ntrust = \"central\"\nclip_norm = 0.5\nnoise_multiplier = 1.0\ndelta = 1e-5\nbudget_epsilon = 6.0";

/// One chance in a million: nobody is asked, and a model comes out all the same.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_draw_is_released_as_noise_over_the_fixed_denominator() {
    let mut d = Deployment::start().await;
    for name in ["a", "b"] {
        d.trainer(name, FnTrainer::constant(1.0)).await;
    }
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let poisson = "rate = 0.000001\npopulation = 2\ncap = 2\nmin_clients = 1";
    let text = job("size = 2\nmin_clients = 1", poisson).replace("rule = \"all\"", "rule = \"poisson\"");
    let e = operator.submit(&text).await.unwrap_err();
    assert!(e.to_string().contains("[cohort] rule = \"poisson\" goes with unit = \"client\""), "{e}");
    let text = text.replace("unit = \"none\"", CENTRAL);
    let text = text.replace("kind = \"logistic\"", "kind = \"mlp\"\nhidden = [64]");
    let id = operator.submit(&text).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    let counts: Vec<_> = events
        .0
        .iter()
        .filter_map(|e| match e {
            JobEvent::Released { clients, asked, .. } => Some((*clients, *asked)),
            _ => None,
        })
        .collect();
    assert_eq!(counts, [(0, 0), (0, 0)]);
    // Two releases of noise with σ = 0.5, each over a denominator of two millionths.
    let model = operator.model(&id).await;
    let deviation = (model.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>() / model.len() as f64).sqrt();
    let expected = 2f64.sqrt() * 0.5 / 2e-6;
    assert!(
        (deviation / expected - 1.0).abs() < 0.2,
        "{deviation} over {} values, not {expected}",
        model.len()
    );
    let epsilon = operator.privacy(&id).await["epsilon"].as_f64().unwrap();
    assert!(epsilon < 0.5, "two rounds of everyone would be above 6: {epsilon}");
}
