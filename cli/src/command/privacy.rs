//! `undertone privacy`: what a job's promise is worth, without a coordinator and without data.

mod audit;

use crate::output::Screen;
use anyhow::Result;
use clap::Subcommand;
use std::process::ExitCode;

/// Put a job's privacy to the proof.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Attack a job's own noise with canaries, and hold what they prove against the claimed ε
    Audit(audit::Arguments),
}

impl Command {
    /// Runs the command; none needs a coordinator.
    ///
    /// # Errors
    /// If the input makes no sense or output is closed.
    pub(crate) fn run(self, screen: Screen) -> Result<ExitCode> {
        match self {
            Self::Audit(arguments) => arguments.run(screen),
        }
    }
}
