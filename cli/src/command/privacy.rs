//! `undertone privacy`: what noise costs and what a promise is worth. Needs no deployment and no data.

mod audit;
mod epsilon;
mod plan;

use crate::output::Screen;
use anyhow::Result;
use clap::Subcommand;
use std::process::ExitCode;

/// Plan a privacy budget, and put a promise to the proof: needs no deployment
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Epsilon(epsilon::Epsilon),
    Calibrate(epsilon::Calibrate),
    Plan(plan::Plan),
    /// Attack a job's own noise with canaries, and hold what they prove against the claimed ε
    Audit(audit::Arguments),
}

impl Command {
    /// Runs the command.
    ///
    /// # Errors
    /// For input that makes no sense.
    pub(crate) fn run(self, screen: Screen) -> Result<ExitCode> {
        match self {
            Self::Epsilon(command) => command.run(screen),
            Self::Calibrate(command) => command.run(screen),
            Self::Plan(command) => command.run(screen),
            Self::Audit(arguments) => arguments.run(screen),
        }
    }
}
