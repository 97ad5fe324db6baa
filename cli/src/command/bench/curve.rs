//! `undertone bench curve`: the coordinator's peak memory against clients and model size.

use super::encoding;
use super::round::{Report as RoundReport, Run};
use super::stage::{Place, Setting};
use crate::failure::bad_input;
use crate::output::{Align, Screen, Table, size};
use anyhow::Result;
use serde::Serialize;
use std::process::ExitCode;
use undertone_core::encoding::Encoding;
use undertone_round::job::Transport;

/// Measure the coordinator's peak memory for several numbers of clients and sizes of models
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each pair is a deployment of its own, as in `bench round`: a new coordinator, its clients in one process, and as many \
rounds; the largest runs need the disk and the time of such rounds. The memory is the coordinator's peak over all of them. \
For each number of clients, the line through the smallest and the largest model gives what a coordinator needs anyway, and \
what it needs for each parameter.")]
pub(crate) struct Arguments {
    /// Numbers of clients
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "2,10,32")]
    clients: Vec<u32>,

    /// Sizes of models in parameters, about
    #[arg(long, value_name = "D,...", value_delimiter = ',', default_value = "1000,1000000,25000000")]
    params: Vec<u64>,

    /// Rounds of each
    #[arg(long, value_name = "R", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Encoding of the updates, as in `bench round`
    #[arg(long, value_name = "ENCODING", default_value = "fixed32", value_parser = encoding::parse)]
    encoding: Encoding,

    #[command(flatten)]
    setting: Setting,
}

/// What came out.
#[derive(Debug, Serialize)]
struct Report {
    encoding: String,
    rounds: u32,
    runs: Vec<RunReport>,
    lines: Vec<Line>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct RunReport {
    clients: u32,
    params: u64,
    server_peak_rss_bytes: u64,
    /// Against the fewest clients with the same model.
    peak_ratio: f64,
    median_round_s: f64,
}

/// Peak = base + slope · parameters, for one number of clients.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Line {
    clients: u32,
    base_bytes: f64,
    bytes_per_parameter: f64,
}

impl Arguments {
    /// Runs the benchmark.
    ///
    /// # Errors
    /// If it makes no sense, is too much for this machine, or fails.
    pub(super) async fn run(mut self, screen: Screen) -> Result<ExitCode> {
        for (name, empty) in [("--clients", self.clients.is_empty()), ("--params", self.params.is_empty())] {
            if empty {
                return Err(bad_input(format!("{name} needs at least one number")));
            }
        }
        self.clients.sort_unstable();
        self.clients.dedup();
        self.params.sort_unstable();
        self.params.dedup();
        let mut reports = Vec::new();
        for &params in &self.params {
            for &clients in &self.clients {
                screen.progress(&screen.paint.dim(&format!("{clients} clients, {params} parameters")))?;
                let run = Run {
                    clients,
                    params,
                    rounds: self.rounds,
                    warmup: 0,
                    transport: Transport { updates: self.encoding, ..Transport::default() },
                    place: Place::Processes(1),
                };
                reports.push(run.play(&self.setting.of_run(&format!("{clients}x{params}")), screen).await?);
            }
        }
        let report = Report::new(self.encoding, self.rounds, &reports);
        if screen.json {
            screen.json(&report)?
        } else {
            report.show(screen)?
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Report {
    fn new(encoding: Encoding, rounds: u32, reports: &[RoundReport]) -> Self {
        let peaks = reports.iter().map(|r| (r.clients, r.params, r.server_peak_rss_bytes, r.median_round_s));
        let runs = compared(&peaks.collect::<Vec<_>>());
        Self { encoding: encoding.to_string(), rounds, lines: lines(&runs), runs }
    }

    fn show(&self, screen: Screen) -> Result<()> {
        let mut table = Table::new(&[
            ("PARAMETERS", Align::Right),
            ("CLIENTS", Align::Right),
            ("SERVER PEAK", Align::Right),
            ("OF THE FEWEST", Align::Right),
            ("A ROUND", Align::Right),
        ]);
        for r in &self.runs {
            table.row([
                r.params.to_string(),
                r.clients.to_string(),
                size(r.server_peak_rss_bytes),
                format!("{:.2}", r.peak_ratio),
                format!("{:.3} s", r.median_round_s),
            ]);
        }
        screen.table(&table, "")?;
        for line in &self.lines {
            screen.line(&format!(
                "{} clients: {} and {:.1} bytes for each parameter",
                line.clients,
                size(line.base_bytes.max(0.0) as u64),
                line.bytes_per_parameter
            ))?;
        }
        Ok(())
    }
}

/// Runs beside those with the fewest clients and the same model. In order of models, then of clients.
fn compared(peaks: &[(u32, u64, u64, f64)]) -> Vec<RunReport> {
    let run = |&(clients, params, server_peak_rss_bytes, median_round_s): &(u32, u64, u64, f64)| {
        let fewest = peaks.iter().find(|other| other.1 == params).map_or(server_peak_rss_bytes, |p| p.2);
        let peak_ratio = server_peak_rss_bytes as f64 / fewest as f64;
        RunReport { clients, params, server_peak_rss_bytes, peak_ratio, median_round_s }
    };
    peaks.iter().map(run).collect()
}

/// A line for each number of clients that was run with two sizes of models at least.
fn lines(runs: &[RunReport]) -> Vec<Line> {
    let mut clients: Vec<u32> = runs.iter().map(|r| r.clients).collect();
    clients.sort_unstable();
    clients.dedup();
    clients
        .into_iter()
        .filter_map(|clients| {
            let mut of_these = runs.iter().filter(|r| r.clients == clients);
            let (small, large) = (of_these.next()?, of_these.next_back()?);
            let rise = large.server_peak_rss_bytes as f64 - small.server_peak_rss_bytes as f64;
            let bytes_per_parameter = rise / (large.params - small.params) as f64;
            let base_bytes = small.server_peak_rss_bytes as f64 - bytes_per_parameter * small.params as f64;
            Some(Line { clients, base_bytes, bytes_per_parameter })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_through_the_smallest_and_the_largest_model() {
        let peaks = [
            (2, 1_000, 30_020_000, 0.1),
            (10, 1_000, 33_022_000, 0.2),
            (2, 9_000, 30_999_000, 0.1),
            (2, 1_001_000, 50_020_000, 0.3),
            (10, 1_001_000, 53_022_000, 0.4),
        ];
        let runs = compared(&peaks);
        assert_eq!((runs[0].peak_ratio, runs[1].peak_ratio), (1.0, 1.1));
        let line =
            |clients, base_bytes, bytes_per_parameter| Line { clients, base_bytes, bytes_per_parameter };
        assert_eq!(lines(&runs), [line(2, 30_000_000.0, 20.0), line(10, 33_002_000.0, 20.0)]);
        assert_eq!(lines(&runs[..2]), [], "one model is no line");
    }
}
