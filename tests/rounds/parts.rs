//! Jobs that train a part of the model: it alone is sent, noised, moved and kept state of.

use crate::job;
use undertone_harness::{Deployment, FnTrainer, Operator};
use undertone_round::event::{JobEvent, Outcome};
use undertone_round::job::{Job, JobSpec};

/// A perceptron of one feature and 64 hidden units, of which the head is trained: 65 of 193 values.
fn head(aggregation: &str, privacy: &str, transport: &str) -> String {
    let text = job("kind = \"logistic\"", "kind = \"mlp\"\nhidden = [64]\nseed = 3");
    text.replace("local_steps = 1", "local_steps = 1\ntensors = [\"2.*\"]")
        .replace(
            "[privacy]\nunit = \"none\"",
            &format!("[aggregation]\n{aggregation}\n\n[privacy]\n{privacy}"),
        )
        .replace("[deadlines]", &format!("{transport}\n[deadlines]"))
}

fn resolved(text: &str) -> Job {
    JobSpec::from_toml(text, "job.toml").unwrap().resolve().unwrap()
}

/// How far the values of the part moved; the others must not have moved by a bit.
async fn moved(operator: &mut Operator, text: &str, most_bytes: u64) -> Vec<f32> {
    let job = resolved(text);
    let id = operator.submit(text).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{text}: {}", events.text());
    let sent: Vec<u64> = events
        .0
        .iter()
        .filter_map(|e| if let JobEvent::Received { bytes, .. } = e { Some(*bytes) } else { None })
        .collect();
    assert!(sent.len() == 4 && sent.iter().all(|bytes| *bytes <= most_bytes), "{sent:?}");
    let (before, after) = (job.initial_values(), operator.model(&id).await);
    let (mut first, second) = (before.clone(), job.part().gather(&after));
    job.part().scatter(&second, &mut first);
    assert_eq!(first, after, "a value outside of the part has moved");
    second.iter().zip(job.part().gather(&before)).map(|(a, b)| a - b).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_part_is_sent_and_moved() {
    let mut d = Deployment::start().await;
    for name in ["a", "b"] {
        d.trainer(name, FnTrainer::constant(0.5)).await;
    }
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let none = "unit = \"none\"";
    let eight = "[transport]\nupdates = { kind = \"block\", bits = 8 }\n";
    let most = "max_update_norm = 100.0";
    for (aggregation, transport, bytes, wanted) in [
        ("", "", 4 * 65, 1.0),
        // The optimiser's state and the rule's centre are of the part.
        ("server = { kind = \"momentum\", momentum = 0.5 }", "", 4 * 65, 0.5 + 0.75),
        ("rule = { kind = \"median\" }", "", 4 * 65, 1.0),
        ("rule = { kind = \"centred-clipping\", radius = 50.0 }", "", 4 * 65, 1.0),
        (most, eight, 65 + 64, 1.0),
        ("rule = { kind = \"median\" }\nmax_update_norm = 100.0", eight, 65 + 64, 1.0),
    ] {
        let text = head(aggregation, none, transport);
        for value in moved(&mut operator, &text, bytes).await {
            assert!((value - wanted).abs() < 0.02, "{aggregation} {transport}: {value}, not {wanted}");
        }
    }
}

/// Noise is drawn for the part and for nothing else, by the coordinator or by each client; correlated noise keeps its buffers
/// over the part.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_part_is_noised() {
    let mut d = Deployment::start().await;
    for name in ["a", "b"] {
        d.trainer(name, FnTrainer::constant(0.0)).await;
    }
    d.wait_connected(2).await;
    let mut operator = d.operator().await;
    let promise =
        "unit = \"client\"\nclip_norm = 1.0\nnoise_multiplier = 4.0\ndelta = 1e-5\nbudget_epsilon = 20.0";
    for (extra, cohort) in [
        ("trust = \"central\"", ""),
        ("trust = \"local\"", ""),
        ("trust = \"central\"\nmechanism = \"blt\"", "participations = 2\nseparation = 1"),
    ] {
        let text = head("", &format!("{promise}\n{extra}"), "");
        let text = text.replace("min_clients = 1", &format!("min_clients = 2\n{cohort}"));
        let noise = moved(&mut operator, &text, 4 * 65).await;
        // 65 draws with a deviation above 1: not one of them is zero, and their spread is the noise's.
        let variance = noise.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 65.0;
        assert!(noise.len() == 65 && noise.iter().all(|v| *v != 0.0), "{extra}: {noise:?}");
        assert!((1.0..200.0).contains(&variance), "{extra}: {variance}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_is_not_there_is_refused_at_submit() {
    let d = Deployment::start().await;
    let mut operator = d.operator().await;
    let text = head("", "unit = \"none\"", "").replace("\"2.*\"", "\"2.wieght\"");
    let e = operator.submit(&text).await.unwrap_err().to_string();
    assert!(e.contains("names no tensor of the model") && e.contains("2.weight"), "{e}");
}
