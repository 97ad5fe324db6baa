//! The pure vocabulary of Undertone.
//!
//! Everything here is a value or a function: no clock, no disk, no network, no operating-system randomness.
//! Read in this order: [`id`] and [`digest`] name things, [`layout`] says what a model looks like as one flat
//! vector, [`part`] which of its tensors are trained, [`schema`] what a client's data must look like, [`data_files`] where it lies,
//! [`shape`] what a model sees of it, [`model`] (or [`torchscript`]), [`plan`] and [`augmentation`] what is trained and how, [`initial`] what training begins with,
//! [`device`] where its owner has it computed, [`trainer`] the seam behind which training happens and [`trainer_protocol`] that seam as two
//! pipes, [`fixed`], [`aggregate`] and [`optimizer`] the arithmetic of a round, [`cohort`] who is asked and [`participation`] how often,
//! and [`config`] how our TOML files are read.

pub mod aggregate;
pub mod augmentation;
pub mod cohort;
pub mod config;
pub mod data_files;
pub mod device;
pub mod digest;
pub mod duration;
pub mod encoding;
pub mod fixed;
pub mod id;
pub mod initial;
pub mod layout;
pub mod limits;
pub mod model;
pub mod model_external;
pub mod optimizer;
pub mod part;
pub mod participation;
pub mod plan;
pub mod rules;
pub mod schema;
pub mod shape;
pub mod torchscript;
pub mod trainer;
pub mod trainer_protocol;
