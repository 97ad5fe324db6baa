//! A slim CPU libtorch in the person's cache folder, made once and shared by all clones.
//!
//! Several checkouts may ask at once and any of them may be killed: the work happens in a folder of its own under
//! a file lock, and only a complete result gets the final name.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::download::Wheel;
use super::{VERSION, disk, download, pip, slim, tools};
use crate::report::say;

/// Counts up when what this code makes out of the wheel changes, so that old and new clones do not share a folder.
const RECIPE: u32 = 1;

/// pip's copy of the wheel in work (530 MB, twice for a moment), the unpacked libraries before and after stripping.
const ROOM_NEEDED: u64 = 2_500_000_000;

const WORK_PREFIX: &str = "work-";

/// The folder of the complete libtorch, which is fetched if it is not there.
pub(super) fn cached() -> Result<PathBuf> {
    let cache = cache_folder()?;
    let folder = cache.join(format!("libtorch-{VERSION}-cpu-{RECIPE}"));
    if is_complete(&folder) {
        return Ok(folder);
    }
    let wheel = Wheel::for_this_machine()?;
    tools::require_for_fetching()?;
    std::fs::create_dir_all(&cache).with_context(|| {
        format!("cannot make {}; set XDG_CACHE_HOME to a folder you may write to", cache.display())
    })?;
    let _lock = lock(&cache.join("libtorch.lock"))?;
    // Whoever held the lock may have made it.
    if is_complete(&folder) {
        return Ok(folder);
    }
    remove_leftovers(&cache)?;
    disk::require_free(&cache, ROOM_NEEDED)?;

    say(&format!("libtorch {VERSION} is not in {} yet; it is fetched once for all clones", cache.display()));
    let work = Work(cache.join(format!("{WORK_PREFIX}{}", std::process::id())));
    std::fs::create_dir(&work.0).with_context(|| format!("cannot make {}", work.0.display()))?;
    make(&wheel, &work.0, &folder).map_err(|error| disk::explain_fetch(error, &cache))?;
    Ok(folder)
}

/// Download, unpack, slim, prove that it loads, and only then give it its name.
fn make(wheel: &Wheel, work: &Path, folder: &Path) -> Result<()> {
    let pip = pip::find(work)?;
    let file = download::fetch(wheel, &pip, work)?;
    let fresh = work.join("libtorch");
    say("libtorch: unpacking the CPU libraries and the headers");
    slim::unpack(&file, &fresh)?;
    std::fs::remove_file(&file)?;
    say("libtorch: stripping symbols and cutting the ties to CUDA");
    slim::slim(&fresh, work)?;
    slim::require_that_it_loads(&fresh)?;
    std::fs::write(fresh.join("build-version"), format!("{VERSION}\n"))?;
    std::fs::write(fresh.join(".complete"), "")?;
    if folder.exists() {
        std::fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove the incomplete {}", folder.display()))?;
    }
    std::fs::rename(&fresh, folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(())
}

fn is_complete(folder: &Path) -> bool {
    folder.join(".complete").is_file() && super::require_libtorch(folder).is_ok()
}

/// `$XDG_CACHE_HOME/undertone`, or `~/.cache/undertone`. Relative values are ignored, as the XDG specification asks.
fn cache_folder() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    Ok(base
        .context("neither HOME nor XDG_CACHE_HOME names a folder; set XDG_CACHE_HOME to one")?
        .join("undertone"))
}

/// Waits until no other checkout is at work here. The system frees the lock when its holder dies.
fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            say("another checkout is fetching libtorch; waiting for it");
            file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| {
                format!("cannot lock {}; set XDG_CACHE_HOME to a local disk", path.display())
            });
        }
    }
    Ok(file)
}

/// Removes what killed runs left. Only called under the lock, so nobody is at work in there.
fn remove_leftovers(cache: &Path) -> Result<()> {
    for entry in std::fs::read_dir(cache).with_context(|| format!("cannot read {}", cache.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(WORK_PREFIX) {
            let path = entry.path();
            std::fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// A folder that goes away with whoever works in it.
struct Work(PathBuf);

impl Drop for Work {
    fn drop(&mut self) {
        // If this fails, the next run removes it under the lock.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
