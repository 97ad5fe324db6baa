//! What needs a GPU: `cargo xtask test --gpu` runs it, through the process, which is what loads libtorch's CUDA library.

use super::*;
use undertone_core::plan::Optimizer;
use undertone_core::trainer::RecordMechanism;

/// With the environment as it is: it may say where a libtorch with CUDA lies.
fn spawn(data: &Path, device: &str) -> Process {
    Process::start(Command::new(PROGRAM).args(["--device", device, "--data"]).arg(data))
}

/// Models, optimisers, and both mechanisms of private training, with next to no noise.
fn tasks() -> Vec<(&'static str, TrainTask)> {
    let of = |model: &str, plan| TrainTask {
        sampling_seed: Some(3),
        ..TrainTask::new(toml::from_str(model).unwrap(), contract(), plan)
    };
    let steps = |n| TrainPlan::sgd(0.05, LocalWork::Steps(n));
    let mlp = "kind = \"mlp\"\nhidden = [16]\nactivation = \"tanh\"";
    let transformer = "kind = \"transformer\"\nwidth = 8\nheads = 2\nlayers = 1";
    let adam =
        TrainPlan { optimizer: Optimizer::Adam { beta1: 0.9, beta2: 0.999, epsilon: 1e-3 }, ..steps(5) };
    let private = |mechanism| TrainTask {
        record_privacy: Some(RecordPrivacy {
            clip_norm: 1.0,
            noise_multiplier: 1e-5,
            sampling_rate: 0.5,
            expected_batch: 40.0,
            mechanism,
        }),
        ..of(mlp, steps(5))
    };
    vec![
        ("logistic", task(5)),
        ("mlp", of(mlp, TrainPlan { batch_size: Some(16), momentum: 0.9, ..steps(9) })),
        ("mlp, adam", of(mlp, adam)),
        ("transformer", of(transformer, steps(5))),
        ("exact noise", private(RecordMechanism::DiscreteGaussian)),
        ("fast noise", private(RecordMechanism::FastGaussian)),
    ]
}

/// Up to rounding, and the noise.
fn agree(devices: [&str; 2]) {
    let file = data();
    for (name, task) in tasks() {
        let deltas = devices.map(|device| {
            let mut process = spawn(file.path(), device);
            let mut trainer = process.connect().unwrap();
            assert_eq!(trainer.info().device, device);
            let delta = trainer.train(&task, &start(&task)).unwrap().delta;
            trainer.quit().unwrap();
            assert!(process.ended().0.success());
            delta
        });
        let longest = deltas[0].iter().fold(0f32, |most, d| most.max(d.abs()));
        let away = deltas[0].iter().zip(&deltas[1]).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(longest > 1e-4 && away < 1e-3 * longest, "{name} on {devices:?}: {away} of {longest}");
    }
}

/// That what the GPU is held against holds without one.
#[test]
fn training_agrees_with_itself() {
    agree(["cpu", "cpu"]);
}

#[test]
#[ignore = "gpu"]
fn gpu_training_agrees_with_the_cpu() {
    agree(["cpu", "cuda:0"]);
}

/// Several clients share a GPU: each has a process of its own on it, at the same time.
#[test]
#[ignore = "gpu"]
fn gpu_is_shared_by_several_trainers() {
    let file = data();
    let together = std::sync::Barrier::new(3);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut process = spawn(file.path(), "cuda:0");
                let mut trainer = process.connect().unwrap();
                let weights = start(&task(5));
                for _ in 0..3 {
                    together.wait();
                    trainer.train(&task(200), &weights).unwrap();
                }
                trainer.quit().unwrap();
            });
        }
    });
}
