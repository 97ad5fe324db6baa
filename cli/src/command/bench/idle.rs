//! `undertone bench idle`: what sessions cost that wait for work, and a round that asks a few of them.

use super::job::{Asked, job};
use super::round::run_job;
use super::rounds::median;
use super::stage::{Load, Place, Setting, Stage};
use crate::failure::bad_input;
use crate::output::{Screen, size};
use anyhow::Result;
use serde::Serialize;
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::sleep;
use undertone_round::job::{Job, Transport};

/// Connect clients that wait, measure the coordinator's memory, then run a round with some of them
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each client has its own key, certificate, connection and session. The processor time of the idle seconds is what \
keeping them connected costs.")]
pub(crate) struct Arguments {
    /// Clients in a session
    #[arg(long, value_name = "N", default_value_t = 1000)]
    clients: u32,

    /// How long they do nothing, in seconds, before memory is read
    #[arg(long, value_name = "S", default_value_t = 10)]
    seconds: u32,

    /// Clients that are drawn for each round; all, if there are fewer
    #[arg(long, value_name = "K", default_value_t = 100)]
    cohort: u32,

    /// Parameters of the round's model, about
    #[arg(long, value_name = "D", default_value_t = 100_000)]
    params: u64,

    /// Rounds; the median is told
    #[arg(long, value_name = "R", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Spread the clients over K processes
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    processes: u32,

    #[command(flatten)]
    setting: Setting,
}

/// What came out.
#[derive(Debug, Serialize)]
struct Report {
    clients: u32,
    client_processes: u32,
    enrol_s: f64,
    connect_s: f64,
    idle_s: u32,
    server_idle_rss_bytes: u64,
    server_idle_cpu_share: f64,
    client_idle_rss_bytes: u64,
    cohort: u32,
    params: u64,
    rounds: u32,
    median_round_s: f64,
    max_round_s: f64,
    server_peak_rss_bytes: u64,
    client_peak_rss_bytes: u64,
}

impl Arguments {
    /// Runs the benchmark.
    ///
    /// # Errors
    /// If it makes no sense, is too much for this machine, or fails.
    pub(super) async fn run(self, screen: Screen) -> Result<ExitCode> {
        if self.cohort == 0 {
            return Err(bad_input("--cohort must be at least 1, not 0"));
        }
        let cohort = self.cohort.min(self.clients.max(1));
        let job = job(self.params, self.rounds, Asked::Drawn(cohort), Transport::default())?;
        let load = Load {
            clients: self.clients,
            cohort,
            place: Place::Processes(self.processes),
            rounds: self.rounds,
            count_from: 1,
        };
        let report = self
            .setting
            .play(&job, load, screen, async |stage| self.measure(stage, &job, cohort).await)
            .await?;
        if screen.json {
            screen.json(&report)?
        } else {
            report.show(screen)?
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn measure(&self, mut stage: Stage, job: &Job, cohort: u32) -> Result<Report> {
        let (watch, ready) = (stage.watch.clone(), stage.ready);
        let before = watch.spent()?;
        let idle = Duration::from_secs(self.seconds.into());
        stage
            .unless_broken(async {
                sleep(idle).await;
                Ok(())
            })
            .await?;
        let spent = watch.spent()?.server - before.server;
        let (server, client) = (watch.server()?, watch.largest_client()?);
        let (times, _) = run_job(&mut stage, job, 0).await?;
        let (server_after, client_after) = (watch.server()?, watch.largest_client()?);
        stage.clear().await?;
        let full = times.full_s(0);
        Ok(Report {
            clients: self.clients,
            client_processes: self.processes.min(self.clients),
            enrol_s: ready.enrol_s,
            connect_s: ready.connect_s,
            idle_s: self.seconds,
            server_idle_rss_bytes: server.now,
            server_idle_cpu_share: if self.seconds == 0 { 0.0 } else { spent / idle.as_secs_f64() },
            client_idle_rss_bytes: client.now,
            cohort,
            params: job.layout().len() as u64,
            rounds: self.rounds,
            median_round_s: median(&full),
            max_round_s: full.iter().copied().fold(0.0, f64::max),
            server_peak_rss_bytes: server_after.peak,
            client_peak_rss_bytes: client_after.peak,
        })
    }
}

impl Report {
    fn show(&self, screen: Screen) -> Result<()> {
        let row = |name: &str, text: String| screen.line(&format!("  {name:<10}{text}"));
        screen.line(&format!("{} clients in their sessions", self.clients))?;
        row(
            "idle",
            format!(
                "server {} ({} a client), {:.1} % of a core over {} s; client process {}",
                screen.paint.bold(&size(self.server_idle_rss_bytes)),
                size(self.server_idle_rss_bytes / u64::from(self.clients)),
                100.0 * self.server_idle_cpu_share,
                self.idle_s,
                size(self.client_idle_rss_bytes)
            ),
        )?;
        row(
            "a round",
            format!(
                "{:.2} s median of {}, {:.2} s at most: {} of them, {} parameters",
                self.median_round_s, self.rounds, self.max_round_s, self.cohort, self.params
            ),
        )?;
        row(
            "peak",
            format!(
                "server {}, client process {}",
                size(self.server_peak_rss_bytes),
                size(self.client_peak_rss_bytes)
            ),
        )
    }
}
