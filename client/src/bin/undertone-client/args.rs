//! The command line.

use clap::{Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use undertone_core::device::DeviceChoice;
use undertone_core::id::ClientId;

/// Take part in federated training with data that stays on this machine.
///
/// First time:
///   undertone-client enrol --dir hospital --token-file token.txt --data heart.csv --declared-rows 240
///   undertone-client run --dir hospital --dry-run --job job.toml    what would leave?
///   undertone-client run --dir hospital
///
/// The client opens every connection itself; nothing listens on this machine. It decides on each offer by the limits
/// in client.toml and writes each decision to decisions.jsonl.
#[derive(Debug, Parser)]
#[command(name = "undertone-client", version, verbatim_doc_comment, max_term_width = 100)]
pub(crate) struct Args {
    /// How log lines on standard error look. What is logged: the variable RUST_LOG, for example "debug".
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Trade a join token for a certificate, once for each machine.
    ///
    /// Makes a key in DIR/identity (it never leaves), sends the coordinator a signing request over a connection that
    /// the token's own CA certificate authenticates, and writes DIR/client.toml for you to edit. If the answer gets
    /// lost, run the same command again: the same key is the same participant.
    Enrol(EnrolArgs),
    /// Take part until stopped (Ctrl-C or SIGTERM).
    ///
    /// While the coordinator is away, the client tries again and again. It stops with an error only for what trying
    /// again would not mend: a certificate of another deployment, a revoked client, a version that is too old.
    Run(RunArgs),
    /// Check local data against a job's data contract. Nothing leaves.
    Check(CheckArgs),
    /// Train a job's model without privacy on local files, for comparison. Nothing leaves.
    ///
    /// All rows of the training files are pooled, as no federation would have it: this is what the job could reach if
    /// data could move, or, with one file, what one site could reach alone.
    Baseline(BaselineArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct EnrolArgs {
    /// The client's folder; made if it is not there.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// The join token from the operator (`undertone token create`). Others on this machine can see command lines:
    /// prefer --token-file.
    #[arg(long, required_unless_present = "token_file", conflicts_with = "token_file")]
    pub(crate) token: Option<String>,
    /// A file that holds the join token; "-" reads standard input.
    #[arg(long)]
    pub(crate) token_file: Option<PathBuf>,
    /// The name to ask for; only if the token does not fix one.
    #[arg(long)]
    pub(crate) name: Option<ClientId>,
    /// The CSV file, or IDX file of pictures, to train or measure on (goes into client.toml). A relative path that is
    /// not a file from here is one from DIR.
    #[arg(long)]
    pub(crate) data: Option<PathBuf>,
    /// The IDX file with the labels of the pictures in --data.
    #[arg(long, requires = "data")]
    pub(crate) labels: Option<PathBuf>,
    /// The number of rows that you declare: public, near the real one (goes into client.toml).
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) declared_rows: Option<u64>,
    /// Replace the identity that is there; the old one is kept as identity.old-N.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// The client's folder.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// Do not connect: print what would leave this machine, and what would not.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// CPU threads of training, in place of [trainer] threads in client.toml.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: Option<u32>,
    /// How much training gives way to other programs, 0 (not at all) to 19 (last), in place of [trainer] niceness.
    #[arg(long)]
    pub(crate) niceness: Option<i32>,
    /// The most memory of training in MiB, in place of [trainer] max_memory_mib.
    #[arg(long, value_name = "MIB")]
    pub(crate) max_memory_mib: Option<u64>,
    /// With --dry-run: a job file, to print the numbers of this job and check the data against it.
    #[arg(long, requires = "dry_run")]
    pub(crate) job: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// The job file.
    #[arg(long)]
    pub(crate) job: PathBuf,
    /// The client's folder: its client.toml says where the data is.
    #[arg(long, required_unless_present = "data")]
    pub(crate) dir: Option<PathBuf>,
    /// A CSV file, or IDX file of pictures, in place of the one in client.toml.
    #[arg(long)]
    pub(crate) data: Option<PathBuf>,
    /// The IDX file with the labels of the pictures in --data.
    #[arg(long, requires = "data")]
    pub(crate) labels: Option<PathBuf>,
    /// Print one JSON document.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct BaselineArgs {
    /// The job file.
    #[arg(long)]
    pub(crate) job: PathBuf,
    /// A CSV file, or IDX file of pictures, to train on; give it several times to pool several.
    #[arg(long, required = true)]
    pub(crate) train: Vec<PathBuf>,
    /// The IDX file with the labels of the pictures in --train; as often as that, in the same order.
    #[arg(long)]
    pub(crate) train_labels: Vec<PathBuf>,
    /// A CSV file, or IDX file of pictures, to measure on.
    #[arg(long)]
    pub(crate) test: PathBuf,
    /// The IDX file with the labels of the pictures in --test.
    #[arg(long)]
    pub(crate) test_labels: Option<PathBuf>,
    /// Makes the order of rows repeatable.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// The trainer program; without it, undertone-trainer beside this program, else on the search path.
    #[arg(long)]
    pub(crate) program: Option<PathBuf>,
    /// CPU threads of the trainer.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: u32,
    /// The most memory of the trainer in MiB; without it, three quarters of the machine's.
    #[arg(long, value_name = "MIB")]
    pub(crate) max_memory_mib: Option<u64>,
    /// Where to compute: auto, cpu or cuda:N.
    #[arg(long, default_value = "auto")]
    pub(crate) device: DeviceChoice,
    /// Print one JSON document.
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_holds_together() {
        Args::command().debug_assert();
        let parse = |line: &str| Args::try_parse_from(line.split(' '));
        assert!(parse("undertone-client enrol --dir d --token t --declared-rows 240").is_ok());
        assert!(parse("undertone-client enrol --dir d").is_err());
        assert!(parse("undertone-client enrol --dir d --token t --token-file f").is_err());
        assert!(parse("undertone-client enrol --dir d --token t --declared-rows 0").is_err());
        assert!(parse("undertone-client run --dir d --job j").is_err());
        assert!(parse("undertone-client run --dir d --dry-run --job j --log-format json").is_ok());
        assert!(parse("undertone-client run --dir d --threads 2 --niceness 10 --max-memory-mib 512").is_ok());
        assert!(parse("undertone-client run --dir d --threads 0").is_err());
        assert!(parse("undertone-client check --job j").is_err());
        assert!(parse("undertone-client check --job j --data x.csv").is_ok());
        assert!(parse("undertone-client check --job j --data x.gz --labels y.gz").is_ok());
        assert!(parse("undertone-client check --job j --dir d --labels y.gz").is_err());
        assert!(parse("undertone-client baseline --job j --train a --train b --test t").is_ok());
    }
}
