//! How far training has come, told to people: a line every few seconds in a log, and one for each step that is heard of where the log
//! goes into detail. (The bar of a terminal is the program's.)

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use undertone_core::trainer::Progress;
pub use undertone_core::trainer_protocol::OnProgress;

/// How often a log line tells of progress. The first comes after as long, so that quick rounds say nothing.
const EVERY: Duration = Duration::from_secs(5);

/// Tells of progress in log lines.
pub fn progress_in_log() -> OnProgress {
    let pace = Mutex::new(Pace::new(EVERY));
    Arc::new(move |progress| {
        let now = Instant::now();
        if pace.lock().unwrap_or_else(PoisonError::into_inner).is_due(progress, now) {
            tracing::info!(step = progress.step, steps = progress.steps, "training");
        } else {
            tracing::debug!(step = progress.step, steps = progress.steps, "training");
        }
    })
}

/// When the next line is due.
struct Pace {
    every: Duration,
    /// The step that was heard last, and since when lines are counted.
    last: Option<(u64, Instant)>,
}

impl Pace {
    fn new(every: Duration) -> Self {
        Self { every, last: None }
    }

    fn is_due(&mut self, progress: Progress, now: Instant) -> bool {
        // A step that is not ahead of the last begins another training.
        let (step, told) = match self.last {
            Some((step, told)) if progress.step > step => (progress.step, told),
            _ => (progress.step, now),
        };
        let due = now.duration_since(told) >= self.every;
        self.last = Some((step, if due { now } else { told }));
        due
    }
}

/// What a training program's line of output says of progress: `undertone: step 12 of 100`.
pub(crate) fn of_line(line: &str) -> Option<Progress> {
    let mut words = line.trim().strip_prefix("undertone: step ")?.split_whitespace();
    let step = words.next()?.parse().ok()?;
    if words.next()? != "of" {
        return None;
    }
    let steps = words.next()?.trim_end_matches(',').parse().ok()?;
    (step <= steps).then_some(Progress { step, steps })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_keep_their_pace_and_each_training_starts_afresh() {
        let mut pace = Pace::new(Duration::from_secs(5));
        let start = Instant::now();
        let mut at = |step, s| pace.is_due(Progress { step, steps: 99 }, start + Duration::from_secs(s));
        assert!(!at(0, 0));
        assert!(!at(1, 4));
        assert!(at(2, 5));
        assert!(!at(3, 9));
        assert!(at(4, 10));
        // Another training, much later.
        assert!(!at(0, 100));
        assert!(!at(1, 104));
        assert!(at(2, 106));
    }

    #[test]
    fn only_lines_that_say_so_are_progress() {
        assert_eq!(of_line("undertone: step 12 of 100"), Some(Progress { step: 12, steps: 100 }));
        assert_eq!(of_line("  undertone: step 1 of 2, loss 0.5\r"), Some(Progress { step: 1, steps: 2 }));
        for line in
            ["step 1 of 2", "undertone: step 3 of 2", "undertone: step x of 2", "undertone: step 1", ""]
        {
            assert_eq!(of_line(line), None, "{line}");
        }
    }
}
