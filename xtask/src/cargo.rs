//! The workspace we stand in, and calls of cargo from inside cargo.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::{cannot_start, command_line, succeeds_quietly};

/// The checkout that `cargo xtask` was called in.
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// Asks cargo where the build goes, so that CARGO_TARGET_DIR and the person's own config count.
    pub(crate) fn find() -> Result<Self> {
        let ours = std::env::var_os("CARGO_MANIFEST_DIR").context("start this program as `cargo xtask`")?;
        let root = Path::new(&ours).parent().context("xtask is a folder of the workspace")?.to_owned();
        let metadata = metadata(&root, &["--no-deps"])?;
        let target =
            metadata["target_directory"].as_str().context("cargo metadata names no target directory")?;
        Ok(Self { target: target.into(), root })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where `cargo build` puts everything.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// The path of a binary that `cargo build` makes.
    pub(crate) fn binary(&self, name: &str) -> PathBuf {
        self.target.join("debug").join(name)
    }

    /// The dependency graph for our first platform, with the versions of Cargo.lock. Downloads crate sources that
    /// are missing, changes nothing.
    pub(crate) fn metadata(&self) -> Result<Value> {
        metadata(&self.root, &["--locked", "--filter-platform", "x86_64-unknown-linux-gnu"])
    }

    /// A call of cargo as if the person had typed it in the root of the checkout.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = self.command("cargo");
        command.args(arguments);
        command
    }

    /// A call of any program in the root of the checkout, with the environment of the person.
    pub(crate) fn command(&self, program: impl Into<OsString>) -> Command {
        let mut command = Command::new(program.into());
        command.current_dir(&self.root);
        restore_environment(&mut command, &self.target);
        command
    }
}

/// Does this cargo subcommand exist here?
pub(crate) fn has_subcommand(workspace: &Workspace, name: &str) -> bool {
    succeeds_quietly(&mut workspace.cargo(&[name, "--version"]))
}

fn metadata(root: &Path, arguments: &[&str]) -> Result<Value> {
    let mut command = Command::new("cargo");
    command.args(["metadata", "--format-version", "1", "--color", "never"]).args(arguments);
    command.current_dir(root).stderr(Stdio::piped());
    let output = command.output().map_err(|error| cannot_start(&command, &error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let line = said.lines().find_map(|line| line.strip_prefix("error: ")).unwrap_or(said.trim());
        bail!("`{}` failed: {line}", command_line(&command));
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata printed something that is not JSON")
}

/// `cargo run` describes xtask in the environment. Build scripts of others (ring's, for one) are run again when
/// those variables differ, so a build started here and one typed by hand would take turns in spoiling each other.
fn restore_environment(command: &mut Command, target: &Path) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    // The demo must find libtorch without LD_LIBRARY_PATH, so it does not get what cargo put there for us.
    let Some(paths) = std::env::var_os("LD_LIBRARY_PATH") else { return };
    let cargo = std::env::var_os("CARGO").map(PathBuf::from);
    let toolchain =
        cargo.as_deref().and_then(Path::parent).and_then(Path::parent).map(|root| root.join("lib"));
    let added = |path: &PathBuf| {
        path.starts_with(target)
            || toolchain.as_ref().is_some_and(|lib| path == lib || path.starts_with(lib.join("rustlib")))
    };
    let kept: Vec<PathBuf> = std::env::split_paths(&paths).filter(|path| !added(path)).collect();
    match std::env::join_paths(&kept) {
        Ok(value) if !kept.is_empty() => command.env("LD_LIBRARY_PATH", value),
        _ => command.env_remove("LD_LIBRARY_PATH"),
    };
}
