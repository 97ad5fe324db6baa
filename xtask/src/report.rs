//! What a person sees. Everything goes to standard error: standard output belongs to the program that is run.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// One line about what is being done.
pub(crate) fn say(line: &str) {
    eprintln!("xtask: {line}");
}

/// The headline of a step.
pub(crate) fn headline(line: &str) {
    eprintln!("\n=== {line} ===");
}

/// The last line of a command that failed: one sentence, its causes after colons.
pub(crate) fn failure(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}

/// "0.4 s" or "2 min 05 s".
pub(crate) fn duration(time: Duration) -> String {
    if time < Duration::from_secs(60) {
        return format!("{:.1} s", time.as_secs_f64());
    }
    format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60)
}

/// Shows how much of a download is there: one line that is redrawn on a terminal, else a line now and then.
pub(crate) struct Download {
    what: &'static str,
    total: u64,
    started: Instant,
    last_line: Instant,
    redraw: bool,
}

impl Download {
    /// Starts to show a download of `total` bytes.
    pub(crate) fn start(what: &'static str, total: u64) -> Self {
        let now = Instant::now();
        Self { what, total, started: now, last_line: now, redraw: std::io::stderr().is_terminal() }
    }

    /// `bytes` are there now.
    pub(crate) fn update(&mut self, bytes: u64) {
        let (there, total) = (bytes / 1_000_000, self.total / 1_000_000);
        let line = format!("xtask: {}: {there} of {total} MB", self.what);
        if self.redraw {
            eprint!("\r{line}\x1b[K");
            // A progress line that cannot be shown is no reason to stop.
            let _ = std::io::stderr().flush();
        } else if self.last_line.elapsed() >= Duration::from_secs(5) {
            self.last_line = Instant::now();
            eprintln!("{line}");
        }
    }

    /// The download ended, well or badly; the next line starts afresh.
    pub(crate) fn finish(self, succeeded: bool) {
        if self.redraw {
            eprint!("\r\x1b[K");
        }
        if succeeded {
            let took = duration(self.started.elapsed());
            eprintln!("xtask: {}: done in {took}", self.what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short_and_rounded_down_past_a_minute() {
        assert_eq!(duration(Duration::from_millis(437)), "0.4 s");
        assert_eq!(duration(Duration::from_millis(125_900)), "2 min 05 s");
    }
}
