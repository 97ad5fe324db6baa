//! Whether a transfer can still be of use. One that never stands still and never ends either holds what others wait for: a place
//! of the pool, or room in memory; so it must be on its way to be whole by the deadline of its attempt.

use std::time::{Duration, Instant};

/// A transfer is cut if it needs this many times the time that is left: lines become faster and slower.
const SLACK: f64 = 2.0;

/// What is asked of a transfer's speed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// How long nothing may come; also how long a transfer may take to get going before its speed counts.
    pub(crate) idle: Duration,
    begun: Instant,
    deadline: Instant,
}

impl Pace {
    /// For a transfer of an attempt that ends in `left`.
    pub(crate) fn new(now: Instant, idle: Duration, left: Duration) -> Self {
        Self { idle, begun: now, deadline: now + left }
    }

    /// The same for a transfer that began then: after it had waited for its place, or before this was asked of it.
    pub(crate) fn begin(self, begun: Instant) -> Self {
        Self { begun, ..self }
    }

    /// Looks at a transfer of which so many bytes arrived since it began, and so many are missing.
    ///
    /// # Errors
    /// That it is hopeless, with the numbers.
    pub(crate) fn check(&self, what: &str, now: Instant, arrived: u64, missing: u64) -> Result<(), String> {
        let so_far = now.duration_since(self.begun);
        if so_far < self.idle || missing == 0 {
            return Ok(());
        }
        let so_far = so_far.as_secs_f64();
        let needed = so_far * missing as f64 / arrived.max(1) as f64;
        let left = self.deadline.saturating_duration_since(now).as_secs_f64();
        if needed <= SLACK * left {
            return Ok(());
        }
        Err(format!(
            "the {what} is too slow: {arrived} bytes in {so_far:.0} s, so that the missing {missing} take {needed:.0} s, and \
             the attempt ends in {left:.0} s; what arrived is kept, go on with a faster line, or use an encoding with fewer \
             bits or a later deadline in the job"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn pace() -> (Instant, Pace) {
        let now = Instant::now();
        (now, Pace::new(now, 10 * S, 600 * S))
    }

    #[test]
    fn a_trickle_is_cut_once_it_had_time_to_get_going() {
        let (begun, pace) = pace();
        assert_eq!(pace.check("upload", begun + 9 * S, 9, 1_000_000), Ok(()));
        let e = pace.check("upload", begun + 10 * S, 10, 1_000_000).unwrap_err();
        assert!(e.contains("10 bytes in 10 s") && e.contains("ends in 590 s"), "{e}");
        // The last byte is welcome however slow it was.
        assert_eq!(pace.check("upload", begun + 10 * S, 10, 0), Ok(()));
    }

    #[test]
    fn a_slow_line_that_gets_there_is_left_alone() {
        let (begun, pace) = pace();
        for second in 1..=500 {
            let now = begun + second * S;
            let arrived = 1000 * u64::from(second);
            assert_eq!(pace.check("upload", now, arrived, 500_000 - arrived), Ok(()), "{second}");
        }
    }

    #[test]
    fn the_time_in_the_queue_is_not_the_uploads() {
        let (made, waiting) = pace();
        let pace = waiting.begin(made + 300 * S);
        assert_eq!(pace.check("upload", made + 309 * S, 1, 1_000_000), Ok(()));
        let e = pace.check("upload", made + 310 * S, 1000, 1_000_000).unwrap_err();
        assert!(e.contains("1000 bytes in 10 s") && e.contains("ends in 290 s"), "{e}");
        assert!(waiting.check("upload", made + 310 * S, 1000, 1_000_000).unwrap_err().contains("in 310 s"));
    }
}
