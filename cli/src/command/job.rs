//! `undertone job`: the work of a deployment.

use super::{Operator, find_job};
use crate::failure::bad_input;
use crate::follow::{Teller, follow};
use crate::output::{Align, Table, figure, given, moment, printable};
use crate::profile::{Connection, call_failed};
use crate::submission::Submission;
use anyhow::{Context as _, Result, anyhow};
use clap::Subcommand;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;
use undertone::v1;
use undertone_round::event::Outcome;

/// Submit, list, show, watch and cancel jobs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check a job file and hand it to the coordinator
    #[command(after_help = "\
The file is checked here first: an error names the line, the key and the nearest known key. Files that it names ([model] \
file, [initial] weights) are checked as well and sent before it, each once. With --watch the command follows the job as \
`undertone job watch` does.")]
    Submit {
        /// The job, as TOML
        file: PathBuf,
        /// Follow the job until it has ended
        #[arg(long)]
        watch: bool,
    },
    /// List all jobs and what they have spent
    List,
    /// Show a job: its progress, its privacy statement, its state
    Show {
        /// The job
        job: String,
    },
    /// Follow a job until it has ended: one line a round
    #[command(after_help = "\
Starts with the job's first event, also when the job has ended. Exit code 0 if the job completed or spent its \
budget, 1 if it failed or was cancelled. Interrupting the command does not touch the job.")]
    Watch {
        /// The job
        job: String,
    },
    /// End a job for good; models that were released stay
    Cancel {
        /// The job
        job: String,
        /// Why, for everyone who looks at the job later
        #[arg(long)]
        reason: String,
    },
}

impl Command {
    /// Runs the command.
    ///
    /// # Errors
    /// If the input makes no sense, or the server cannot be reached or refuses.
    pub(crate) async fn run(self, operator: &Operator) -> Result<ExitCode> {
        match self {
            Self::Submit { file, watch } => {
                // Before connecting: a job that makes no sense needs no server.
                let submission = Submission::read(&file)?;
                let mut connection = operator.connect().await?;
                let id = submission.send(&mut connection).await?;
                if watch && operator.screen.json {
                    // The events alone, which name the job.
                } else if operator.screen.json {
                    operator.screen.json(&submission.to_json(&id))?;
                } else {
                    for line in submission.describe(&id, operator.screen.paint) {
                        operator.screen.line(&line)?;
                    }
                }
                if watch {
                    return watch_to_end(operator, &mut connection, &id).await;
                }
                if !operator.screen.json {
                    operator.screen.line(&format!("\nfollow it with: undertone job watch {id}"))?;
                }
                Ok(ExitCode::SUCCESS)
            }
            Self::List => list(operator).await,
            Self::Show { job } => show(operator, &job).await,
            Self::Watch { job } => watch_to_end(operator, &mut operator.connect().await?, &job).await,
            Self::Cancel { job, reason } => cancel(operator, &job, reason).await,
        }
    }
}

/// Follows a job; the exit code tells how it ended.
async fn watch_to_end(operator: &Operator, connection: &mut Connection, job: &str) -> Result<ExitCode> {
    let job = find_job(connection, job).await?;
    let mut teller = Teller::new(&job, operator.screen, operator.screen.json);
    let outcome = follow(connection, &job.job, |heard| teller.hear(&heard)).await?;
    Ok(match outcome {
        Outcome::Completed | Outcome::StoppedEarly { .. } | Outcome::BudgetSpent { .. } => ExitCode::SUCCESS,
        Outcome::Cancelled { .. } | Outcome::Failed { .. } => ExitCode::FAILURE,
    })
}

async fn list(operator: &Operator) -> Result<ExitCode> {
    let mut connection = operator.connect().await?;
    let response = connection.list_jobs(v1::ListJobsRequest {}).await.map_err(call_failed)?;
    let jobs = response.into_inner().jobs;
    if operator.screen.json {
        operator.screen.json(&jobs.iter().map(summary_json).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&[
        ("JOB", Align::Left),
        ("STATUS", Align::Left),
        ("ROUNDS", Align::Right),
        ("ε SPENT", Align::Right),
        ("BUDGET", Align::Right),
        ("δ", Align::Right),
        ("SUBMITTED", Align::Left),
    ]);
    let number = |x: Option<f64>, text: fn(f64) -> String| x.map_or("-".to_owned(), text);
    for j in &jobs {
        table.row([
            j.job.clone(),
            j.status.clone(),
            format!("{}/{}", j.rounds_released, j.rounds_planned),
            number(j.epsilon_spent, figure),
            number(j.epsilon_budget, given),
            number(j.delta, given),
            moment(j.created_unix_s),
        ]);
    }
    operator.screen.table(&table, "no jobs yet: hand one in with `undertone job submit job.toml`")?;
    for j in jobs.iter().filter(|j| !j.problem.is_empty()) {
        operator.screen.line(&format!(
            "{} {}: {}",
            printable(&j.job),
            printable(&j.status),
            printable(&j.problem)
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A job as the coordinator keeps it, with its JSON parts read.
///
/// # Errors
/// If the server refuses, or its answer is not what it should be.
pub(crate) async fn detail(connection: &mut Connection, job: &str) -> Result<Detail> {
    let request = v1::GetJobRequest { job: job.to_owned() };
    let detail = connection.get_job(request).await.map_err(call_failed)?.into_inner();
    let json = |what: &str, text: &[u8]| {
        serde_json::from_slice::<Value>(text).with_context(|| format!("the coordinator's {what} is not JSON"))
    };
    Ok(Detail {
        summary: detail.summary.ok_or_else(|| anyhow!("the coordinator's answer lacks the job's summary"))?,
        document: json("job document", &detail.job_document)?,
        privacy: json("privacy statement", detail.privacy.as_bytes())?,
        state: json("job state", detail.state.as_bytes())?,
    })
}

/// See [`detail`].
#[derive(Debug)]
pub(crate) struct Detail {
    /// Progress and spending.
    pub(crate) summary: v1::JobSummary,
    document: Value,
    /// The privacy statement of the job so far.
    pub(crate) privacy: Value,
    state: Value,
}

async fn show(operator: &Operator, job: &str) -> Result<ExitCode> {
    let mut connection = operator.connect().await?;
    let job = find_job(&mut connection, job).await?.job;
    let detail = detail(&mut connection, &job).await?;
    let screen = operator.screen;
    if screen.json {
        let mut value = summary_json(&detail.summary);
        value["document"] = detail.document;
        value["privacy"] = detail.privacy;
        value["state"] = detail.state;
        screen.json(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let s = &detail.summary;
    screen.line(&screen.paint.bold(&printable(&s.job)))?;
    for (name, value) in [
        ("status", printable(&s.status)),
        ("rounds", format!("{} of {} released", s.rounds_released, s.rounds_planned)),
        ("submitted", moment(s.created_unix_s)),
    ] {
        screen.line(&format!("  {name:<16}  {value}"))?;
    }
    if !s.problem.is_empty() {
        screen.line(&format!("  {:<16}  {}", "problem", printable(&s.problem)))?;
    }
    for (title, value) in [("privacy", &detail.privacy), ("state", &detail.state)] {
        screen.line(&screen.paint.bold(title))?;
        let lines = flatten(value);
        let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).max(16);
        for (name, value) in lines {
            screen.line(&format!("  {name:<width$}  {value}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What of a privacy statement people look for first; the rest follows by name.
const FIRST: [&str; 7] = ["promise", "unit", "trust", "epsilon", "delta", "budget epsilon", "attempts"];

/// A JSON value as names and short values, for people.
fn flatten(value: &Value) -> Vec<(String, String)> {
    fn walk(path: &str, value: &Value, lines: &mut Vec<(String, String)>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let name = name.replace('_', " ");
                    let path = if path.is_empty() { name } else { format!("{path} {name}") };
                    walk(&path, value, lines);
                }
            }
            Value::Array(items) if items.iter().any(|i| i.is_object() || i.is_array()) => {
                for (i, item) in items.iter().enumerate() {
                    walk(&format!("{path} {}", i + 1), item, lines);
                }
            }
            Value::Array(items) => {
                let items: Vec<String> = items.iter().map(scalar).collect();
                lines
                    .push((path.to_owned(), if items.is_empty() { "none".into() } else { items.join(", ") }));
            }
            Value::Null => {}
            other => lines.push((path.to_owned(), scalar(other))),
        }
    }
    let mut lines = Vec::new();
    walk("", value, &mut lines);
    // The sort is stable: what is not listed stays in its order.
    lines.sort_by_key(|(name, _)| FIRST.iter().position(|first| first == name).unwrap_or(FIRST.len()));
    lines
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => printable(text),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        // As it was written if that is short: nobody writes ε = 4.99999912, but 0.25 is not 0.250.
        Value::Number(n) => match n.as_f64() {
            Some(x) if n.is_f64() && given(x).len() > 6 => figure(x),
            Some(x) if n.is_f64() => given(x),
            _ => n.to_string(),
        },
        other => other.to_string(),
    }
}

async fn cancel(operator: &Operator, job: &str, reason: String) -> Result<ExitCode> {
    if reason.trim().is_empty() {
        return Err(bad_input("say why: --reason \"...\" stays with the job"));
    }
    let mut connection = operator.connect().await?;
    let job = find_job(&mut connection, job).await?.job;
    let request = v1::CancelJobRequest { job: job.clone(), reason: reason.clone() };
    connection.cancel_job(request).await.map_err(call_failed)?;
    if operator.screen.json {
        operator.screen.json(&json!({ "job": job, "cancelled": true, "reason": reason }))?;
    } else {
        operator.screen.line(&format!("{} is cancelled", printable(&job)))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn summary_json(j: &v1::JobSummary) -> Value {
    json!({
        "job": j.job,
        "status": j.status,
        "rounds_released": j.rounds_released,
        "rounds_planned": j.rounds_planned,
        "created_unix_s": j.created_unix_s,
        "epsilon_spent": j.epsilon_spent,
        "epsilon_budget": j.epsilon_budget,
        "delta": j.delta,
        "problem": if j.problem.is_empty() { None } else { Some(&j.problem) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_becomes_lines() {
        let value = json!({
            "promise": true, "epsilon": 4.123456, "attempts": 20, "clip_norm": 1.0, "none": null, "list": ["a", "b\u{1b}"],
            "round": { "asked_of": [], "clients": [{ "name": "x" }, { "name": "y" }] },
        });
        let lines = flatten(&value);
        let text: Vec<String> = lines.iter().map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!(
            text,
            [
                "promise=yes",
                "epsilon=4.12",
                "attempts=20",
                "clip norm=1",
                "list=a, b\\u{1b}",
                "round asked of=none",
                "round clients 1 name=x",
                "round clients 2 name=y",
            ]
        );
    }
}
