//! Local training on libtorch: the only crate that links it.
//!
//! Read in this order: `rows` puts a client's data into tensors, `model` runs a built-in model over one flat vector
//! of parameters, `sampling` draws batches, `sgd` trains without a promise to records, `per_example` and `dp_sgd`
//! with one, `evaluate` measures, [`baseline`] trains without privacy for comparison, [`torch_trainer`] puts these
//! behind the seam of [`undertone_core::trainer`], and [`serve`] puts that behind two pipes: the program
//! `undertone-trainer`, which a client spawns so that an idle client holds no libtorch in memory.

#![forbid(unsafe_code)]

pub mod baseline;
pub mod device;
mod dp_sgd;
mod evaluate;
mod failure;
mod model;
mod per_example;
mod rows;
mod sampling;
pub mod serve;
mod sgd;
pub mod torch_trainer;

pub use device::DeviceChoice;
pub use failure::Stop;
pub use torch_trainer::TorchTrainer;

/// The version of libtorch that this was linked against.
pub const LIBTORCH_VERSION: &str = env!("UNDERTONE_LIBTORCH_VERSION");
