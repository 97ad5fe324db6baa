//! `undertone privacy`: what noise costs, before any job runs. Needs no deployment.

mod epsilon;
mod plan;

use crate::output::Screen;
use anyhow::Result;
use clap::Subcommand;
use std::process::ExitCode;

/// Plan a privacy budget: needs no deployment
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Epsilon(epsilon::Epsilon),
    Calibrate(epsilon::Calibrate),
    Plan(plan::Plan),
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
        }
    }
}
