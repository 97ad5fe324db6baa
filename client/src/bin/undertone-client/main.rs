//! `undertone-client`: takes part in federated training with data that stays on this machine.

mod args;
mod baseline;
mod check;
mod enrol;
mod logging;
mod output;
mod progress;
mod run;
mod sandboxed;

use args::{Args, Command, LogFormat};
use clap::Parser as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything else: this must be a process of one thread.
    if let Some(code) = sandboxed::run() {
        return code;
    }
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        logging::start(args.log_format);
        let log_is_text = args.log_format == LogFormat::Text;
        match args.command {
            Command::Enrol(args) => runtime.block_on(enrol::enrol(args)),
            Command::Run(args) if args.dry_run => run::dry_run(&args),
            Command::Run(args) => runtime.block_on(run::run(&args, log_is_text)),
            Command::Check(args) => check::check(&args),
            Command::Baseline(args) => baseline::baseline(args),
        }
    });
    match outcome {
        Ok(code) => code,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}
