//! Label flipping (Biggio, Nelson, Laskov 2011; in federated learning Fang, Cao, Jia, Gong 2020), with boosting (Bagdasaryan
//! et al. 2020, section 4.2): seven of 32 clients train honestly, but on rows whose labels they turned around, and send
//! their update ten times. All clients train a logistic model on two clouds of points, over some rounds.

use super::*;

const FEATURES: usize = 10;
const ROWS: usize = 40;
const ROUNDS: usize = 10;
const BOOST: f64 = 10.0;

/// Rows of features and their labels, 1 or -1.
type Rows = Vec<(Vec<f64>, f64)>;

/// Two normal clouds around (0.4, 0.4, ...) and its opposite: the best model is right for nine of ten.
fn rows(draw: &mut Draw, n: usize) -> Rows {
    let row = |i: usize, draw: &mut Draw| {
        let label = if i.is_multiple_of(2) { 1.0 } else { -1.0 };
        ((0..FEATURES).map(|_| 0.4 * label + draw.normal()).collect(), label)
    };
    (0..n).map(|i| row(i, draw)).collect()
}

/// The logit of a model whose last value is its bias.
fn logit(model: &[f64], x: &[f64]) -> f64 {
    product(&model[..FEATURES], x) + model[FEATURES]
}

/// What a few steps of gradient descent on the logistic loss change.
fn trained(model: &[f64], rows: &Rows) -> Vec<f64> {
    let mut now = model.to_vec();
    for _ in 0..5 {
        let mut gradient = [0.0; FEATURES + 1];
        for (x, label) in rows {
            // d/dz log(1 + exp(-label z)) = -label / (1 + exp(label z))
            let slope = -label / (1.0 + (label * logit(&now, x)).exp()) / rows.len() as f64;
            gradient.iter_mut().zip(x.iter().chain([&1.0])).for_each(|(g, x)| *g += slope * x);
        }
        now.iter_mut().zip(gradient).for_each(|(w, g)| *w -= 0.3 * g);
    }
    now.iter().zip(model).map(|(now, before)| now - before).collect()
}

fn accuracy(model: &[f64], rows: &Rows) -> f64 {
    rows.iter().filter(|(x, label)| logit(model, x) * label > 0.0).count() as f64 / rows.len() as f64
}

/// The clients, the liars first with their labels turned, and rows that nobody trains on.
fn clients(seed: u64) -> (Vec<Rows>, Rows) {
    let mut draw = Draw(seed);
    let mut all: Vec<Rows> = (0..N).map(|_| rows(&mut draw, ROWS)).collect();
    all[..BAD].iter_mut().flatten().for_each(|(_, label)| *label = -*label);
    (all, rows(&mut draw, 2000))
}

/// The round that a model leads to.
fn round(clients: &[Rows], model: &[f64]) -> Round {
    let mut updates: Vec<Vec<f64>> = clients.iter().map(|rows| trained(model, rows)).collect();
    updates[..BAD].iter_mut().flatten().for_each(|v| *v *= BOOST);
    Round::of(updates)
}

/// The model after some rounds, in each of which `step` makes the change.
fn model_after(clients: &[Rows], step: impl Fn(&Round) -> Vec<f64>) -> Vec<f64> {
    let mut model = vec![0.0; FEATURES + 1];
    for _ in 0..ROUNDS {
        let change = step(&round(clients, &model));
        model.iter_mut().zip(change).for_each(|(w, c)| *w += c);
    }
    model
}

#[test]
fn flipped_labels_turn_the_mean_around_and_cost_a_robust_rule_little() {
    for seed in 60..63 {
        let (clients, unseen) = clients(seed);
        let honest = accuracy(&model_after(&clients, |round| round.mean.clone()), &unseen);
        assert!(honest > 0.85, "the task can be learnt: {honest}");
        let mean = accuracy(&model_after(&clients, |round| round.aggregate(Rule::Mean {})), &unseen);
        assert!(mean < 0.5, "the mean is worse than a coin: {mean}");
        // Rules by their place in the list: a bound depends on the round.
        let rules = round(&clients, &[0.0; FEATURES + 1]).bounds().len();
        for which in 0..rules {
            let model = model_after(&clients, |round| {
                let (rule, bound) = round.bounds().swap_remove(which);
                let aggregate = round.aggregate(rule);
                let error = apart(&aggregate, &round.mean);
                assert!(
                    error <= bound + 1e-3,
                    "{rule:?}: {error} from the honest mean, the bound is {bound}"
                );
                aggregate
            });
            let (found, rule) =
                (accuracy(&model, &unseen), round(&clients, &model).bounds().swap_remove(which).0);
            assert!(found > honest - 0.05, "{rule:?}: {found}, without liars {honest}");
        }
    }
}
