use super::*;
use crate::output::Paint;
use baseline::{Baseline, Baselines};
use report::Training;
use serde_json::{Value, json};
use std::path::Path;
use undertone_core::id::{ClientId, Round};
use undertone_core::trainer::Metrics;
use undertone_round::event::JobEvent;
use undertone_round::job::JobSpec;

fn evaluated(round: u32, accuracy: f64) -> JobEvent {
    JobEvent::Evaluated {
        round: Round(round),
        evaluator: ClientId::new("evaluator").unwrap(),
        metrics: Metrics::of_classes(0.41, accuracy, 185),
    }
}

fn released(round: u32) -> JobEvent {
    let event = json!({
        "kind": "released", "round": round, "attempt": 1, "model": "0".repeat(64), "clients": 4, "asked": 4,
        "epsilon": 1.0,
    });
    serde_json::from_value(event).unwrap()
}

fn tally(events: &[JobEvent]) -> Tally {
    let mut tally = Tally::default();
    events.iter().for_each(|e| tally.note(e));
    tally
}

#[test]
fn the_result_is_that_of_the_last_model() {
    let late = tally(&[released(1), released(2), evaluated(2, 0.83), evaluated(1, 0.5)]);
    let training = late.result().unwrap();
    assert_eq!((training.rounds, training.fewest_clients, training.metrics.accuracy), (2, 4, Some(0.83)));
    let missing = tally(&[released(1), evaluated(1, 0.5), released(2)]);
    assert!(missing.result().unwrap_err().to_string().contains("round 2"));
}

fn statement() -> Value {
    json!({
        "promise": true, "unit": "record", "trust": "local", "epsilon": 4.98765, "epsilon_lower": 4.98712, "delta": 0.001, "accountant": "pld",
        "noise_multiplier": 1.3, "budget_epsilon": 10.0, "attempts": 20,
    })
}

fn report(fewest_clients: u32) -> Report {
    let site = |name: &str, accuracy| (ClientId::new(name).unwrap(), Baseline { accuracy, loss: 0.5 });
    let baselines = Baselines {
        pooled: Baseline { accuracy: 0.81, loss: 0.43 },
        alone: vec![site("cleveland", 0.8), site("switzerland", 0.59)],
    };
    let metrics = Metrics::of_classes(0.41, 0.826, 185);
    let training = Training { rounds: 20, fewest_clients, metrics };
    Report::new(Statement::read(&statement()).unwrap(), training, baselines, 21.23456).unwrap()
}

#[test]
fn the_document_has_exactly_the_promised_fields() {
    assert_eq!(
        serde_json::to_string(&report(4)).unwrap(),
        r#"{"epsilon":4.98765,"epsilon_lower":4.98712,"delta":0.001,"unit":"record","accountant":"pld","test_loss":0.41,"test_accuracy":0.826,"rounds":20,"baseline_pooled_accuracy":0.81,"baseline_single_accuracy":{"cleveland":0.8,"switzerland":0.59},"seconds":21.23}"#
    );
}

#[test]
fn no_promise_no_epsilon() {
    let mut none = statement();
    none["promise"] = json!(false);
    assert!(Statement::read(&none).is_err());
    assert!(Statement::read(&json!({ "promise": false, "unit": "none" })).is_err());
}

#[test]
fn the_table_shows_worth_and_price() {
    let example = example::hospitals(DEFAULT_SEED).unwrap();
    let text = report(4).lines(&example, Paint::default()).join("\n");
    for part in [
        "ε = 4.99 at δ = 0.001 for each record",
        "(accountant: pld, ε from 4.9871 to 4.9877)",
        "185",
        "0.826",
        "0.810",
        "cleveland alone",
        "0.590",
        "+0.026",
        "+0.016",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(text.contains("all four hospitals, federated"), "{text}");
    let text = report(3).lines(&example, Paint::default()).join("\n");
    assert!(text.contains("federated, 3 to 4 clients in a round"), "{text}");
}

#[test]
fn the_default_seed_gives_the_shipped_hospitals() {
    let example = example::hospitals(DEFAULT_SEED).unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/hospitals");
    for site in deployment::sites(&example) {
        let file = shipped.join(site.name.as_str()).join(site.file);
        assert_eq!(site.csv, std::fs::read_to_string(&file).unwrap(), "{}", file.display());
    }
    let other = example::hospitals(2).unwrap();
    assert_ne!(other.evaluator.csv, example.evaluator.csv);
    let rows = |e: &Example| deployment::sites(e).map(example::Site::rows).sum::<usize>();
    assert_eq!((rows(&example), rows(&other)), (920, 920));
}

#[test]
fn declared_rows_are_round_figures() {
    for example in [example::hospitals(3).unwrap(), example::quickstart(3).unwrap()] {
        for site in deployment::sites(&example) {
            assert_eq!(site.declared_rows() % 10, 0);
            assert!(site.declared_rows() <= site.rows() && site.rows() < site.declared_rows() + 10);
        }
    }
}

#[test]
fn a_seed_reaches_the_initial_weights_and_the_job_stays_whole() {
    let of = |seed| {
        let job = example::quickstart(seed).unwrap().job;
        JobSpec::from_toml(&job, "job.toml").unwrap().resolve().unwrap().initial_values()
    };
    assert_eq!(of(7), of(7));
    assert_ne!(of(7), of(8));
    assert_eq!(of(7).len(), 20 * 10 + 10 + 10 + 1);
}
