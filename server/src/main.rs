//! `undertone-server`: the coordinator daemon.

mod heaps;
mod upkeep;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use undertone_server::init::{InitOptions, init};
use undertone_server::{Server, ServerConfig};

/// The coordinator of an Undertone deployment: offers training jobs to enrolled clients, sums what they send, keeps
/// the privacy ledger, releases models.
///
/// A first deployment on this machine:
///
///   undertone-server init --dir hospitals --host localhost
///   undertone-server run --dir hospitals
///   undertone --operator hospitals/operator token create --role trainer --name cleveland
#[derive(Parser)]
#[command(version, verbatim_doc_comment)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a deployment: its certificate authority, the coordinator's certificate, an operator's profile, server.toml.
    Init(Init),
    /// Run the coordinator of a deployment until it is told to stop (SIGINT or SIGTERM).
    Run(Run),
    /// Copy what a deployment cannot lose, also while its coordinator runs: state, ledger, models, keys. Exit code 1 if released models
    /// were gone or damaged before.
    Backup(upkeep::Backup),
    /// Bring a deployment back from a backup. Its ledger takes the maximum of all that is known, jobs that were under way end, and join
    /// tokens are forgotten.
    Restore(upkeep::Restore),
    /// Check a deployment: one line for each check, and what to do about it. Exit code 1 if something fails.
    Doctor(upkeep::Doctor),
    /// Ask the coordinator on this machine whether it serves, for service managers. Exit code 1 if not.
    Health(upkeep::Health),
}

#[derive(Args)]
struct Init {
    /// Folder of the deployment; it is made if it is not there.
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// Name of the deployment, for people.
    #[arg(long, default_value = "undertone")]
    name: String,
    /// Address and port to listen on. Port 0 picks a free one and writes it down.
    #[arg(long, default_value = "127.0.0.1:7443", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// Host name or address under which participants reach the coordinator; may be repeated. The first goes into
    /// join tokens.
    #[arg(long, default_value = "localhost", value_name = "HOST")]
    host: Vec<String>,
}

#[derive(Args)]
struct Run {
    /// Folder of the deployment (with server.toml).
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// How log lines look; what is logged is set by RUST_LOG (default: info).
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("undertone-server: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Init(args) => {
            let folder = args.dir.clone();
            let options =
                InitOptions { folder: args.dir, name: args.name, listen: args.listen, hosts: args.host };
            let config = init(&options)?;
            println!("deployment \"{}\" made in {}", config.name, folder.display());
            println!("  participants reach it at {}", config.public_url);
            println!("start it:       undertone-server run --dir {}", folder.display());
            println!(
                "invite someone: undertone --operator {} token create --role trainer --name NAME",
                folder.join("operator").display()
            );
            Ok(ExitCode::SUCCESS)
        }
        Command::Run(args) => {
            let heaps = heaps::be_few();
            runtime()?.block_on(serve(args, heaps)).map(|()| ExitCode::SUCCESS)
        }
        Command::Backup(args) => aside(upkeep::make_backup(args)),
        Command::Restore(args) => aside(upkeep::restore(args)),
        Command::Doctor(args) => aside(upkeep::examine(args)),
        Command::Health(args) => aside(upkeep::ask(args)),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}

/// Runs a command whose output is its own; only what goes wrong beside it is logged.
fn aside(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    start_log(LogFormat::Text, "warn");
    runtime()?.block_on(work)
}

/// Lets this process open as many files as the system lets it: each connection is one, and each update of a release.
fn allow_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    if now.current == now.maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum }) {
        tracing::warn!(%error, limit = now.current, "cannot raise the limit of open files");
    }
}

async fn serve(args: Run, heaps: std::io::Result<()>) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    // Caught for as long as this runs, whatever was done with it before: a peer that hangs up is an error to us, and not the end.
    let _broken_pipes = signal(SignalKind::pipe())?;
    start_log(args.log_format, "info");
    if let Err(error) = heaps {
        tracing::warn!(%error, "cannot start again with fewer heaps: this process takes more memory");
    }
    let config = ServerConfig::load(&args.dir)?;
    allow_files();
    let mut terminate = signal(SignalKind::terminate())?;
    let told = async {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
    };
    tokio::pin!(told);
    let mut server = tokio::select! {
        started = Server::start(config.clone()) => started?,
        () = &mut told => return Ok(()),
    };
    tracing::info!("listening on {} ({})", server.address(), config.public_url);
    tokio::select! {
        stopped = server.stopped() => return Ok(stopped?),
        () = told => {}
    }
    tracing::info!("shutting down");
    server.shutdown().await;
    Ok(())
}

fn start_log(format: LogFormat, usually: &str) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(usually));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => {
            log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).with_target(false).init();
        }
        LogFormat::Json => log.json().init(),
    }
}
