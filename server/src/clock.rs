//! The one place where the daemon reads the clock.
//!
//! Deadlines are moments of Unix time, and a machine's clock may be set while a round is under way. So a coordinator that is alone goes
//! by the time at which it started, and what has passed since by a clock that nobody sets: a clock that jumps ends no round, and neither
//! lets one wait for years. The next start takes the system's time as it is then. Several coordinators hand jobs to each other with
//! their deadlines, and go by the clocks of their machines, which agree where they are kept.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The system's time when it was first asked for, and the moment of that.
static BEGUN: LazyLock<(u64, Instant)> = LazyLock::new(|| (system_ms(), Instant::now()));
/// Whether the time is that of the start.
static IS_ALONE: AtomicBool = AtomicBool::new(false);
/// How long the machine slept since, which the clock that nobody sets does not count.
static ASLEEP_MS: AtomicU64 = AtomicU64::new(0);

/// How often it is looked whether the system's clock was set, and from which difference on that is told.
const LOOK: Duration = Duration::from_secs(60);
const TOLD_FROM_MS: u64 = 30_000;

fn system_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// How long the machine runs, sleep included, where that can be told.
fn up_ms() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = text.split(' ').next()?.parse().ok()?;
    Some((seconds * 1e3) as u64)
}

/// Milliseconds since 1970, for deadlines.
pub(crate) fn unix_ms() -> u64 {
    match IS_ALONE.load(Ordering::Relaxed) {
        true => since_start_ms(),
        false => system_ms(),
    }
}

fn since_start_ms() -> u64 {
    let (at, since) = *BEGUN;
    at + since.elapsed().as_millis() as u64 + ASLEEP_MS.load(Ordering::Relaxed)
}

/// How long it is until then; nothing if it is over.
pub(crate) fn left_until(at_unix_ms: u64) -> Duration {
    Duration::from_millis(at_unix_ms.saturating_sub(unix_ms()))
}

/// Seconds since 1970 by the system's clock, for what others made by theirs.
pub(crate) fn unix_s() -> u64 {
    system_ms() / 1000
}

/// From now on this process goes by the time of its start. Tells whoever reads the log when the system's clock was set, for as long as
/// the daemon runs.
pub(crate) async fn stand_alone() {
    let _ = *BEGUN;
    IS_ALONE.store(true, Ordering::Relaxed);
    let first_ms = up_ms();
    let (mut told_ms, begun) = (0, Instant::now());
    loop {
        tokio::time::sleep(LOOK).await;
        if let (Some(first), Some(now)) = (first_ms, up_ms()) {
            let asleep = (now - first).saturating_sub(begun.elapsed().as_millis() as u64);
            // The two are not read at once.
            ASLEEP_MS.store(if asleep > 1000 { asleep } else { 0 }, Ordering::Relaxed);
        }
        if let Some((by_ms, text)) = was_set(since_start_ms(), system_ms(), told_ms) {
            told_ms = by_ms;
            tracing::warn!("{text}");
        }
    }
}

/// By how much the system's clock was set since the start, and how that is told, if it is not what was told before.
fn was_set(ours_ms: u64, system_ms: u64, told_ms: i64) -> Option<(i64, String)> {
    let by_ms = system_ms as i64 - ours_ms as i64;
    let is_news = by_ms.abs_diff(told_ms) >= TOLD_FROM_MS;
    is_news.then(|| {
        let (seconds, where_to) = (by_ms.unsigned_abs() / 1000, if by_ms < 0 { "back" } else { "ahead" });
        let text = match seconds {
            0 => "the system's clock is right again".to_owned(),
            _ => format!(
                "the system's clock was set {seconds} s {where_to}: deadlines go on by the time of this coordinator's start; start it \
                 again when it suits you"
            ),
        };
        (by_ms, text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_on_with_the_system() {
        let (ours, since, system) = (unix_ms(), since_start_ms(), system_ms());
        assert!(
            ours.abs_diff(system) < 5_000 && since.abs_diff(system) < 5_000,
            "{ours}, {since} and {system}"
        );
        assert!(since_start_ms() >= since);
        assert!(up_ms().is_some_and(|up| up > 0));
        assert_eq!(left_until(ours.saturating_sub(1)), Duration::ZERO);
        assert!(left_until(unix_ms() + 60_000) > Duration::from_secs(50));
    }

    #[test]
    fn a_clock_that_was_set_is_told_once_and_again_when_it_is_mended() {
        let at = 1_700_000_000_000;
        assert_eq!(was_set(at, at + 900, 0), None, "clocks wander");
        let (by, text) = was_set(at, at + 3_600_000, 0).unwrap();
        assert_eq!(by, 3_600_000);
        assert!(text.contains("set 3600 s ahead"), "{text}");
        assert_eq!(was_set(at + 60_000, at + 3_661_000, by), None, "told already");
        let (by, text) = was_set(at, at - 86_400_000, by).unwrap();
        assert!(text.contains("set 86400 s back"), "{text}");
        let (_, text) = was_set(at, at, by).unwrap();
        assert!(text.contains("right again"), "{text}");
    }
}
