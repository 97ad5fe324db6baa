//! The coordinator daemon, as a library: the binary and the test harness start the same [`Server`].
//!
//! `config` and `init` make a deployment, `identity` says who is who, `services` are the thin gRPC ends,
//! `sessions` knows who is connected, `spool` takes uploads in at a `pace`, `refusals` counts, `driver` runs one round machine a job,
//! `fleet` is for several coordinators, `release` turns updates into a model, `coordinator` ties them together, `storage` opens what the
//! configuration names, `serve` opens the port; `backup` brings a deployment back without forgetting what it spent, `doctor` says what is
//! wrong with one, `health` whether it answers.

pub mod backup;
mod clock;
pub mod config;
pub mod coordinator;
mod crash;
pub mod doctor;
mod driver;
mod fleet;
pub mod health;
pub mod identity;
pub mod init;
mod jobs;
mod ledger;
mod pace;
mod receipts;
mod refusals;
mod release;
pub mod serve;
mod services;
mod sessions;
mod shelf;
mod spool;
mod storage;
mod sweep;
mod turns;

pub use config::ServerConfig;
pub use serve::{Server, ServerError};
