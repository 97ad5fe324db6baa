//! Crowds, here or in processes of their own (`undertone bench client`, which people never type). Both say the same things;
//! a process reads its plan as a line of JSON, writes what it has to say as lines of JSON, and stops when its standard
//! input is closed.

use super::crowd::{self, Plan, Ready, Said};
use crate::demo::process::{Group, Programs};
use anyhow::{Context as _, Result, anyhow};
use std::io::{BufRead as _, Read as _, Write as _};
use std::process::{ExitCode, Stdio};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::{mpsc, oneshot};

/// What tells a crowd to stop, by being dropped.
#[derive(Debug)]
enum Stop {
    Here { _sender: oneshot::Sender<()> },
    Process { _stdin: ChildStdin },
}

/// Everybody who takes part in a benchmark.
#[derive(Debug)]
pub(super) struct Crowds {
    stops: Vec<Stop>,
    /// What all of them say.
    said: mpsc::UnboundedReceiver<Said>,
    pids: Vec<u32>,
    /// Killed when dropped.
    _children: Vec<(Child, Group)>,
}

impl Crowds {
    /// One crowd in this process.
    pub(super) fn here(plan: Plan) -> Self {
        let (tx, said) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel();
        crowd::start(plan, stopped, move |what| drop(tx.send(what)));
        let pids = vec![std::process::id()];
        Self { stops: vec![Stop::Here { _sender: stop }], said, pids, _children: vec![] }
    }

    /// A crowd in a process of its own for each plan.
    ///
    /// # Errors
    /// If one cannot be started.
    pub(super) async fn processes(plans: Vec<Plan>, programs: &Programs) -> Result<Self> {
        let (tx, said) = mpsc::unbounded_channel();
        let mut crowds = Self { stops: vec![], said, pids: vec![], _children: vec![] };
        for plan in plans {
            let mut command = programs.this(&[&"bench", &"client"]);
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().context("cannot start a client process")?;
            let group = Group::of(&child)?;
            crowds.pids.extend(child.id());
            let (mut stdin, stdout) = child.stdin.take().zip(child.stdout.take()).expect("both are pipes");
            let mut line = serde_json::to_vec(&plan)?;
            line.push(b'\n');
            stdin.write_all(&line).await.context("cannot tell a client process its plan")?;
            crowds.stops.push(Stop::Process { _stdin: stdin });
            tokio::spawn(hear(stdout, tx.clone()));
            crowds._children.push((child, group));
        }
        Ok(crowds)
    }

    /// Waits until all clients are in their sessions; gives the slowest crowd's times.
    ///
    /// # Errors
    /// If one cannot get there.
    pub(super) async fn ready(&mut self) -> Result<Ready> {
        let mut slowest = Ready { enrol_s: 0.0, connect_s: 0.0 };
        for _ in 0..self.stops.len() {
            match self.said.recv().await {
                Some(Said::Ready(ready)) => {
                    slowest.enrol_s = slowest.enrol_s.max(ready.enrol_s);
                    slowest.connect_s = slowest.connect_s.max(ready.connect_s);
                }
                other => return Err(broken(other)),
            }
        }
        Ok(slowest)
    }

    /// Waits until a crowd that should go on does not; gives why.
    pub(super) async fn broke(&mut self) -> anyhow::Error {
        broken(self.said.recv().await)
    }

    /// Stops all; gives the bytes that went over all connections since the count began.
    ///
    /// # Errors
    /// If one cannot say.
    pub(super) async fn stop(mut self) -> Result<u64> {
        let crowds = self.stops.len();
        self.stops.clear();
        let mut sum = 0;
        for _ in 0..crowds {
            match self.said.recv().await {
                Some(Said::Done { wire_bytes }) => sum += wire_bytes,
                other => return Err(broken(other)),
            }
        }
        Ok(sum)
    }

    /// The processes with clients.
    pub(super) fn pids(&self) -> &[u32] {
        &self.pids
    }
}

/// Passes on what a process says. One that ends without a last word has failed.
async fn hear(stdout: ChildStdout, tx: mpsc::UnboundedSender<Said>) {
    let mut lines = BufReader::new(stdout).lines();
    loop {
        let said = match lines.next_line().await {
            Ok(Some(line)) => serde_json::from_str(&line)
                .unwrap_or_else(|_| Said::Failed(format!("a client process said \"{line}\""))),
            _ => Said::Failed("a client process ended".into()),
        };
        let last = !matches!(said, Said::Ready(_));
        if tx.send(said).is_err() || last {
            return;
        }
    }
}

fn broken(said: Option<Said>) -> anyhow::Error {
    match said {
        Some(Said::Failed(reason)) => anyhow!("the clients cannot go on: {reason}"),
        other => anyhow!("the clients cannot go on: the last that was heard is {other:?}"),
    }
}

/// `undertone bench client`: a crowd on standard input and output.
///
/// # Errors
/// If the plan makes no sense. What goes wrong with the crowd is said as it says all else.
pub(super) async fn run() -> Result<ExitCode> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("cannot read the plan")?;
    let plan: Plan = serde_json::from_str(&line)
        .context("this command is run by `undertone bench round` and `undertone bench idle` alone")?;
    let (tx, mut said) = mpsc::unbounded_channel();
    let (stop, stopped) = oneshot::channel();
    crowd::start(plan, stopped, move |what| drop(tx.send(what)));
    std::thread::spawn(move || {
        let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
        drop(stop);
    });
    while let Some(what) = said.recv().await {
        writeln!(std::io::stdout().lock(), "{}", serde_json::to_string(&what)?)?;
        match what {
            Said::Ready(_) => {}
            Said::Done { .. } => return Ok(ExitCode::SUCCESS),
            Said::Failed(_) => break,
        }
    }
    Ok(ExitCode::FAILURE)
}
