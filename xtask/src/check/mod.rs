//! `cargo xtask check`: what the dependency graph and the binaries must keep promising.

mod architecture;
mod duplicates;
mod graph;
mod licences;
mod linkage;
mod spdx;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use graph::Graph;

use crate::cargo::Workspace;
use crate::report::say;

/// The whole check.
pub(crate) fn run() -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    graph_check(&workspace)?;
    linkage_check(&workspace)?;
    Ok(ExitCode::SUCCESS)
}

/// Licences, duplicates and arrows, from `cargo metadata`.
pub(crate) fn graph_check(workspace: &Workspace) -> Result<()> {
    let graph = Graph::from_metadata(&workspace.metadata()?)?;
    let list = workspace.root().join("xtask/allowed-duplicates.txt");
    let allowed =
        std::fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let problems =
        [licences::problems(&graph), duplicates::problems(&graph, &allowed), architecture::problems(&graph)];
    conclude(&problems.concat())?;
    let (ours, others) = (graph.ours().count(), graph.third_party().count());
    say(&format!(
        "{ours} crates of ours and {others} of others: licences, versions and arrows are as they should be"
    ));
    Ok(())
}

/// What the built binaries load.
pub(crate) fn linkage_check(workspace: &Workspace) -> Result<()> {
    conclude(&linkage::problems(workspace)?)
}

fn conclude(problems: &[String]) -> Result<()> {
    for problem in problems {
        eprintln!("  - {problem}");
    }
    match problems.len() {
        0 => Ok(()),
        1 => bail!("the check found a problem (above)"),
        number => bail!("the check found {number} problems (above)"),
    }
}
