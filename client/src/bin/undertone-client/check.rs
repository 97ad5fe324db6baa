//! `undertone-client check`, without libtorch: the data crate does it, or the owner's own program.

use crate::args::CheckArgs;
use crate::output::print;
use anyhow::{Context as _, Result, bail};
use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;
use undertone_client::{ClientConfig, CommandTrainer, Mode};
use undertone_core::data_files::DataFiles;
use undertone_core::limits::MAX_JOB_DOCUMENT_BYTES;
use undertone_core::trainer::{DataReport, Trainer as _, TrainerError};
use undertone_round::job::{Job, JobSpec};

pub(crate) fn check(args: &CheckArgs) -> Result<ExitCode> {
    let job = read_job(&args.job)?;
    let (files, report) = match (&args.data, &args.dir) {
        (Some(path), _) => {
            let files = DataFiles { path: path.clone(), labels: args.labels.clone() };
            let report = undertone_data::inspect(files.clone(), &job.spec().data)?;
            (files, report)
        }
        (None, Some(dir)) => {
            let config = ClientConfig::load(dir)?;
            let report = inspect(&config, &job)?;
            (config.data, report)
        }
        (None, None) => bail!("give --dir or --data"),
    };
    if args.json {
        print(&format!("{}\n", serde_json::json!({ "fit": report.is_fit(), "report": report })))?;
    } else {
        print(&page(&files, &job, &report))?;
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

/// Checks a client's data against the job's data contract: with its owner's program, if that looks at data itself.
pub(crate) fn inspect(config: &ClientConfig, job: &Job) -> Result<DataReport, TrainerError> {
    match &config.trainer.command {
        Some(command) if command.does.contains(&Mode::Inspect) => {
            // A client that runs at the same time has the folder that it names for itself.
            let folder = config.folder.for_check();
            CommandTrainer::new(config.trainer.clone(), command.clone(), folder, config.data.clone())
                .inspect(&job.spec().data)
        }
        _ => undertone_data::inspect(config.data.clone(), &job.spec().data),
    }
}

fn page(files: &DataFiles, job: &Job, report: &DataReport) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let mut line = |l: String| writeln!(text, "{l}").expect("a text takes all");
    if report.is_fit() {
        line(format!("{files}: meets the data contract of job \"{}\"", job.spec().name));
    } else {
        line(format!("{files}: does NOT meet the data contract of job \"{}\"", job.spec().name));
        report.problems.iter().for_each(|p| line(format!("  {p}")));
    }
    line(format!("rows that can be trained on: {}", report.rows));
    for (class, rows) in job.spec().data.label().classes().iter().zip(&report.class_rows) {
        line(format!("  {}: {rows}", class.name));
    }
    if let Some(n) = report.numbers {
        line(format!("  labels: {} to {}, mean {}", n.lowest, n.highest, n.mean));
    }
    if let Some(texts) = report.texts {
        line(format!("texts that are longer than the job reads: {}", texts.cut));
        line(format!("tokens that the job's vocabulary lacks: {} of {}", texts.unknown, texts.tokens));
    }
    for (column, n) in report.missing.iter().filter(|(_, n)| *n > 0) {
        line(format!("missing in column \"{column}\": {n}"));
    }
    text
}
