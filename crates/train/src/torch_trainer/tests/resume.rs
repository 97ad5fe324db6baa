//! Training that is killed goes on.

use super::*;
use undertone_core::augmentation::Augmentation;
use undertone_core::plan::{EarlyStop, Over, Schedule};
use undertone_core::trainer::CheckpointPlace;

/// Plans with all kinds of state.
fn plans_with_state() -> Vec<TrainPlan> {
    let batches = TrainPlan { batch_size: Some(7), ..steps(24) };
    let early_stop = Some(EarlyStop { patience: 9, min_delta: 0.0, held_out: 0.2 });
    let augmentation = Some(Augmentation { views: 2, shift: 0, flip: false, jitter: 0.1 });
    let schedule = Some(Schedule::Cosine { over: Over::Round, warm_up: 5, end: 0.1 });
    vec![
        TrainPlan { momentum: 0.9, ..steps(24) },
        TrainPlan { momentum: 0.9, schedule, ..batches.clone() },
        TrainPlan { optimizer: adam(), learning_rate: 0.05, proximal: 0.1, ..batches.clone() },
        TrainPlan { augmentation, momentum: 0.9, ..batches.clone() },
        TrainPlan { early_stop, clip_gradient_norm: Some(0.5), ..batches },
        TrainPlan { early_stop, weight_decay: Some(0.01), ..steps(24) },
    ]
}

fn kept_at(task: TrainTask, path: &std::path::Path) -> TrainTask {
    let place = CheckpointPlace { path: path.into(), attempt: "heart/1/1".into(), every_s: 0 };
    TrainTask { checkpoint: Some(place), ..task }
}

/// Killed at any step, training goes on to the bits that it would have come to.
#[test]
fn killed_training_goes_on_to_the_same_bits() {
    let (file, dir) = (csv(60, 3, 0), tempfile::tempdir().unwrap());
    for (i, plan) in plans_with_state().into_iter().enumerate() {
        let bare = TrainTask { sampling_seed: Some(4), ..task(mlp(Activation::Relu), 3, plan) };
        let whole = TorchTrainer::new(file.path()).train(&bare, &start(&bare)).unwrap();
        // A measurement on held-out rows is a look of its own.
        for looks in [2, 9, 20] {
            let path = dir.path().join(format!("{i}-{looks}"));
            let kept = kept_at(bare.clone(), &path);
            let killed =
                TorchTrainer::new(file.path()).stopped_by(Stop::after(looks)).train(&kept, &start(&kept));
            assert!(matches!(killed, Err(TrainerError::Broken(_))), "{killed:?}");
            let before = std::fs::read(&path).unwrap();
            // It does go on, and does not begin anew: with as many looks as it had, it comes further.
            let further =
                TorchTrainer::new(file.path()).stopped_by(Stop::after(looks)).train(&kept, &start(&kept));
            assert!(further.is_ok() || std::fs::read(&path).unwrap() != before, "plan {i}, {looks}");
            let mut seldom = kept;
            seldom.checkpoint.as_mut().unwrap().every_s = 3600;
            let resumed = TorchTrainer::new(file.path()).train(&seldom, &start(&seldom)).unwrap();
            assert_eq!(resumed, whole, "plan {i}, {looks}");
        }
    }
}

/// Without a seed the batches are those that the killed training would have drawn: its key is in the checkpoint.
#[test]
fn batches_without_a_seed_go_on_too() {
    let (file, dir) = (csv(60, 3, 0), tempfile::tempdir().unwrap());
    let plan = TrainPlan { batch_size: Some(7), ..steps(24) };
    let kept = kept_at(task(mlp(Activation::Relu), 3, plan), &dir.path().join("state"));
    let path = kept.checkpoint.clone().unwrap().path;
    let killed = TorchTrainer::new(file.path()).stopped_by(Stop::after(9)).train(&kept, &start(&kept));
    assert!(killed.is_err());
    let state = std::fs::read(&path).unwrap();
    let go_on = || {
        std::fs::write(&path, &state).unwrap();
        TorchTrainer::new(file.path()).train(&kept, &start(&kept)).unwrap().delta
    };
    assert_eq!(go_on(), go_on());
}

/// With a record-level contract no batch meets noise twice: after a kill other batches are drawn, also where a seed drew the first ones,
/// and neither their key nor noise is kept.
#[test]
fn killed_dp_sgd_goes_on_with_other_batches() {
    let (file, dir) = (csv(60, 2, 0), tempfile::tempdir().unwrap());
    let privacy = |noise_multiplier| RecordPrivacy {
        clip_norm: 1.0,
        noise_multiplier,
        sampling_rate: 0.3,
        expected_batch: 18.0,
        mechanism: Default::default(),
    };
    let of = |noise| TrainTask {
        sampling_seed: Some(4),
        record_privacy: Some(privacy(noise)),
        ..task(mlp(Activation::Tanh), 2, TrainPlan { momentum: 0.9, learning_rate: 0.1, ..steps(20) })
    };
    let run = |task: &TrainTask| TorchTrainer::new(file.path()).train(task, &start(task)).unwrap();
    let kill = |task: &TrainTask| {
        let killed = TorchTrainer::new(file.path()).stopped_by(Stop::after(7)).train(task, &start(task));
        assert!(killed.is_err());
        std::fs::read(&task.checkpoint.as_ref().unwrap().path).unwrap()
    };
    let away = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    // Next to no noise: what differs are the batches.
    let quiet = of(1e-6);
    let (whole, again) = (run(&quiet).delta, run(&quiet).delta);
    assert!(away(&whole, &again) < 2e-3, "the seed draws the same batches");
    let kept = kept_at(quiet, &dir.path().join("quiet"));
    let state = kill(&kept);
    assert!(
        String::from_utf8_lossy(&state).contains("\"sampler\":null"),
        "the key of batches is on the disk"
    );
    let go_on = || {
        std::fs::write(&kept.checkpoint.as_ref().unwrap().path, &state).unwrap();
        let update = run(&kept);
        assert_eq!(update.steps, 20);
        update.delta
    };
    let (one, other) = (go_on(), go_on());
    for (a, b) in [(&one, &whole), (&one, &other)] {
        assert!(away(a, b) > 5e-3, "{}", away(a, b));
    }

    // Killed before the first checkpoint was due, or with one that was damaged since: begun is begun.
    let mut seldom = kept_at(of(1e-6), &dir.path().join("seldom"));
    seldom.checkpoint.as_mut().unwrap().every_s = 3600;
    let path = seldom.checkpoint.clone().unwrap().path;
    kill(&seldom);
    assert!(away(&run(&seldom).delta, &whole) > 5e-3, "the batches that met noise were drawn again");
    std::fs::remove_file(&path).unwrap();
    assert!(away(&run(&seldom).delta, &whole) < 2e-3, "the seed draws the batches of a new training");
    std::fs::write(&path, "damaged").unwrap();
    assert!(away(&run(&seldom).delta, &whole) > 5e-3, "the batches that met noise were drawn again");
    // Where nothing can be kept, a kill would not be known of: the seed does not count.
    let nowhere = kept_at(of(1e-6), &dir.path().join("none/state"));
    assert!(away(&run(&nowhere).delta, &whole) > 5e-3, "the seed was used without a word of the beginning");

    let kept = kept_at(of(1.0), &dir.path().join("noisy"));
    let state = kill(&kept);
    let go_on = || {
        std::fs::write(&kept.checkpoint.as_ref().unwrap().path, &state).unwrap();
        run(&kept).delta
    };
    assert_ne!(go_on(), go_on());
}
