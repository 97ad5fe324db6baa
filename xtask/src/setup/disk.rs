//! Room on the disk: asked for before a big download, and looked at when something failed.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Error, Result, anyhow, bail};

/// A build that dies with less than this left most likely died of it.
const NEARLY_FULL: u64 = 100_000_000;

/// Fails unless `needed` bytes are free where `folder` is. An unknown amount passes: the write will tell.
pub(super) fn require_free(folder: &Path, needed: u64) -> Result<()> {
    match free(folder) {
        Some(free) if free < needed => bail!(
            "the disk is too full to fetch libtorch: {} has {} MB free and {} MB are needed for a while (400 MB stay); \
             make room, or set XDG_CACHE_HOME to a folder on a larger disk",
            folder.display(),
            free / 1_000_000,
            needed / 1_000_000
        ),
        _ => Ok(()),
    }
}

/// Adds the cause to a failed fetch if the disk that holds `cache` is full. pip cleans up before it ends, so what it
/// said counts as well as what is free now.
pub(super) fn explain_fetch(error: Error, cache: &Path) -> Error {
    let text = format!("{error:#}");
    if text.contains("No space left on device") || free(cache).is_some_and(|free| free < NEARLY_FULL) {
        return anyhow!(
            "the disk became full in {}: make room, or set XDG_CACHE_HOME to a folder on a larger disk, and run this \
             again: {text}",
            cache.display()
        );
    }
    error
}

/// Adds the likely cause to a failed build if the disk that holds `folder` is full; compilers rarely say it clearly.
pub(crate) fn explain_build(error: Error, folder: &Path) -> Error {
    match free(folder) {
        Some(free) if free < NEARLY_FULL => anyhow!(
            "the disk is full: {} MB are free in {}; make room (`cargo clean` frees old builds), or set CARGO_TARGET_DIR \
             to a folder on a larger disk: {error:#}",
            free / 1_000_000,
            folder.display()
        ),
        _ => error,
    }
}

/// The bytes that a person without special rights may still write where `folder` is (or will be).
fn free(folder: &Path) -> Option<u64> {
    let existing = folder.ancestors().find(|path| path.exists())?;
    let mut df = Command::new("df");
    df.arg("-Pk").arg(existing).env("LC_ALL", "C").stderr(Stdio::null());
    let output = df.output().ok()?;
    parse_df(&String::from_utf8_lossy(&output.stdout))
}

/// The column before the percentage of POSIX `df -Pk` (names may hold blanks), in bytes.
fn parse_df(text: &str) -> Option<u64> {
    let words: Vec<&str> = text.lines().nth(1)?.split_whitespace().collect();
    let percentage = words.iter().position(|word| word.ends_with('%') && word.len() <= 4)?;
    words.get(percentage.checked_sub(1)?)?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "Filesystem     1024-blocks     Used Available Capacity Mounted on\n";

    #[test]
    fn free_space_is_read_in_bytes() {
        let line = "/dev/vda         263174212 13994008  81219468      15% /\n";
        assert_eq!(parse_df(&format!("{HEAD}{line}")), Some(81_219_468 * 1024));
    }

    #[test]
    fn names_with_blanks_do_not_shift_the_column() {
        let line = "//nas/my share 100 60 40 60% /mnt/my share\n";
        assert_eq!(parse_df(&format!("{HEAD}{line}")), Some(40 * 1024));
    }

    #[test]
    fn other_text_is_an_unknown_amount() {
        assert_eq!(parse_df("df: /nowhere: No such file or directory\n"), None);
        assert_eq!(parse_df(""), None);
    }

    #[test]
    fn this_disk_has_a_size_and_nothing_has_room_for_everything() {
        let here = std::env::temp_dir();
        assert!(free(&here).is_some());
        let refusal = require_free(&here, u64::MAX).expect_err("no disk is that large").to_string();
        assert!(refusal.contains("set XDG_CACHE_HOME"), "{refusal}");
    }
}
