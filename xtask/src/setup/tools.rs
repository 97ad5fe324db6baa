//! The programs that must be there before anything is downloaded or built.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::succeeds_quietly;

/// torch-sys compiles C++ with `$CXX` or `c++`.
pub(super) fn require_cpp_compiler() -> Result<()> {
    let chosen = std::env::var("CXX").unwrap_or_default();
    let program = chosen.split_whitespace().next().unwrap_or("c++");
    if on_path(program) {
        return Ok(());
    }
    let whose = if chosen.is_empty() { "" } else { " (CXX asks for it)" };
    bail!(
        "no C++ compiler: `{program}` is not on the PATH{whose}; `apt-get install g++` brings one on Debian and Ubuntu"
    );
}

/// What unpacking and slimming libtorch needs besides: `cc` for two stub libraries, and binutils.
pub(super) fn require_for_fetching() -> Result<()> {
    if !on_path("cc") {
        bail!("no C compiler: `cc` is not on the PATH; `apt-get install g++` brings it on Debian and Ubuntu");
    }
    for tool in ["strip", "nm", "readelf"] {
        if !on_path(tool) {
            bail!("`{tool}` is not on the PATH; `apt-get install binutils` brings it on Debian and Ubuntu");
        }
    }
    // Run it, do not only look for it: version managers put a `python3` on the PATH that may lead nowhere.
    if !succeeds_quietly(Command::new("python3").args(["-c", "import zipfile, ctypes"])) {
        bail!("no working `python3` on the PATH; `apt-get install python3` brings one on Debian and Ubuntu");
    }
    Ok(())
}

/// Is there an executable of this name (or at this path)?
pub(super) fn on_path(program: &str) -> bool {
    if program.contains('/') {
        return is_executable(Path::new(program));
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|folder| is_executable(&folder.join(program)))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}
