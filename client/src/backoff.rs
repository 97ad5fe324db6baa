//! How long to wait before trying again: longer each time, and never all clients at once.

use std::time::Duration;

/// Jittered exponential back-off.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    tries: u32,
}

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(20);

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { tries: 0 }
    }

    /// Things went well for a while: start short again.
    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }

    /// The next wait.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = wait(self.tries, getrandom::u32().unwrap_or(u32::MAX / 2));
        self.tries = self.tries.saturating_add(1);
        wait
    }
}

/// The wait before try `tries` (from 0): between half of 0.25 s · 2^tries, at most 20 s, and the whole.
pub(crate) fn wait(tries: u32, random: u32) -> Duration {
    let whole = FIRST.saturating_mul(1 << tries.min(16)).min(LONGEST);
    whole.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_spread() {
        assert_eq!(wait(0, 0), FIRST / 2);
        assert_eq!(wait(0, u32::MAX), FIRST);
        assert_eq!(wait(3, u32::MAX), FIRST * 8);
        assert_eq!(wait(u32::MAX, u32::MAX), LONGEST);
        let mut backoff = Backoff::new();
        let waits: Vec<_> = (0..12).map(|_| backoff.next()).collect();
        assert!(waits[11] >= LONGEST / 2 && waits.iter().all(|w| *w <= LONGEST), "{waits:?}");
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
