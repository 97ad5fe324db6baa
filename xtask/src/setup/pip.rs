//! A pip to download with. Debian's bare python3 has none, and nobody should have to install one for a download.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::tools::on_path;
use crate::process::succeeds_quietly;
use crate::report::say;

/// How to start pip: a program and its first arguments.
pub(super) struct Pip(Vec<OsString>);

impl Pip {
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.0[0]);
        command.args(&self.0[1..]);
        // Some people forbid pip outside virtual environments; a download installs nothing.
        command.env("PIP_REQUIRE_VIRTUALENV", "false");
        command
    }

    fn works(&self) -> bool {
        succeeds_quietly(self.command().arg("--version"))
    }
}

/// The pip of python3, or one in a throw-away virtual environment, or the one that Debian packs as a single file.
pub(super) fn find(work: &Path) -> Result<Pip> {
    let own = Pip(vec!["python3".into(), "-m".into(), "pip".into()]);
    if own.works() {
        return Ok(own);
    }
    let environment = work.join("venv");
    if succeeds_quietly(Command::new("python3").arg("-m").arg("venv").arg(&environment)) {
        let pip = Pip(vec![environment.join("bin/python").into(), "-m".into(), "pip".into()]);
        if pip.works() {
            return Ok(pip);
        }
    }
    if let Some(wheel) = from_debian(&work.join("apt")) {
        let pip = Pip(vec!["python3".into(), wheel.join("pip").into()]);
        if pip.works() {
            return Ok(pip);
        }
    }
    bail!(
        "python3 has neither pip nor venv, and pip could not be fetched from Debian; `apt-get install python3-venv` brings both"
    );
}

/// Fetches Debian's `python3-pip-whl` into `folder`, without installing it and without special rights. Returns the
/// wheel inside it, which Python runs as it is.
fn from_debian(folder: &Path) -> Option<PathBuf> {
    if !on_path("apt-get") || !on_path("dpkg-deb") {
        return None;
    }
    say(
        "python3 has no pip; fetching Debian's python3-pip-whl for this download (2 MB, nothing is installed)",
    );
    std::fs::create_dir_all(folder.join("lists/partial")).ok()?;
    // `_apt` may not read our folder; root then downloads itself, which apt would only warn about.
    let apt = |options: &[OsString], words: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["-qq", "-o", "APT::Sandbox::User=root"]).args(options).args(words);
        succeeds_quietly(command.current_dir(folder))
    };
    let download = ["download", "python3-pip-whl"];
    if !apt(&[], &download) {
        // Fresh containers have no package lists: get our own.
        let own = [
            "-o".into(),
            format!("Dir::State::Lists={}", folder.join("lists").display()).into(),
            "-o".into(),
            format!("Dir::Cache={}", folder.display()).into(),
        ];
        if !(apt(&own, &["update"]) && apt(&own, &download)) {
            return None;
        }
    }
    let package = first_with_extension(folder, "deb")?;
    let unpacked = folder.join("unpacked");
    if !succeeds_quietly(Command::new("dpkg-deb").arg("-x").arg(package).arg(&unpacked)) {
        return None;
    }
    first_with_extension(&unpacked.join("usr/share/python-wheels"), "whl")
}

fn first_with_extension(folder: &Path, extension: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|found| found == extension))
}
