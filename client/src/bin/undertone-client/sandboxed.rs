//! `undertone-client sandboxed`: the hidden steps between the client and its owner's training program.

use std::path::PathBuf;
use std::process::ExitCode;
use undertone_client::{SANDBOXED, enter_sandbox, start_sandboxed};

/// Runs a step if the command line asks for one.
pub(crate) fn run() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != SANDBOXED {
        return None;
    }
    let (step, plan) = (arguments.next()?, PathBuf::from(arguments.next()?));
    let done = match step.to_str() {
        Some("enter") => enter_sandbox(&plan),
        Some("start") => start_sandboxed(&plan),
        _ => return None,
    };
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("undertone-client {SANDBOXED}: {}: {e}", plan.display());
            ExitCode::FAILURE
        }
    })
}
