//! Running other programs, with errors that name them.

use std::io;
use std::process::{Command, Output, Stdio};

use anyhow::{Result, anyhow, bail};

/// Runs a command to its end, its output shown as it comes.
pub(crate) fn must_succeed(command: &mut Command) -> Result<()> {
    let status = command.status().map_err(|error| cannot_start(command, &error))?;
    if !status.success() {
        bail!("`{}` failed ({status})", command_line(command));
    }
    Ok(())
}

/// Did it succeed? Shows nothing: there is another way, or a sentence of ours.
pub(crate) fn succeeds_quietly(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// What a tool prints, in English. If it fails, the error holds the last line of its complaint.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } = command
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| cannot_start(command, &error))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&stderr);
        let last = said.trim_end().lines().last().unwrap_or("it said nothing");
        bail!("`{}` failed ({status}): {last}", command.get_program().to_string_lossy());
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// The program and its arguments, for messages.
pub(crate) fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// The error of a command that could not even be started.
pub(crate) fn cannot_start(command: &Command, error: &io::Error) -> anyhow::Error {
    anyhow!("cannot start `{}`: {error}", command_line(command))
}
