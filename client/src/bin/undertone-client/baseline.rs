//! `undertone-client baseline`

use crate::args::BaselineArgs;
use crate::check::read_job;
use crate::output::print;
use anyhow::Result;
use std::process::ExitCode;
use undertone_client::{ProcessTrainer, TrainerSettings};
use undertone_core::trainer_protocol::BaselineTask;

pub(crate) fn baseline(args: BaselineArgs) -> Result<ExitCode> {
    let job = read_job(&args.job)?;
    let spec = job.spec();
    let settings = TrainerSettings {
        threads: args.threads,
        device: args.device,
        program: args.program,
        ..TrainerSettings::default()
    };
    let mut trainer = ProcessTrainer::new(settings, args.test.clone());
    let task = BaselineTask {
        model: spec.model.clone(),
        data: spec.data.clone(),
        plan: spec.training.clone(),
        rounds: spec.rounds,
        seed: args.seed,
        train: args.train,
        test: args.test,
    };
    let outcome = trainer.baseline(&task)?;
    let m = outcome.metrics;
    if args.json {
        let document = serde_json::json!({
            "loss": m.loss, "accuracy": m.accuracy, "rows": m.rows,
            "rows_trained": outcome.rows, "steps": outcome.steps,
        });
        print(&format!("{document}\n"))?;
    } else {
        print(&format!(
            "trained on {} rows, {} steps, no privacy\ntest loss {:.4}, test accuracy {:.4} on {} rows\n",
            outcome.rows, outcome.steps, m.loss, m.accuracy, m.rows
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
