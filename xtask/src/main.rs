//! `cargo xtask`: what a person types in this repository.
//!
//! Read in this order: [`setup`] brings libtorch, [`demo`] runs the product, [`mod@test`] runs every check and test,
//! [`check`] is the part of `test` that looks at the dependency graph, [`study`] trains on public data sets. [`cargo`], [`process`], [`elf`] and
//! [`report`] serve all of them.

mod cargo;
mod check;
mod demo;
mod elf;
mod process;
mod report;
mod setup;
mod study;
mod test;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Result, bail};

#[cfg(not(unix))]
compile_error!("undertone is built on Linux and macOS; on Windows use WSL 2 with Debian or Ubuntu");

const HELP: &str = "\
Everything this repository can do for you, from a clean clone and as often as you like.

Usage: cargo xtask <COMMAND>

Commands:
  demo [NAME] [ARGS]  Set everything up, build, and run a demo: `hospitals` (the default) or `quickstart`.
                      ARGS go to the demo: --seed N, --json, --keep, --dir DIR; `demo --help` lists them all.
  test                Set everything up, then run every check and every test. Fails if anything fails.
  test --gpu          Only the tests that need a GPU. Where there is none, says why and runs nothing (docs/GPU.md).
  test --long         The same with the long modes of some tests: hundreds of kills, for instance, where there are dozens.
  soak --minutes N    Rounds for N minutes: memory, open files and disk of coordinator and clients must not grow.
  check               The dependency check alone (a second): licences, crates in two versions, which crate may
                      use which, and that no binary but the trainer loads libtorch.
  study NAME [ARGS]   Train on a public data set and write the result to docs/studies. NAME is `fashion-mnist`; its
                      files come from Debian's package dataset-fashion-mnist, installed if it can be, or --data DIR.
  setup               Only fetch libtorch; `demo` and `test` do it by themselves.

Examples:
  cargo xtask demo
  cargo xtask demo quickstart --seed 7 --json
  cargo xtask demo hospitals --keep

You need a C++ compiler and python3 (Debian and Ubuntu: apt-get install g++ python3). libtorch 2.11.0 for the CPU is
fetched once (about 530 MB are downloaded, 400 MB stay) into $XDG_CACHE_HOME/undertone or ~/.cache/undertone, shared
by all clones; `.libtorch` in this folder is a link to it. Settings, none of them needed:
  LIBTORCH_USE_PYTORCH=1  use the PyTorch 2.11.0 of python3 (any value counts, `unset` it to go back)
  LIBTORCH=DIR            use the libtorch 2.11.0 in DIR
  CARGO_TARGET_DIR=DIR    build in DIR instead of target/
";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    run(&arguments).unwrap_or_else(|error| {
        report::failure(&error);
        ExitCode::FAILURE
    })
}

fn run(arguments: &[OsString]) -> Result<ExitCode> {
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.to_string_lossy(), rest),
        None => ("--help".into(), [].as_slice()),
    };
    let asks_help = rest.iter().any(|argument| argument == "--help" || argument == "-h");
    match command.as_ref() {
        "demo" => demo::run(rest),
        "-h" | "--help" | "help" => print_help(),
        "study" => study::run(rest),
        "test" | "check" | "setup" if asks_help => print_help(),
        "soak" => test::soak(rest),
        "test" if rest == ["--gpu"] => test::run_gpu(),
        "test" if rest == ["--long"] => test::run(true),
        "test" | "check" | "setup" if !rest.is_empty() => {
            let takes = if command == "test" { "no arguments but --gpu or --long" } else { "no arguments" };
            bail!("`cargo xtask {command}` takes {takes}, but got {}", rest[0].to_string_lossy())
        }
        "test" => test::run(false),
        "check" => check::run(),
        "setup" => setup::run(&cargo::Workspace::find()?).map(|()| ExitCode::SUCCESS),
        other => bail!(
            "unknown command `{other}`: use demo, test, soak, check, study or setup; `cargo xtask --help` explains them"
        ),
    }
}

fn print_help() -> Result<ExitCode> {
    print!("{HELP}");
    Ok(ExitCode::SUCCESS)
}
