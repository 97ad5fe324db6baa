//! What a plan sets is what is trained.

use super::*;
use undertone_core::plan::{Loss, Over, Precision, Schedule};
use undertone_core::trainer::RoundOf;

#[test]
fn the_loss_of_the_plan_is_trained_and_measured() {
    let file = csv(90, 3, 0);
    let mut trainer = TorchTrainer::new(file.path());
    let weighted = Loss::CrossEntropy { class_weights: Some(vec![2.0, 2.0, 2.0]) };
    let of = |loss: Option<Loss>, learning_rate| {
        let plan = TrainPlan { loss, learning_rate, ..steps(3) };
        TrainTask { first_loss: true, ..task(ModelSpec::Logistic {}, 3, plan) }
    };
    let (plain, double) = (of(None, 0.5), of(Some(weighted), 0.25));
    let measured = |trainer: &mut TorchTrainer, task: &TrainTask| {
        trainer.evaluate(&task.evaluation(), &start(task)).unwrap().loss
    };
    assert!((measured(&mut trainer, &plain) - 3f64.ln()).abs() < 1e-6);
    assert!((measured(&mut trainer, &double) - 2.0 * 3f64.ln()).abs() < 1e-6);
    let bounded = trainer.evaluate_bounded(&double.evaluation(), 8.0, &start(&double)).unwrap();
    let loss = bounded.loss_units as f64 / LOSS_UNITS as f64 * 8.0 / bounded.rows as f64;
    assert!((loss - 2.0 * 3f64.ln()).abs() < 0.01, "{loss}");
    // Twice the loss at half the rate is the same training.
    let (a, b) =
        (trainer.train(&plain, &start(&plain)).unwrap(), trainer.train(&double, &start(&double)).unwrap());
    assert!((b.first_loss.unwrap() - 2.0 * a.first_loss.unwrap()).abs() < 1e-6);
    assert!(a.delta.iter().zip(&b.delta).all(|(a, b)| (a - b).abs() < 1e-6));
    let misfit = of(Some(Loss::Mse {}), 0.5);
    for result in [
        trainer.train(&misfit, &start(&misfit)).map(drop),
        trainer.evaluate(&misfit.evaluation(), &start(&misfit)).map(drop),
    ] {
        assert!(
            matches!(&result, Err(TrainerError::Unsupported(t)) if t.contains("cross-entropy")),
            "{result:?}"
        );
    }
}

#[test]
fn every_optimiser_and_loss_learns() {
    let file = csv(300, 3, 0);
    let mut trainer = TorchTrainer::new(file.path());
    let adamw = Optimizer::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
    for plan in [
        TrainPlan { optimizer: adam(), learning_rate: 0.05, ..steps(100) },
        TrainPlan { optimizer: adamw, learning_rate: 0.05, loss: Some(Loss::Bce {}), ..steps(100) },
        TrainPlan { momentum: 0.9, clip_gradient_norm: Some(1.0), ..steps(150) },
        TrainPlan { momentum: 0.9, precision: Precision::Bf16, ..steps(150) },
    ] {
        let task = task(mlp(Activation::Relu), 3, plan);
        let mut weights = start(&task);
        let update = trainer.train(&task, &weights).unwrap();
        weights.iter_mut().zip(&update.delta).for_each(|(w, d)| *w += d);
        let after = trainer.evaluate(&task.evaluation(), &weights).unwrap();
        assert!(after.accuracy.unwrap() > 0.9, "{:?}: {after:?}", task.plan);
    }
}

/// A schedule over the job gives each round its own rate.
#[test]
fn the_round_sets_the_rate_of_a_schedule_over_the_job() {
    let file = csv(40, 2, 0);
    let schedule = Some(Schedule::Step { over: Over::Job, warm_up: 0, every: 1, factor: 0.5 });
    let task = task(ModelSpec::Logistic {}, 2, TrainPlan { schedule, ..steps(1) });
    let of_round = |round| {
        let task = TrainTask { round: RoundOf { round, rounds: 5 }, ..task.clone() };
        TorchTrainer::new(file.path()).train(&task, &[0.0; 3]).unwrap().delta
    };
    let (first, third) = (of_round(1), of_round(3));
    assert!(first.iter().zip(&third).all(|(a, b)| (a - 4.0 * b).abs() < 1e-6), "{first:?} {third:?}");
}
