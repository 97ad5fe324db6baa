//! `undertone-trainer`: local training in a process of its own, spoken to over standard input and output.

#![forbid(unsafe_code)]

use clap::Parser;
use std::io::{self, BufReader, BufWriter, IsTerminal as _};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use undertone_core::data_files::DataFiles;
use undertone_core::trainer::TrainerError;
use undertone_train::device::{cuda_library_to_load, device_name, pick, why_no_cuda};
use undertone_train::{DeviceChoice, TorchTrainer, serve};

/// Trains on one client's data with libtorch, as a child process of undertone-client.
///
/// You need not start this by hand: undertone-client starts it when a job needs training and ends it when the job
/// rests, so that an idle client holds no libtorch in memory. It opens no network connection. What it reads is the
/// data; what it gives back goes to the client alone, which clips, checks and sends.
///
/// Requests come in on standard input and answers go out on standard output, as binary frames; messages for people go
/// to standard error. It ends when its input ends, also in the middle of training.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Args {
    /// CSV file to train on, with a header line; or IDX file of pictures, with --labels.
    ///
    /// Read when the first request needs it, and kept in memory while a job trains. It must meet the data contract of
    /// the job; if not, the answer lists each problem with its line, for the data owner's eyes.
    #[arg(long, value_name = "PATH", required_unless_present = "show_device")]
    data: Option<PathBuf>,

    /// IDX file with the labels of the pictures in --data.
    #[arg(long, value_name = "PATH")]
    labels: Option<PathBuf>,

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

    /// Print where --device would compute, and why not with CUDA if not, and do nothing else.
    #[arg(long)]
    show_device: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.device != DeviceChoice::Cpu {
        load_cuda();
    }
    if args.show_device {
        return show_device(args.device);
    }
    end_with_parent();
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

/// Starts this program again with libtorch's CUDA library loaded first, if that lies beside the libtorch in use: whoever
/// links with a libtorch for the CPU does not name it, and libtorch finds CUDA only when it is loaded.
fn load_cuda() {
    use std::os::unix::process::CommandExt as _;
    const LOADED: &str = "UNDERTONE_CUDA_LOADED";
    // Once: a library that cannot be loaded is not tried again and again.
    if std::env::var_os(LOADED).is_some() {
        return;
    }
    let (Some(library), Ok(own)) = (cuda_library_to_load(), std::env::current_exe()) else { return };
    let mut preload = library.into_os_string();
    if let Some(others) = std::env::var_os("LD_PRELOAD") {
        preload.push(":");
        preload.push(others);
    }
    let e = Command::new(own)
        .args(std::env::args_os().skip(1))
        .env("LD_PRELOAD", preload)
        .env(LOADED, "1")
        .exec();
    eprintln!("undertone-trainer: cannot start again with CUDA: {e}");
}

fn show_device(choice: DeviceChoice) -> ExitCode {
    match pick(choice) {
        Ok(device) => {
            let why = why_no_cuda().map(|why| format!(": {why}")).unwrap_or_default();
            println!("{}{why}", device_name(device));
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("undertone-trainer: {e}");
            ExitCode::FAILURE
        }
    }
}

/// A client that is killed while this program is held (SIGSTOP) could not be noticed otherwise.
fn end_with_parent() {
    #[cfg(target_os = "linux")]
    if let Err(e) = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)) {
        eprintln!("undertone-trainer: cannot ask to end with the client: {e}");
    }
}

/// The pipe to the client, for this program alone: what libtorch or a job's module prints goes to standard error and cannot pass for
/// an answer.
#[cfg(unix)]
fn own_output() -> io::Result<std::fs::File> {
    let own = rustix::io::fcntl_dupfd_cloexec(io::stdout(), 3)?;
    rustix::stdio::dup2_stdout(io::stderr())?;
    Ok(own.into())
}

#[cfg(not(unix))]
fn own_output() -> io::Result<io::Stdout> {
    Ok(io::stdout())
}

fn run(args: Args) -> anyhow::Result<()> {
    let mut answers = BufWriter::new(own_output()?);
    // Once, before any operation: libtorch does not change its pools later.
    tch::set_num_threads(args.threads.into());
    tch::set_num_interop_threads(args.threads.into());
    let files = DataFiles { path: args.data.unwrap_or_default(), labels: args.labels };
    let trainer = match TorchTrainer::new(files).choosing(args.device) {
        Ok(trainer) => trainer,
        Err(e) => {
            serve::refuse(&mut answers, TrainerError::Unsupported(e.to_string()))?;
            return Err(e.into());
        }
    };
    let trainer = trainer.saying(|text| eprintln!("undertone-trainer: {text}"));
    Ok(serve::serve(BufReader::new(io::stdin()), answers, trainer)?)
}
