//! `cargo xtask study`: a data set is found or installed, and a study of the product is run on it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::cargo::Workspace;
use crate::process::must_succeed;
use crate::report::say;
use crate::setup;

/// Debian's package of the data set, and where it puts it.
const PACKAGE: &str = "dataset-fashion-mnist";
const INSTALLED: &str = "/usr/share/datasets/fashion-mnist";
/// A file of it.
const WITNESS: &str = "train-images-idx3-ubyte.gz";

/// Runs the study named first in `arguments` with the other arguments.
pub(crate) fn run(arguments: &[OsString]) -> Result<ExitCode> {
    match arguments.split_first() {
        Some((name, rest)) if name == "fashion-mnist" => fashion_mnist(rest),
        Some((name, _)) => bail!("no study is called `{}`: use fashion-mnist", name.to_string_lossy()),
        None => bail!("which study? Use `cargo xtask study fashion-mnist`"),
    }
}

fn fashion_mnist(rest: &[OsString]) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    setup::run(&workspace)?;
    // A study is nothing without speed.
    const RUN: [&str; 7] =
        ["run", "--release", "--package", "undertone-train", "--example", "fashion-mnist", "--"];
    let mut command = workspace.cargo(&RUN);
    let asks_help = rest.iter().any(|argument| argument == "--help" || argument == "-h");
    let names = |flag: &str| rest.iter().any(|argument| argument.to_string_lossy().starts_with(flag));
    if !asks_help && !names("--data") {
        command.arg("--data").arg(data()?);
    }
    // The page in the repository is of all cases with all their runs; a part has files of its own.
    let part = names("--case") || names("--seeds");
    if !asks_help && !names("--out") {
        let folder =
            if part { workspace.target().join("study") } else { workspace.root().join("docs/studies") };
        command.arg("--out").arg(folder);
    }
    if !asks_help && !names("--finished") {
        let file = if part { "fashion-mnist-part.jsonl" } else { "fashion-mnist.jsonl" };
        command.arg("--finished").arg(workspace.target().join("study").join(file));
    }
    command.args(rest);
    say("building the study for speed (minutes the first time)");
    must_succeed(&mut command).map(|()| ExitCode::SUCCESS)
}

/// The folder of the data set, installed if it can be.
fn data() -> Result<PathBuf> {
    let folder = Path::new(INSTALLED);
    let by_hand = format!(
        "on Debian and Ubuntu: sudo apt-get install {PACKAGE}; elsewhere give the folder of the four .gz files of \
         Fashion-MNIST: cargo xtask study fashion-mnist --data DIR"
    );
    setup::package(PACKAGE, "30 MB", &by_hand, || folder.join(WITNESS).is_file())?;
    Ok(folder.to_owned())
}
