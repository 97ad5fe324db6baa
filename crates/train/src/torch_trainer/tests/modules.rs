//! Models that are TorchScript files.

use super::*;
use crate::nn::Network;
use crate::nn::script::tests::{file, network, spec};
use crate::per_example::{joined_gradients, one_by_one};
use std::path::Path;
use std::sync::Mutex;
use tch::{Kind, Tensor};
use undertone_core::layout::ModelLayout;
use undertone_core::shape::Shape;
use undertone_core::trainer::CheckpointPlace;

/// The same perceptron as mlp.pt.
fn built_in() -> ModelSpec {
    ModelSpec::Mlp { hidden: vec![8], activation: Activation::Tanh, seed: 1 }
}

/// A task of a file of tests/torchscript.
fn of_file(name: &str, task: TrainTask) -> TrainTask {
    TrainTask { model: spec(&file(name)), module: Some(file(name)), ..task }
}

/// The values that a file was exported with.
fn values(name: &str, task: &TrainTask) -> Vec<f32> {
    let bytes = std::fs::read(file(name)).unwrap();
    task.model.layout(&task.data.shape()).unwrap().from_safetensors(&bytes).unwrap()
}

fn assert_near(found: &[f32], wanted: &[f32], most: f32, what: &str) {
    assert_eq!(found.len(), wanted.len());
    for (i, (a, b)) in found.iter().zip(wanted).enumerate() {
        assert!((a - b).abs() <= most, "{what}: value {i} is {a}, not {b}");
    }
}

/// Whatever a plan asks for: a module trains as the built-in model that it is.
#[test]
fn a_module_trains_as_the_built_in_model_that_it_is() {
    let data = csv(60, 2, 0);
    let part = |tensors: &[&str]| Some(tensors.iter().map(ToString::to_string).collect());
    let batches = TrainPlan { batch_size: Some(7), ..steps(20) };
    for plan in [
        steps(20),
        TrainPlan { momentum: 0.9, learning_rate: 0.1, ..batches.clone() },
        TrainPlan { optimizer: adam(), learning_rate: 0.05, weight_decay: Some(0.01), ..batches.clone() },
        TrainPlan { tensors: part(&["2.*"]), ..batches.clone() },
        TrainPlan { tensors: part(&["0.bias", "2.weight"]), proximal: 0.1, ..steps(20) },
        TrainPlan {
            early_stop: Some(undertone_core::plan::EarlyStop { patience: 9, min_delta: 0.0, held_out: 0.2 }),
            clip_gradient_norm: Some(0.5),
            ..batches
        },
    ] {
        let wanted = TrainTask { sampling_seed: Some(4), first_loss: true, ..task(built_in(), 2, plan) };
        let found = of_file("mlp.pt", wanted.clone());
        let weights = start(&wanted);
        let of = |task: &TrainTask| TorchTrainer::new(data.path()).train(task, &weights).unwrap();
        let (found, wanted) = (of(&found), of(&wanted));
        assert_near(&found.delta, &wanted.delta, 1e-5, "delta");
        assert_eq!(found.steps, wanted.steps);
        assert!((found.first_loss.unwrap() - wanted.first_loss.unwrap()).abs() < 1e-6);
    }
}

#[test]
fn a_module_is_measured_as_the_built_in_model_that_it_is() {
    let data = csv(300, 2, 0);
    let wanted = task(built_in(), 2, steps(1));
    let found = of_file("mlp.pt", wanted.clone());
    let weights = values("mlp.safetensors", &found);
    let mut trainer = TorchTrainer::new(data.path());
    let (a, b) =
        (trainer.evaluate(&found.evaluation(), &weights), trainer.evaluate(&wanted.evaluation(), &weights));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert!((a.loss - b.loss).abs() < 1e-6 && a.accuracy == b.accuracy && a.rows == 300, "{a:?} {b:?}");
    let mut bounded = |task: &TrainTask| trainer.evaluate_bounded(&task.evaluation(), 0.7, &weights).unwrap();
    let (a, b) = (bounded(&found), bounded(&wanted));
    assert_eq!((a.rows, a.right), (b.rows, b.right));
    // Losses in f32 may fall on the other side of where a unit begins.
    assert!(a.loss_units.abs_diff(b.loss_units) <= 3, "{a:?} {b:?}");
}

#[test]
fn a_number_is_measured_in_its_own_unit() {
    let text: String = (0..50).map(|i| format!("{},0.5,{}\n", i as f64 / 50.0, 300 + i)).collect();
    let data = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(data.path(), format!("a,b,y\n{text}")).unwrap();
    let contract: DataContract = toml::from_str(
        "label = { column = \"y\", range = [100, 500] }\ncolumns = [\
         { name = \"a\", kind = \"number\", range = [-1, 1] }, { name = \"b\", kind = \"number\", range = [-1, 1] }]",
    )
    .unwrap();
    let wanted = TrainTask { data: contract, ..task(ModelSpec::Linear {}, 2, steps(50)) };
    let found = of_file("number.pt", wanted.clone());
    let weights = values("number.safetensors", &found);
    let mut trainer = TorchTrainer::new(data.path());
    let a = trainer.evaluate(&found.evaluation(), &weights).unwrap();
    let b = trainer.evaluate(&wanted.evaluation(), &weights).unwrap();
    let (near, wanted_near) = (a.mean_absolute_error.unwrap(), b.mean_absolute_error.unwrap());
    assert!((near - wanted_near).abs() < 1e-3 && a.accuracy.is_none(), "{a:?} {b:?}");
    let (a, b) = (trainer.train(&found, &weights).unwrap(), trainer.train(&wanted, &weights).unwrap());
    assert_near(&a.delta, &b.delta, 1e-5, "delta");
}

fn rows(n: i64) -> (Tensor, Tensor) {
    let x = (Tensor::arange(2 * n, (Kind::Float, Device::Cpu)) * 0.7).sin().view([n, 2]) + 0.8;
    (x, Tensor::arange(n, (Kind::Int64, Device::Cpu)).remainder(2))
}

/// Each example's gradient is its own, also of a module that would mix those of a batch.
#[test]
fn the_gradient_of_each_example_is_that_of_the_built_in_model() {
    let shape = Shape::table(2, 2);
    let mlp = Network::new(&built_in(), &shape).unwrap();
    let values = Tensor::from_slice(&built_in().initial_values(&shape));
    let (x, y) = rows(9);
    let whole = |network: &Network| network.weights(&network.layout().whole(), &values, &values).unwrap();
    let wanted = joined_gradients(&mlp, &whole(&mlp), &x, &y, 1).unwrap();
    for name in ["mlp.pt", "mixing.pt"] {
        let script = network(&file(name), &shape).unwrap();
        let weights = whole(&script).followed().unwrap();
        let found = one_by_one(&script, &weights, &x, &y, 1).unwrap();
        let away = (&found - &wanted).abs().max().double_value(&[]);
        let scale = wanted.abs().max().double_value(&[]);
        assert!(away <= 1e-5 * scale, "{name}: {away} of {scale}");
        // Together the two differ: the mean of the batch moves every example.
        let together = |network: &Network, weights| {
            network.training_loss(weights, &x, &y, tch::Reduction::Mean).unwrap().double_value(&[])
        };
        let differs = (together(&script, &weights) - together(&mlp, &whole(&mlp))).abs();
        assert_eq!(differs > 1e-3, name == "mixing.pt", "{name}: {differs}");
    }
}

static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// With as little noise as there can be, DP-SGD of a module is that of the built-in model; the log names the way.
#[test]
fn dp_sgd_of_a_module_is_that_of_the_built_in_model() {
    let data = csv(60, 2, 0);
    for mechanism in [Default::default(), undertone_core::trainer::RecordMechanism::FastGaussian] {
        let privacy = RecordPrivacy {
            clip_norm: 0.3,
            noise_multiplier: 1e-6,
            sampling_rate: 0.3,
            expected_batch: 18.0,
            mechanism,
        };
        let wanted = TrainTask {
            sampling_seed: Some(4),
            record_privacy: Some(privacy),
            ..task(built_in(), 2, steps(10))
        };
        let found = of_file("mlp.pt", wanted.clone());
        let weights = start(&wanted);
        SAID.lock().unwrap().clear();
        let say = |text: &str| SAID.lock().unwrap().push(text.to_owned());
        let trained = TorchTrainer::new(data.path()).saying(say).train(&found, &weights).unwrap();
        let said = SAID.lock().unwrap().join("\n");
        assert!(said.contains("engine = \"one-by-one\""), "{said}");
        let wanted = TorchTrainer::new(data.path()).train(&wanted, &weights).unwrap();
        assert_near(&trained.delta, &wanted.delta, 1e-3, "delta");
        assert!(trained.delta.iter().any(|d| d.abs() > 0.05), "{:?}", trained.delta);
    }
}

/// Dropout in training, none in measurements; batches, dropout and optimiser go on to the same bits after a kill.
#[test]
fn pictures_are_learnt_and_go_on_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let files = pictures(dir.path(), 120);
    let data: DataContract = toml::from_str(
        "picture = { height = 6, width = 6 }\nlabel = { classes = [{ name = \"l\", values = [\"3\"] }, { name = \"r\", \
         values = [\"4\"] }] }",
    )
    .unwrap();
    let plan = TrainPlan { batch_size: Some(16), momentum: 0.9, learning_rate: 0.1, ..steps(60) };
    let bare = of_file("picture.pt", TrainTask { data, sampling_seed: Some(4), ..task(built_in(), 2, plan) });
    let weights = values("picture.safetensors", &bare);
    let whole = TorchTrainer::new(files.clone()).train(&bare, &weights).unwrap();
    let moved: Vec<f32> = weights.iter().zip(&whole.delta).map(|(w, d)| w + d).collect();
    let mut trainer = TorchTrainer::new(files.clone());
    let after = trainer.evaluate(&bare.evaluation(), &moved).unwrap();
    assert!(after.accuracy.unwrap() > 0.95, "{after:?}");
    assert_eq!(trainer.evaluate(&bare.evaluation(), &moved).unwrap(), after);

    let path = dir.path().join("state");
    let place = CheckpointPlace { path: path.clone(), attempt: "p/1/1".into(), every_s: 0 };
    let kept = TrainTask { checkpoint: Some(place), ..bare };
    let killed = TorchTrainer::new(files.clone()).stopped_by(Stop::after(20)).train(&kept, &weights);
    assert!(killed.is_err() && path.exists());
    assert_eq!(TorchTrainer::new(files).train(&kept, &weights).unwrap(), whole);
}

#[test]
fn what_shows_only_in_training_is_told_as_with_any_model() {
    let data = csv(30, 2, 0);
    let diverging = of_file("nan.pt", task(built_in(), 2, steps(3)));
    let weights = values("fc.safetensors", &diverging);
    let e = TorchTrainer::new(data.path()).train(&diverging, &weights).unwrap_err();
    assert!(matches!(&e, TrainerError::Diverged { step: 1, .. }), "{e}");
    let e = TorchTrainer::new(data.path()).evaluate(&diverging.evaluation(), &weights).unwrap_err();
    assert!(matches!(e, TrainerError::Numerical(_)), "{e}");

    let good = of_file("mlp.pt", task(built_in(), 2, steps(1)));
    for weights in [vec![0.0; 3], vec![f32::NAN; 33]] {
        let e = TorchTrainer::new(data.path()).train(&good, &weights).unwrap_err();
        assert!(matches!(e, TrainerError::Numerical(_)), "{e}");
    }
    let with_loss = TrainPlan { loss: Some(undertone_core::plan::Loss::Bce {}), ..steps(1) };
    let e = of_file("mlp.pt", task(built_in(), 2, with_loss));
    let e = TorchTrainer::new(data.path()).train(&e, &start(&task(built_in(), 2, steps(1)))).unwrap_err();
    assert!(matches!(&e, TrainerError::Unsupported(text) if text.contains("loss of its own")), "{e}");
    // Without its file, or outside of a job's rounds.
    let bare = TrainTask { module: None, ..good };
    assert!(matches!(TorchTrainer::new(data.path()).train(&bare, &[0.0; 33]), Err(TrainerError::Broken(_))));
    let e = Network::new(&bare.model, &Shape::table(2, 2)).unwrap_err();
    assert!(matches!(e, TrainerError::Unsupported(_)), "{e}");
}

/// The names of a module's tensors are PyTorch's own, in its order.
#[test]
fn tensors_are_named_and_ordered_as_in_pytorch() {
    for name in ["mlp.pt", "picture.pt", "tokens.pt", "number.pt"] {
        let path = file(name);
        let bytes = std::fs::read(path.with_extension("safetensors")).unwrap();
        let length = ModelLayout::header_len(bytes[..8].try_into().unwrap()).unwrap();
        let header = std::str::from_utf8(&bytes[8..length]).unwrap();
        let exported = spec(Path::new(&path));
        let mut at = 0;
        for tensor in &exported.exported().unwrap().tensors {
            let found = header[at..].find(&format!("\"{}\"", tensor.name)).unwrap();
            at += found;
        }
    }
}
