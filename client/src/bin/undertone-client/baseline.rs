//! `undertone-client baseline`

use crate::args::BaselineArgs;
use crate::check::read_job;
use crate::output::print;
use anyhow::{Result, ensure};
use std::process::ExitCode;
use undertone_client::{ProcessTrainer, TrainerSettings};
use undertone_core::data_files::DataFiles;
use undertone_core::trainer_protocol::BaselineTask;

pub(crate) fn baseline(args: BaselineArgs) -> Result<ExitCode> {
    let job = read_job(&args.job)?;
    let spec = job.spec();
    let mut settings = TrainerSettings {
        threads: args.threads,
        device: args.device,
        program: args.program,
        ..TrainerSettings::default()
    };
    settings.override_with(None, None, args.max_memory_mib).map_err(anyhow::Error::msg)?;
    let labels = args.train_labels.len();
    ensure!(
        labels == 0 || labels == args.train.len(),
        "{} --train and {labels} --train-labels: give one for each, or none for CSV files",
        args.train.len()
    );
    let mut labels = args.train_labels.into_iter();
    let train = args.train.into_iter().map(|path| DataFiles { path, labels: labels.next() });
    let test = DataFiles { path: args.test, labels: args.test_labels };
    let mut trainer = ProcessTrainer::new(settings, test.clone());
    let task = BaselineTask {
        model: spec.model.clone(),
        data: spec.data.clone(),
        plan: spec.training.clone(),
        rounds: spec.rounds,
        seed: args.seed,
        train: train.collect(),
        test,
    };
    let outcome = trainer.baseline(&task)?;
    let m = outcome.metrics;
    if args.json {
        let mut document = serde_json::to_value(m)?;
        document["rows_trained"] = outcome.rows.into();
        document["steps"] = outcome.steps.into();
        print(&format!("{document}\n"))?;
    } else {
        print(&format!(
            "trained on {} rows, {} steps, no privacy\ntest loss {:.4}{} on {} rows\n",
            outcome.rows,
            outcome.steps,
            m.loss,
            m.nearness().map_or(String::new(), |near| format!(", test {near}")),
            m.rows
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
