use super::*;
use crate::failure::Stop;
use tch::Device;
use undertone_core::augmentation::Augmentation;
use undertone_core::model::{Activation, ModelSpec};
use undertone_core::plan::{EarlyStop, Precision, TrainPlan};
use undertone_core::shape::Shape;
use undertone_data::encode::Dataset;

const ROWS: usize = 50;

fn setup() -> (Network, Rows, Vec<f32>) {
    let features = (0..ROWS * 4).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    let labels = (0..ROWS).map(|i| (i * 7 / 3 % 3) as u32).collect();
    let rows = Rows::new(&Dataset::table(features, labels, 4), Device::Cpu).unwrap();
    let spec = ModelSpec::Mlp { hidden: vec![16], activation: Activation::Tanh, seed: 5 };
    let shape = Shape::table(4, 3);
    (Network::new(&spec, &shape).unwrap(), rows, spec.initial_values(&shape))
}

fn run<'a>(plan: &'a TrainPlan, weights: &'a [f32], stop: &'a Stop) -> Run<'a> {
    Run::apart(plan, weights, Some(3), stop)
}

fn model(network: &Network, weights: &[f32], precision: Precision) -> Model {
    let plan = TrainPlan::sgd(0.1, LocalWork::Steps(1));
    let mut model = run(&plan, weights, &Stop::default()).model(network, Device::Cpu, None).unwrap();
    model.tensors = model.tensors.computed_in(precision).followed().unwrap();
    model
}

fn plain(network: &Network) -> Views {
    Views::new(None, network.input(), &sampling_rng(Some(3), &[]).unwrap()).unwrap()
}

/// A mean over views is that of a batch with as many examples, computed whole or in parts.
#[test]
fn the_mean_is_over_all_views() {
    let (network, rows, weights) = setup();
    let model = model(&network, &weights, Precision::F32);
    let (wanted, loss) = gradient(&network, &rows, &model, &mut plain(&network), None, ROWS).unwrap();
    // So little jitter that a view is the example.
    let how = Augmentation { views: 3, shift: 0, flip: false, jitter: 1e-6 };
    let rng = sampling_rng(Some(3), &weights).unwrap();
    for most in [ROWS, 7] {
        let mut views = Views::new(Some(how), network.input(), &rng).unwrap();
        let (found, of_views) = gradient(&network, &rows, &model, &mut views, None, most).unwrap();
        assert!(difference(&found, &wanted) < 1e-4 && (loss - of_views).abs() < 1e-4, "{most}");
    }
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    ((a - b).norm() / b.norm()).double_value(&[])
}

/// Which views there are does not follow from how a batch is computed.
#[test]
fn views_are_the_same_in_parts() {
    let (network, rows, weights) = setup();
    let model = model(&network, &weights, Precision::F32);
    let how = Augmentation { views: 3, shift: 0, flip: false, jitter: 0.3 };
    let rng = sampling_rng(Some(3), &weights).unwrap();
    let of = |most| {
        let mut views = Views::new(Some(how), network.input(), &rng).unwrap();
        gradient(&network, &rows, &model, &mut views, None, most).unwrap()
    };
    let (whole, loss) = of(ROWS);
    for most in [1, 7, 24] {
        let (parts, of_parts) = of(most);
        assert!(difference(&parts, &whole) < 1e-6 && (loss - of_parts).abs() < 1e-6, "{most}");
    }
}

#[test]
fn a_batch_in_parts_has_the_gradient_of_the_whole() {
    let (network, rows, weights) = setup();
    let model = model(&network, &weights, Precision::F32);
    let places: Vec<i64> = (0..ROWS as i64).rev().step_by(2).collect();
    for places in [None, Some(&places[..])] {
        let (whole, loss) =
            gradient(&network, &rows, &model, &mut plain(&network), places, usize::MAX).unwrap();
        for most in [1, 7, 24, 49] {
            let (parts, of_parts) =
                gradient(&network, &rows, &model, &mut plain(&network), places, most).unwrap();
            assert!(difference(&parts, &whole) < 1e-6 && (loss - of_parts).abs() < 1e-6, "{most}");
        }
    }
}

#[test]
fn bf16_rounds_products_and_nothing_else() {
    let (network, rows, weights) = setup();
    let (exact, loss) = gradient(
        &network,
        &rows,
        &model(&network, &weights, Precision::F32),
        &mut plain(&network),
        None,
        ROWS,
    )
    .unwrap();
    let half = model(&network, &weights, Precision::Bf16);
    let (rounded, of_rounded) = gradient(&network, &rows, &half, &mut plain(&network), None, ROWS).unwrap();
    assert_eq!(rounded.kind(), tch::Kind::Float);
    let away = difference(&rounded, &exact);
    assert!(away > 1e-5 && away < 0.03, "{away}");
    assert!((loss - of_rounded).abs() < 0.01);
    assert_eq!(half.flat.kind(), tch::Kind::Float);
}

#[test]
fn early_stop_ends_training_and_gives_what_was_best() {
    let (network, rows, weights) = setup();
    let stop = Stop::default();
    // Labels that nothing can be learnt of: what helps on some rows does not on others.
    let mut plan = TrainPlan { batch_size: Some(9), ..TrainPlan::sgd(1.0, LocalWork::Epochs(500)) };
    plan.early_stop = Some(EarlyStop { patience: 4, min_delta: 0.0, held_out: 0.2 });
    let trained = train(&network, &rows, run(&plan, &weights, &stop)).unwrap();
    // 40 rows are trained on: five steps a pass.
    assert!(trained.steps < 2500 && trained.steps.is_multiple_of(5), "{}", trained.steps);
    // The same training, ended where it was best, gives the same.
    let mut short = plan.clone();
    short.local_epochs = None;
    short.local_steps = Some(trained.steps as u32);
    let again = train(&network, &rows, run(&short, &weights, &stop)).unwrap();
    assert_eq!((again.steps, &again.weights), (trained.steps, &trained.weights));
    // A difference that cannot be reached is no progress.
    plan.early_stop = Some(EarlyStop { patience: 3, min_delta: 1e9, held_out: 0.2 });
    assert_eq!(train(&network, &rows, run(&plan, &weights, &stop)).unwrap().steps, 5);
}

#[test]
fn held_out_rows_are_not_trained_on_with_all_rows_in_a_step_either() {
    let (network, rows, weights) = setup();
    let stop = Stop::default();
    let mut plan = TrainPlan::sgd(0.1, LocalWork::Steps(1));
    plan.early_stop = Some(EarlyStop { patience: 1, min_delta: 0.0, held_out: 0.5 });
    let found = train(&network, &rows, run(&plan, &weights, &stop)).unwrap().weights;
    let rng = sampling_rng(Some(3), &weights).unwrap();
    let (_, kept) = hold_out(ROWS, 0.5, &rng).unwrap();
    let model = model(&network, &weights, Precision::F32);
    let (g, _) = gradient(&network, &rows, &model, &mut plain(&network), Some(&kept), ROWS).unwrap();
    let wanted = to_vec(&(&model.flat - g * 0.1)).unwrap();
    assert!(found.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-6));
}

#[test]
fn divergence_names_the_step() {
    let (network, rows, weights) = setup();
    let plan = TrainPlan::sgd(1e300, LocalWork::Steps(9));
    let e = TrainerError::from(train(&network, &rows, run(&plan, &weights, &Stop::default())).unwrap_err());
    let TrainerError::Diverged { step: 2, of: 9, .. } = &e else { panic!("{e}") };
    let text = e.to_string();
    assert!(text.contains("step 2 of 9") && text.contains("learning_rate"), "{text}");
    // Seen also where no further loss is computed.
    let plan = TrainPlan::sgd(1e300, LocalWork::Steps(1));
    let e = train(&network, &rows, run(&plan, &weights, &Stop::default())).unwrap_err();
    assert!(matches!(e.into(), TrainerError::Diverged { step: 1, of: 1, .. }));
}
