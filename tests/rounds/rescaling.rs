//! FedNova and q-FedAvg, end to end: what is released is what their papers' formulas give.

use crate::job;
use undertone_core::id::ClientRole;
use undertone_harness::{Deployment, FnTrainer};
use undertone_round::event::Outcome;

/// Local gradient descent with momentum on 1/2·|w - c|².
fn descend(weights: &[f64], centre: [f64; 2], steps: u64, rate: f64, momentum: f64) -> Vec<f64> {
    let (mut w, mut speed) = (weights.to_vec(), [0.0; 2]);
    for _ in 0..steps {
        for i in 0..2 {
            speed[i] = momentum * speed[i] + (w[i] - centre[i]);
            w[i] -= rate * speed[i];
        }
    }
    w.iter().zip(weights).map(|(new, old)| new - old).collect()
}

fn loss(weights: &[f64], centre: [f64; 2]) -> f64 {
    weights.iter().zip(centre).map(|(w, c)| (w - c) * (w - c)).sum::<f64>() / 2.0
}

fn wide(weights: &[f32]) -> Vec<f64> {
    weights.iter().map(|w| f64::from(*w)).collect()
}

fn text(rounds: u32, training: &str, aggregation: &str) -> String {
    job("rounds = 2", &format!("rounds = {rounds}"))
        .replace("local_steps = 1", training)
        .replace("size = 2", "size = 3")
        .replace("min_clients = 1", "min_clients = 3")
        .replace(
            "[deadlines]",
            &format!("[aggregation]\n{aggregation}\n\n[evaluation]\nevery = 0\n\n[deadlines]"),
        )
}

async fn run(d: &Deployment, text: &str) -> Vec<f64> {
    let mut operator = d.operator().await;
    let id = operator.submit(text).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    wide(&operator.model(&id).await)
}

#[track_caller]
fn assert_near(found: &[f64], wanted: &[f64], tolerance: f64) {
    for (f, w) in found.iter().zip(wanted) {
        assert!((f - w).abs() < tolerance, "{found:?}, not {wanted:?}");
    }
}

const CENTRES: [[f64; 2]; 3] = [[1.0, -1.0], [-2.0, 0.5], [0.5, 3.0]];

/// Three clients with 16, 80 and 320 rows: in two passes of batches of 8 they make 4, 20 and 80 steps.
#[tokio::test(flavor = "multi_thread")]
async fn fednova_is_its_formula() {
    let (rows, rounds) = ([16u64, 80, 320], 10);
    for (momentum, extra) in [(0.0, ""), (0.6, "\nmomentum = 0.6")] {
        let mut d = Deployment::start().await;
        for (nth, (rows, centre)) in rows.into_iter().zip(CENTRES).enumerate() {
            let mut config = d.enrol(&format!("client-{nth}"), ClientRole::Trainer).await;
            config.policy.declared_rows = Some(rows);
            let trainer = FnTrainer::new(move |task, weights| {
                assert!(!task.first_loss);
                let delta = descend(&wide(weights), centre, rows / 4, 0.01, momentum);
                Ok(delta.into_iter().map(|v| v as f32).collect())
            });
            d.run(config, trainer.steps(rows / 4));
        }
        d.wait_connected(3).await;
        let training = format!("local_epochs = 2\nbatch_size = 8{extra}");
        let weights = "weights = \"declared_rows\"\nfraction_bits = 20";
        let nova = format!("{weights}\nrescale = {{ kind = \"fednova\", max_steps = 100 }}");

        // Their update rule, with ||a|| by its definition.
        let efforts = rows.map(|rows| {
            (0..rows / 4).map(|j| (1.0 - momentum.powi(j as i32 + 1)) / (1.0 - momentum)).sum::<f64>()
        });
        let shares = rows.map(|rows| rows as f64 / 416.0);
        let effective: f64 = shares.iter().zip(efforts).map(|(p, a)| p * a).sum();
        let (mut wanted, mut mean) = (vec![0.0; 2], vec![0.0; 2]);
        for _ in 0..rounds {
            let updates =
                |from: &[f64]| [0, 1, 2].map(|k| descend(from, CENTRES[k], rows[k] / 4, 0.01, momentum));
            let (normalised, plain) = (updates(&wanted), updates(&mean));
            for k in 0..3 {
                for i in 0..2 {
                    wanted[i] += effective * shares[k] * normalised[k][i] / efforts[k];
                    mean[i] += shares[k] * plain[k][i];
                }
            }
        }
        assert_near(&run(&d, &text(rounds, &training, &nova)).await, &wanted, 1e-4);
        assert_near(&run(&d, &text(rounds, &training, weights)).await, &mean, 1e-4);
        assert!((wanted[0] - mean[0]).abs() > 0.01, "the two are told apart: {wanted:?} {mean:?}");
        // A server optimiser goes on top: half the step is half the way in the first round.
        let half = format!("{nova}\nserver = {{ kind = \"sgd\", learning_rate = 0.5 }}");
        let (whole, half) =
            (run(&d, &text(1, &training, &nova)).await, run(&d, &text(1, &training, &half)).await);
        assert_near(&half, &[whole[0] / 2.0, whole[1] / 2.0], 1e-6);
    }
}

/// A client that makes more steps than the job counts on takes no part, and both sides read why.
#[tokio::test(flavor = "multi_thread")]
async fn too_many_steps_cost_one_client() {
    let mut d = Deployment::start().await;
    for (name, steps) in [("a", 3), ("b", 3), ("c", 11)] {
        d.trainer(name, FnTrainer::constant(1.0).steps(steps)).await;
    }
    d.wait_connected(3).await;
    let mut operator = d.operator().await;
    let nova = "rescale = { kind = \"fednova\", max_steps = 10 }";
    let text =
        text(1, "local_epochs = 2\nbatch_size = 8", nova).replace("min_clients = 3", "min_clients = 2");
    let id = operator.submit(&text).await.unwrap();
    let events = operator.watch_to_end(&id).await;
    assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    assert!(
        events.text().contains("more local steps than [aggregation] rescale max_steps"),
        "{}",
        events.text()
    );
    assert_near(&wide(&operator.model(&id).await), &[1.0, 1.0], 1e-4);
}

#[tokio::test(flavor = "multi_thread")]
async fn q_fedavg_is_its_formula_and_brings_losses_together() {
    let mut d = Deployment::start().await;
    for (nth, centre) in CENTRES.into_iter().enumerate() {
        let trainer = FnTrainer::new(move |_, weights| {
            Ok(descend(&wide(weights), centre, 1, 0.1, 0.0).into_iter().map(|v| v as f32).collect())
        });
        d.trainer(&format!("client-{nth}"), trainer.loss(move |weights| loss(&wide(weights), centre))).await;
    }
    d.wait_connected(3).await;
    let (rounds, lipschitz) = (25, 10.0);
    let mut spreads = vec![];
    for q in [0.0f64, 1.0, 3.0] {
        let mut wanted = vec![0.0; 2];
        for _ in 0..rounds {
            let (mut numerator, mut denominator) = ([0.0; 2], 0.0);
            for centre in CENTRES {
                let f = loss(&wanted, centre);
                let update = descend(&wanted, centre, 1, 0.1, 0.0);
                let squared: f64 = update.iter().map(|u| (lipschitz * u).powi(2)).sum();
                (0..2).for_each(|i| numerator[i] += f.powf(q) * lipschitz * update[i]);
                denominator += q * f.powf(q - 1.0) * squared + lipschitz * f.powf(q);
            }
            (0..2).for_each(|i| wanted[i] += numerator[i] / denominator);
        }
        let fair = format!(
            "fraction_bits = 22\nmax_update_norm = 100.0\n\
             rescale = {{ kind = \"q-fedavg\", q = {q:.1}, lipschitz = {lipschitz:.1}, max_loss = 5.0 }}"
        );
        let found = run(&d, &text(rounds, "local_steps = 1", &fair)).await;
        assert_near(&found, &wanted, 1e-4);
        let losses = CENTRES.map(|centre| loss(&found, centre));
        let mean = losses.iter().sum::<f64>() / 3.0;
        spreads.push(losses.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / 3.0);
    }
    assert!(spreads[1] < 0.7 * spreads[0] && spreads[2] < 0.7 * spreads[1], "{spreads:?}");
}

/// What stands beside an update is held to the job, as the update is; who breaks it costs itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_the_job_does_not_allow_costs_one_client() {
    let fair =
        "max_update_norm = 8.0\nrescale = { kind = \"q-fedavg\", q = 1.0, lipschitz = 10.0, max_loss = 2.0 }";
    let nova = "rescale = { kind = \"fednova\", max_steps = 10 }";
    let epochs = "local_epochs = 2\nbatch_size = 8";
    for (aggregation, number, words) in [
        (nova, None, "a number of 1 to 10"),
        (nova, Some(0), "a number of 1 to 10"),
        (nova, Some(11), "a number of 1 to 10"),
        (fair, Some(1 << 60), "rescale = q-fedavg), not 1152921504606846976"),
        // An update of norm 2 of 8 needs an h of at least a quarter.
        (fair, Some((1 << 18) - 1), "norm is 2.0000, the job allows at most 1.99"),
        ("", Some(1), "goes with [aggregation] rescale, and with nothing else"),
    ] {
        let mut d = Deployment::start().await;
        for name in ["a", "b"] {
            d.trainer(name, FnTrainer::constant(0.5).loss(|_| 2.0)).await;
        }
        let mut bad = d.raw("bad", ClientRole::Trainer).await;
        bad.hello(1, 1).await.unwrap();
        d.wait_connected(3).await;
        let mut operator = d.operator().await;
        let text = text(1, epochs, aggregation).replace("min_clients = 3", "min_clients = 2");
        let id = operator.submit(&text).await.unwrap();
        let attempt = bad.offer().await.attempt.unwrap();
        let refused = bad.upload_beside(&attempt, &[2 << 16, 0], number).await.unwrap_err();
        assert!(refused.message().contains(words), "{words}: {refused}");
        let events = operator.watch_to_end(&id).await;
        assert_eq!(*events.outcome(), Outcome::Completed, "{}", events.text());
    }
}
