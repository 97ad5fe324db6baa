//! Measurements that are kept private, and jobs that stop because of them.

use crate::job;
use std::time::Duration;
use undertone_core::id::ClientRole;
use undertone_core::trainer::Metrics;
use undertone_harness::{Deployment, Events, FnTrainer};
use undertone_round::event::{JobEvent, Outcome};
use undertone_round::job::JobSpec;

const RECORD: &str = "unit = \"record\"\ntrust = \"local\"\nclip_norm = 1.0\nsampling_rate = 0.5\nnoise_multiplier = 2.0\ndelta = 1e-3\nbudget_epsilon = 10.0\nmetrics = { epsilon = 0.2, max_loss = 4.0 }";

async fn with_evaluator(d: &mut Deployment, limit: Option<f64>) {
    for name in ["a", "b"] {
        let mut config = d.enrol(name, ClientRole::Trainer).await;
        config.policy.declared_rows = Some(80);
        d.run(config, FnTrainer::slow(Duration::from_millis(100)));
    }
    let mut judge = d.enrol("judge", ClientRole::Evaluator).await;
    judge.policy.declared_rows = Some(12);
    judge.policy.max_epsilon = limit;
    d.run(judge, FnTrainer::constant(0.0));
    d.wait_connected(3).await;
}

fn measured(events: &Events) -> Vec<(u32, Metrics)> {
    let of = |e: &JobEvent| match e {
        JobEvent::Evaluated { round, metrics, .. } => Some((round.0, *metrics)),
        _ => None,
    };
    events.0.iter().filter_map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_measurement_has_noise_is_charged_and_is_drawn_once() {
    let mut d = Deployment::start().await;
    with_evaluator(&mut d, None).await;
    let mut operator = d.operator().await;
    let text = job("unit = \"none\"", RECORD).replace("rounds = 2", "rounds = 3");
    let id = operator.submit(&text).await.unwrap();
    operator.watch_until(&id, |e| matches!(e, JobEvent::Evaluated { .. })).await;
    d.restart().await;
    let mut operator = d.operator().await;
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    let found = measured(&events);
    // A model that is released while the evaluator is still coming back after the restart is not measured.
    let rounds: Vec<_> = found.iter().map(|(round, _)| *round).collect();
    assert!(rounds == [1, 2, 3] || rounds == [1, 3], "{rounds:?}");
    for (_, m) in &found {
        // Five of ten rows are right, over twelve that are declared; noise of scale ten rows.
        assert!(m.rows == 12 && m.accuracy != Some(0.5), "{m:?}");
    }
    assert_ne!(found[0].1.accuracy, found[1].1.accuracy);
    // The evaluator's own record holds what it gave, and nothing else was given.
    let record = std::fs::read(d.path().join(format!("clients/judge/answers/{id}.json"))).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    assert_eq!(record["measurements"], found.len());
    for (round, m) in &found {
        assert_eq!(record["kept"][round.to_string()]["loss"], m.loss);
    }
    // Three rounds and three measurements.
    let plan = JobSpec::from_toml(&text, "job.toml").unwrap().resolve().unwrap();
    let told = operator.privacy(&id).await["epsilon"].as_f64().unwrap();
    assert_eq!(Some(told), plan.contract().epsilon_after(3));
    let without = text.replace("metrics = { epsilon = 0.2, max_loss = 4.0 }", "");
    let without = JobSpec::from_toml(&without, "job.toml").unwrap().resolve().unwrap();
    let trained = without.contract().epsilon_after(3).unwrap();
    assert!((told - trained - 0.6).abs() < 1e-9, "{told} of which {trained} for training");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evaluators_owner_limits_what_measurements_cost() {
    let mut d = Deployment::start().await;
    with_evaluator(&mut d, Some(0.3)).await;
    let mut operator = d.operator().await;
    let id = operator.submit(&job("unit = \"none\"", RECORD)).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(measured(&events).len(), 1, "{}", events.text());
    let reason = events.0.iter().find_map(|e| match e {
        JobEvent::NotEvaluated { reason, .. } => Some(reason.as_str()),
        _ => None,
    });
    assert!(reason.unwrap().contains("ε = 0.400 in measurements, its limit is 0.3"), "{reason:?}");
}

/// The harness measures the mean of the weights: a model that does not move gets no better.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_gets_no_better_stops_and_spends_no_more() {
    let mut d = Deployment::start().await;
    for name in ["a", "b"] {
        d.trainer(name, FnTrainer::slow(Duration::from_millis(100))).await;
    }
    d.evaluator("judge", FnTrainer::constant(0.0)).await;
    d.wait_connected(3).await;
    let mut operator = d.operator().await;
    let text = job("rounds = 2", "rounds = 50").replace(
        "[deadlines]",
        "[evaluation]\nevery = 1\npatience = 3\nmin_improvement = 1000000.0\n\n[deadlines]",
    );
    let id = operator.submit(&text).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    let Outcome::StoppedEarly { best_round, reason } = events.outcome() else { panic!("{}", events.text()) };
    assert_eq!(best_round.0, 1);
    assert!(reason.contains("3 measurements in a row were no better than round 1"), "{reason}");
    // Measurements may lag behind by a round or two.
    assert!((4..10).contains(&events.released()), "{}", events.text());
    assert_eq!(operator.detail(&id).await.summary.unwrap().status, "stopped-early");
    let never = text.replace("every = 1", "every = 0");
    let e = operator.submit(&never).await.unwrap_err().to_string();
    assert!(e.contains("[evaluation] every = 0 measures nothing"), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evaluators_owner_may_insist_on_noise() {
    let mut d = Deployment::start().await;
    d.trainer("a", FnTrainer::constant(1.0)).await;
    let mut judge = d.enrol("judge", ClientRole::Evaluator).await;
    judge.policy.allow_exact_measurements = false;
    d.run(judge, FnTrainer::constant(0.0));
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let id = operator.submit(&job("size = 2", "size = 1")).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(measured(&events).len(), 0, "{}", events.text());
    assert!(events.text().contains("allow_exact_measurements"), "{}", events.text());
}
