//! `cargo xtask test`: every check and every test, cheap ones first so that the first failure comes soon.
//!
//! Clippy and rustdoc both need the dependencies in cargo's "check" form, which a build does not make, so they
//! stand together; the build, the tests and the doctests share the other form with `cargo xtask demo`.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cargo::{Workspace, has_subcommand};
use crate::process::{command_line, must_succeed};
use crate::report::{duration, failure, headline, say};
use crate::{check, setup};

type Step = fn(&Workspace) -> Result<()>;

/// Runs all steps, also after a failure, so that one run tells everything. `long`: tests that have a long mode run it.
pub(crate) fn run(long: bool) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    for (component, subcommand) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        if !has_subcommand(&workspace, subcommand) {
            bail!(
                "{component} is not installed for this toolchain: `rustup component add rustfmt clippy` brings it"
            );
        }
    }
    setup::run(&workspace)?;

    let started = Instant::now();
    let mut results = Vec::new();
    let mut step = |name: &'static str, step: Step| {
        headline(name);
        let begun = Instant::now();
        let outcome = step(&workspace).map_err(|error| setup::disk::explain_build(error, workspace.target()));
        let time = begun.elapsed();
        match &outcome {
            Ok(()) => say(&format!("{name}: passed in {}", duration(time))),
            Err(error) => failure(error),
        }
        results.push((name, time, outcome.is_ok()));
        outcome.is_ok()
    };
    step("PostgreSQL", |_| setup::postgres());
    step("format", format);
    step("dependencies", check::graph_check);
    step("clippy", clippy);
    step("docs", docs);
    if step("build", build) {
        step("linkage", check::linkage_check);
        step("tests", if long { long_tests } else { tests });
        step("doctests", doctests);
    }
    Ok(summary(&results, started.elapsed()))
}

/// Runs rounds for so many minutes, and looks at what they leave behind.
pub(crate) fn soak(arguments: &[OsString]) -> Result<ExitCode> {
    let minutes = match arguments {
        [flag, minutes] if flag == "--minutes" => minutes.to_str().and_then(|text| text.parse::<f64>().ok()),
        _ => None,
    };
    let Some(minutes) = minutes.filter(|minutes| minutes.is_finite() && *minutes > 0.0) else {
        bail!("say for how long: `cargo xtask soak --minutes 30`");
    };
    let workspace = Workspace::find()?;
    setup::run(&workspace)?;
    must_succeed(&mut workspace.cargo(&["build", "--workspace", "--bins"]))?;
    let mut soaking = workspace.cargo(&["test", "--workspace", "--test", "processes", "--", "--ignored"]);
    let counted = run_counted(
        soaking.args(["soak_", "--nocapture"]).env("UNDERTONE_SOAK_MINUTES", minutes.to_string()),
    )?;
    if counted.passed == 0 {
        bail!("nothing was run, which proves nothing");
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the tests that are marked for a GPU: `#[ignore = "gpu"]`, with a name that begins with `gpu_`. Where libtorch sees
/// none, says why and passes: there is nothing to test then.
pub(crate) fn run_gpu() -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    setup::run(&workspace)?;
    must_succeed(&mut workspace.cargo(&["build", "--package", "undertone-train", "--bins"]))?;
    let trainer = workspace.target().join("debug").join("undertone-trainer");
    let output = Command::new(&trainer)
        .arg("--show-device")
        .output()
        .with_context(|| format!("cannot start {}", trainer.display()))?;
    let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !device.starts_with("cuda") {
        say(&format!("GPU tests are skipped: {device}"));
        return Ok(ExitCode::SUCCESS);
    }
    say(&format!("GPU tests run on {device}"));
    let counted = run_counted(workspace.cargo(&["test", "--package", "undertone-train", "--tests"]).args([
        "gpu_",
        "--",
        "--ignored",
    ]))?;
    say(&format!("{} passed, {} failed", counted.passed, counted.failed));
    if counted.passed == 0 {
        bail!("no GPU test was run, which proves nothing");
    }
    Ok(ExitCode::SUCCESS)
}

fn summary(results: &[(&str, Duration, bool)], total: Duration) -> ExitCode {
    headline("summary");
    for (name, time, passed) in results {
        eprintln!("  {:<6} {name:<14} {:>12}", if *passed { "ok" } else { "FAILED" }, duration(*time));
    }
    let failed: Vec<&str> = results.iter().filter(|(_, _, passed)| !passed).map(|(name, ..)| *name).collect();
    if failed.is_empty() {
        say(&format!("all {} steps passed in {}", results.len(), duration(total)));
        return ExitCode::SUCCESS;
    }
    say(&format!(
        "failed: {} (after {}); the reasons stand under their headlines",
        failed.join(", "),
        duration(total)
    ));
    ExitCode::FAILURE
}

fn format(workspace: &Workspace) -> Result<()> {
    must_succeed(&mut workspace.cargo(&["fmt", "--all", "--check"]))
        .context("`cargo fmt --all` puts it right")
}

fn clippy(workspace: &Workspace) -> Result<()> {
    must_succeed(&mut workspace.cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

/// Libraries only: the binary `undertone` and the library `undertone` would write the same pages.
fn docs(workspace: &Workspace) -> Result<()> {
    must_succeed(
        workspace.cargo(&["doc", "--no-deps", "--workspace", "--lib"]).env("RUSTDOCFLAGS", "-D warnings"),
    )
}

/// Binaries and tests in one go, with the features that the tests are then run with.
fn build(workspace: &Workspace) -> Result<()> {
    must_succeed(&mut workspace.cargo(&["build", "--workspace", "--all-targets"]))
}

fn tests(workspace: &Workspace) -> Result<()> {
    run_tests(workspace, &[])
}

fn long_tests(workspace: &Workspace) -> Result<()> {
    run_tests(workspace, &[("UNDERTONE_LONG", "1")])
}

fn run_tests(workspace: &Workspace, environment: &[(&str, &str)]) -> Result<()> {
    if has_subcommand(workspace, "nextest") {
        // One more than there are cores: the tests over real processes mostly wait.
        let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get() + 1).to_string();
        let arguments =
            ["nextest", "run", "--workspace", "--no-fail-fast", "--no-tests", "fail", "--test-threads"];
        let environment = environment.iter().copied();
        return must_succeed(workspace.cargo(&arguments).arg(threads).envs(environment));
    }
    say("cargo nextest is not installed, so cargo test runs the tests");
    let kinds = ["--lib", "--bins", "--tests", "--examples", "--no-fail-fast"];
    let environment = environment.iter().copied();
    let counted = run_counted(workspace.cargo(&["test", "--workspace"]).args(kinds).envs(environment))?;
    say(&format!("{} passed, {} failed, {} ignored in all", counted.passed, counted.failed, counted.ignored));
    if counted.passed == 0 {
        bail!("no test was run, which proves nothing");
    }
    Ok(())
}

fn doctests(workspace: &Workspace) -> Result<()> {
    must_succeed(&mut workspace.cargo(&["test", "--doc", "--workspace"]))
}

/// The sum of cargo test's closing lines.
#[derive(Default, PartialEq, Debug)]
struct Counted {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Counted {
    /// Adds a line like "test result: ok. 12 passed; 0 failed; 1 ignored; ..."; other lines count nothing.
    fn add(&mut self, line: &str) {
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for count in counts.split("; ") {
            let Some((number, what)) = count.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

/// Runs the tests, passes their output on line by line, and counts.
fn run_counted(command: &mut Command) -> Result<Counted> {
    let name = command_line(command);
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{name}`"))?;
    let mut counted = Counted::default();
    let output = child.stdout.take().context("the output of the tests is a pipe")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        counted.add(&line);
        println!("{line}");
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{name}` failed ({status}): {} tests failed, {} passed", counted.failed, counted.passed);
    }
    Ok(counted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_summed() {
        let mut counted = Counted::default();
        for line in [
            "running 14 tests",
            "test result: ok. 12 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "a test that prints: test result: ok. 5 passed; 0 failed",
            "test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.20s",
        ] {
            counted.add(line);
        }
        assert_eq!(counted, Counted { passed: 15, failed: 1, ignored: 2 });
    }
}
