//! The child processes of the demo and the benchmarks. None outlives its parent, whatever ends it:
//!
//! - each leads a process group of its own, so that Ctrl-C reaches the demo alone, which then stops them in order,
//!   and so that a child's own children go with it;
//! - dropping a group kills it, so an error or a panic stops everything;
//! - each is started through `undertone run-below`, which asks the kernel (Linux) to end it when the demo dies in
//!   a way that runs no code any more (`kill -9`).

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal, getppid, kill_process_group};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

/// How long a process has between the polite and the last signal.
const GRACE: Duration = Duration::from_secs(5);
/// Lines of a log that an error shows.
const TAIL: usize = 6;

/// What a program is started with.
pub(crate) type Arguments<'a> = &'a [&'a dyn AsRef<OsStr>];

/// The programs that lie beside this one.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    this: PathBuf,
    folder: PathBuf,
    /// Whether children may live on when this process has ended.
    lasting: bool,
}

impl Programs {
    /// Looks for the programs that `who` needs beside this executable; `remedy` says how to come by them.
    ///
    /// # Errors
    /// If one is not there, with what to do.
    pub(crate) fn find(who: &str, needed: &[&'static str], remedy: &str, lasting: bool) -> Result<Self> {
        let this = std::env::current_exe().context("cannot tell where this program is")?;
        let folder = this.parent().unwrap_or(Path::new("/")).to_owned();
        let missing: Vec<&str> = needed.iter().copied().filter(|name| !folder.join(name).is_file()).collect();
        if !missing.is_empty() {
            bail!("{who} needs {} in {}: {remedy}", missing.join(" and "), folder.display());
        }
        Ok(Self { this, folder, lasting })
    }

    /// Where the programs are.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// This very program once more, not started yet.
    pub(crate) fn this(&self, args: Arguments<'_>) -> Command {
        self.command_at(&self.this, args)
    }

    fn command(&self, program: &str, args: Arguments<'_>) -> Command {
        self.command_at(&self.path(program), args)
    }

    fn command_at(&self, program: &Path, args: Arguments<'_>) -> Command {
        let mut command = if self.lasting {
            Command::new(program)
        } else {
            let mut below = Command::new(&self.this);
            below.arg("run-below").arg(std::process::id().to_string()).arg("--").arg(program);
            below
        };
        command
            .args(args.iter().map(|a| a.as_ref()))
            .process_group(0)
            .kill_on_drop(true)
            .stdin(Stdio::null());
        command
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// If it does not succeed: what it said on standard error.
    pub(crate) async fn run(&self, program: &str, args: Arguments<'_>) -> Result<Output> {
        let mut command = self.command(program, args);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let child = child.with_context(|| format!("cannot start {program}"))?;
        let group = Group::of(&child)?;
        let output = child.wait_with_output().await.with_context(|| format!("cannot run {program}"))?;
        drop(group);
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let shown = args.first().map(|a| a.as_ref().to_string_lossy().into_owned()).unwrap_or_default();
            bail!("`{program} {shown}` failed ({}): {}", output.status, tail(&said));
        }
        Ok(output)
    }
}

/// Runs PROGRAM as a process that the kernel ends when its parent ends.
#[derive(Debug, clap::Args)]
pub(crate) struct RunBelow {
    /// The process that must be the parent
    parent: i32,
    /// What to run
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl RunBelow {
    /// Becomes the program; returns only if that does not work.
    pub(crate) fn run(self) -> anyhow::Error {
        #[cfg(target_os = "linux")]
        if let Err(e) = rustix::process::set_parent_process_death_signal(Some(Signal::TERM)) {
            return anyhow!("cannot tie a process to its parent: {e}");
        }
        // The parent may have ended before the kernel was asked.
        if getppid().map(|p| p.as_raw_nonzero().get()) != Some(self.parent) {
            return anyhow!("process {} is not my parent (any more)", self.parent);
        }
        let (program, args) = self.command.split_first().expect("clap requires a program");
        let error = std::process::Command::new(program).args(args).exec();
        anyhow!("cannot start {}: {error}", program.display())
    }
}

/// A process group that is killed when dropped.
#[derive(Debug)]
pub(crate) struct Group(Option<Pid>);

impl Group {
    /// The group that this child leads.
    ///
    /// # Errors
    /// If it has ended already.
    pub(crate) fn of(child: &Child) -> Result<Self> {
        let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Ok(Self(Some(id.ok_or_else(|| anyhow!("a child process ended at once"))?)))
    }

    fn signal(&self, signal: Signal) {
        if let Some(id) = self.0 {
            // Fails only if nobody is left in the group, which is what is wanted.
            let _ = kill_process_group(id, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// The daemons of a demo, in the order in which they were started.
#[derive(Debug)]
pub(crate) struct Fleet {
    programs: Programs,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    name: String,
    log: PathBuf,
    child: Child,
    group: Group,
}

impl Member {
    fn stopped(&self, status: ExitStatus) -> anyhow::Error {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        anyhow!("{} stopped ({status}): {}", self.name, tail(&log))
    }
}

impl Fleet {
    /// Nothing running yet.
    pub(crate) fn new(programs: Programs) -> Self {
        Self { programs, members: Vec::new() }
    }

    /// Starts a daemon called `name`; both its outputs go to `log`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(crate) fn start(&mut self, name: &str, program: &str, args: Arguments<'_>, log: &Path) -> Result<()> {
        let cannot = || format!("cannot write {}", log.display());
        let out = File::create(log).with_context(cannot)?;
        let err = out.try_clone().with_context(cannot)?;
        let mut command = self.programs.command(program, args);
        let child =
            command.stdout(out).stderr(err).spawn().with_context(|| format!("cannot start {program}"))?;
        let group = Group::of(&child)?;
        self.members.push(Member { name: name.to_owned(), log: log.to_owned(), child, group });
        Ok(())
    }

    /// Checks that all are running.
    ///
    /// # Errors
    /// If one has ended: which, how, and the end of its log.
    pub(crate) fn check(&mut self) -> Result<()> {
        for member in &mut self.members {
            if let Some(status) = member.child.try_wait().context("cannot look after a process")? {
                return Err(member.stopped(status));
            }
        }
        Ok(())
    }

    /// Waits until the first one that was started, the server, has ended; gives what happened. (The round machine
    /// deals with a client that ends, and its events tell.)
    pub(crate) async fn first_gone(&mut self) -> anyhow::Error {
        let Some(member) = self.members.first_mut() else {
            return std::future::pending().await;
        };
        match member.child.wait().await {
            Ok(status) => member.stopped(status),
            Err(e) => anyhow!("cannot look after {}: {e}", member.name),
        }
    }

    /// Names and process ids.
    pub(crate) fn ids(&self) -> Vec<(&str, u32)> {
        self.members.iter().filter_map(|m| Some((m.name.as_str(), m.child.id()?))).collect()
    }

    /// Stops all in the reverse order of starting, politely first. Nothing is left running afterwards.
    pub(crate) async fn stop(mut self) {
        // The first one is the server: the others see their work through before it goes.
        let rest = self.members.split_off(self.members.len().min(1));
        for mut wave in [rest, self.members] {
            for member in &wave {
                member.group.signal(Signal::TERM);
            }
            let all = async {
                for member in &mut wave {
                    let _ = member.child.wait().await;
                }
            };
            // Whatever the outcome, dropping the wave kills what is left.
            let _ = timeout(GRACE, all).await;
        }
    }

    /// Leaves all running for good.
    pub(crate) fn leave(self) {
        for mut member in self.members {
            member.group.0 = None;
            // Dropping a child that is to be killed on drop would kill it.
            std::mem::forget(member.child);
        }
    }
}

/// Waits until somebody wants this process to end.
///
/// # Errors
/// If signals cannot be caught.
pub(crate) async fn interrupted() -> Result<()> {
    let catch = |kind| signal(kind).context("cannot catch signals");
    let (mut int, mut term, mut hup) =
        (catch(SignalKind::interrupt())?, catch(SignalKind::terminate())?, catch(SignalKind::hangup())?);
    tokio::select! {
        _ = int.recv() => {}
        _ = term.recv() => {}
        _ = hup.recv() => {}
    }
    Ok(())
}

/// The last lines of what a process wrote.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    match lines.len().saturating_sub(TAIL) {
        _ if lines.is_empty() => "it said nothing".to_owned(),
        _ if lines.len() == 1 => lines[0].trim().to_owned(),
        skipped => format!("\n  {}", lines[skipped..].join("\n  ")),
    }
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
