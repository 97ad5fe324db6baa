//! Whole Undertone deployments in a test: for our own tests, and for people who test their jobs and trainers.
//!
//! [`Deployment`] starts a coordinator with its CA on a free port in this process, and clients with the trainers
//! that you give (or the [same one for data in memory](Deployment::trainers)); everything goes over mutual TLS on
//! loopback, as in production. Faults are yours to make: drop a [`RunningClient`], [restart](Deployment::restart) the
//! coordinator, fail its disk with [`FaultyStorage`], count and cut what passes with a [`Wire`], or speak yourself with
//! [`RawClient`]. [`Processes`] does the same with the real binaries.
//!
//! ```no_run
//! use undertone_harness::{Deployment, FnTrainer};
//!
//! # async fn test() {
//! let mut deployment = Deployment::start().await;
//! for name in ["a", "b"] {
//!     deployment.trainer(name, FnTrainer::constant(1.0)).await;
//! }
//! let job = deployment.operator().await.submit(include_str!("sample.toml")).await.unwrap();
//! let events = deployment.operator().await.watch_to_end(&job).await;
//! assert_eq!(events.outcome().status(), "completed");
//! # }
//! ```
//!
//! Everything here panics where a test should fail.

mod deployment;
mod faults;
mod fleet;
mod operator;
mod processes;
mod pytorch;
mod raw;
mod trainers;
mod wire;

pub use deployment::{Deployment, RunningClient};
pub use faults::{FaultyStorage, HeldAt};
pub use fleet::Fleet;
pub use operator::{Events, Operator};
pub use processes::{Process, Processes, binary};
pub use pytorch::python_with;
pub use raw::{RawClient, receipt};
pub use trainers::FnTrainer;
pub use wire::Wire;

/// How long a test waits for something that must happen.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// A small job (one feature, two classes, no privacy, two clients, two rounds) to start tests from.
pub const SAMPLE_JOB: &str = include_str!("sample.toml");
