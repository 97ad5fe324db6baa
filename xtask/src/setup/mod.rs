//! `cargo xtask setup`: after it, builds find a libtorch of the right version.
//!
//! torch-sys looks at three things in this order, and so do we: LIBTORCH_USE_PYTORCH (the person's own PyTorch,
//! [`pytorch`]), LIBTORCH set by the person, and LIBTORCH as `.cargo/config.toml` sets it: `.libtorch` in the
//! checkout, which is a link to the slim CPU libtorch that [`fetch`] keeps in the person's cache folder.

pub(crate) mod disk;
mod download;
mod fetch;
mod package;
mod pip;
mod pytorch;
mod slim;
mod tools;

use std::env::consts::DLL_EXTENSION;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cargo::Workspace;
use crate::report::say;

pub(crate) use package::{package, postgres};

/// The PyTorch that torch-sys 0.24 is made for; it refuses any other.
const VERSION: &str = "2.11.0";

/// Checks what the person chose, or makes `.libtorch` right; says so if anything had to be done.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    tools::require_cpp_compiler()?;
    let link = workspace.root().join(".libtorch");
    if std::env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        return pytorch::require();
    }
    if let Some(own) = std::env::var_os("LIBTORCH").map(PathBuf::from).filter(|set| *set != link) {
        return require_chosen(&own)
            .context("LIBTORCH is set; correct it, or unset it to have libtorch fetched");
    }
    if require_libtorch(&link).is_ok() {
        return Ok(());
    }
    if link.is_dir() && !link.is_symlink() {
        let why = require_libtorch(&link).expect_err("looked at just above");
        bail!("{why:#}; `.libtorch` is a folder of yours, so it stays: move it away and run this again");
    }
    point(&link, &fetch::cached()?)
}

/// Is this a libtorch of our version? The error says what is missing.
fn require_libtorch(folder: &Path) -> Result<()> {
    require_files(folder)?;
    let stamp = folder.join("build-version");
    let found =
        std::fs::read_to_string(&stamp).with_context(|| format!("cannot read {}", stamp.display()))?;
    if !is_our_version(&found) {
        bail!("{} holds libtorch {}, but {VERSION} is needed", folder.display(), found.trim());
    }
    Ok(())
}

fn require_files(folder: &Path) -> Result<()> {
    let libraries = ["torch", "torch_cpu", "c10"].map(|name| format!("lib/lib{name}.{DLL_EXTENSION}"));
    for file in libraries.iter().map(String::as_str).chain(["include/torch/csrc/api/include/torch/torch.h"]) {
        if !folder.join(file).is_file() {
            bail!("{} holds no {file}", folder.display());
        }
    }
    Ok(())
}

/// A folder that the person chose. PyTorch's own folder has no version stamp; torch-sys then asks for none either.
fn require_chosen(folder: &Path) -> Result<()> {
    if folder.join("build-version").exists() { require_libtorch(folder) } else { require_files(folder) }
}

/// "2.11.0" and "2.11.0+cpu" are, "2.11.1" is not.
fn is_our_version(found: &str) -> bool {
    found.trim().split('+').next() == Some(VERSION)
}

/// Makes `link` lead to `folder`, in one step: a build that is running sees the old or the new one.
fn point(link: &Path, folder: &Path) -> Result<()> {
    if link.read_link().is_ok_and(|now| now == folder) {
        return Ok(());
    }
    let fresh = link.with_extension(format!("new-{}", std::process::id()));
    std::os::unix::fs::symlink(folder, &fresh)
        .and_then(|()| std::fs::rename(&fresh, link))
        .with_context(|| format!("cannot make the link {}", link.display()))?;
    say(&format!(".libtorch now leads to {}", folder.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_version_labels_do_not_matter_and_patch_numbers_do() {
        assert!(is_our_version("2.11.0\n"));
        assert!(is_our_version("2.11.0+cu130"));
        assert!(!is_our_version("2.11.1"));
        assert!(!is_our_version("2.11.0.dev1"));
        assert!(!is_our_version(""));
    }
}
