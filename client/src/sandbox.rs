//! The walls around a data owner's own training program.
//!
//! Between `fork` and `exec` a program with threads can do next to nothing safely, so the client starts *itself* again,
//! as `undertone-client sandboxed`: small programs of one thread that wall themselves in. [`enter`] leaves network and
//! process table behind where the system lets it, starts [`start`] and waits for it. [`start`] sets limits on itself and
//! runs the program; as the first process of its own process table it takes everything with it when it ends. Each dies with
//! the one above it, so nothing outlives the client.
//!
//! What the walls do not do: the program runs as the client's own user and can read what that user can read. It is the
//! data owner's program, not a stranger's; the walls are there for its mistakes.

#[cfg(target_os = "linux")]
mod namespaces;

use rustix::process::{Pid, Resource};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// The hidden command of `undertone-client` that calls [`enter`] and [`start`].
pub const SANDBOXED: &str = "sandboxed";

/// Whether the program may use the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// Cut where the system lets the client cut it; the log says so where it does not.
    #[default]
    Cut,
    /// Cut; the program is not run where it cannot be cut.
    CutOrRefuse,
    /// Left open.
    Open,
}

/// What to run, and within which walls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    /// All of its environment.
    pub(crate) environment: Vec<(String, String)>,
    /// Where it runs.
    pub(crate) dir: PathBuf,
    /// Whether to try namespaces: no network (unless it stays open), and processes that all end with the first.
    pub(crate) namespaces: bool,
    pub(crate) network: Network,
    /// Most bytes of private memory of each process.
    pub(crate) memory_bytes: Option<u64>,
    /// Most bytes of one file.
    pub(crate) file_bytes: u64,
    pub(crate) niceness: i32,
    /// Where the outcome is written.
    pub(crate) outcome: PathBuf,
    /// The process that waits for the outcome.
    pub(crate) client: u32,
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// The program ended by itself.
    Exit { status: i32 },
    /// A signal ended it.
    Signal { signal: i32 },
    /// It could not be started.
    NotStarted { why: String },
    /// The system does not let the client leave network and process table behind. Nothing was run.
    NoNamespaces { why: String },
}

fn read(plan: &Path) -> io::Result<Plan> {
    serde_json::from_slice(&std::fs::read(plan)?).map_err(io::Error::other)
}

/// The first step: see the module. Returns when the program has ended.
///
/// # Errors
/// If the plan cannot be read, or the outcome cannot be written.
pub fn enter(plan_path: &Path) -> io::Result<()> {
    let plan = read(plan_path)?;
    die_with_parent()?;
    // It may have died before that was asked for.
    if std::os::unix::process::parent_id() != plan.client {
        return Ok(());
    }
    match walled(plan_path, &plan) {
        Some(outcome) => tell(&plan, &outcome),
        None => Ok(()),
    }
}

fn tell(plan: &Plan, outcome: &Outcome) -> io::Result<()> {
    std::fs::write(&plan.outcome, serde_json::to_vec(outcome)?)
}

impl From<ExitStatus> for Outcome {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(status), _) => Self::Exit { status },
            (None, signal) => Self::Signal { signal: signal.unwrap_or_default() },
        }
    }
}

/// The outcome, unless [`start`] has told it.
fn walled(plan_path: &Path, plan: &Plan) -> Option<Outcome> {
    if plan.namespaces
        && let Err(why) = leave_namespaces(plan.network)
    {
        return Some(Outcome::NoNamespaces { why });
    }
    let not_started = |why: String| Some(Outcome::NotStarted { why });
    let own = match std::env::current_exe() {
        Ok(own) => own,
        Err(e) => return not_started(format!("cannot find this program: {e}")),
    };
    let status = Command::new(own).arg(SANDBOXED).arg("start").arg(plan_path).stdin(Stdio::null()).status();
    let status = match status {
        Ok(status) => status,
        Err(e) => return not_started(format!("cannot start this program again: {e}")),
    };
    (!plan.outcome.exists()).then(|| status.into())
}

/// The second step: limits, then the program. In a process table of its own this process stays the first (signals treat
/// the first of a table unlike any other, and the program should not notice); else the program takes its place.
///
/// # Errors
/// If the plan cannot be read, or the outcome cannot be written.
pub fn start(plan_path: &Path) -> io::Result<()> {
    let plan = read(plan_path)?;
    let mut command = match prepare(&plan) {
        Ok(command) => command,
        Err(why) => return tell(&plan, &Outcome::NotStarted { why }),
    };
    let not_started =
        |e: io::Error| Outcome::NotStarted { why: format!("cannot start {}: {e}", plan.program.display()) };
    if !plan.namespaces {
        return tell(&plan, &not_started(command.exec()));
    }
    tell(&plan, &command.status().map_or_else(not_started, Outcome::from))
}

/// Sets the limits, on this process and those to come.
fn prepare(plan: &Plan) -> Result<Command, String> {
    let text = |what: &str, e: &dyn std::fmt::Display| format!("{what}: {e}");
    die_with_parent().map_err(|e| text("cannot ask to end with the client", &e))?;
    if let Some(bytes) = plan.memory_bytes {
        // Private memory, not address space, of which CUDA and JAX reserve far more than they use.
        limit(None, Resource::Data, bytes).map_err(|e| text("cannot limit the memory", &e))?;
    }
    limit(None, Resource::Fsize, plan.file_bytes).map_err(|e| text("cannot limit the size of files", &e))?;
    // A core file would hold the data.
    limit(None, Resource::Core, 0).map_err(|e| text("cannot forbid core files", &e))?;
    give_way(None, plan.niceness).map_err(|e| text("cannot set the niceness", &e))?;
    let mut command = Command::new(&plan.program);
    command
        .args(&plan.arguments)
        .env_clear()
        .envs(plan.environment.iter().map(|(name, value)| (name, value)))
        .current_dir(&plan.dir);
    Ok(command)
}

/// Makes a process (`None`: this one) give way to others at least so much; one that gives way more already may not go back.
pub(crate) fn give_way(process: Option<Pid>, niceness: i32) -> rustix::io::Result<()> {
    use rustix::process::{getpriority_process, setpriority_process};
    if niceness > getpriority_process(process)? {
        setpriority_process(process, niceness)?;
    }
    Ok(())
}

/// Sets a limit that a process (`None`: this one) and those that it starts cannot raise; one that is lower already stays.
/// Another process is a child that has this one's limits still; only Linux can set its.
pub(crate) fn limit(process: Option<Pid>, resource: Resource, most: u64) -> rustix::io::Result<()> {
    use rustix::process::{Rlimit, getrlimit, setrlimit};
    let most = getrlimit(resource).maximum.map_or(most, |now| now.min(most));
    let limit = Rlimit { current: Some(most), maximum: Some(most) };
    match process {
        None => setrlimit(resource, limit),
        #[cfg(target_os = "linux")]
        Some(child) => rustix::process::prlimit(Some(child), resource, limit).map(drop),
        #[cfg(not(target_os = "linux"))]
        Some(_) => Ok(()),
    }
}

#[cfg(target_os = "linux")]
fn die_with_parent() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?)
}

/// Elsewhere only the process group ends them, when the client stops in good order.
#[cfg(not(target_os = "linux"))]
fn die_with_parent() -> io::Result<()> {
    Ok(())
}

#[cfg(target_os = "linux")]
fn leave_namespaces(network: Network) -> Result<(), String> {
    namespaces::leave(network != Network::Open)
}

#[cfg(not(target_os = "linux"))]
fn leave_namespaces(_: Network) -> Result<(), String> {
    Err("only Linux has namespaces".into())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use rustix::process::getrlimit;

    #[test]
    fn a_limit_that_is_lower_already_stays() {
        let now = getrlimit(Resource::Nofile).maximum.expect("Linux bounds the open files of each process");
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let limited = |most| {
            limit(Some(Pid::from_child(&child)), Resource::Nofile, most).unwrap();
            let text = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
            let line = text.lines().find(|line| line.starts_with("Max open files")).unwrap();
            line.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<u64>>()
        };
        assert_eq!(limited(now + 1), [now, now]);
        assert_eq!(limited(now - 1), [now - 1, now - 1]);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
