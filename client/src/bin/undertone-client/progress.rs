//! A bar on standard error, where that is a terminal. Log lines and the bar share it: a line wipes the bar first.

use std::io::{self, IsTerminal as _, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use undertone_client::{OnProgress, progress_in_log};
use undertone_core::trainer::Progress;

const WIDTH: u64 = 30;
/// To the line's beginning, and all of it away.
const WIPE: &str = "\r\x1b[2K";

/// Whether a bar stands in the terminal's last line.
static SHOWN: AtomicBool = AtomicBool::new(false);

/// A bar in a terminal, else lines in the log.
pub(crate) fn listener(log_is_text: bool) -> OnProgress {
    if !(log_is_text && io::stderr().is_terminal()) {
        return progress_in_log();
    }
    std::sync::Arc::new(|progress| {
        let mut terminal = io::stderr().lock();
        SHOWN.store(true, Ordering::SeqCst);
        // A terminal that is gone is no reason to stop training.
        let _ = write!(terminal, "{WIPE}{}", bar(progress)).and_then(|()| terminal.flush());
    })
}

/// `training [#####-----] 12/100`
fn bar(Progress { step, steps }: Progress) -> String {
    let full = (WIDTH * step.min(steps)).checked_div(steps).unwrap_or(WIDTH);
    let line: String = (0..WIDTH).map(|i| if i < full { '#' } else { '-' }).collect();
    format!("training [{line}] {step}/{steps}")
}

/// Standard error for log lines.
pub(crate) struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut terminal = io::stderr().lock();
        if SHOWN.swap(false, Ordering::SeqCst) {
            terminal.write_all(WIPE.as_bytes())?;
        }
        terminal.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_fills() {
        let at = |step, steps| bar(Progress { step, steps });
        assert_eq!(at(0, 3), format!("training [{}] 0/3", "-".repeat(30)));
        assert_eq!(at(1, 3), format!("training [{}{}] 1/3", "#".repeat(10), "-".repeat(20)));
        assert_eq!(at(3, 3), format!("training [{}] 3/3", "#".repeat(30)));
        assert!(at(0, 0).ends_with("0/0"));
    }
}
