//! The commands that look after a deployment: `backup`, `restore`, `doctor`, `health`.

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use undertone_server::ServerConfig;
use undertone_server::backup::{self, Knowledge, Made, Settled};
use undertone_server::doctor::{self, Verdict};
use undertone_server::health::{self, Standing};

/// Arguments of `backup`.
#[derive(Args)]
pub(crate) struct Backup {
    /// Folder of the deployment (with server.toml).
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// Folder of the backup; it is empty, or not there yet.
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
    /// One JSON document instead of text.
    #[arg(long)]
    json: bool,
}

/// Arguments of `restore`.
#[derive(Args)]
pub(crate) struct Restore {
    /// Folder of the deployment: empty or not there yet; with --in-place, that of the deployment.
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// The backup.
    #[arg(long, value_name = "FOLDER", required_unless_present = "in_place")]
    from: Option<PathBuf>,
    /// Copy nothing: the database was set back by its own tools (pg_restore, an older disk image), and its ledger and jobs are to be
    /// brought in order before a coordinator works on it.
    #[arg(long, conflicts_with = "from")]
    in_place: bool,
    /// The SQLite file that the deployment used last, if it can still be read: what its privacy ledger holds is all that was spent.
    #[arg(long, value_name = "FILE", conflicts_with = "count_the_worst")]
    old_database: Option<PathBuf>,
    /// State that the last database is lost: all that the jobs of the backup may have spent since is counted as spent. Jobs submitted
    /// since have to be named by --job.
    #[arg(long)]
    count_the_worst: bool,
    /// A copy of the privacy ledger from after the backup (`undertone ledger export`); may be repeated.
    #[arg(long, value_name = "FILE", requires = "count_the_worst")]
    ledger: Vec<PathBuf>,
    /// The file of a job that was submitted after the backup: all that it may spend is counted as spent; may be repeated.
    #[arg(long, value_name = "FILE", requires = "count_the_worst")]
    job: Vec<PathBuf>,
    /// One JSON document instead of text.
    #[arg(long)]
    json: bool,
}

/// Arguments of `doctor`.
#[derive(Args)]
pub(crate) struct Doctor {
    /// Folder of the deployment (with server.toml).
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// One JSON document instead of text.
    #[arg(long)]
    json: bool,
}

/// Arguments of `health`.
#[derive(Args)]
pub(crate) struct Health {
    /// Folder of the deployment (with server.toml).
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// Whether it is alive, not whether it serves: one that starts or stands by, and so does not listen yet, is.
    #[arg(long)]
    alive: bool,
    /// How long an answer may take, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = clap::value_parser!(u64).range(1..=300))]
    timeout: u64,
}

/// Makes a backup. Exit code 1 if models are missing in it.
pub(crate) async fn make_backup(args: Backup) -> anyhow::Result<ExitCode> {
    let made = backup::make(&args.dir, &args.to).await?;
    let whole = made.manifest.without.is_empty();
    if args.json {
        println!("{}", json!({ "backup": args.to, "manifest": made.manifest, "open_jobs": made.open_jobs }));
    } else {
        tell_made(&made, &args.to);
    }
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell_made(made: &Made, to: &std::path::Path) {
    let manifest = &made.manifest;
    let bytes: u64 = manifest.files.iter().map(|file| file.bytes).sum();
    println!(
        "backup of \"{}\" made in {}: {} files, {} KiB",
        manifest.deployment,
        to.display(),
        manifest.files.len(),
        bytes.div_ceil(1024)
    );
    println!(
        "  the privacy ledger has {} lines, the last with digest {}",
        manifest.ledger_lines, manifest.ledger_head
    );
    for job in &made.open_jobs {
        println!("  job {job} is under way: after a restore it does not go on");
    }
    if let Some(bucket) = &made.bucket {
        println!("  models are in {bucket} and not in the backup: let the bucket keep versions, or copy it");
    }
    for model in &manifest.without {
        println!("  WITHOUT model {model}: it is gone or damaged in the deployment itself");
    }
    println!(
        "  it holds the keys of the deployment: whoever reads it can issue certificates, so keep it as you keep those"
    );
}

/// Restores a backup, or settles a database that was set back.
pub(crate) async fn restore(args: Restore) -> anyhow::Result<ExitCode> {
    let knowledge = match (args.old_database, args.count_the_worst) {
        (Some(database), _) => Knowledge::Everything { database },
        (None, true) => Knowledge::TheWorst { ledgers: args.ledger, jobs: args.job },
        (None, false) => bail!(
            "what was spent after the backup must be counted, so say what is known of it: the database that was used last \
             (--old-database FILE), or that it is lost (--count-the-worst, with --ledger FILE for each copy of the ledger from after the \
             backup, and --job FILE for each job submitted since); nothing was written"
        ),
    };
    let settled = match args.from {
        Some(from) => {
            let restored = backup::restore(&from, &args.dir, &knowledge).await?;
            if args.json {
                println!(
                    "{}",
                    json!({ "dir": args.dir, "manifest": restored.manifest, "settled": restored.settled })
                );
                return Ok(ExitCode::SUCCESS);
            }
            println!("deployment \"{}\" restored in {}", restored.manifest.deployment, args.dir.display());
            for model in &restored.manifest.without {
                println!("  model {model} is not in the backup");
            }
            restored.settled
        }
        None => {
            let settled = backup::in_place(&args.dir, &knowledge).await?;
            if args.json {
                println!("{}", json!({ "dir": args.dir, "settled": settled }));
                return Ok(ExitCode::SUCCESS);
            }
            println!("the database of {} is in order again", args.dir.display());
            settled
        }
    };
    tell_settled(&settled);
    println!("look at it:  undertone-server doctor --dir {}", args.dir.display());
    println!("start it:    undertone-server run --dir {}", args.dir.display());
    Ok(ExitCode::SUCCESS)
}

fn tell_settled(settled: &Settled) {
    println!(
        "  privacy ledger: {} lines of the backup, {} newer ones taken over",
        settled.lines_before, settled.lines_newer
    );
    for counted in &settled.jobs {
        match (counted.epsilon_known, counted.epsilon) {
            (Some(known), Some(epsilon)) if epsilon > known => println!(
                "  job {} has ended: ε {known:.4} is known to be spent, {epsilon:.4} is counted",
                counted.job
            ),
            (None, Some(epsilon)) => {
                println!(
                    "  job {} has ended: nothing is known to be spent, ε {epsilon:.4} is counted",
                    counted.job
                );
            }
            (_, Some(epsilon)) => println!("  job {} has ended: ε {epsilon:.4} is spent", counted.job),
            (_, None) => println!("  job {} has ended; it promised no privacy", counted.job),
        }
    }
    if settled.tokens > 0 {
        println!("  {} join tokens are forgotten: make new ones", settled.tokens);
    }
}

/// Checks a deployment. Exit code 1 if something fails.
pub(crate) async fn examine(args: Doctor) -> anyhow::Result<ExitCode> {
    let report = doctor::examine(&args.dir).await;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report).context("plain data")?);
    } else {
        for check in &report.checks {
            let word = match check.verdict {
                Verdict::Ok => "ok  ",
                Verdict::Warn => "warn",
                Verdict::Fail => "FAIL",
            };
            println!("{word}  {:<13} {}", check.name, check.found);
            if let Some(next) = &check.next {
                println!("      {:<13} -> {next}", "");
            }
        }
        println!("{}", report.summary());
    }
    Ok(if report.is_healthy() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Asks the coordinator on this machine. Exit code 1 if the answer is no.
pub(crate) async fn ask(args: Health) -> anyhow::Result<ExitCode> {
    let config = ServerConfig::load(&args.dir)?;
    let (is_well, word) = match health::ask(&config, Duration::from_secs(args.timeout)).await {
        Standing::Serving => (true, "serving".to_owned()),
        Standing::NotServing => {
            (args.alive, "it answers and does not serve: its database is out of reach".to_owned())
        }
        Standing::NobodyThere => (
            args.alive,
            format!("nobody listens on {}: it starts, stands by, or does not run", config.listen),
        ),
        Standing::Wrong(why) => (false, why),
    };
    println!("{word}");
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
