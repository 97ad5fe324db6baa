//! `undertone ledger`: what all jobs together have spent of the population's privacy, and proof of it.

use super::Operator;
use crate::failure::bad_input;
use crate::output::{Align, Table, figure, given, moment, printable};
use crate::profile::{Connection, call_failed};
use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use undertone::v1;
use undertone_privacy::ledger::chain::{Chain, Line};
use undertone_privacy::ledger::population::{Budgets, PopulationSpent};
use undertone_privacy::ledger::recompute;

/// See, check and export the privacy ledger.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// What is spent, by which jobs, and what is left
    Show {
        /// The newest lines to show as well
        #[arg(long, value_name = "N", default_value_t = 0)]
        lines: usize,
    },
    /// Check that no line was changed, removed or reordered, and recompute every ε
    #[command(after_help = "\
Each line holds the digest of the line before it, and the mechanism and its numbers: the ε of every job is recomputed from
the lines alone. Keep the digest that is printed (in a diary, with an auditor): a ledger whose line N has another digest
later was rewritten. Exit code 1 if a line does not follow.")]
    Verify {
        /// A file that `undertone ledger export` wrote; without it, the coordinator's ledger
        file: Option<PathBuf>,
        /// The digest that the ledger must hold at some line: one that was kept earlier
        #[arg(long, value_name = "DIGEST")]
        holds: Option<String>,
    },
    /// Write all lines to a file, one JSON document a line
    Export {
        /// Where to write them; without it, standard output
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

impl Command {
    /// Runs the command.
    ///
    /// # Errors
    /// If the server cannot be reached or refuses, a file cannot be used, or the ledger does not add up.
    pub(crate) async fn run(self, operator: &Operator) -> Result<ExitCode> {
        match self {
            Self::Show { lines } => show(operator, lines).await,
            Self::Verify { file, holds } => {
                let lines = match &file {
                    Some(file) => from_file(file)?,
                    None => parsed(&documents(&mut operator.connect().await?).await?)?,
                };
                verify(operator, lines, holds.as_deref())
            }
            Self::Export { out } => export(operator, out.as_deref()).await,
        }
    }
}

async fn show(operator: &Operator, newest: usize) -> Result<ExitCode> {
    let mut connection = operator.connect().await?;
    let summary = connection.get_ledger(v1::GetLedgerRequest {}).await.map_err(call_failed)?.into_inner();
    let lines = if newest > 0 { documents(&mut connection).await? } else { vec![] };
    let newest = &lines[lines.len().saturating_sub(newest)..];
    let spent: PopulationSpent = read(&summary.spent)?;
    let budgets: Budgets = read(&summary.budgets)?;
    let screen = operator.screen;
    if screen.json {
        let jobs: Vec<Value> = summary
            .jobs
            .iter()
            .map(|j| json!({ "job": j.job, "attempts": j.attempts, "epsilon": j.epsilon }))
            .collect();
        screen.json(&json!({
            "lines": summary.lines,
            "head": hex(&summary.head),
            "spent": spent,
            "budgets": budgets,
            "record_used": summary.record_used,
            "client_used": summary.client_used,
            "jobs": jobs,
            "newest": newest.iter().map(|l| read::<Value>(l)).collect::<Result<Vec<_>>>()?,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let level = |unit: &str, epsilon, delta, budget: Option<f64>, used: Option<f64>, uncovered| {
        let budget = match (budget, used) {
            (Some(budget), Some(used)) => {
                format!("of {}, {:.0} % of the budget is spent", given(budget), used * 100.0)
            }
            _ => "no budget over all jobs".into(),
        };
        let uncovered = match uncovered {
            0 => String::new(),
            n => format!("; {n} attempts gave no promise at this level"),
        };
        format!("  each {unit:<7}  ε {} at δ {} {budget}{uncovered}", figure(epsilon), given(delta))
    };
    screen.line(&screen.paint.bold("spent by all jobs over the population of this deployment"))?;
    screen.line(&level(
        "record",
        spent.record_epsilon,
        spent.record_delta,
        budgets.record.map(|b| b.epsilon),
        summary.record_used,
        spent.unprotected,
    ))?;
    screen.line(&level(
        "client",
        spent.client_epsilon,
        spent.client_delta,
        budgets.client.map(|b| b.epsilon),
        summary.client_used,
        spent.clients_unprotected,
    ))?;
    screen.line(&format!("  {} lines, the last with digest {}", summary.lines, hex(&summary.head)))?;
    let mut table = Table::new(&[("JOB", Align::Left), ("ATTEMPTS", Align::Right), ("ε", Align::Right)]);
    for j in &summary.jobs {
        table.row([j.job.clone(), j.attempts.to_string(), j.epsilon.map_or("-".into(), figure)]);
    }
    screen.table(&table, "no job has reserved anything yet")?;
    for line in newest {
        let line: Line = read(line)?;
        screen.line(&format!(
            "{:>6}  {}  {}  {}",
            line.seq,
            moment(line.unix_ms / 1000),
            printable(&line.entry.key.to_string()),
            line.entry.state.word(),
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn verify(operator: &Operator, lines: Vec<Line>, holds: Option<&str>) -> Result<ExitCode> {
    if let Some(wanted) = holds
        && wanted.parse::<undertone_core::digest::Digest>().is_err()
    {
        return Err(bad_input(format!(
            "\"{}\" is no digest: 64 hex digits, as verify prints them",
            printable(wanted)
        )));
    }
    recompute(&lines)?;
    let found = holds.map(|wanted| lines.iter().find(|l| l.digest.to_string() == wanted).map(|l| l.seq));
    // Budgets play no part: what is spent follows from the lines.
    let chain = Chain::from_lines(Budgets::default(), lines)?;
    if found == Some(None) {
        bail!(
            "the lines follow from each other, but none has the digest that was kept: this is not the ledger it was"
        );
    }
    if operator.screen.json {
        operator.screen.json(&json!({
            "lines": chain.len(), "head": chain.head(), "holds_at": found.flatten(), "jobs": chain.jobs().count(),
        }))?;
    } else {
        operator.screen.line(&format!(
            "{} lines of {} jobs follow from each other and add up",
            chain.len(),
            chain.jobs().count()
        ))?;
        if let Some(Some(seq)) = found {
            operator.screen.line(&format!("line {seq} has the digest that was kept"))?;
        }
        operator.screen.line(&format!("the last line has digest {}", chain.head()))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn export(operator: &Operator, out: Option<&Path>) -> Result<ExitCode> {
    let lines = documents(&mut operator.connect().await?).await?;
    let Some(out) = out else {
        for line in &lines {
            operator.screen.line(line)?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(out)?;
        for line in &lines {
            writeln!(file, "{line}")?;
        }
        file.sync_all()
    };
    write().with_context(|| format!("cannot write {}", out.display()))?;
    if operator.screen.json {
        operator.screen.json(&json!({ "lines": lines.len(), "file": out }))?;
    } else {
        operator.screen.line(&format!("wrote {} lines to {}", lines.len(), out.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// All lines as the coordinator keeps them.
async fn documents(connection: &mut Connection) -> Result<Vec<String>> {
    let request = v1::ReadLedgerRequest { after: 0 };
    let mut stream = connection.read_ledger(request).await.map_err(call_failed)?.into_inner();
    let mut lines = vec![];
    while let Some(line) = stream.message().await.map_err(call_failed)? {
        lines.push(line.document);
    }
    Ok(lines)
}

fn parsed(documents: &[String]) -> Result<Vec<Line>> {
    let line = |(n, text): (usize, &String)| {
        serde_json::from_str(text).with_context(|| format!("line {} of the ledger makes no sense", n + 1))
    };
    documents.iter().enumerate().map(line).collect()
}

fn from_file(path: &Path) -> Result<Vec<Line>> {
    let cannot = || format!("cannot read {}", path.display());
    let file = std::fs::File::open(path).with_context(cannot)?;
    let documents: Vec<String> =
        BufReader::new(file).lines().collect::<std::io::Result<_>>().with_context(cannot)?;
    parsed(&documents)
}

fn read<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).context("the coordinator's answer makes no sense")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
