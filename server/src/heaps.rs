//! How the C library keeps memory for this process: `docs/decisions/0023`.
//!
//! glibc makes a heap for each thread that allocates, up to eight for a core, and each keeps what was freed in it. Chunks of transfers
//! are allocated by one thread and freed by another, so that several heaps hold what one would; and the ends of heaps go back to the
//! system and come again with every chunk. What says otherwise is read from the environment before a program's first line runs; a
//! program that wants another has to start itself again.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;

/// glibc's own names, and what is asked for on so many cores. Two heaps for up to eight cores: more of them wait for each other less.
fn wanted(cores: usize) -> [(&'static str, usize); 4] {
    [
        ("MALLOC_ARENA_MAX", (cores / 4).max(2)),
        // What is free at a heap's end and yet stays: no page is given back with a chunk to be asked for with the next.
        ("MALLOC_TRIM_THRESHOLD_", 16 << 20),
        ("MALLOC_TOP_PAD_", 1 << 20),
        // A chunk is in a heap, and what a release needs goes back with it.
        ("MALLOC_MMAP_THRESHOLD_", 4 << 20),
    ]
}

/// Stands in the environment of a program that was started again; who puts it there keeps it from that.
/// (Loaders take glibc's own variables away from a program with capabilities of its own: it must not start for ever.)
const MARK: &str = "UNDERTONE_HEAPS";

/// What is not set: what an operator chose stands. Nothing if this program was started again already.
fn missing(cores: usize, set: impl Fn(&str) -> Option<OsString>) -> Vec<(&'static str, usize)> {
    if set(MARK).is_some() {
        return vec![];
    }
    wanted(cores).into_iter().filter(|(name, _)| set(name).is_none()).collect()
}

/// Starts this program again, in this process, with few heaps; does nothing if it has them.
///
/// # Errors
/// Why it cannot: it goes on as it is. A refused `exec` leaves SIGPIPE as programs find it at their start, which would end this one
/// with the first line of its log that nobody reads: the caller catches it before it does anything else.
pub(crate) fn be_few() -> std::io::Result<()> {
    if cfg!(not(all(target_os = "linux", target_env = "gnu"))) {
        return Ok(());
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let missing = missing(cores, |name| std::env::var_os(name));
    if missing.is_empty() {
        return Ok(());
    }
    let program = std::env::current_exe()?;
    // Run by a loader that was called by name, as some bundles do: it would take our first argument for a program.
    if program.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"ld-")) {
        return Ok(());
    }
    let mut args = std::env::args_os();
    let mut again = std::process::Command::new(program);
    if let Some(name) = args.next() {
        again.arg0(name);
    }
    again
        .args(args)
        .env(MARK, "set")
        .envs(missing.into_iter().map(|(name, value)| (name, value.to_string())));
    Err(again.exec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_chosen_stands() {
        let heaps = |cores| wanted(cores)[0];
        assert_eq!([1, 2, 8, 12, 64].map(|cores| heaps(cores).1), [2, 2, 2, 3, 16]);
        assert_eq!(missing(2, |_| None), wanted(2));
        assert_eq!(missing(2, |name| (name == "MALLOC_ARENA_MAX").then(|| "5".into())), wanted(2)[1..]);
        let all = |name: &str| (name != MARK).then(|| "1".into());
        assert_eq!(missing(2, all), [], "it does not start itself for ever");
        let marked = |name: &str| (name == MARK).then(|| "off".into());
        assert_eq!(missing(2, marked), [], "neither where the loader takes the others away");
    }
}
