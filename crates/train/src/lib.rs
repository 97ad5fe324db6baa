//! Local training on libtorch: the only crate that links it.
//!
//! Read in this order: `rows` puts a client's data into tensors, `nn` has the built-in models and
//! `loss` what training makes small, `sampling` draws batches and `augment` views of what is in them, `optimizer` makes steps
//! of gradients, `run` is what both ways of training begin with, `sgd` trains without a promise to records (`early_stop` may
//! end it), `per_example` and `dp_sgd` with one, `checkpoint` is what a killed trainer goes on from, `memory` makes do with
//! little, `evaluate` measures, [`baseline`] trains without privacy for comparison, [`rehearsal`] on made-up examples,
//! [`torch_trainer`] puts these behind the seam of [`undertone_core::trainer`], [`measure`] times them for benches, and
//! [`serve`] puts that behind two pipes: the program
//! `undertone-trainer`, which a client spawns so that an idle client holds no libtorch in memory.

#![forbid(unsafe_code)]

mod augment;
pub mod baseline;
mod checkpoint;
pub mod device;
mod dp_sgd;
mod early_stop;
mod evaluate;
mod failure;
mod loss;
pub mod measure;
mod memory;
mod nn;
mod optimizer;
mod per_example;
pub mod rehearsal;
mod rows;
mod run;
mod sampling;
pub mod serve;
mod sgd;
pub mod torch_trainer;

pub use failure::Stop;
pub use torch_trainer::TorchTrainer;
pub use undertone_core::device::DeviceChoice;

/// The version of libtorch that this was linked against.
pub const LIBTORCH_VERSION: &str = env!("UNDERTONE_LIBTORCH_VERSION");
