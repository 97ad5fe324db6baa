//! `undertone-server doctor`: checks a deployment and says what is wrong, and what to do next.
//!
//! It runs beside a coordinator or without one, and changes nothing but files and objects of its own, which it deletes.

mod identity;
mod machine;
mod place;
mod state;
#[cfg(test)]
mod tests;

use crate::config::{Durability, ServerConfig};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and somebody should look at it.
    Warn,
    /// It does not work, or will not.
    Fail,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was checked, in a word or two.
    pub name: &'static str,
    /// How it went.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// All checks of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The deployment's folder.
    pub dir: PathBuf,
    /// One after another.
    pub checks: Vec<Check>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), next: None }
    }

    fn warn(name: &'static str, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warn, found: found.into(), next: Some(next.into()) }
    }

    fn fail(name: &'static str, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Fail, found: found.into(), next: Some(next.into()) }
    }
}

impl Report {
    /// Whether nothing failed.
    pub fn is_healthy(&self) -> bool {
        self.checks.iter().all(|check| check.verdict != Verdict::Fail)
    }

    /// The last line.
    pub fn summary(&self) -> String {
        let count = |verdict| self.checks.iter().filter(|check| check.verdict == verdict).count();
        let checks = self.checks.len();
        match (count(Verdict::Fail), count(Verdict::Warn)) {
            (0, 0) => format!("all {checks} checks are well"),
            (0, warned) => format!("{checks} checks, none failed; look at {warned}"),
            (failed, warned) => format!("{checks} checks, {failed} FAILED; look at {warned} more"),
        }
    }
}

/// Checks the deployment in `dir`.
pub async fn examine(dir: &Path) -> Report {
    let mut checks = vec![];
    match ServerConfig::load(dir) {
        Err(e) => checks.push(Check::fail(
            "configuration",
            e.to_string(),
            "mend server.toml, then run doctor again",
        )),
        Ok(config) => {
            checks.push(configuration(&config));
            checks.extend(identity::checks(&config));
            checks.extend(place::checks(&config).await);
            let (known, state) = state::checks(&config).await;
            checks.extend(state);
            checks.extend(machine::checks(&config, &known));
        }
    }
    Report { dir: dir.to_owned(), checks }
}

fn configuration(config: &ServerConfig) -> Check {
    let name = "configuration";
    match config.storage.durability {
        Durability::Disk => Check::ok(name, format!("server.toml of \"{}\", every key known", config.name)),
        Durability::Process => Check::warn(
            name,
            "[storage] durability = \"process\": a power loss may lose what was acknowledged, the privacy ledger too",
            "set durability = \"disk\", unless this deployment holds nothing of anybody's",
        ),
    }
}
