//! `undertone demo`: a whole deployment on this machine, from `init` to a trained model.
//!
//! Real binaries as processes, real certificates, real rows. Read in this order: [`example`] is who has which rows,
//! [`deployment`] sets everything up, [`baseline`] trains what the result is measured against, [`report`] shows it,
//! [`process`] sees to it that nothing is left running.

mod baseline;
pub(crate) mod deployment;
mod example;
pub(crate) mod folder;
pub(crate) mod process;
mod report;

use crate::command::{find_job, job, model};
use crate::follow::{Heard, Teller, follow};
use crate::output::{Screen, size};
use crate::profile::Connection;
use crate::submission::Submission;
use anyhow::{Context as _, Result, anyhow};
use clap::ValueEnum;
use deployment::{Places, enrol_all, make, start_participants, start_server};
use example::Example;
use folder::Folder;
use process::{Fleet, Programs, interrupted};
use report::{Report, Statement, Tally};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use undertone_round::event::Outcome;

const DEFAULT_SEED: u64 = 1;

/// Run a whole deployment on this machine, with real processes and real data.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Makes a deployment with its own CA, starts the coordinator, enrols the participants with one-time tokens, trains \
with record-level differential privacy, compares with training without privacy, saves model.safetensors, and stops \
everything. Nothing is left running, also after Ctrl-C. All of it takes less than a minute.

The operator's profile is the demo's own: --operator is not used.")]
pub(crate) struct Arguments {
    /// Which example
    #[arg(value_enum, default_value_t = Which::Hospitals)]
    example: Which,

    /// Work in this new or empty folder and leave it; else in a temporary one that is removed
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Seed of the split and the initial weights (1 if absent); if given, local sampling follows it too. Noise never
    /// does
    #[arg(long)]
    seed: Option<u32>,

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
        let programs = Programs::find(
            "the demo",
            &["undertone-server", "undertone-client", "undertone-trainer"],
            "build everything and run it with `cargo xtask demo`",
            self.keep,
        )?;
        let seed = self.seed.map_or(DEFAULT_SEED, u64::from);
        let example = match self.example {
            Which::Hospitals => example::hospitals(seed)?,
            Which::Quickstart => example::quickstart(seed)?,
        };
        let folder = Folder::new(self.dir.as_deref(), "demo")?;
        let mut demo = Demo {
            places: Places::new(folder.path().to_owned()),
            example,
            sampling_seed: self.seed.map(u64::from),
            fleet: Fleet::new(programs.clone()),
            programs,
            screen,
            start: Instant::now(),
        };
        let end = tokio::select! {
            result = demo.steps(&folder) => result.map_or_else(End::Failed, End::Done),
            signal = interrupted() => signal.map_or_else(End::Failed, |()| End::Interrupted),
        };
        match end {
            End::Done(job) if self.keep => {
                demo.say_how_to_look_around(&job)?;
                demo.fleet.leave();
                folder.keep();
                Ok(ExitCode::SUCCESS)
            }
            End::Done(_) => {
                demo.fleet.stop().await;
                Ok(ExitCode::SUCCESS)
            }
            End::Interrupted => {
                demo.fleet.stop().await;
                Err(anyhow!("interrupted; everything is stopped"))
            }
            End::Failed(error) => {
                demo.fleet.stop().await;
                Err(folder.with_logs("demo", error))
            }
        }
    }
}

/// How a demo ended.
enum End {
    /// Well; the job's id.
    Done(String),
    /// Somebody wants it to end.
    Interrupted,
    /// Something did not work.
    Failed(anyhow::Error),
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
    /// The five steps; gives the job's id.
    async fn steps(&mut self, folder: &Folder) -> Result<String> {
        self.say(&self.screen.paint.bold(self.example.about))?;
        self.step(1, &format!("a deployment in {}", self.places.root().display()))?;
        let dir = self.places.deployment();
        make(&dir, self.example.name, &self.programs).await?;
        let mut connection = start_server(&dir, &mut self.fleet).await?;

        self.step(2, "participants join, each with a one-time token, its own key and its own rows alone")?;
        let (places, example) = (&self.places, &self.example);
        enrol_all(places, example, self.sampling_seed, &self.programs, &mut connection).await?;
        start_participants(places, example, &mut self.fleet, &mut connection).await?;
        for site in deployment::sites(example) {
            self.say(&format!(
                "      {:<12} {:<10} {:>4} rows",
                site.name.as_str(),
                site.role.as_str(),
                site.rows()
            ))?;
        }

        let submission = self.write_job()?;
        let id = submission.send(&mut connection).await?;
        self.step(3, &format!("the operator submits {}", self.places.job().display()))?;
        for line in submission.describe(&id, self.screen.paint) {
            self.say(&format!("      {line}"))?;
        }

        self.step(4, "training")?;
        // Three things at once: the rounds, the baselines in their shadow, and an eye on the server.
        let mut watching = connection.clone();
        let work = async {
            let rounds = follow_to_end(&mut watching, &id, self.screen);
            tokio::try_join!(rounds, baseline::train_all(&self.places, &self.example, &self.programs))
        };
        let (tally, baselines) = tokio::select! {
            done = work => done?,
            gone = self.fleet.first_gone() => return Err(gone),
        };

        self.step(5, "what came out")?;
        let statement = Statement::read(&job::detail(&mut connection, &id).await?.privacy)?;
        let file = folder.model();
        let saved = model::download(&mut connection, &id, None, &file).await?;
        let report = Report::new(statement, tally.result()?, baselines, self.start.elapsed().as_secs_f64())?;
        for line in report.lines(&self.example, self.screen.paint) {
            self.say(format!("      {line}").trim_end())?;
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
        Ok(id)
    }

    fn write_job(&self) -> Result<Submission> {
        let file = self.places.job();
        std::fs::write(&file, &self.example.job)
            .with_context(|| format!("cannot write {}", file.display()))?;
        Submission::read(&file)
    }

    fn say_how_to_look_around(&self, job: &str) -> Result<()> {
        let program = |name: &str| self.programs.path(name).display().to_string();
        let (root, first) = (self.places.root().display(), &self.example.trainers[0]);
        let (tool, client) = (program("undertone"), program("undertone-client"));
        let client_dir = self.places.client(first);
        self.say("\nEverything is still running. As the operator:")?;
        self.say(&format!("  export UNDERTONE_OPERATOR={}", self.places.operator().display()))?;
        for command in ["client list".to_owned(), format!("job show {job}"), format!("job watch {job}")] {
            self.say(&format!("  {tool} {command}"))?;
        }
        self.say(&format!("  {tool} job submit {} --watch", self.places.job().display()))?;
        self.say(&format!("As {}, to see what would leave its machine:", first.name))?;
        self.say(&format!(
            "  {client} run --dry-run --dir {} --job {}",
            client_dir.display(),
            self.places.job().display()
        ))?;
        self.say(&format!("Logs:\n  {root}/deployment/server.log\n  {root}/clients/*/client.log"))?;
        let ids: Vec<String> = self.fleet.ids().iter().map(|(_, id)| id.to_string()).collect();
        self.say(&format!("Stop everything:\n  kill {}\nThe files stay in {root}", ids.join(" ")))
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

/// Follows the job to its end.
async fn follow_to_end(connection: &mut Connection, id: &str, screen: Screen) -> Result<Tally> {
    let summary = find_job(connection, id).await?;
    let mut teller = Teller::new(&summary, screen, false);
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
        Outcome::Completed | Outcome::StoppedEarly { .. } | Outcome::BudgetSpent { .. } => Ok(tally),
        Outcome::Cancelled { by, reason } => Err(anyhow!("the job was cancelled by {by}: {reason}")),
        Outcome::Failed { reason } => Err(anyhow!("the job failed: {reason}")),
    }
}

#[cfg(test)]
mod tests;
