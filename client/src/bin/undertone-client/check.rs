//! `undertone-client check`, without a trainer: the data crate alone does it.

use crate::args::CheckArgs;
use crate::output::print;
use anyhow::{Context as _, Result, bail};
use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;
use undertone_client::ClientConfig;
use undertone_core::limits::MAX_JOB_DOCUMENT_BYTES;
use undertone_core::trainer::{DataReport, TrainerError};
use undertone_round::job::{Job, JobSpec};

pub(crate) fn check(args: &CheckArgs) -> Result<ExitCode> {
    let job = read_job(&args.job)?;
    let path = match (&args.data, &args.dir) {
        (Some(data), _) => data.clone(),
        (None, Some(dir)) => ClientConfig::load(dir)?.data,
        (None, None) => bail!("give --dir or --data"),
    };
    let report = inspect(&path, &job)?;
    if args.json {
        print(&format!("{}\n", serde_json::json!({ "fit": report.is_fit(), "report": report })))?;
    } else {
        print(&page(&path, &job, &report))?;
    }
    Ok(if report.is_fit() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Reads and resolves a job file.
pub(crate) fn read_job(path: &Path) -> Result<Job> {
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|f| f.take(MAX_JOB_DOCUMENT_BYTES as u64 + 1).read_to_string(&mut text))
        .with_context(|| format!("cannot read the job file {}", path.display()))?;
    let place = path.display().to_string();
    JobSpec::from_toml(&text, &place)?.resolve().with_context(|| place)
}

/// Checks a file against the job's data contract.
pub(crate) fn inspect(path: &Path, job: &Job) -> Result<DataReport, TrainerError> {
    undertone_data::inspect(path, &job.spec().data)
}

fn page(path: &Path, job: &Job, report: &DataReport) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let mut line = |l: String| writeln!(text, "{l}").expect("a text takes all");
    if report.is_fit() {
        line(format!("{}: meets the data contract of job \"{}\"", path.display(), job.spec().name));
    } else {
        line(format!("{}: does NOT meet the data contract of job \"{}\"", path.display(), job.spec().name));
        report.problems.iter().for_each(|p| line(format!("  {p}")));
    }
    line(format!("rows that can be trained on: {}", report.rows));
    for (class, rows) in job.spec().data.label().classes.iter().zip(&report.class_rows) {
        line(format!("  {}: {rows}", class.name));
    }
    for (column, n) in report.missing.iter().filter(|(_, n)| *n > 0) {
        line(format!("missing in column \"{column}\": {n}"));
    }
    text
}
