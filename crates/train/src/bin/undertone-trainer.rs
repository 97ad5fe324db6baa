//! `undertone-trainer`: local training in a process of its own, spoken to over standard input and output.

#![forbid(unsafe_code)]

use clap::Parser;
use std::io::{self, BufReader, BufWriter, IsTerminal as _};
use std::path::PathBuf;
use std::process::ExitCode;
use undertone_core::trainer::TrainerError;
use undertone_train::{DeviceChoice, TorchTrainer, serve};

/// Trains on one CSV file with libtorch, as a child process of undertone-client.
///
/// You need not start this by hand: undertone-client starts it when a job needs training and ends it when the job
/// rests, so that an idle client holds no libtorch in memory. It opens no network connection. What it reads is the
/// data file; what it gives back goes to the client alone, which clips, checks and sends.
///
/// Requests come in on standard input and answers go out on standard output, as binary frames; messages for people go
/// to standard error. It ends when its input ends, also in the middle of training.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Args {
    /// CSV file to train on, with a header line.
    ///
    /// Read when the first request needs it, and kept in memory while a job trains. It must meet the data contract of
    /// the job; if not, the answer lists each problem with its line, for the data owner's eyes.
    #[arg(long, value_name = "PATH")]
    data: PathBuf,

    /// Threads that libtorch computes with.
    ///
    /// 1 is right for small models and where several clients share a machine; for large models take the number of
    /// cores.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,

    /// Where to compute: auto, cpu or cuda:N.
    ///
    /// auto takes the first CUDA device that libtorch sees, else the CPU. A device that is named and not there is an
    /// error: nothing else is taken in its place.
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if io::stdin().is_terminal() {
        eprintln!(
            "undertone-trainer: standard input is a terminal, but requests are binary; undertone-client starts this \
             program (see --help)"
        );
        return ExitCode::from(2);
    }
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("undertone-trainer: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let mut answers = BufWriter::new(io::stdout().lock());
    // Once, before any operation: libtorch does not change its pools later.
    tch::set_num_threads(args.threads.into());
    tch::set_num_interop_threads(args.threads.into());
    let device = match args.device.pick() {
        Ok(device) => device,
        Err(e) => {
            serve::refuse(&mut answers, TrainerError::Unsupported(e.to_string()))?;
            return Err(e.into());
        }
    };
    let trainer = TorchTrainer::new(args.data).on(device);
    Ok(serve::serve(BufReader::new(io::stdin()), &mut answers, trainer)?)
}
