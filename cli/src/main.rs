//! `undertone`: what operators type.
//!
//! [`profile`] connects as an operator; [`command`] holds one file for each noun; [`submission`] is a job on its way
//! ([`weights`] and [`module`] its files, [`mod@hand_in`] how they are sent),
//! [`follow`] and [`narrator`] tell its story live; [`demo`] runs a whole deployment of real processes; [`output`]
//! and [`failure`] are how all of them speak.

mod command;
mod demo;
mod failure;
mod follow;
mod hand_in;
mod module;
mod narrator;
mod output;
mod profile;
mod submission;
mod weights;

use clap::{Parser, Subcommand};
use command::Operator;
use output::Screen;
use std::path::PathBuf;
use std::process::ExitCode;

/// Operate an Undertone deployment: submit jobs, follow them, fetch models, invite participants.
#[derive(Debug, Parser)]
#[command(
    name = "undertone",
    version,
    disable_help_subcommand = true,
    after_help = "\
Start here:
  undertone demo                              four real hospitals train together on this machine
  undertone job submit job.toml --watch       submit a job and follow it
  undertone token create --role trainer       invite a data owner

JOB may be any unambiguous beginning of a job's id.
Exit codes: 0 success, 1 failure, 2 input that makes no sense."
)]
struct Arguments {
    /// The operator's profile: the folder that `undertone-server init` makes
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "UNDERTONE_OPERATOR",
        hide_env_values = true,
        default_value = "./operator",
        display_order = 100
    )]
    operator: PathBuf,

    /// Print JSON for programs instead of text for people
    #[arg(long, global = true, display_order = 101)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Submit, list, show, watch and cancel jobs
    #[command(subcommand)]
    Job(command::job::Command),
    /// Fetch released models
    #[command(subcommand)]
    Model(command::model::Command),
    /// See the participants
    #[command(subcommand)]
    Client(command::client::Command),
    /// Invite participants with join tokens
    #[command(subcommand)]
    Token(command::token::Command),
    /// Plan a privacy budget, and put a job's promise to the proof
    #[command(subcommand)]
    Privacy(command::privacy::Command),
    /// See, check and export the privacy ledger
    #[command(subcommand)]
    Ledger(command::ledger::Command),
    /// Measure rounds and sessions on this machine
    #[command(subcommand)]
    Bench(command::bench::Command),
    Deal(command::deal::Arguments),
    /// Run a whole deployment on this machine, with real processes and real data
    Demo(demo::Arguments),
    /// Runs a program that dies with the process `parent` (the demo starts its processes this way)
    #[command(name = "run-below", hide = true)]
    RunBelow(demo::process::RunBelow),
}

// One thread: this program waits for a server most of the time. It also makes "the thread that started a child"
// live as long as the process, which `run-below` relies on.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let screen = Screen::new(arguments.json);
    let operator = Operator::new(arguments.operator, screen);
    let result = match arguments.command {
        Command::Job(command) => command.run(&operator).await,
        Command::Model(command) => command.run(&operator).await,
        Command::Client(command) => command.run(&operator).await,
        Command::Token(command) => command.run(&operator).await,
        Command::Privacy(command) => command.run(screen),
        Command::Ledger(command) => command.run(&operator).await,
        Command::Bench(command) => command.run(screen).await,
        Command::Deal(arguments) => arguments.run(screen),
        Command::Demo(arguments) => arguments.run(screen).await,
        Command::RunBelow(command) => Err(command.run()),
    };
    result.unwrap_or_else(|error| failure::report(&error))
}
