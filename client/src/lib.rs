//! The Undertone client: it trains on data that stays where it is.
//!
//! A data owner enrols a machine once ([`enrol`]) and then runs it unattended ([`Client::run`]). The client opens
//! every connection itself; it decides on each offer by numbers that it works out from the job document
//! ([`undertone_round::participant`]); what leaves is an update that went the whole path *raw, clipped, on the grid,
//! durable in the outbox* and nothing else: no losses, no counts, no messages with values of the data.
//!
//! Read in this order: [`ClientConfig`] and [`ClientFolder`], what the owner sets and where things lie; [`enrol`];
//! [`Client`], the shell around the participant machine; [`ProcessTrainer`], the child process with libtorch in it, and
//! [`CommandTrainer`], a program of the owner's in its place;
//! [`Disclosure`], what would leave, in words.
//!
//! The trainer is given, so a client can run in the process of a test:
//!
//! ```no_run
//! # async fn run(trainer: Box<dyn undertone_core::trainer::Trainer>) -> Result<(), Box<dyn std::error::Error>> {
//! use undertone_client::{Client, ClientConfig};
//! let config = ClientConfig::load("hospital".as_ref())?;
//! Client::new(config, trainer).run(async { tokio::signal::ctrl_c().await.unwrap() }).await?;
//! # Ok(()) }
//! ```

mod answers;
mod arrival;
mod backoff;
mod checkpoints;
mod client;
mod command_trainer;
mod config;
mod connect;
mod decisions;
mod disclosure;
mod enrol;
mod evaluation;
mod folder;
mod identity;
mod models;
mod outbox;
mod output;
mod pause;
mod probe;
mod process;
mod process_group;
mod progress;
mod sandbox;
mod session;
mod trainer_thread;
mod transfer;
mod usage;
mod watch;
mod work;

pub use client::{Client, ClientError};
pub use command_trainer::CommandTrainer;
pub use config::{ClientConfig, CommandSettings, Mode, TrainerSettings};
pub use connect::ConnectError;
pub use disclosure::Disclosure;
pub use enrol::{EnrolError, Enrolled, Enrolment, config_mismatch, enrol};
pub use folder::ClientFolder;
pub use identity::{Identity, IdentityError};
pub use pause::{Condition, Look, PauseSettings};
pub use process::{ProcessTrainer, find as find_trainer_program};
pub use progress::{OnProgress, progress_in_log};
pub use sandbox::{Network, SANDBOXED, enter as enter_sandbox, start as start_sandboxed};
pub use session::SessionError;
pub use trainer_thread::Interrupt;
