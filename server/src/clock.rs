//! The one place where the daemon reads the clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// How long it is until then; nothing if it is over.
pub(crate) fn left_until(at_unix_ms: u64) -> Duration {
    Duration::from_millis(at_unix_ms.saturating_sub(unix_ms()))
}

/// Seconds since 1970.
pub(crate) fn unix_s() -> u64 {
    unix_ms() / 1000
}
