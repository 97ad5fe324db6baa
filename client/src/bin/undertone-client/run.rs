//! `undertone-client run`

use crate::args::RunArgs;
use crate::check::{inspect, read_job};
use crate::output::print;
use anyhow::Result;
use std::process::ExitCode;
use undertone_client::{
    Client, ClientConfig, CommandTrainer, Disclosure, Interrupt, OnProgress, ProcessTrainer,
    find_trainer_program,
};
use undertone_core::trainer::Trainer;

pub(crate) async fn run(args: &RunArgs, log_is_text: bool) -> Result<ExitCode> {
    let mut config = ClientConfig::load(&args.dir)?;
    let overridden = config.trainer.override_with(args.threads, args.niceness, args.max_memory_mib);
    overridden.map_err(anyhow::Error::msg)?;
    // Neither stops the client: both may be mended while it runs. But say it before the first offer.
    if let Some(missing) = config.data.paths().find(|path| !path.exists()) {
        tracing::warn!(path = %missing.display(), "there is no data yet; offers will be declined");
    }
    match &config.trainer.command {
        Some(command) => {
            tracing::info!(command = ?command.command, "training is done by the owner's own program");
        }
        None => {
            if let Err(problem) = find_trainer_program(config.trainer.program.as_deref()) {
                tracing::warn!("{problem}");
            }
        }
    }
    if config.policy.sampling_seed.is_some() {
        tracing::warn!(
            "[study] sampling_seed is set: batches are repeatable, and amplification by sampling holds only against \
             those who do not know the seed"
        );
    }
    let (trainer, interrupt) = trainer(&config, crate::progress::listener(log_is_text));
    Client::new(config, trainer).interrupt_with(interrupt).run(stop_signal()).await?;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// The trainer that the owner chose.
fn trainer(config: &ClientConfig, on_progress: OnProgress) -> (Box<dyn Trainer>, Interrupt) {
    match &config.trainer.command {
        Some(command) => {
            let (settings, folder) = (config.trainer.clone(), config.folder.clone());
            let trainer = CommandTrainer::new(settings, command.clone(), folder, config.data.clone());
            let trainer = trainer.on_progress(on_progress);
            let interrupt = trainer.interrupt();
            (Box::new(trainer), interrupt)
        }
        None => {
            let trainer =
                ProcessTrainer::new(config.trainer.clone(), config.data.clone()).on_progress(on_progress);
            let interrupt = trainer.interrupt();
            (Box::new(trainer), interrupt)
        }
    }
}

pub(crate) fn dry_run(args: &RunArgs) -> Result<ExitCode> {
    let config = ClientConfig::load(&args.dir)?;
    let job = args.job.as_deref().map(read_job).transpose()?;
    let data = job.as_ref().map(|job| inspect(&config, job));
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
