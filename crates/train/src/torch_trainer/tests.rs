mod modules;
mod plans;
mod resume;

use super::*;
use std::fmt::Write as _;
use undertone_core::model::{Activation, ModelSpec};
use undertone_core::plan::{LocalWork, Optimizer, TrainPlan};
use undertone_core::trainer::{LOSS_UNITS, RecordPrivacy};
use undertone_data::idx::IdxArray;

fn contract(classes: usize) -> DataContract {
    let classes: Vec<String> =
        (0..classes).map(|c| format!("{{ name = \"c{c}\", values = [\"{c}\"] }}")).collect();
    toml::from_str(&format!(
        "label = {{ column = \"y\", classes = [{}] }}\ncolumns = [\
         {{ name = \"a\", kind = \"number\", range = [-1, 1] }}, {{ name = \"b\", kind = \"number\", range = [-1, 1] }}]",
        classes.join(", ")
    ))
    .unwrap()
}

/// Points on a grid of the square; the class is the sector they lie in.
fn csv(rows: usize, classes: usize, shift: usize) -> tempfile::NamedTempFile {
    let mut text = String::from("a,b,y\n");
    for i in 0..rows {
        let (a, b) = (((i * 7 + shift) % 41) as f64 / 20.5 - 1.0, ((i * 13) % 43) as f64 / 21.5 - 1.0);
        let turn = b.atan2(a) / std::f64::consts::TAU + 0.5;
        writeln!(text, "{a},{b},{}", ((turn * classes as f64) as usize).min(classes - 1)).unwrap();
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn steps(n: u32) -> TrainPlan {
    TrainPlan::sgd(0.5, LocalWork::Steps(n))
}

fn task(model: ModelSpec, classes: usize, plan: TrainPlan) -> TrainTask {
    TrainTask::new(model, contract(classes), plan)
}

fn start(task: &TrainTask) -> Vec<f32> {
    task.model.initial_values(&task.data.shape())
}

fn mlp(activation: Activation) -> ModelSpec {
    ModelSpec::Mlp { hidden: vec![12], activation, seed: 1 }
}

#[test]
fn each_model_learns_two_and_three_classes() {
    for classes in [2, 3] {
        let file = csv(300, classes, 0);
        let mut trainer = TorchTrainer::new(file.path());
        for model in [ModelSpec::Logistic {}, mlp(Activation::Relu), mlp(Activation::Tanh)] {
            let task = task(model, classes, TrainPlan { momentum: 0.9, ..steps(200) });
            let mut weights = start(&task);
            let before = trainer.evaluate(&task.evaluation(), &weights).unwrap();
            let update = trainer.train(&task, &weights).unwrap();
            assert_eq!(update.steps, 200);
            weights.iter_mut().zip(&update.delta).for_each(|(w, d)| *w += d);
            let after = trainer.evaluate(&task.evaluation(), &weights).unwrap();
            assert_eq!(after.rows, 300);
            assert!(
                after.accuracy.unwrap() > 0.93 && after.loss < before.loss / 2.0,
                "{task:?}: {before:?} {after:?}"
            );
        }
    }
}

#[test]
fn an_untrained_logistic_model_is_undecided() {
    for (classes, nats) in [(2, 2f64.ln()), (3, 3f64.ln())] {
        let file = csv(50, classes, 0);
        let task = task(ModelSpec::Logistic {}, classes, steps(1));
        let metrics = TorchTrainer::new(file.path()).evaluate(&task.evaluation(), &start(&task)).unwrap();
        assert!((metrics.loss - nats).abs() < 1e-6, "{metrics:?}");
    }
}

#[test]
fn a_plain_step_is_the_mean_gradient() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "a,b,y\n1,-0.5,1\n0.25,1,0\n").unwrap();
    let task = task(ModelSpec::Logistic {}, 2, steps(1));
    let update = TorchTrainer::new(file.path()).train(&task, &[0.0; 3]).unwrap();
    // At zero, p - y is -1/2 for the first row and 1/2 for the second; halved by the mean and by the rate.
    assert_eq!(update.delta, [(1.0 - 0.25) / 8.0, (-0.5 - 1.0) / 8.0, 0.0]);
}

#[test]
fn a_seed_gives_the_same_bits_and_none_does_not() {
    let file = csv(90, 2, 0);
    let run = |sampling_seed| {
        let plan = TrainPlan { batch_size: Some(7), ..steps(20) };
        let task = TrainTask { sampling_seed, ..task(mlp(Activation::Relu), 2, plan) };
        TorchTrainer::new(file.path()).train(&task, &start(&task)).unwrap().delta
    };
    assert_eq!(run(Some(4)), run(Some(4)));
    assert_ne!(run(Some(4)), run(Some(5)));
    assert_ne!(run(None), run(None));
}

#[test]
fn steps_and_epochs_are_counted() {
    let file = csv(50, 2, 0);
    let count = |plan| {
        let task = task(ModelSpec::Logistic {}, 2, plan);
        TorchTrainer::new(file.path()).train(&task, &start(&task)).unwrap().steps
    };
    let epochs = TrainPlan { local_steps: None, local_epochs: Some(3), ..steps(1) };
    assert_eq!(count(TrainPlan { batch_size: Some(16), ..epochs.clone() }), 12);
    assert_eq!(count(TrainPlan { batch_size: Some(5000), ..epochs.clone() }), 3);
    assert_eq!(count(epochs), 3);
    assert_eq!(count(TrainPlan { batch_size: Some(16), ..steps(11) }), 11);
}

#[test]
fn dp_sgd_learns_too() {
    let file = csv(400, 2, 0);
    let mut trainer = TorchTrainer::new(file.path());
    let privacy = RecordPrivacy {
        clip_norm: 1.0,
        noise_multiplier: 1.0,
        sampling_rate: 0.25,
        expected_batch: 100.0,
        mechanism: Default::default(),
    };
    let task = TrainTask { record_privacy: Some(privacy), ..task(mlp(Activation::Tanh), 2, steps(60)) };
    let mut weights = start(&task);
    let update = trainer.train(&task, &weights).unwrap();
    assert_eq!(update.steps, 60);
    weights.iter_mut().zip(&update.delta).for_each(|(w, d)| *w += d);
    let metrics = trainer.evaluate(&task.evaluation(), &weights).unwrap();
    assert!(metrics.accuracy.unwrap() > 0.9, "{metrics:?}");
}

#[test]
fn rows_are_read_once_a_job() {
    let file = csv(30, 2, 0);
    let task = task(ModelSpec::Logistic {}, 2, steps(1));
    let mut trainer = TorchTrainer::new(file.path());
    let rows = |t: &mut TorchTrainer| t.evaluate(&task.evaluation(), &start(&task)).map(|m| m.rows);
    assert_eq!(rows(&mut trainer), Ok(30));
    std::fs::copy(csv(40, 2, 0).path(), file.path()).unwrap();
    assert_eq!(rows(&mut trainer), Ok(30));
    assert_eq!(trainer.inspect(&task.data).unwrap().rows, 40);
    assert_eq!(rows(&mut trainer), Ok(40));
    std::fs::remove_file(file.path()).unwrap();
    assert_eq!(rows(&mut trainer), Ok(40));
    trainer.rest();
    assert!(matches!(rows(&mut trainer), Err(TrainerError::Data(_))));
    // Another contract is another reading.
    let file = csv(30, 2, 0);
    let mut trainer = TorchTrainer::new(file.path());
    assert_eq!(rows(&mut trainer), Ok(30));
    let three =
        trainer.evaluate(&EvaluationTask { data: contract(3), ..task.evaluation() }, &[0.0; 9]).unwrap();
    assert!((three.loss - 3f64.ln()).abs() < 1e-6, "{three:?}");
}

#[test]
fn wrong_weights_wrong_plans_and_divergence_have_their_own_errors() {
    let file = csv(30, 2, 0);
    let mut trainer = TorchTrainer::new(file.path());
    let good = task(ModelSpec::Logistic {}, 2, steps(1));
    for weights in [vec![0.0; 2], vec![0.0; 4], vec![f32::NAN; 3]] {
        assert!(matches!(trainer.train(&good, &weights), Err(TrainerError::Numerical(_))));
        let evaluated = trainer.evaluate(&good.evaluation(), &weights);
        assert!(matches!(evaluated, Err(TrainerError::Numerical(_))));
    }
    let both = TrainPlan { local_epochs: Some(1), ..steps(1) };
    let e = trainer.train(&task(ModelSpec::Logistic {}, 2, both), &[0.0; 3]).unwrap_err();
    assert!(matches!(e, TrainerError::Unsupported(_)), "{e}");
    let wild = TrainPlan { learning_rate: 1e300, ..steps(3) };
    let e = trainer.train(&task(ModelSpec::Logistic {}, 2, wild), &[0.0; 3]).unwrap_err();
    assert!(matches!(&e, TrainerError::Diverged { of: 3, .. }), "{e}");
}

#[test]
fn a_baseline_is_rounds_of_training_on_pooled_rows() {
    let (a, b, test) = (csv(60, 2, 0), csv(40, 2, 3), csv(50, 2, 5));
    let pooled = tempfile::NamedTempFile::new().unwrap();
    let read = |f: &tempfile::NamedTempFile| std::fs::read_to_string(f.path()).unwrap();
    std::fs::write(pooled.path(), read(&a) + read(&b).strip_prefix("a,b,y\n").unwrap()).unwrap();

    // All rows in each step: batches would follow the last bit of the weights, which the delta rounds away.
    let t = task(mlp(Activation::Relu), 2, TrainPlan { momentum: 0.5, ..steps(20) });
    let request = BaselineTask {
        model: t.model.clone(),
        data: t.data.clone(),
        plan: t.plan.clone(),
        rounds: 5,
        seed: None,
        train: vec![a.path().into(), b.path().into()],
        test: test.path().into(),
    };
    let baseline = TorchTrainer::new("unused.csv").baseline(&request).unwrap();
    assert_eq!((baseline.rows, baseline.steps, baseline.metrics.rows), (100, 100, 50));

    let mut trainer = TorchTrainer::new(pooled.path());
    let mut weights = start(&t);
    for _ in 0..5 {
        let update = trainer.train(&t, &weights).unwrap();
        weights.iter_mut().zip(&update.delta).for_each(|(w, d)| *w += d);
    }
    assert!(weights.iter().zip(&baseline.weights).all(|(a, b)| (a - b).abs() < 1e-4));
    assert!(baseline.metrics.accuracy.unwrap() > 0.8, "{:?}", baseline.metrics);

    for bad in [
        BaselineTask { rounds: 0, ..request.clone() },
        BaselineTask { train: vec![a.path().into(); 1025], ..request.clone() },
    ] {
        let e = TorchTrainer::new("unused.csv").baseline(&bad).unwrap_err();
        assert!(matches!(e, TrainerError::Unsupported(_)), "{e}");
    }
    for bad in [
        BaselineTask { train: vec![], ..request.clone() },
        BaselineTask { test: "no/such.csv".into(), ..request },
    ] {
        let e = TorchTrainer::new("unused.csv").baseline(&bad).unwrap_err();
        assert!(matches!(e, TrainerError::Data(_)), "{e}");
    }
}

#[test]
fn a_number_is_predicted_and_measured_in_its_own_unit() {
    // y = 300 + 100·a - 50·b, known up to where the range cuts.
    let mut text = String::from("a,b,y\n");
    for i in 0..200 {
        let (a, b) = ((i * 7 % 41) as f64 / 20.5 - 1.0, (i * 13 % 43) as f64 / 21.5 - 1.0);
        writeln!(text, "{a},{b},{}", 300.0 + 100.0 * a - 50.0 * b).unwrap();
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let data: DataContract = toml::from_str(
        "label = { column = \"y\", range = [100, 500] }\ncolumns = [\
         { name = \"a\", kind = \"number\", range = [-1, 1] }, { name = \"b\", kind = \"number\", range = [-1, 1] }]",
    )
    .unwrap();
    let task =
        TrainTask { data, ..task(ModelSpec::Linear {}, 2, TrainPlan { learning_rate: 0.3, ..steps(100) }) };
    let mut trainer = TorchTrainer::new(file.path());
    let before = trainer.evaluate(&task.evaluation(), &start(&task)).unwrap();
    // A model of zeros predicts the middle of the range, 300.
    assert!(before.accuracy.is_none() && before.mean_absolute_error.unwrap() > 40.0, "{before:?}");
    let update = trainer.train(&task, &start(&task)).unwrap();
    let after = trainer.evaluate(&task.evaluation(), &update.delta).unwrap();
    assert!(after.mean_absolute_error.unwrap() < 0.1 && after.loss < 1e-5, "{after:?}");
    // In the scaled range, where 200 is one.
    assert!(
        (update.delta[0] - 0.5).abs() < 1e-3 && (update.delta[1] + 0.25).abs() < 1e-3,
        "{:?}",
        update.delta
    );
    let sums = trainer.evaluate_bounded(&task.evaluation(), 4.0, &start(&task)).unwrap();
    assert_eq!((sums.right, sums.rows), (None, 200));
    let loss = sums.loss_units as f64 / LOSS_UNITS as f64 * 4.0 / 200.0;
    assert!((loss - before.loss).abs() <= 4.0 / (2.0 * LOSS_UNITS as f64), "{loss} for {}", before.loss);
    // Each record's privacy is for numbers too.
    let privacy = RecordPrivacy {
        clip_norm: 1.0,
        noise_multiplier: 0.3,
        sampling_rate: 0.5,
        expected_batch: 100.0,
        mechanism: Default::default(),
    };
    let private = TrainTask { record_privacy: Some(privacy), ..task };
    let update = trainer.train(&private, &start(&private)).unwrap();
    let after = trainer.evaluate(&private.evaluation(), &update.delta).unwrap();
    assert!(after.loss < before.loss / 4.0, "{before:?} {after:?}");
}

/// Pictures of 6x6: class 0 is bright on the left, class 1 on the right.
fn pictures(folder: &std::path::Path, rows: usize) -> DataFiles {
    let mut images = IdxArray { dimensions: vec![rows, 6, 6], bytes: vec![] };
    let mut labels = IdxArray { dimensions: vec![rows], bytes: vec![] };
    for i in 0..rows {
        let right = i * 5 / 3 % 2;
        labels.bytes.push(right as u8 + 3);
        images
            .bytes
            .extend((0..36).map(|at| ((i * 31 + at * 17) % 120) as u8 + 120 * u8::from(at % 6 / 3 == right)));
    }
    let files = DataFiles::pictures(folder.join("images"), folder.join("labels"));
    for (array, path) in [&images, &labels].into_iter().zip(files.paths()) {
        array.write(&mut std::fs::File::create(path).unwrap()).unwrap();
    }
    files
}

#[test]
fn pictures_are_learnt_with_and_without_privacy_for_each() {
    let folder = tempfile::tempdir().unwrap();
    let files = pictures(folder.path(), 120);
    let data: DataContract = toml::from_str(
        "picture = { height = 6, width = 6 }\nlabel = { classes = [{ name = \"l\", values = [\"3\"] }, { name = \"r\", \
         values = [\"4\"] }] }",
    )
    .unwrap();
    let t =
        TrainTask { data, ..task(mlp(Activation::Tanh), 2, TrainPlan { batch_size: Some(16), ..steps(60) }) };
    let mut trainer = TorchTrainer::new(files.clone());
    assert_eq!(trainer.inspect(&t.data).unwrap().class_rows, [60, 60]);
    let mut weights = start(&t);
    let update = trainer.train(&t, &weights).unwrap();
    weights.iter_mut().zip(&update.delta).for_each(|(w, d)| *w += d);
    let after = trainer.evaluate(&t.evaluation(), &weights).unwrap();
    assert_eq!((after.accuracy, after.rows), (Some(1.0), 120));

    let privacy = RecordPrivacy {
        clip_norm: 1.0,
        noise_multiplier: 0.3,
        sampling_rate: 0.5,
        expected_batch: 60.0,
        mechanism: Default::default(),
    };
    let private = TrainTask {
        record_privacy: Some(privacy),
        plan: TrainPlan { batch_size: None, ..t.plan.clone() },
        ..t.clone()
    };
    let mut weights = start(&t);
    let update = trainer.train(&private, &weights).unwrap();
    weights.iter_mut().zip(&update.delta).for_each(|(w, d)| *w += d);
    let after = trainer.evaluate(&t.evaluation(), &weights).unwrap();
    assert!(after.accuracy.unwrap() > 0.95, "{after:?}");

    let request = BaselineTask {
        model: t.model.clone(),
        data: t.data.clone(),
        plan: t.plan.clone(),
        rounds: 1,
        seed: Some(1),
        train: vec![files.clone(), files.clone()],
        test: files,
    };
    let baseline = trainer.baseline(&request).unwrap();
    assert_eq!((baseline.rows, baseline.metrics.rows), (240, 120));
}

#[test]
fn bounded_sums_are_integers_in_which_a_row_has_a_bounded_part() {
    let (file, task) = (csv(300, 2, 0), task(mlp(Activation::Relu), 2, steps(1)));
    let mut trainer = TorchTrainer::new(file.path());
    let weights = start(&task);
    let exact = trainer.evaluate(&task.evaluation(), &weights).unwrap();
    let sums = trainer.evaluate_bounded(&task.evaluation(), 4.0, &weights).unwrap();
    assert_eq!(sums.rows, exact.rows);
    assert_eq!(sums.right, Some((exact.accuracy.unwrap() * exact.rows as f64).round() as u64));
    // Rounded by half a unit a row at most.
    let loss = sums.loss_units as f64 / LOSS_UNITS as f64 * 4.0 / sums.rows as f64;
    assert!((loss - exact.loss).abs() <= 4.0 / (2.0 * LOSS_UNITS as f64), "{loss} for {}", exact.loss);
    // Cut: all rows are beyond a thousandth of a nat.
    let cut = trainer.evaluate_bounded(&task.evaluation(), 1e-3, &weights).unwrap();
    assert_eq!(cut.loss_units, cut.rows * LOSS_UNITS);
    // Weights that make logits overflow: no row says so by more than its part.
    let wild = vec![1e30; weights.len()];
    let wild = trainer.evaluate_bounded(&task.evaluation(), 4.0, &wild).unwrap();
    assert!(wild.loss_units <= wild.rows * LOSS_UNITS && wild.right.unwrap() <= wild.rows, "{wild:?}");
}

/// With a strong pull training stays near where it began, under either kind of contract.
#[test]
fn the_proximal_term_keeps_training_near_its_start() {
    let file = csv(300, 2, 0);
    let far = |proximal: f64, privacy: Option<RecordPrivacy>| {
        let plan = TrainPlan { proximal, ..steps(50) };
        let task = TrainTask { record_privacy: privacy, ..task(ModelSpec::Logistic {}, 2, plan) };
        let update = TorchTrainer::new(file.path()).train(&task, &start(&task)).unwrap();
        update.delta.iter().map(|d| f64::from(*d).powi(2)).sum::<f64>().sqrt()
    };
    let (free, held) = (far(0.0, None), far(3.0, None));
    assert!(held < 0.5 * free && held > 0.0, "{held} of {free}");
    let privacy = RecordPrivacy {
        clip_norm: 1.0,
        noise_multiplier: 0.5,
        sampling_rate: 0.5,
        expected_batch: 150.0,
        mechanism: Default::default(),
    };
    let (free, held) = (far(0.0, Some(privacy)), far(3.0, Some(privacy)));
    assert!(held < 0.5 * free, "{held} of {free}");
}

/// A part that is trained moves as it does with the rest in the first step, and learns with the rest as constants.
#[test]
fn no_loss_without_noise_goes_beside_a_private_update() {
    let file = csv(100, 2, 0);
    let privacy = undertone_core::trainer::RecordPrivacy {
        clip_norm: 1.0,
        noise_multiplier: 1.0,
        sampling_rate: 0.5,
        expected_batch: 50.0,
        mechanism: Default::default(),
    };
    let task = TrainTask {
        first_loss: true,
        record_privacy: Some(privacy),
        ..task(ModelSpec::Logistic {}, 2, TrainPlan { batch_size: None, ..steps(1) })
    };
    let e = TorchTrainer::new(file.path()).train(&task, &start(&task)).unwrap_err();
    assert!(matches!(&e, TrainerError::Unsupported(text) if text.contains("first_loss")), "{e}");
}

#[test]
fn only_the_part_is_trained() {
    let file = csv(300, 3, 0);
    let mut trainer = TorchTrainer::new(file.path());
    let of = |tensors: &[&str], n: u32| {
        let plan = TrainPlan {
            tensors: (!tensors.is_empty()).then(|| tensors.iter().map(ToString::to_string).collect()),
            momentum: 0.5,
            ..steps(n)
        };
        TrainTask { first_loss: true, ..task(mlp(Activation::Relu), 3, plan) }
    };
    let whole = start(&of(&[], 1));
    let all = trainer.train(&of(&[], 1), &whole).unwrap();
    for tensors in [&["2.*"][..], &["0.weight"], &["*.bias"], &["0.bias", "2.weight"], &["*"]] {
        let part = of(tensors, 1).part().unwrap();
        let one = trainer.train(&of(tensors, 1), &whole).unwrap();
        assert_eq!(one.delta.len(), part.len());
        for (found, wanted) in one.delta.iter().zip(part.gather(&all.delta)) {
            assert!((found - wanted).abs() < 1e-6, "{tensors:?}: {found} {wanted}");
        }
        // The loss before training is that of the model as it came; after it, that of the part moved in its place.
        let before = trainer.evaluate(&of(&[], 1).evaluation(), &whole).unwrap().loss;
        assert_eq!(one.first_loss, Some(before));
        let many = trainer.train(&of(tensors, 100), &whole).unwrap();
        let mut model = whole.clone();
        part.change(&mut model, |values| values.iter_mut().zip(&many.delta).for_each(|(v, d)| *v += d));
        let after = trainer.evaluate(&of(&[], 1).evaluation(), &model).unwrap().loss;
        assert!(after < before - 0.02, "{tensors:?}: {before} {after}");
    }
    let e = trainer.train(&of(&["head.*"], 1), &whole).unwrap_err();
    assert!(matches!(&e, TrainerError::Unsupported(text) if text.contains("names no tensor")), "{e}");
    let plain = trainer.train(&task(mlp(Activation::Relu), 3, steps(1)), &whole).unwrap();
    assert_eq!(plain.first_loss, None);
}

fn adam() -> Optimizer {
    Optimizer::Adam { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }
}
