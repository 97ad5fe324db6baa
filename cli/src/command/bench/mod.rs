//! `undertone bench`: what a round costs on this machine, with a real coordinator and real protocol clients.
//!
//! [`round`], [`curve`] and [`idle`] are the commands; [`job`] and [`stage`] set up what they run; [`rounds`] reads the times from the
//! coordinator's events, [`usage`] what was used, [`wire`] what was sent, [`ceiling`] what the machine could do. The clients:
//! [`client`] is one, [`update`] what it sends, [`crowd`] many in a process, [`process`] the processes.

mod ceiling;
mod client;
mod crowd;
mod curve;
mod encoding;
mod idle;
mod job;
mod process;
mod round;
mod rounds;
mod stage;
mod update;
mod usage;
mod wire;

use crate::output::Screen;
use anyhow::Result;
use clap::Subcommand;
use std::process::ExitCode;

/// Measure rounds and sessions on this machine: needs no deployment
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Round(round::Arguments),
    Curve(curve::Arguments),
    Idle(idle::Arguments),
    /// Runs clients of a benchmark (the benchmarks start their processes this way)
    #[command(hide = true)]
    Client,
}

impl Command {
    /// Runs the command.
    ///
    /// # Errors
    /// If the benchmark makes no sense, is too much for this machine, or fails.
    pub(crate) async fn run(self, screen: Screen) -> Result<ExitCode> {
        match self {
            Self::Round(arguments) => arguments.run(screen).await,
            Self::Curve(arguments) => arguments.run(screen).await,
            Self::Idle(arguments) => arguments.run(screen).await,
            Self::Client => process::run().await,
        }
    }
}
