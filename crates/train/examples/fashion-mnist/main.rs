//! The study `cargo xtask study fashion-mnist`: accuracy on Fashion-MNIST with each picture protected, against published
//! figures. Trains in one place, through the same trainer as a client.
//!
//! Poisson batches, noise from the tight accountant (add-remove neighbours), the last model measured once on the test set.

#![forbid(unsafe_code)]

mod report;
mod runs;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use report::Outcome;
use runs::{Finished, Run};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use undertone_core::data_files::DataFiles;
use undertone_core::trainer::{Progress, RecordMechanism, TrainTask, Trainer};
use undertone_core::trainer_protocol::BaselineTask;
use undertone_privacy::pld::{Adjacency, Composition, Mechanism, calibrate};
use undertone_privacy::rdp::{MAX_NOISE_MULTIPLIER, MIN_NOISE_MULTIPLIER};
use undertone_train::{DeviceChoice, Stop, TorchTrainer};

const PICTURES: u32 = 60_000;
const CLASSES: [&str; 10] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];

/// Train on Fashion-MNIST with each picture protected, and write down how accurate that is
#[derive(Parser)]
struct Args {
    /// The folder with the four files of the set
    #[arg(long)]
    data: PathBuf,
    /// The folder to write fashion-mnist.md and fashion-mnist.svg to
    #[arg(long)]
    out: PathBuf,
    /// Where finished trainings are kept until the page is written, so that the study goes on where it was stopped
    #[arg(long, value_name = "FILE")]
    finished: Option<PathBuf>,
    /// How many runs of each case
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Only cases whose name holds this
    #[arg(long, default_value = "")]
    case: String,
    /// Threads that libtorch computes with
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Where to compute: auto, cpu or cuda:N
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Study {
    epsilon: f64,
    delta: f64,
    case: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    source: String,
    published: f64,
    batch: u32,
    epochs: u32,
    mechanism: RecordMechanism,
    clip_norm: f64,
    picture: Value,
    model: Value,
    training: Value,
    ceiling: Value,
}

fn main() -> Result<()> {
    let args = Args::parse();
    tch::set_num_threads(args.threads.into());
    let device = undertone_train::device::pick(args.device)?;
    let study = study()?;
    let files = |set: &str| {
        let file = |kind: &str| args.data.join(format!("{set}-{kind}-ubyte.gz"));
        DataFiles::pictures(file("images-idx3"), file("labels-idx1"))
    };
    let (train, test) = (files("train"), files("t10k"));
    for path in train.paths().chain(test.paths()) {
        ensure!(path.is_file(), "there is no {}", path.display());
    }
    let mut finished = Finished::open(args.finished)?;
    let mut outcomes = Vec::new();
    for case in study.case.iter().filter(|c| c.name.contains(&args.case)) {
        eprintln!("{}:", case.name);
        // One trainer a file set: what is read stays in memory from run to run.
        let trainer = |files: &DataFiles| TorchTrainer::new(files.clone()).on(device);
        let mut trainers = [trainer(&train).stopped_by(Stop::default().telling(progress())), trainer(&test)];
        outcomes.push(case.run(&study, &train, &test, args.seeds, &mut trainers, &mut finished)?);
    }
    ensure!(!outcomes.is_empty(), "no case's name holds \"{}\"", args.case);
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    for (name, text) in [
        ("fashion-mnist.md", report::page(&outcomes, study.epsilon, study.delta)),
        ("fashion-mnist.svg", report::plot(&outcomes)),
    ] {
        let path = args.out.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("wrote {}", path.display());
    }
    finished.forget()
}

fn study() -> Result<Study> {
    toml::from_str(include_str!("cases.toml")).context("cases.toml")
}

/// A dot for each tenth of a training.
fn progress() -> Arc<dyn Fn(Progress) + Send + Sync> {
    Arc::new(|Progress { step, steps }| {
        if (step + 1) * 10 / steps > step * 10 / steps {
            eprint!(".");
        }
    })
}

fn per_cent(accuracy: Option<f64>) -> Result<f64> {
    Ok(100.0 * accuracy.context("classes have an accuracy")?)
}

impl Case {
    /// The part of the pictures that a batch has on average, and the steps that make up the epochs.
    fn rate_and_steps(&self) -> (f64, u32) {
        let rate = f64::from(self.batch) / f64::from(PICTURES);
        (rate, (f64::from(self.epochs) / rate).round() as u32)
    }

    fn data(&self) -> Value {
        let class = |(i, name): (usize, &&str)| json!({ "name": name, "values": [i.to_string()] });
        let classes: Vec<Value> = CLASSES.iter().enumerate().map(class).collect();
        json!({ "picture": self.picture, "label": { "classes": classes } })
    }

    fn task(&self, seed: u64, steps: u32, noise_multiplier: f64) -> Result<TrainTask> {
        let (mut model, mut plan) = (self.model.clone(), self.training.clone());
        if model["kind"] != "logistic" {
            model["seed"] = seed.into();
        }
        plan["local_steps"] = steps.into();
        let task = json!({
            "model": model, "data": self.data(), "plan": plan, "sampling_seed": seed, "first_loss": false,
            "round": { "round": 1, "rounds": 1 },
            "record_privacy": {
                "clip_norm": self.clip_norm, "noise_multiplier": noise_multiplier,
                "sampling_rate": self.rate_and_steps().0, "expected_batch": self.batch,
                "mechanism": self.mechanism,
            },
        });
        serde_json::from_value(task).with_context(|| format!("the task of \"{}\"", self.name))
    }

    fn run(
        &self,
        study: &Study,
        train: &DataFiles,
        test: &DataFiles,
        seeds: u64,
        [trainer, judge]: &mut [TorchTrainer; 2],
        finished: &mut Finished,
    ) -> Result<Outcome> {
        let (rate, steps) = self.rate_and_steps();
        let composition = |z| {
            let step = Mechanism::poisson_gaussian(z, rate)?;
            Composition::new(Adjacency::AddRemove).add(step, steps.into())
        };
        let range = (MIN_NOISE_MULTIPLIER, MAX_NOISE_MULTIPLIER);
        let noise_multiplier = calibrate::least_noise(study.epsilon, study.delta, range, composition)?;
        let epsilon = composition(noise_multiplier)?.epsilon_upper(study.delta)?;
        eprintln!("  noise multiplier {noise_multiplier:.4}, {steps} steps, ε = {epsilon:.3}");

        let mut runs = Vec::new();
        for seed in 1..=seeds {
            let task = self.task(seed, steps, noise_multiplier)?;
            let run = finished.run(&task, || {
                let start = Instant::now();
                let mut weights = task.model.initial_values(&task.data.shape());
                let update = trainer.train(&task, &weights)?;
                weights.iter_mut().zip(&update.delta).for_each(|(w, d)| *w += d);
                let metrics = judge.evaluate(&task.evaluation(), &weights)?;
                Ok(Run { accuracy: per_cent(metrics.accuracy)?, seconds: start.elapsed().as_secs_f64() })
            })?;
            eprintln!(" seed {seed}: {:.2} %, {:.0} s", run.accuracy, run.seconds);
            runs.push(run);
        }
        trainer.rest();
        let ceiling: BaselineTask = serde_json::from_value(json!({
            "model": self.model, "data": self.data(), "plan": self.ceiling, "rounds": 1, "seed": 1, "train": [train],
            "test": test,
        }))?;
        let ceiling = finished.run(&ceiling, || {
            let start = Instant::now();
            let accuracy = per_cent(trainer.baseline(&ceiling)?.metrics.accuracy)?;
            Ok(Run { accuracy, seconds: start.elapsed().as_secs_f64() })
        })?;
        eprintln!("  without privacy: {:.2} %", ceiling.accuracy);
        judge.rest();
        Ok(Outcome {
            name: self.name.clone(),
            source: self.source.clone(),
            published: self.published,
            batch: self.batch,
            epochs: self.epochs,
            mechanism: self.mechanism.as_str(),
            noise_multiplier,
            epsilon,
            ceiling: ceiling.accuracy,
            runs,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A typing mistake is not to show after an hour.
    #[test]
    fn every_case_can_be_trained() {
        let study = study().unwrap();
        assert_eq!(study.case.len(), 2);
        for case in &study.case {
            let task = case.task(1, case.rate_and_steps().1, 1.0).unwrap();
            task.plan.validate().unwrap();
            task.plan.check_record_privacy().unwrap();
            let ceiling: undertone_core::plan::TrainPlan =
                serde_json::from_value(case.ceiling.clone()).unwrap();
            ceiling.validate().unwrap();
            assert!(!task.model.initial_values(&task.data.shape()).is_empty(), "{}", case.name);
        }
    }
}
