//! `undertone bench round`: what a round costs, from the first offer to the release.

use super::ceiling::{self, Traffic};
use super::encoding;
use super::job::{Asked, job};
use super::rounds::{Rounds, median};
use super::stage::{Load, Place, Setting, Stage};
use super::usage::Spent;
use crate::failure::bad_input;
use crate::follow::{Heard, follow};
use crate::output::{Screen, size};
use crate::profile::call_failed;
use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use std::process::ExitCode;
use undertone::v1;
use undertone_core::encoding::delta::DeltaEncoding;
use undertone_core::encoding::{EncodedLen, Encoding};
use undertone_core::limits::MAX_ROUNDS;
use undertone_round::event::Outcome;
use undertone_round::job::{Job, Transport};

/// Time full rounds of a real coordinator and real protocol clients that train nothing
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Makes a deployment in a temporary folder, starts its coordinator, enrols the clients and runs a job without training: \
each client fetches the round's model, verifies it, writes it to a file as the real client does, and sends an update of \
the right size. All over mutual TLS on loopback, with everything durable as deployed.

With --models or --deltas a client fetches what is encoded and leaves it so. How long exact deltas are is for the \
values to say: here each moves by at most 2^-7 in a round, most of them by a good part of their size.

A round is the time from one release to the next, by the coordinator's own events. The ceilings are the times in which \
the same bytes are copied over as many loopback connections, plain and in TLS, measured right after.")]
pub(crate) struct Arguments {
    /// Clients; all take part in each round
    #[arg(long, value_name = "N", default_value_t = 2)]
    clients: u32,

    /// Parameters of the model, about
    #[arg(long, value_name = "D", default_value_t = 1_000_000)]
    params: u64,

    /// Rounds that are measured
    #[arg(long, value_name = "R", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Rounds before them that are not
    #[arg(long, value_name = "W", default_value_t = 2)]
    warmup: u32,

    /// Encoding of the updates: fixed32, f32, bf16, fixed:BITS, block:BITS:BLOCK or top-k:FRACTION:VALUES, as in a job's
    /// [transport]; numbers that are left out are as there
    #[arg(long, value_name = "ENCODING", default_value = "fixed32", value_parser = encoding::parse)]
    encoding: Encoding,

    /// Encoding of the models that clients train from, as above but for fixed32 and top-k [default: their files, in f32]
    #[arg(long, value_name = "ENCODING", value_parser = encoding::parse)]
    models: Option<Encoding>,

    /// Send the difference from the round before: exact, or lossy in an encoding that is smaller than f32 and not top-k
    #[arg(long, value_name = "ENCODING", value_parser = encoding::parse_deltas)]
    deltas: Option<DeltaEncoding>,

    /// Over mutual TLS: always, for a coordinator speaks nothing else; the flag only says so
    #[arg(long = "tls")]
    _tls: bool,

    /// Spread the clients over K processes; one for each client, but at most 32, if no number is given [default]
    #[arg(long, value_name = "K", num_args = 0..=1, conflicts_with = "in_process")]
    processes: Option<Option<u32>>,

    /// Run the clients as tasks of this process
    #[arg(long)]
    in_process: bool,

    #[command(flatten)]
    setting: Setting,
}

/// What came out.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) clients: u32,
    pub(super) params: u64,
    encoding: String,
    models: Option<String>,
    deltas: Option<String>,
    rounds: u32,
    warmup: u32,
    client_processes: u32,
    pub(super) median_round_s: f64,
    min_round_s: f64,
    max_round_s: f64,
    /// From offer to release: without what the coordinator does between two rounds.
    median_offer_to_release_s: f64,
    wire_bytes_per_round: u64,
    bandwidth_bytes_per_s: f64,
    pub(super) server_peak_rss_bytes: u64,
    client_peak_rss_bytes: u64,
    server_cpu_s_per_round: f64,
    clients_cpu_s_per_round: f64,
    ceiling_s: f64,
    ceiling_share: f64,
    tls_ceiling_s: f64,
    tls_ceiling_share: f64,
}

impl Arguments {
    /// Runs the benchmark.
    ///
    /// # Errors
    /// If it makes no sense, is too much for this machine, or fails.
    pub(super) async fn run(self, screen: Screen) -> Result<ExitCode> {
        let place = match self.processes {
            _ if self.in_process => Place::Here,
            Some(Some(n)) => Place::Processes(n.clamp(1, self.clients.max(1))),
            Some(None) | None => Place::of_their_own(self.clients),
        };
        let run = Run {
            clients: self.clients,
            params: self.params,
            rounds: self.rounds,
            warmup: self.warmup,
            transport: Transport { updates: self.encoding, models: self.models, deltas: self.deltas },
            place,
        };
        let report = run.play(&self.setting, screen).await?;
        if screen.json {
            screen.json(&report)?
        } else {
            report.show(screen)?
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// One deployment whose rounds are measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) clients: u32,
    pub(super) params: u64,
    pub(super) rounds: u32,
    pub(super) warmup: u32,
    pub(super) transport: Transport,
    pub(super) place: Place,
}

impl Run {
    /// Sets the stage, runs the rounds, clears the stage.
    ///
    /// # Errors
    /// If it makes no sense, is too much for this machine, or fails.
    pub(super) async fn play(&self, setting: &Setting, screen: Screen) -> Result<Report> {
        let rounds =
            self.warmup.checked_add(self.rounds).filter(|all| *all <= MAX_ROUNDS).ok_or_else(|| {
                bad_input(format!(
                    "--rounds and --warmup are at most {MAX_ROUNDS} together, the limit of a job"
                ))
            })?;
        let job = job(self.params, rounds, Asked::All(self.clients.max(1)), self.transport)?;
        let load = Load {
            clients: self.clients,
            cohort: self.clients,
            place: self.place,
            rounds,
            count_from: self.warmup + 1,
        };
        setting.play(&job, load, screen, async |stage| self.measure(stage, &job).await).await
    }

    async fn measure(&self, mut stage: Stage, job: &Job) -> Result<Report> {
        let (times, spent) = run_job(&mut stage, job, self.warmup).await?;
        let (server, client) = (stage.watch.server()?, stage.watch.largest_client()?);
        let wire_bytes_per_round = stage.clear().await? / u64::from(self.rounds);
        let params = job.layout().len() as u64;
        let each = wire_bytes_per_round / u64::from(self.clients);
        let proportion = (down_bytes(job, each), job.update_bytes());
        let traffic = Traffic::new(self.clients, wire_bytes_per_round, proportion);
        let ceiling = ceiling::measure(traffic).await?;
        let (ceiling_s, tls_ceiling_s) = (ceiling.plain.as_secs_f64(), ceiling.tls.as_secs_f64());
        let full = times.full_s(self.warmup);
        let median_round_s = median(&full);
        Ok(Report {
            clients: self.clients,
            params,
            encoding: self.transport.updates.to_string(),
            models: self.transport.models.map(|models| models.to_string()),
            deltas: self.transport.deltas.map(|deltas| deltas.to_string()),
            rounds: self.rounds,
            warmup: self.warmup,
            client_processes: if let Place::Processes(n) = self.place { n } else { 0 },
            median_round_s,
            min_round_s: full.iter().copied().fold(f64::INFINITY, f64::min),
            max_round_s: full.iter().copied().fold(0.0, f64::max),
            median_offer_to_release_s: median(&times.offer_to_release_s(self.warmup)),
            wire_bytes_per_round,
            bandwidth_bytes_per_s: wire_bytes_per_round as f64 / median_round_s,
            server_peak_rss_bytes: server.peak,
            client_peak_rss_bytes: client.peak,
            server_cpu_s_per_round: spent.server / f64::from(self.rounds),
            clients_cpu_s_per_round: spent.clients / f64::from(self.rounds),
            ceiling_s,
            ceiling_share: ceiling_s / median_round_s,
            tls_ceiling_s,
            tls_ceiling_share: tls_ceiling_s / median_round_s,
        })
    }
}

/// What comes down to a client in a round after the first, of `each` bytes both ways.
fn down_bytes(job: &Job, each: u64) -> u64 {
    let (down, part) = (job.spec().transport.down(), job.part());
    match down.delta_len(part).or_else(|| down.whole_len(part)) {
        None => 4 * part.whole_len() as u64,
        Some(EncodedLen::Exact(bytes)) => bytes,
        // How long a difference is that loses nothing is for the values to say.
        Some(EncodedLen::AtMost(most)) => each.saturating_sub(job.update_bytes()).clamp(1, most),
    }
}

/// Submits a job and follows it to its end; gives the times, and the processor time of the rounds after the warm-up.
///
/// # Errors
/// If it does not complete with every client in every round.
pub(super) async fn run_job(stage: &mut Stage, job: &Job, warmup: u32) -> Result<(Rounds, Spent)> {
    let mut connection = stage.connection.clone();
    let watch = stage.watch.clone();
    let request = v1::SubmitJobRequest { job_document: job.spec().to_document().into() };
    let (mut rounds, mut before, mut after) = (Rounds::default(), watch.spent()?, None);
    let last = job.spec().rounds;
    let work = async {
        let id = connection.submit_job(request).await.map_err(call_failed)?.into_inner().job;
        let outcome = follow(&mut connection, &id, |heard| {
            if let Heard::Event(happening) = heard
                && let Some(event) = &happening.event
                && let Some(round) = rounds.hear(event, happening.unix_ms())?
            {
                if round == warmup {
                    before = watch.spent()?;
                } else if round == last {
                    after = Some(watch.spent()?);
                }
            }
            Ok(())
        });
        match outcome.await? {
            Outcome::Completed => Ok(()),
            other => bail!("the benchmark's job did not complete: {}", other.status()),
        }
    };
    stage.unless_broken(work).await?;
    let after = after.context("the last round was never released")?;
    let spent = Spent { server: after.server - before.server, clients: after.clients - before.clients };
    Ok((rounds, spent))
}

impl Report {
    fn show(&self, screen: Screen) -> Result<()> {
        let ms = |s: f64| if s < 1.0 { format!("{:.0} ms", 1000.0 * s) } else { format!("{s:.2} s") };
        let clients = match self.client_processes {
            0 => "in this process".to_owned(),
            1 => "in 1 process".to_owned(),
            n => format!("in {n} processes"),
        };
        screen.line(&format!(
            "{} clients {clients}, {} parameters, updates in {}{}, {} rounds after {} of warm-up",
            self.clients,
            self.params,
            self.encoding,
            self.down(),
            self.rounds,
            self.warmup
        ))?;
        let row = |name: &str, text: String| screen.line(&format!("  {name:<10}{text}"));
        let median_text = screen.paint.bold(&ms(self.median_round_s));
        row(
            "a round",
            format!(
                "{median_text} median, {} to {}; {} of it from offer to release",
                ms(self.min_round_s),
                ms(self.max_round_s),
                ms(self.median_offer_to_release_s)
            ),
        )?;
        row(
            "wire",
            format!(
                "{} a round, {}/s",
                size(self.wire_bytes_per_round),
                size(self.bandwidth_bytes_per_s as u64)
            ),
        )?;
        row(
            "ceiling",
            format!(
                "{} to copy as much over loopback, a round reaches {:.1} % of that speed; {} in TLS, {:.1} %",
                ms(self.ceiling_s),
                100.0 * self.ceiling_share,
                ms(self.tls_ceiling_s),
                100.0 * self.tls_ceiling_share
            ),
        )?;
        row("server", self.side(self.server_peak_rss_bytes, self.server_cpu_s_per_round))?;
        row("clients", self.side(self.client_peak_rss_bytes, self.clients_cpu_s_per_round) + " (all)")
    }

    fn down(&self) -> String {
        let models = self.models.iter().map(|models| format!(", models in {models}"));
        models.chain(self.deltas.iter().map(|deltas| format!(", deltas in {deltas}"))).collect()
    }

    fn side(&self, peak: u64, cpu_s: f64) -> String {
        format!("{} at its peak; {cpu_s:.3} s of processor time a round", size(peak))
    }
}
