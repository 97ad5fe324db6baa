//! `undertone-client run`

use crate::args::RunArgs;
use crate::check::{inspect, read_job};
use crate::output::print;
use anyhow::Result;
use std::process::ExitCode;
use undertone_client::{Client, ClientConfig, Disclosure, ProcessTrainer, find_trainer_program};

pub(crate) async fn run(args: &RunArgs) -> Result<ExitCode> {
    let config = ClientConfig::load(&args.dir)?;
    // Neither stops the client: both may be mended while it runs. But say it before the first offer.
    if !config.data.is_file() {
        tracing::warn!(path = %config.data.display(), "there is no data file yet; offers will be declined");
    }
    if let Err(problem) = find_trainer_program(config.trainer.program.as_deref()) {
        tracing::warn!("{problem}");
    }
    if config.policy.sampling_seed.is_some() {
        tracing::warn!(
            "[study] sampling_seed is set: batches are repeatable, and amplification by sampling holds only against \
             those who do not know the seed"
        );
    }
    let trainer = ProcessTrainer::new(config.trainer.clone(), config.data.clone());
    let interrupt = trainer.interrupt();
    Client::new(config, Box::new(trainer)).interrupt_with(interrupt).run(stop_signal()).await?;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn dry_run(args: &RunArgs) -> Result<ExitCode> {
    let config = ClientConfig::load(&args.dir)?;
    let job = args.job.as_deref().map(read_job).transpose()?;
    let data = job.as_ref().map(|job| inspect(&config.data, job));
    print(&Disclosure::of(&config, job.as_ref().zip(data.as_ref())).to_string())?;
    Ok(ExitCode::SUCCESS)
}

async fn stop_signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => {
                tokio::select! {
                    _ = tokio::signal::ctrl_c() => {}
                    _ = terminate.recv() => {}
                }
                return;
            }
            Err(e) => tracing::warn!(error = %e, "SIGTERM cannot be caught; Ctrl-C can"),
        }
    }
    // Without a handler the system's default ends the process.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
