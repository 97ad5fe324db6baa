//! Packages of the system that a step needs.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{must_succeed, output};
use crate::report::say;

/// Sees to it that a package is installed, by installing it where that is possible without asking anybody: as root, on Debian or
/// Ubuntu. `by_hand` says what to type elsewhere.
pub(crate) fn package(name: &str, size: &str, by_hand: &str, is_there: impl Fn() -> bool) -> Result<()> {
    if is_there() {
        return Ok(());
    }
    let apt = Path::new("/usr/bin/apt-get");
    let is_root = output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    if !(apt.is_file() && is_root) {
        bail!("{name} is not installed. {by_hand}");
    }
    say(&format!("installing {name} ({size})"));
    // A fresh machine has no list of packages yet.
    for arguments in [&["update"][..], &["install", "--yes", "--no-install-recommends", name]] {
        let mut command = Command::new(apt);
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        if let Err(error) = must_succeed(&mut command) {
            bail!("{error:#}. {by_hand}");
        }
    }
    if !is_there() {
        bail!("{name} was installed, but what it should bring is not there. {by_hand}");
    }
    Ok(())
}

/// Where Debian puts the server's programs, which are on no PATH; the tests look in the same places.
const POSTGRES: &str = "/usr/lib/postgresql";

/// Sees to it that tests can start a PostgreSQL server of their own.
pub(crate) fn postgres() -> Result<()> {
    package(
        "postgresql",
        "60 MB",
        "Tests of the state of a fleet start a server of their own: on Debian and Ubuntu, \
        `sudo apt-get install postgresql` brings its programs; elsewhere put `initdb`, `postgres` and `psql` on the PATH",
        || {
            let installed = std::fs::read_dir(POSTGRES)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path().join("bin"));
            let on_path = std::env::var_os("PATH").unwrap_or_default();
            let mut places = std::env::split_paths(&on_path).chain(installed);
            places.any(|place| {
                ["initdb", "postgres", "psql"].iter().all(|program| place.join(program).is_file())
            })
        },
    )
}
