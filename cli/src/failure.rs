//! How a command ends, and what it says when it fails.

use std::error::Error;
use std::process::ExitCode;

/// Input that makes no sense: the same command can never succeed. Exit code 2, like a wrong flag.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadInput(pub(crate) String);

/// A [`BadInput`] as an error of a command.
pub(crate) fn bad_input(sentence: impl Into<String>) -> anyhow::Error {
    BadInput(sentence.into()).into()
}

/// Exit code of input that makes no sense.
const BAD_INPUT: u8 = 2;

/// Says why a command failed, on standard error, and gives its exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if is_closed_pipe(error) {
        // Whoever read our output (`head`, a pager) has seen enough.
        return ExitCode::SUCCESS;
    }
    eprintln!("undertone: {error:#}");
    let input = error.chain().any(|e| e.is::<BadInput>());
    if input { ExitCode::from(BAD_INPUT) } else { ExitCode::FAILURE }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let broken = |e: &(dyn Error + 'static)| {
        e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    };
    error.is::<std::io::Error>() && error.chain().any(broken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;
    use std::io;

    #[test]
    fn only_our_own_closed_output_is_no_failure() {
        let ours: anyhow::Error = io::Error::from(io::ErrorKind::BrokenPipe).into();
        assert!(is_closed_pipe(&ours));
        let other = Err::<(), _>(io::Error::from(io::ErrorKind::NotFound)).context("read x").unwrap_err();
        assert!(!is_closed_pipe(&other));
    }
}
