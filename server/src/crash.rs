//! Dying at a chosen point of the privacy ledger, for tests that kill the daemon between every two of its states.
//!
//! In a debug build `UNDERTONE_CRASH=before:committed` (or `after:`, and any state) ends the process with SIGKILL right
//! before (after) the first line with that state becomes durable. A release build has no such points.

use undertone_privacy::ledger::chain::Line;

#[cfg(debug_assertions)]
pub(crate) fn crash_point(when: &str, lines: &[Line]) {
    let Ok(wanted) = std::env::var("UNDERTONE_CRASH") else { return };
    let Some((side, state)) = wanted.split_once(':') else { return };
    if side == when && lines.iter().any(|line| line.entry.state.word() == state) {
        tracing::error!(point = %wanted, "dying, as the test asked");
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // The signal is on its way: nothing more is done meanwhile.
        loop {
            std::thread::park();
        }
    }
}

#[cfg(not(debug_assertions))]
pub(crate) fn crash_point(_when: &str, _lines: &[Line]) {}
