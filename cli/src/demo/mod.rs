//! `undertone demo`: a whole deployment on this machine, from `init` to a trained model.
//!
//! Real binaries as processes, real certificates, real rows. Read in this order: [`example`] is who has which rows,
//! [`deployment`] sets everything up, [`baseline`] trains what the result is measured against, [`report`] shows it,
//! [`process`] sees to it that nothing is left running.

mod baseline;
mod deployment;
mod example;
pub(crate) mod process;
mod report;

use crate::command::{find_job, job, model};
use crate::failure::bad_input;
use crate::follow::{Heard, Teller, follow};
use crate::output::{Screen, size};
use crate::profile::Connection;
use crate::submission::Submission;
use anyhow::{Context as _, Result, anyhow};
use clap::ValueEnum;
use deployment::{Places, enrol_all, start_participants, start_server};
use example::Example;
use process::{Fleet, Programs, interrupted};
use report::{Report, Statement, Tally};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use tempfile::TempDir;
use undertone_round::event::Outcome;

const DEFAULT_SEED: u64 = 1;

/// Run a whole deployment on this machine, with real processes and real data.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Makes a deployment with its own CA, starts the coordinator, enrols the participants with one-time tokens, trains
with record-level differential privacy, compares with training without privacy, saves model.safetensors, and stops
everything. Nothing is left running, also after Ctrl-C. All of it takes less than a minute.")]
pub(crate) struct Arguments {
    /// Which example
    #[arg(value_enum, default_value_t = Which::Hospitals)]
    example: Which,

    /// Work in this new or empty folder and leave it; without it, in a temporary one that is removed
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Seed of the split and the initial weights [default: 1]; if given, local sampling is seeded too. Noise never is
    #[arg(long)]
    seed: Option<u64>,

    /// Leave the deployment running and say how to look around and how to stop it
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Which {
    /// Heart disease, 920 real patients of four real hospitals
    Hospitals,
    /// A synthetic set of 1000 rows, four clients, a small neural network
    Quickstart,
}

impl Arguments {
    /// Runs the demo.
    ///
    /// # Errors
    /// If anything does not work; everything is stopped by then.
    pub(crate) async fn run(self, screen: Screen) -> Result<ExitCode> {
        let programs = Programs::find(self.keep)?;
        let seed = self.seed.unwrap_or(DEFAULT_SEED);
        let example = match self.example {
            Which::Hospitals => example::hospitals(seed)?,
            Which::Quickstart => example::quickstart(seed)?,
        };
        let folder = Folder::new(self.dir.as_deref())?;
        let mut demo = Demo {
            places: Places::new(folder.path().to_owned()),
            example,
            sampling_seed: self.seed,
            fleet: Fleet::new(programs.clone()),
            programs,
            screen,
            start: Instant::now(),
        };
        let result = tokio::select! {
            result = demo.steps(&folder) => result,
            signal = interrupted() => Err(signal.err().unwrap_or_else(|| anyhow!("interrupted; everything is stopped"))),
        };
        match result {
            Ok(()) if self.keep => {
                demo.say_how_to_look_around()?;
                demo.fleet.leave();
                folder.keep();
            }
            Ok(()) => demo.fleet.stop().await,
            Err(error) => {
                demo.fleet.stop().await;
                return Err(folder.with_logs(error));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

struct Demo {
    places: Places,
    example: Example,
    sampling_seed: Option<u64>,
    programs: Programs,
    fleet: Fleet,
    screen: Screen,
    start: Instant,
}

impl Demo {
    async fn steps(&mut self, folder: &Folder) -> Result<()> {
        self.say(&self.screen.paint.bold(self.example.about))?;
        self.step(1, &format!("a deployment in {}", self.places.root().display()))?;
        let mut connection =
            start_server(&self.places, &self.example, &self.programs, &mut self.fleet).await?;

        self.step(2, "participants join, each with a one-time token, its own key and its own rows alone")?;
        let (places, example) = (&self.places, &self.example);
        enrol_all(places, example, self.sampling_seed, &self.programs, &mut connection).await?;
        start_participants(places, example, &mut self.fleet, &mut connection).await?;
        for site in deployment::sites(example) {
            self.say(&format!("      {:<12} {:<10} {:>4} rows", site.name, site.role, site.rows()))?;
        }

        let submission = self.write_job()?;
        let id = submission.send(&mut connection).await?;
        self.step(3, &format!("the operator submits {}", self.places.job().display()))?;
        for line in submission.describe(&id, self.screen.paint) {
            self.say(&format!("      {line}"))?;
        }

        self.step(4, "training")?;
        let (tally, baselines) = {
            let mut watching = connection.clone();
            let followed = self.follow(&mut watching, &id);
            let baselines = baseline::train_all(&self.places, &self.example, &self.programs);
            // Two things at once: the baselines use the processor while the round waits for the network.
            tokio::try_join!(followed, baselines)?
        };

        self.step(5, "what came out")?;
        let statement = Statement::read(&job::detail(&mut connection, &id).await?.privacy)?;
        let file = folder.model();
        let saved = model::download(&mut connection, &id, None, &file).await?;
        let report = Report::new(statement, tally.result()?, baselines, self.start.elapsed().as_secs_f64());
        for line in report.lines(&self.example, self.screen.paint) {
            self.say(&format!("      {line}"))?;
        }
        self.say(&format!(
            "\n      model of round {} saved to {} ({})",
            saved.round,
            file.display(),
            size(saved.bytes)
        ))?;
        if self.screen.json {
            self.screen.json(&report)?;
        }
        Ok(())
    }

    fn write_job(&self) -> Result<Submission> {
        let file = self.places.job();
        std::fs::write(&file, &self.example.job)
            .with_context(|| format!("cannot write {}", file.display()))?;
        Submission::read(&file)
    }

    /// Follows the job to its end.
    async fn follow(&self, connection: &mut Connection, id: &str) -> Result<Tally> {
        let summary = find_job(connection, id).await?;
        let mut teller = Teller::new(&summary, self.screen, false);
        let mut tally = Tally::default();
        let outcome = follow(connection, id, |heard| {
            if let Heard::Event(happening) = &heard
                && let Some(event) = &happening.event
            {
                tally.note(event);
            }
            teller.hear(&heard)
        })
        .await?;
        match outcome {
            Outcome::Completed | Outcome::BudgetSpent { .. } => Ok(tally),
            Outcome::Cancelled { by, reason } => Err(anyhow!("the job was cancelled by {by}: {reason}")),
            Outcome::Failed { reason } => Err(anyhow!("the job failed: {reason}")),
        }
    }

    fn say_how_to_look_around(&self) -> Result<()> {
        let tool = self.programs.path("undertone");
        let tool = format!("{} --operator {}", tool.display(), self.places.operator().display());
        self.say("\nEverything is still running. Look around:")?;
        for command in ["job list", "job show heart", "job watch heart", "client list"] {
            self.say(&format!("  {tool} {command}"))?;
        }
        let ids: Vec<String> = self.fleet.ids().iter().map(|(_, id)| id.to_string()).collect();
        self.say("Logs:")?;
        self.say(&format!("  {}", self.places.deployment().join("server.log").display()))?;
        self.say(&format!("  {}", self.places.root().join("clients/*/client.log").display()))?;
        self.say("Stop everything and remove it:")?;
        self.say(&format!("  kill {}; rm -r {}", ids.join(" "), self.places.root().display()))
    }

    fn step(&self, number: u32, text: &str) -> Result<()> {
        let seconds = self.start.elapsed().as_secs_f64();
        self.say(&format!(
            "{} {text} {}",
            self.screen.paint.bold(&format!("[{number}/5]")),
            self.screen.paint.dim(&format!("({seconds:.1} s)"))
        ))
    }

    fn say(&self, text: &str) -> Result<()> {
        self.screen.progress(text)
    }
}

/// Where the demo works.
#[derive(Debug)]
enum Folder {
    /// The user's own.
    Named(PathBuf),
    /// Removed at the end.
    Temporary(TempDir),
}

impl Folder {
    fn new(named: Option<&Path>) -> Result<Self> {
        let Some(dir) = named else {
            let dir = tempfile::Builder::new().prefix("undertone-demo-").tempdir();
            return Ok(Self::Temporary(dir.context("cannot make a temporary folder")?));
        };
        let cannot = || format!("cannot use {}", dir.display());
        std::fs::create_dir_all(dir).with_context(cannot)?;
        let dir = dir.canonicalize().with_context(cannot)?;
        if std::fs::read_dir(&dir).with_context(cannot)?.next().is_some() {
            return Err(bad_input(format!("{} is not empty: name a new folder", dir.display())));
        }
        Ok(Self::Named(dir))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Named(path) => path,
            Self::Temporary(dir) => dir.path(),
        }
    }

    /// Where the trained model goes: into the named folder, or beside the user.
    fn model(&self) -> PathBuf {
        match self {
            Self::Named(path) => path.join("model.safetensors"),
            Self::Temporary(_) => {
                let here = std::env::current_dir().unwrap_or_default();
                here.join("model.safetensors")
            }
        }
    }

    fn keep(self) -> PathBuf {
        match self {
            Self::Named(path) => path,
            Self::Temporary(dir) => dir.keep(),
        }
    }

    /// After a failure: the folder stays, for its logs.
    fn with_logs(self, error: anyhow::Error) -> anyhow::Error {
        let path = self.keep();
        error.context(format!("the demo did not work (its files and logs are in {})", path.display()))
    }
}

#[cfg(test)]
mod tests;
