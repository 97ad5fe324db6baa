//! `cargo xtask demo`: set up, build, and become the demo.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::cargo::Workspace;
use crate::process::{command_line, must_succeed};
use crate::report::say;
use crate::setup;

/// What is run when nobody says which demo.
const DEFAULT: &str = "hospitals";

/// Everything the demo starts. The workspace as a whole is built, xtask apart, so that features are unified as in
/// `cargo xtask test` and the second of the two commands compiles little.
pub(crate) const BUILD: [&str; 5] = ["build", "--workspace", "--bins", "--exclude", "xtask"];

/// Runs the demo named first in `arguments` with the other arguments; returns only when that is impossible.
pub(crate) fn run(arguments: &[OsString]) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    let (name, rest) = split(arguments);
    // A wrong name should not cost a build first.
    let demos = demos(&workspace.root().join("examples"))?;
    if !demos.iter().any(|demo| name == demo.as_str()) {
        bail!("no demo is called `{}`: use {}", name.to_string_lossy(), demos.join(" or "));
    }
    // Nor should a question. What was built once answers it; before that, xtask does.
    let asks_help = rest.iter().any(|argument| argument == "--help" || argument == "-h");
    if !asks_help {
        build(&workspace)?;
    } else if !workspace.binary("undertone").is_file() {
        return crate::print_help();
    }
    let mut demo = workspace.command(workspace.binary("undertone"));
    demo.arg("demo").arg(&name).args(rest);
    // Becoming the demo hands it our terminal, our signals and our exit code.
    let error = demo.exec();
    Err(error).with_context(|| format!("cannot start `{}`", command_line(&demo)))
}

fn build(workspace: &Workspace) -> Result<()> {
    setup::run(workspace)?;
    say("building the server, the client, the trainer and the operator's tool (minutes the first time)");
    must_succeed(&mut workspace.cargo(&BUILD))
        .map_err(|error| setup::disk::explain_build(error, workspace.target()))
}

/// The name (or the default) and what follows, without the `--` that people put between the two.
fn split(arguments: &[OsString]) -> (OsString, Vec<OsString>) {
    let named = arguments.first().filter(|first| !first.to_string_lossy().starts_with('-'));
    let rest = if named.is_some() { &arguments[1..] } else { arguments };
    let rest = if rest.first().is_some_and(|first| first == "--") { &rest[1..] } else { rest };
    (named.cloned().unwrap_or_else(|| DEFAULT.into()), rest.to_vec())
}

/// The folders of `examples` that hold a job, sorted by name.
fn demos(examples: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(examples).with_context(|| format!("cannot read {}", examples.display()))? {
        let entry = entry?;
        if entry.path().join("job.toml").is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_words(line: &str) -> (String, Vec<String>) {
        let words: Vec<OsString> = line.split_whitespace().map(Into::into).collect();
        let (name, rest) = split(&words);
        let text = |word: &OsString| word.to_string_lossy().into_owned();
        (text(&name), rest.iter().map(text).collect())
    }

    #[test]
    fn name_and_arguments_are_told_apart() {
        for (line, name, rest) in [
            ("", "hospitals", vec![]),
            ("quickstart", "quickstart", vec![]),
            ("--seed 7", "hospitals", vec!["--seed", "7"]),
            ("quickstart --json", "quickstart", vec!["--json"]),
            ("quickstart -- --json", "quickstart", vec!["--json"]),
            ("-- --json", "hospitals", vec!["--json"]),
            ("--dir -- --", "hospitals", vec!["--dir", "--", "--"]),
        ] {
            assert_eq!(
                split_words(line),
                (name.to_owned(), rest.iter().map(|&s| s.to_owned()).collect()),
                "{line}"
            );
        }
    }
}
