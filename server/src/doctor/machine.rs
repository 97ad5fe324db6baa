//! What the machine gives: files, memory, time.

use super::Check;
use super::state::Known;
use crate::clock::unix_ms;
use crate::config::ServerConfig;
use rustix::process::{Resource, getrlimit};

/// Files that are open whoever is connected: database, blobs, logs, the port.
const FILES: u64 = 256;
/// Memory of a session (docs/PERFORMANCE.md).
const SESSION_BYTES: u64 = 40 << 10;
/// Clocks are set back by so much without anything being wrong.
const SLACK_MS: u64 = 60_000;

pub(super) fn checks(config: &ServerConfig, known: &Known) -> Vec<Check> {
    let most = getrlimit(Resource::Nofile).maximum;
    vec![files(config, most), memory(config, known, memory_here()), clock(known, unix_ms())]
}

/// `most`: files that may be open, if there is a limit.
pub(super) fn files(config: &ServerConfig, most: Option<u64>) -> Check {
    let name = "open files";
    let sessions = config.limits.sessions as u64;
    let needed = sessions + config.limits.uploads_in_flight as u64 + FILES;
    match most {
        Some(most) if most < FILES * 2 => Check::fail(
            name,
            format!("only {most} files may be open"),
            "raise the limit (ulimit -Hn, LimitNOFILE= of systemd)",
        ),
        Some(most) if most < needed => Check::warn(
            name,
            format!("{most} files may be open, which is {} participants and not {sessions}", most - FILES),
            format!(
                "raise the limit to {needed} (LimitNOFILE={needed} of systemd), or lower [limits] sessions"
            ),
        ),
        Some(most) => Check::ok(name, format!("{most} may be open; {needed} may be needed")),
        None => Check::ok(name, "as many as are needed may be open"),
    }
}

/// `most`: bytes that this process may use, if that can be told.
pub(super) fn memory(config: &ServerConfig, known: &Known, most: Option<u64>) -> Check {
    let name = "memory";
    let limits = &config.limits;
    // Both windows of a connection; what a release keeps of the model's size (docs/PERFORMANCE.md).
    let uploads = limits.uploads_in_flight as u64 * 3 * (u64::from(limits.upload_window_kib) << 10);
    let needed = limits.sessions as u64 * SESSION_BYTES + uploads + known.release_bytes + (64 << 20);
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    match most {
        None => Check::ok(
            name,
            format!("up to about {} MiB may be used; how much there is cannot be told", mib(needed)),
        ),
        Some(most) if needed > most => Check::warn(
            name,
            format!("up to about {} MiB may be used, and there are {} MiB", mib(needed), mib(most)),
            "give it more, or lower [limits] sessions or uploads_in_flight",
        ),
        Some(most) => {
            Check::ok(name, format!("up to about {} MiB of {} MiB may be used", mib(needed), mib(most)))
        }
    }
}

/// The smaller of the machine's memory and of what its control group may use.
fn memory_here() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let total = total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10;
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let group = group.and_then(|text| text.trim().parse::<u64>().ok());
    Some(group.map_or(total, |group| group.min(total)))
}

pub(super) fn clock(known: &Known, now_ms: u64) -> Check {
    let name = "clock";
    let set = "set this machine's clock (chrony, systemd-timesyncd)";
    if known.last_ms > now_ms + SLACK_MS {
        let ahead = (known.last_ms - now_ms) / 1000;
        return Check::fail(name, format!("it is {ahead} s behind the last line of the privacy ledger"), set);
    }
    match known.database_ms {
        Some(database) if database.abs_diff(now_ms) > SLACK_MS => {
            let by = database.abs_diff(now_ms) / 1000;
            Check::warn(name, format!("it differs from the database's by {by} s"), set)
        }
        _ => Check::ok(name, "not before anything that happened"),
    }
}
