use super::*;
use crate::failure::Stop;
use crate::nn::weights::Weights;
use std::cell::RefCell;
use tch::{Device, Reduction, Tensor};
use undertone_core::augmentation::Augmentation;
use undertone_core::model::{Activation, ModelSpec};
use undertone_core::plan::{EarlyStop, LocalWork, Optimizer};
use undertone_core::shape::Shape;
use undertone_core::trainer::RecordMechanism;
use undertone_data::Dataset;
use undertone_privacy::dp_sgd::SENSITIVITY_MARGIN;

const QUIET: f64 = 1e-6;

fn plan(steps: u32) -> TrainPlan {
    TrainPlan::sgd(0.5, LocalWork::Steps(steps))
}

fn privacy(noise_multiplier: f64, sampling_rate: f64, expected_batch: f64) -> RecordPrivacy {
    let mechanism = RecordMechanism::DiscreteGaussian;
    RecordPrivacy { clip_norm: 0.7, noise_multiplier, sampling_rate, expected_batch, mechanism }
}

/// The same contract with either mechanism.
fn both(privacy: RecordPrivacy) -> [RecordPrivacy; 2] {
    [privacy, RecordPrivacy { mechanism: RecordMechanism::FastGaussian, ..privacy }]
}

fn mlp(hidden: usize) -> ModelSpec {
    ModelSpec::Mlp { hidden: vec![hidden], activation: Activation::Relu, seed: 5 }
}

fn dataset(rows: usize, inputs: usize) -> Dataset {
    let features = (0..rows * inputs).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    Dataset::table(features, (0..rows).map(|i| (i * 7 / 3 % 2) as u32).collect(), inputs)
}

fn go(
    set: &Dataset,
    spec: &ModelSpec,
    plan: &TrainPlan,
    privacy: &RecordPrivacy,
    seed: Option<u64>,
) -> Result<Vec<f32>, TrainerError> {
    let network = Network::new(spec, &Shape::table(set.inputs, 2))?;
    let rows = Rows::new(set, Device::Cpu)?;
    let start = spec.initial_values(&Shape::table(set.inputs, 2));
    let stop = Stop::default();
    let trained = train(&network, &rows, privacy, Run::apart(plan, &start, seed, &stop), &|_| {})?;
    let start = network.part(plan)?.gather(&start);
    assert_eq!(trained.weights.len(), start.len());
    Ok(trained.weights.iter().zip(&start).map(|(w, s)| w - s).collect())
}

/// A full-batch step by the definition: autograd for each example, clipping in f64, no grid, no noise.
fn reference_step(set: &Dataset, spec: &ModelSpec, clip: f64, denominator: f64, rate: f64) -> Vec<f64> {
    reference_step_of(set, spec, &plan(1), clip, denominator, rate)
}

/// The same for the part that a plan trains: the norm that is clipped is that of the part.
fn reference_step_of(
    set: &Dataset,
    spec: &ModelSpec,
    plan: &TrainPlan,
    clip: f64,
    denominator: f64,
    rate: f64,
) -> Vec<f64> {
    let network = Network::new(spec, &Shape::table(set.inputs, 2)).unwrap();
    let part = network.part(plan).unwrap();
    let rows = Rows::new(set, Device::Cpu).unwrap();
    let flat = Tensor::from_slice(&spec.initial_values(&Shape::table(set.inputs, 2)));
    let weights = Weights::whole(network.layout(), &flat).unwrap().followed().unwrap();
    let mut sum = vec![0.0; part.len()];
    for i in 0..set.rows {
        let (x, y) = rows.range(i, 1).unwrap();
        let logits = network.forward(&weights, &x).unwrap();
        let loss = network.objective().loss(&logits, &y, Reduction::Sum).unwrap();
        let g = part.gather(&to_vec(&weights.gradient(&loss).unwrap()).unwrap());
        let norm = g.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let factor = (clip / norm).min(1.0);
        sum.iter_mut().zip(&g).for_each(|(s, &v)| *s += f64::from(v) * factor);
    }
    sum.iter().map(|s| -rate * s / denominator).collect()
}

#[track_caller]
fn assert_close(got: &[f32], wanted: &[f64], tolerance: f64) {
    assert_eq!(got.len(), wanted.len());
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let scale = norm(&mut wanted.iter().copied());
    let error = norm(&mut got.iter().zip(wanted).map(|(&g, w)| f64::from(g) - w));
    assert!(error < tolerance * scale, "{error} of {scale}");
}

#[test]
fn a_step_without_noise_is_the_mean_of_clipped_gradients() {
    let set = dataset(60, 9);
    for spec in [ModelSpec::Logistic {}, mlp(8)] {
        for privacy in both(privacy(QUIET, 1.0, 60.0)) {
            let got = go(&set, &spec, &plan(1), &privacy, None).unwrap();
            assert_close(&got, &reference_step(&set, &spec, 0.7, 60.0, 0.5), 1e-3);
        }
    }
}

#[test]
fn sums_are_divided_by_the_expected_batch_and_not_by_the_rows() {
    let set = dataset(60, 9);
    let got = go(&set, &mlp(8), &plan(1), &privacy(QUIET, 1.0, 200.0), None).unwrap();
    assert_close(&got, &reference_step(&set, &mlp(8), 0.7, 200.0, 0.5), 1e-3);
}

/// Only the part is clipped, noised and moved: what is frozen takes no room in the norm, and no noise.
#[test]
fn a_part_is_trained_as_if_the_rest_were_constants() {
    let set = dataset(60, 9);
    for tensors in [&["2.*"][..], &["0.weight"], &["0.bias", "2.weight"], &["*.bias"], &["*"]] {
        let plan = TrainPlan {
            tensors: Some(tensors.iter().map(ToString::to_string).collect()),
            proximal: 0.3,
            ..plan(1)
        };
        for privacy in both(privacy(QUIET, 1.0, 200.0)) {
            let got = go(&set, &mlp(8), &plan, &privacy, None).unwrap();
            assert_close(&got, &reference_step_of(&set, &mlp(8), &plan, 0.7, 200.0, 0.5), 1e-3);
        }
        let noise = go(&set, &mlp(8), &plan, &privacy(1.0, f64::MIN_POSITIVE, 10.0), None).unwrap();
        let len = reference_step_of(&set, &mlp(8), &plan, 0.7, 200.0, 0.5).len();
        assert!(noise.len() == len && noise.iter().all(|v| *v != 0.0), "{tensors:?}");
    }
    let plan = TrainPlan { tensors: Some(vec!["4.*".into()]), ..plan(1) };
    let e = go(&set, &mlp(8), &plan, &privacy(1.0, 1.0, 10.0), None).unwrap_err();
    assert!(matches!(e, TrainerError::Unsupported(_)), "{e}");
}

#[test]
fn momentum_is_the_classical_kind() {
    // Steps so small that the gradient stays as it is.
    let set = dataset(40, 3);
    let slow = |momentum, steps| {
        let plan = TrainPlan { learning_rate: 1e-3, momentum, ..plan(steps) };
        go(&set, &ModelSpec::Logistic {}, &plan, &privacy(QUIET, 1.0, 40.0), None).unwrap()
    };
    let one = slow(0.0, 1);
    // v: 1, 1.5, 1.75; their sum 4.25.
    let wanted: Vec<f64> = one.iter().map(|&d| 4.25 * f64::from(d)).collect();
    assert_close(&slow(0.5, 3), &wanted, 5e-3);
}

/// Noise alone: no row is ever drawn, so each coordinate of the delta is a draw.
fn noise_only(steps: u32, privacy: &RecordPrivacy) -> Vec<f64> {
    let set = dataset(5, 20);
    let delta = go(&set, &mlp(1000), &plan(steps), privacy, None).unwrap();
    assert_eq!(delta.len(), 22_001);
    delta.into_iter().map(f64::from).collect()
}

#[test]
fn the_noise_has_the_stated_variance_also_on_an_empty_batch() {
    for (z, expected_batch, steps) in [(1.5, 76.0, 1), (0.5, 10.0, 1), (4.0, 1000.0, 3)] {
        let [exact, fast] = both(privacy(z, f64::MIN_POSITIVE, expected_batch));
        has_the_variance(&exact, steps, 1.0);
        has_the_variance(&fast, steps, 1.0 + SENSITIVITY_MARGIN);
    }
}

fn has_the_variance(privacy: &RecordPrivacy, steps: u32, sensitivity: f64) {
    let (z, expected_batch) = (privacy.noise_multiplier, privacy.expected_batch);
    let noise = noise_only(steps, privacy);
    let n = noise.len() as f64;
    let sigma = 0.5 * z * 0.7 * sensitivity / expected_batch * f64::from(steps).sqrt();
    let mean = noise.iter().sum::<f64>() / n;
    let variance = noise.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    // Six standard deviations of the estimates.
    assert!(mean.abs() < 6.0 * sigma / n.sqrt(), "z = {z}: mean {mean}, sigma {sigma}");
    let ratio = variance / (sigma * sigma);
    assert!((ratio - 1.0).abs() < 6.0 * (2.0 / n).sqrt(), "z = {z}: variance is {ratio} of the stated one");
    // Shape: the fourth moment of a Gaussian is 3 σ⁴ (its estimate spreads by √(96/n)).
    let fourth = noise.iter().map(|v| (v - mean).powi(4)).sum::<f64>() / n / (variance * variance);
    assert!((fourth - 3.0).abs() < 6.0 * (96.0 / n).sqrt(), "z = {z}: kurtosis {fourth}");
}

#[test]
fn noise_is_never_the_same_twice_even_with_a_sampling_seed() {
    let set = dataset(30, 4);
    for privacy in both(privacy(1.0, 0.5, 15.0)) {
        let run = |seed| go(&set, &ModelSpec::Logistic {}, &plan(1), &privacy, seed).unwrap();
        assert_ne!(run(Some(1)), run(Some(1)));
        assert_ne!(run(None), run(None));
    }
}

#[test]
fn a_sampling_seed_gives_the_same_batches() {
    let set = dataset(80, 4);
    let run = |seed| go(&set, &ModelSpec::Logistic {}, &plan(2), &privacy(QUIET, 0.3, 24.0), seed).unwrap();
    let f64s = |v: Vec<f32>| v.into_iter().map(f64::from).collect::<Vec<_>>();
    // Equal but for the tiny noise; other batches move the result by much more than that.
    assert_close(&run(Some(1)), &f64s(run(Some(1))), 1e-4);
    let (a, b) = (run(Some(1)), run(Some(2)));
    assert!(a.iter().zip(&b).any(|(a, b)| (a - b).abs() > 1e-3), "{a:?} {b:?}");
}

#[test]
fn an_example_that_is_not_finite_counts_as_zero() {
    let set = dataset(20, 4);
    let without = {
        let features = (0..19).flat_map(|i| set.row(i)).copied().collect();
        let set = Dataset::table(features, set.classes()[..19].to_vec(), 4);
        go(&set, &mlp(6), &plan(1), &privacy(QUIET, 1.0, 20.0), None).unwrap()
    };
    for (bad, privacy) in
        [f32::NAN, f32::INFINITY].into_iter().flat_map(|b| both(privacy(QUIET, 1.0, 20.0)).map(|p| (b, p)))
    {
        let mut features: Vec<f32> = (0..20).flat_map(|i| set.row(i)).copied().collect();
        features[19 * 4..].fill(bad);
        let set = Dataset::table(features, set.classes().to_vec(), 4);
        let with = go(&set, &mlp(6), &plan(1), &privacy, None).unwrap();
        assert_close(&with, &without.iter().copied().map(f64::from).collect::<Vec<_>>(), 1e-4);
    }
}

#[test]
fn one_example_moves_the_sum_by_at_most_the_clip_norm() {
    // An outlier with a gradient of thousands, alone in its batch.
    let set = Dataset::table(vec![1e4; 4], vec![1], 4);
    for privacy in both(privacy(QUIET, 1.0, 1.0)) {
        let delta = go(&set, &ModelSpec::Logistic {}, &plan(1), &privacy, None).unwrap();
        let norm = delta.iter().map(|&d| f64::from(d).powi(2)).sum::<f64>().sqrt();
        assert!((norm / (0.5 * 0.7) - 1.0).abs() < 1e-4, "{norm}");
    }
}

#[test]
fn what_would_break_the_promise_is_refused() {
    let set = dataset(5, 3);
    let good = privacy(1.0, 0.5, 2.5);
    let bad_privacy = [
        RecordPrivacy { noise_multiplier: 0.0, ..good },
        RecordPrivacy { noise_multiplier: f64::INFINITY, ..good },
        RecordPrivacy { noise_multiplier: f64::NAN, ..good },
        RecordPrivacy { clip_norm: 0.0, ..good },
        RecordPrivacy { clip_norm: -1.0, ..good },
        RecordPrivacy { clip_norm: f64::NAN, ..good },
        RecordPrivacy { clip_norm: f64::INFINITY, ..good },
        RecordPrivacy { sampling_rate: 0.0, ..good },
        RecordPrivacy { sampling_rate: 1.5, ..good },
        RecordPrivacy { sampling_rate: f64::NAN, ..good },
        RecordPrivacy { expected_batch: 0.0, ..good },
    ];
    for p in bad_privacy {
        let e = go(&set, &ModelSpec::Logistic {}, &plan(1), &p, None).unwrap_err();
        assert!(matches!(e, TrainerError::Unsupported(_)), "{p:?}: {e}");
    }
    let bad_plans = [
        TrainPlan { batch_size: Some(2), ..plan(1) },
        TrainPlan { local_steps: None, local_epochs: Some(1), ..plan(1) },
        TrainPlan { learning_rate: f64::NAN, ..plan(1) },
    ];
    let early_stop =
        TrainPlan { early_stop: Some(EarlyStop { patience: 1, min_delta: 0.0, held_out: 0.1 }), ..plan(1) };
    let clipped = TrainPlan { clip_gradient_norm: Some(1.0), ..plan(1) };
    for p in bad_plans.into_iter().chain([early_stop, clipped]) {
        let e = go(&set, &ModelSpec::Logistic {}, &p, &good, None).unwrap_err();
        assert!(matches!(e, TrainerError::Unsupported(_)), "{p:?}: {e}");
    }
}

#[test]
fn divergence_is_said_and_not_sent() {
    let set = dataset(20, 3);
    let plan = TrainPlan { learning_rate: 1e300, ..plan(3) };
    let e = go(&set, &mlp(4), &plan, &privacy(1.0, 1.0, 20.0), None).unwrap_err();
    assert!(matches!(&e, TrainerError::Diverged { step: 1, of: 3, .. }), "{e}");
}

#[test]
fn a_stop_ends_it() {
    let set = dataset(20, 3);
    let network = Network::new(&mlp(4), &Shape::table(3, 2)).unwrap();
    let rows = Rows::new(&set, Device::Cpu).unwrap();
    let stop = Stop::default();
    stop.stop();
    let start = mlp(4).initial_values(&Shape::table(3, 2));
    let plan = plan(1);
    let run = Run::apart(&plan, &start, None, &stop);
    let r = train(&network, &rows, &privacy(1.0, 1.0, 20.0), run, &|_| {});
    assert!(matches!(r, Err(Failure::Stopped)));
}

/// The way that is taken is the log's first word of a round.
#[test]
fn the_log_names_the_engine() {
    let set = dataset(20, 3);
    let network = Network::new(&mlp(4), &Shape::table(3, 2)).unwrap();
    let rows = Rows::new(&set, Device::Cpu).unwrap();
    let start = mlp(4).initial_values(&Shape::table(3, 2));
    let said = RefCell::new(Vec::new());
    for privacy in both(privacy(1.0, 1.0, 20.0)) {
        let say = |text: &str| said.borrow_mut().push(text.to_owned());
        let (plan, stop) = (plan(2), Stop::default());
        train(&network, &rows, &privacy, Run::apart(&plan, &start, None, &stop), &say).unwrap();
    }
    let wanted = [
        "engine = \"per-example\", mechanism = \"discrete-gaussian\"",
        "engine = \"book-keeping\", mechanism = \"fast-gaussian\"",
    ];
    assert_eq!(said.into_inner(), wanted);
}

/// Sixteen views with jitter are one example: one clip norm, as much noise, and a mean that lies near the example's own.
#[test]
fn views_of_an_example_count_once() {
    let set = dataset(40, 6);
    let augmentation = |jitter| Some(Augmentation { views: 16, shift: 0, flip: false, jitter });
    for privacy in both(privacy(QUIET, 1.0, 40.0)) {
        let run = |augmentation| {
            let plan = TrainPlan { augmentation, ..plan(1) };
            go(&set, &mlp(5), &plan, &privacy, Some(3)).unwrap()
        };
        let wanted: Vec<f64> = run(None).into_iter().map(f64::from).collect();
        assert_close(&run(augmentation(1e-6)), &wanted, 1e-3);
        let varied = run(augmentation(0.3));
        assert!(varied.iter().zip(&wanted).any(|(a, b)| (f64::from(*a) - b).abs() > 1e-4));
        let repeated: Vec<f64> = run(augmentation(0.3)).into_iter().map(f64::from).collect();
        assert_close(&varied, &repeated, 1e-3);
    }
    let plan = TrainPlan {
        augmentation: Some(Augmentation { views: 2, shift: 1, flip: false, jitter: 0.0 }),
        ..plan(1)
    };
    let e = go(&set, &mlp(5), &plan, &privacy(1.0, 1.0, 40.0), None).unwrap_err();
    assert!(matches!(&e, TrainerError::Unsupported(text) if text.contains("for pictures")), "{e}");
}

/// The optimiser steps over what was noised: Adam's first step is the learning rate in the direction of the gradient's sign.
#[test]
fn any_optimiser_steps_over_the_noised_gradient() {
    let set = dataset(60, 9);
    let adam = Optimizer::Adam { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
    let plan = TrainPlan { optimizer: adam, learning_rate: 0.01, ..plan(1) };
    let got = go(&set, &mlp(8), &plan, &privacy(QUIET, 1.0, 60.0), None).unwrap();
    let wanted = reference_step(&set, &mlp(8), 0.7, 60.0, 1.0);
    let mut compared = 0;
    for (got, wanted) in got.iter().zip(wanted).filter(|(_, w)| w.abs() > 1e-4) {
        assert!((f64::from(*got) - 0.01 * wanted.signum()).abs() < 1e-4, "{got} {wanted}");
        compared += 1;
    }
    assert!(compared > 10);
}
