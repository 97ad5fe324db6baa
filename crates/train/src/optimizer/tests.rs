use super::*;
use tch::Kind;
use undertone_core::plan::LocalWork;

fn plan(text: &str) -> TrainPlan {
    let plan: TrainPlan = toml::from_str(&format!("learning_rate = 0.1\nlocal_steps = 20\n{text}")).unwrap();
    plan.validate().unwrap();
    plan
}

/// The gradient at a step: what it is does not matter, only that it differs from step to step and value to value.
fn gradient(step: u64, weights: &[f64]) -> Vec<f64> {
    weights.iter().enumerate().map(|(i, w)| 0.3 * w + ((step * 5 + i as u64) as f64 * 1.7).sin()).collect()
}

const START: [f64; 5] = [0.5, -1.0, 2.0, 0.0, -0.25];

/// The papers' formulas, value by value, in f64.
fn by_hand(plan: &TrainPlan, steps: u64) -> Vec<f64> {
    let rate = LearningRate::new(plan, RoundOf::default(), steps);
    let (mut w, mut first, mut second) = (START.to_vec(), vec![0.0; 5], vec![0.0; 5]);
    let decay = plan.weight_decay();
    for step in 0..steps {
        let lr = rate.at(step);
        let mut g = gradient(step, &w);
        g.iter_mut().zip(w.iter().zip(&START)).for_each(|(g, (w, s))| *g += plan.proximal * (w - s));
        if let Some(most) = plan.clip_gradient_norm {
            let norm = g.iter().map(|g| g * g).sum::<f64>().sqrt();
            g.iter_mut().for_each(|g| *g *= (most / (norm + 1e-6)).min(1.0));
        }
        for i in 0..w.len() {
            match plan.optimizer {
                Rule::Sgd {} => {
                    first[i] = plan.momentum * first[i] + g[i] + decay * w[i];
                    w[i] -= lr * first[i];
                }
                Rule::Adam { beta1, beta2, epsilon } | Rule::AdamW { beta1, beta2, epsilon } => {
                    let decoupled = matches!(plan.optimizer, Rule::AdamW { .. });
                    let g = if decoupled { g[i] } else { g[i] + decay * w[i] };
                    if decoupled {
                        w[i] -= lr * decay * w[i];
                    }
                    first[i] = beta1 * first[i] + (1.0 - beta1) * g;
                    second[i] = beta2 * second[i] + (1.0 - beta2) * g * g;
                    let t = (step + 1) as i32;
                    let (mean, square) =
                        (first[i] / (1.0 - beta1.powi(t)), second[i] / (1.0 - beta2.powi(t)));
                    w[i] -= lr * mean / (square.sqrt() + epsilon);
                }
            }
        }
    }
    w
}

fn on(values: &[f64], kind: Kind) -> Tensor {
    Tensor::from_slice(values).to_kind(kind)
}

fn values(t: &Tensor) -> Vec<f64> {
    (0..t.numel() as i64).map(|i| t.double_value(&[i])).collect()
}

fn run(plan: &TrainPlan, steps: u64, kind: Kind) -> Vec<f64> {
    let rate = LearningRate::new(plan, RoundOf::default(), steps);
    let mut w = on(&START, kind);
    let mut optimizer = Optimizer::new(plan, &w).unwrap();
    for step in 0..steps {
        let g = on(&gradient(step, &values(&w)), kind);
        optimizer.step(&mut w, g, rate.at(step)).unwrap();
    }
    assert_eq!(optimizer.steps(), steps);
    values(&w)
}

const PLANS: [&str; 10] = [
    "",
    "momentum = 0.9",
    "momentum = 0.5\nweight_decay = 0.2\nproximal = 0.3",
    "optimizer = { kind = \"adam\" }",
    "optimizer = { kind = \"adam\", beta1 = 0.5, beta2 = 0.9, epsilon = 1e-3 }\nweight_decay = 0.1",
    "optimizer = { kind = \"adamw\" }\nproximal = 0.3",
    "optimizer = { kind = \"adamw\", beta1 = 0.0 }\nweight_decay = 0.0",
    "momentum = 0.9\nclip_gradient_norm = 0.5",
    "schedule = { kind = \"cosine\", warm_up = 3 }\nmomentum = 0.5",
    "schedule = { kind = \"step\", every = 4, factor = 0.5 }\noptimizer = { kind = \"adam\" }",
];

#[test]
fn each_optimiser_is_its_formula() {
    for text in PLANS {
        let plan = plan(text);
        for (kind, close) in [(Kind::Double, 1e-9), (Kind::Float, 2e-5)] {
            for (found, wanted) in run(&plan, 20, kind).iter().zip(by_hand(&plan, 20)) {
                assert!((found - wanted).abs() < close, "{text} {kind:?}: {found} {wanted}");
            }
        }
    }
}

#[test]
fn a_state_goes_on_where_it_was() {
    for text in PLANS {
        let plan = plan(text);
        let rate = LearningRate::new(&plan, RoundOf::default(), 20);
        let mut w = on(&START, Kind::Float);
        let mut optimizer = Optimizer::new(&plan, &w).unwrap();
        for step in 0..20 {
            if step == 7 {
                let (steps, state) = (optimizer.steps(), optimizer.state().unwrap());
                assert_eq!(state.len(), optimizer.state_len());
                optimizer = Optimizer::new(&plan, &on(&START, Kind::Float)).unwrap();
                optimizer.restore(steps, &state).unwrap();
            }
            let g = on(&gradient(step, &values(&w)), Kind::Float);
            optimizer.step(&mut w, g, rate.at(step)).unwrap();
        }
        assert_eq!(values(&w), run(&plan, 20, Kind::Float), "{text}");
    }
}

#[test]
fn a_rate_of_nothing_moves_nothing() {
    for text in ["", "optimizer = { kind = \"adam\" }", "optimizer = { kind = \"adamw\" }"] {
        let mut w = on(&START, Kind::Float);
        let mut optimizer = Optimizer::new(&plan(text), &w).unwrap();
        optimizer.step(&mut w, on(&[1.0; 5], Kind::Float), 0.0).unwrap();
        assert_eq!(values(&w), START, "{text}");
    }
}

#[test]
fn a_schedule_over_the_job_stands_still_within_a_round() {
    let mut plan = TrainPlan::sgd(2.0, LocalWork::Steps(4));
    plan.schedule = Some(Schedule::Step { over: Over::Job, warm_up: 0, every: 1, factor: 0.5 });
    let at = |round, step| LearningRate::new(&plan, RoundOf { round, rounds: 9 }, 4).at(step);
    assert_eq!([at(1, 0), at(1, 3), at(2, 0), at(4, 1)], [2.0, 2.0, 1.0, 0.25]);
}
