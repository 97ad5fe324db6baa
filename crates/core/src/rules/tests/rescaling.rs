//! FedNova and q-FedAvg, from the client's update to the mean, against the formulas of their papers.

use super::*;
use crate::aggregate::IntegerSum;
use crate::fixed::{integer_bound, squared_norm};
use crate::plan::TrainPlan;
use crate::rules::rescale::{NumberSum, Rescale, RescaleError, Rescaling};

const MAX_NORM: f64 = 500.0;

fn plan(text: &str) -> TrainPlan {
    toml::from_str(&format!("learning_rate = 0.1\nlocal_epochs = 2\nbatch_size = 8\n{text}")).unwrap()
}

fn rescaling(text: &str, training: &str) -> Rescaling {
    resolve(text, training).unwrap().unwrap()
}

fn resolve(text: &str, training: &str) -> Result<Option<Rescaling>, String> {
    #[derive(serde::Deserialize)]
    struct Table {
        rescale: Rescale,
    }
    let table: Table = toml::from_str(&format!("rescale = {text}")).map_err(|e| e.to_string())?;
    table.rescale.resolve(&plan(training), MAX_NORM)
}

/// One client's part of a round.
#[derive(Clone)]
struct Client {
    update: Vec<f64>,
    steps: u64,
    loss: f64,
    weight: u32,
}

fn norm(update: &[f64]) -> f64 {
    update.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// What a client sends: integers and the number beside them.
fn sent(client: &Client, how: &Rescaling) -> (Vec<i32>, u64) {
    let share = how.share(norm(&client.update), client.steps, Some(client.loss)).unwrap();
    let one = grid().units_per_one();
    let units: Vec<i32> = client.update.iter().map(|v| (v * share.factor * one).round() as i32).collect();
    let bound = integer_bound(grid(), MAX_NORM);
    let number = share.number.max(how.least_number(squared_norm(&units), bound));
    assert!((1..=how.limit()).contains(&number));
    let within = u128::from(how.bound(number, bound));
    assert!(squared_norm(&units) <= within * within, "an honest update is refused");
    (units, number)
}

/// The step that a round makes of them.
fn step(clients: &[Client], how: &Rescaling) -> Vec<f64> {
    let mut sum = IntegerSum::zero(grid(), clients[0].update.len());
    let mut numbers = NumberSum::default();
    for client in clients {
        let (units, number) = sent(client, how);
        sum.fold(&units, client.weight).unwrap();
        numbers.fold(how, number, client.weight);
    }
    let (divisor, factor) = (sum.total_weight() as f64 * grid().units_per_one(), numbers.factor(how));
    sum.units().iter().map(|&u| u as f64 / divisor * factor).collect()
}

fn clients(n: usize, values: usize, seed: u64) -> Vec<Client> {
    let mut draw = Draw(seed);
    (0..n)
        .map(|_| Client {
            update: (0..values).map(|_| draw.normal() * 0.3).collect(),
            steps: u64::from(draw.next() % 60 + 1),
            loss: f64::from(draw.next() % 1000) / 250.0,
            weight: draw.next() % 900 + 1,
        })
        .collect()
}

#[track_caller]
fn assert_close(found: &[f64], wanted: &[f64], tolerance: f64) {
    for (at, (f, w)) in found.iter().zip(wanted).enumerate() {
        assert!((f - w).abs() <= tolerance, "value {at}: {f}, not {w}");
    }
    assert_eq!(found.len(), wanted.len());
}

/// Momentum and the proximal term by their definitions: a gradient of one in each step.
#[test]
fn normalisers_are_the_sums_of_what_a_step_leaves_behind() {
    let check = |training: &str, wanted: &dyn Fn(u32) -> f64| {
        let Rescaling::FedNova(found) = rescaling("{ kind = \"fednova\", max_steps = 100 }", training) else {
            panic!("it is fednova")
        };
        for steps in [1, 2, 3, 10, 57] {
            let (found, wanted) = (found.normaliser(steps), wanted(steps));
            assert!((found - wanted).abs() < 1e-9 * wanted, "{training} {steps}: {found} {wanted}");
        }
    };
    check("", &f64::from);
    for rho in [0.0, 0.5, 0.9, 0.99] {
        check(&format!("momentum = {rho}"), &|steps| {
            let (mut speed, mut way) = (0.0, 0.0);
            for _ in 0..steps {
                speed = rho * speed + 1.0;
                way += speed;
            }
            way
        });
    }
    for proximal in [0.01, 1.0, 9.0] {
        check(&format!("proximal = {proximal}"), &|steps| {
            (0..steps).fold(0.0, |way, _| (1.0 - 0.1 * proximal) * way + 1.0)
        });
    }
}

#[test]
fn fednova_is_the_formula_and_with_equal_steps_the_mean() {
    for (training, a) in [("", None), ("momentum = 0.9", Some(0.9))] {
        let how = rescaling("{ kind = \"fednova\", max_steps = 60 }", training);
        let clients = clients(7, 300, 21);
        let normaliser = |steps: u64| match a {
            None => steps as f64,
            Some(rho) => (0..steps as i32).map(|j| (1.0 - f64::powi(rho, j + 1)) / (1.0 - rho)).sum(),
        };
        let total: f64 = clients.iter().map(|c| f64::from(c.weight)).sum();
        let share = |c: &Client| f64::from(c.weight) / total;
        let effective: f64 = clients.iter().map(|c| share(c) * normaliser(c.steps)).sum();
        let wanted = |at: usize| {
            effective * clients.iter().map(|c| share(c) * c.update[at] / normaliser(c.steps)).sum::<f64>()
        };
        assert_close(&step(&clients, &how), &(0..300).map(wanted).collect::<Vec<_>>(), 2e-5);

        let same: Vec<Client> = clients.iter().map(|c| Client { steps: 6, ..c.clone() }).collect();
        let mean = |at: usize| same.iter().map(|c| share(c) * c.update[at]).sum::<f64>();
        assert_close(&step(&same, &how), &(0..300).map(mean).collect::<Vec<_>>(), 2e-5);
    }
}

#[test]
fn q_fedavg_is_the_formula() {
    let clients: Vec<Client> =
        clients(6, 200, 22).into_iter().map(|c| Client { weight: 1, loss: c.loss + 0.2, ..c }).collect();
    for q in [0.0, 0.001, 0.5, 1.0, 2.0, 5.0] {
        for lipschitz in [1.0, 20.0] {
            let text = format!("{{ kind = \"q-fedavg\", q = {q}, lipschitz = {lipschitz}, max_loss = 5.0 }}");
            let (mut numerator, mut denominator) = ([0.0; 200], 0.0);
            for Client { update, loss, .. } in &clients {
                let gradient: Vec<f64> = update.iter().map(|u| -lipschitz * u).collect();
                let squared: f64 = gradient.iter().map(|g| g * g).sum();
                numerator.iter_mut().zip(&gradient).for_each(|(sum, g)| *sum += loss.powf(q) * g);
                denominator += q * loss.powf(q - 1.0) * squared + lipschitz * loss.powf(q);
            }
            let wanted: Vec<f64> = numerator.iter().map(|n| -n / denominator).collect();
            // Values are rounded after the factor: by half a unit each, over the factors' sum.
            let shares: f64 = clients.iter().map(|c| (c.loss / 5.0).powf(q)).sum();
            let tolerance = 6.0 * 0.5 / 65_536.0 / shares + 1e-5;
            assert_close(&step(&clients, &rescaling(&text, "")), &wanted, tolerance);
        }
    }
}

/// The same bits, in whatever order updates come and however partial sums are merged.
#[test]
fn neither_order_nor_merging_changes_a_bit() {
    for text in [
        "{ kind = \"fednova\", max_steps = 60 }",
        "{ kind = \"q-fedavg\", q = 2.0, lipschitz = 10.0, max_loss = 4.0 }",
    ] {
        let how = rescaling(text, "momentum = 0.9");
        let mut clients = clients(9, 50, 23);
        let first = step(&clients, &how);
        let numbers = |clients: &[Client]| {
            let mut sum = NumberSum::default();
            clients.iter().for_each(|c| sum.fold(&how, sent(c, &how).1, c.weight));
            sum
        };
        let all = numbers(&clients);
        for turn in 0..9 {
            clients.rotate_left(turn);
            clients.swap(0, 4);
            assert_eq!(step(&clients, &how), first);
            let mut merged = numbers(&clients[..turn]);
            merged.merge(&numbers(&clients[turn..]));
            assert_eq!((merged, merged.factor(&how).to_bits()), (all, all.factor(&how).to_bits()));
        }
    }
    assert_eq!(NumberSum::default().factor(&rescaling("{ kind = \"fednova\", max_steps = 1 }", "")), 0.0);
}

/// Local gradient descent on f(x) = h/2·(x - c)².
fn descend(x: f64, (h, c): (f64, f64), steps: u64, rate: f64) -> f64 {
    (0..steps).fold(x, |x, _| x - rate * h * (x - c)) - x
}

/// Two clients with the same say and other optima, of which one makes 20 times the steps. The plain mean ends where that one
/// wants it (their theorem 1 on the objective inconsistency); FedNova where the mean of both losses is least.
#[test]
fn fednova_takes_the_inconsistency_out_of_the_objective() {
    let objectives = [(1.0, 1.0), (1.0, -1.0)];
    let how = rescaling("{ kind = \"fednova\", max_steps = 40 }", "");
    let (mut plain, mut nova) = (0.0, 0.0);
    for _ in 0..4000 {
        let updates =
            |x: f64| [2, 40].into_iter().zip(objectives).map(move |(n, f)| (n, descend(x, f, n, 0.002)));
        plain += updates(plain).map(|(_, u)| u).sum::<f64>() / 2.0;
        let clients: Vec<Client> = updates(nova)
            .map(|(steps, update)| Client { update: vec![update], steps, loss: 0.0, weight: 1 })
            .collect();
        nova += step(&clients, &how)[0];
    }
    assert!(plain < -0.85, "the plain mean went to {plain}");
    assert!(nova.abs() < 0.05, "fednova went to {nova}, not to 0");
}

/// Three clients of which two want the same: the mean serves them, q-FedAvg the one that is alone more. The losses lie closer
/// together the larger q is.
#[test]
fn q_fedavg_lowers_the_spread_of_losses() {
    let objectives = [(1.0, 1.0), (1.0, 1.2), (1.0, -2.0)];
    let loss = |x: f64, (h, c): (f64, f64)| 0.5 * h * (x - c) * (x - c);
    let spread = |q: f64| {
        let text = format!("{{ kind = \"q-fedavg\", q = {q}, lipschitz = 10.0, max_loss = 6.0 }}");
        let how = rescaling(&text, "");
        let mut x = 0.0;
        for _ in 0..600 {
            let client =
                |f| Client { update: vec![descend(x, f, 1, 0.1)], steps: 1, loss: loss(x, f), weight: 1 };
            x += step(&objectives.map(client), &how)[0];
        }
        let losses = objectives.map(|f| loss(x, f));
        let mean = losses.iter().sum::<f64>() / 3.0;
        losses.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / 3.0
    };
    let (none, some, much) = (spread(0.0), spread(1.0), spread(5.0));
    assert!(some < 0.5 * none && much < 0.8 * some, "variances {none}, {some}, {much}");
}

/// Whatever a client says of its loss, all together never move the model further than the bound: an update that is longer than
/// what was said allows is refused.
#[test]
fn saying_little_gives_no_lever() {
    let how = rescaling("{ kind = \"q-fedavg\", q = 2.0, lipschitz = 1.0, max_loss = 2.0 }", "");
    let bound = integer_bound(grid(), MAX_NORM);
    for number in [1, 1000, 1 << 20, how.limit()] {
        let longest = how.bound(number, bound);
        assert!(longest <= bound);
        let mut numbers = NumberSum::default();
        numbers.fold(&how, number, 1);
        assert!(longest as f64 * numbers.factor(&how) <= bound as f64 * 1.000_001, "{number}");
        let squared = u128::from(longest) * u128::from(longest);
        assert!(how.least_number(squared, bound) <= number);
        if longest < bound {
            assert!(how.least_number((u128::from(longest) + 1).pow(2), bound) > number);
        }
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (text, training, words) in [
        ("{ kind = \"fednova\", max_steps = 0 }", "", "max_steps"),
        ("{ kind = \"fednova\" }", "", "max_steps"),
        ("{ kind = \"fednova\", max_steps = 5, q = 1.0 }", "", "unknown field"),
        ("{ kind = \"fednova\", max_steps = 9 }", "momentum = 0.5\nproximal = 0.1", "not with both"),
        ("{ kind = \"fednova\", max_steps = 9 }", "proximal = 11.0", "below 1"),
        (
            "{ kind = \"fednova\", max_steps = 9 }",
            "optimizer = { kind = \"adam\" }",
            "sgd without weight_decay",
        ),
        ("{ kind = \"fednova\", max_steps = 9 }", "weight_decay = 0.1", "sgd without weight_decay"),
        ("{ kind = \"fednova\", max_steps = 9 }", "schedule = { kind = \"cosine\" }", "steps of one size"),
        ("{ kind = \"q-fedavg\", q = -1.0, lipschitz = 1.0, max_loss = 1.0 }", "", "q of q-fedavg"),
        ("{ kind = \"q-fedavg\", q = 101.0, lipschitz = 1.0, max_loss = 1.0 }", "", "q of q-fedavg"),
        ("{ kind = \"q-fedavg\", q = 1.0, lipschitz = 0.0, max_loss = 1.0 }", "", "lipschitz"),
        ("{ kind = \"q-fedavg\", q = 1.0, lipschitz = 1.0, max_loss = inf }", "", "max_loss"),
        ("{ kind = \"q-fedavg\", q = 0.01, lipschitz = 1e9, max_loss = 1e-9 }", "", "max_update_norm"),
    ] {
        let e = resolve(text, training).unwrap_err();
        assert!(e.contains(words), "{words}: {e}");
    }
    assert_eq!(resolve("{ kind = \"plain\" }", ""), Ok(None));
    for (bad, plan) in [("local_steps = 3", "with local_steps"), ("local_epochs = 3", "no batch_size")] {
        let plan_text = format!("learning_rate = 0.1\n{bad}");
        let how: Rescale = serde_json::from_str(r#"{"kind": "fednova", "max_steps": 3}"#).unwrap();
        let e = how.resolve(&toml::from_str(&plan_text).unwrap(), MAX_NORM).unwrap_err();
        assert!(e.contains("changes nothing") && e.contains(plan), "{e}");
    }
    let nova = rescaling("{ kind = \"fednova\", max_steps = 9 }", "");
    for steps in [0, 10, u64::MAX] {
        assert_eq!(nova.share(1.0, steps, None), Err(RescaleError::Steps { steps, max_steps: 9 }));
    }
    let fair = rescaling("{ kind = \"q-fedavg\", q = 1.0, lipschitz = 1.0, max_loss = 2.0 }", "");
    for loss in [None, Some(f64::NAN), Some(f64::INFINITY), Some(-0.1)] {
        assert_eq!(fair.share(1.0, 1, loss), Err(RescaleError::Loss));
    }
    // A loss beyond the largest counts as the largest.
    assert_eq!(fair.share(1.0, 1, Some(2.0)), fair.share(1.0, 1, Some(900.0)));
}
