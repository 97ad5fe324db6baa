//! Local data: from files on the data owner's disk to what a model can train on.
//!
//! Read in this order: `csv_source` turns bytes into records, within limits, and [`idx`] into arrays; `value` says when
//! two written values mean the same, `truth` what a label means, `tokens` what a text does; [`check`] (and `pictures`, for
//! IDX) holds files against the job's data contract and tells the data owner what to mend; [`encode`] turns files that
//! meet the contract into a [`Dataset`] (with `scattering`, pictures into features). Around it, for demos and studies: [`split`] and [`partition`] deal rows out,
//! [`resplit`] rebuilds the split of a shipped example, and [`synthetic`] makes a classification set from a seed.
//!
//! No torch here, and nothing leaves: a report or an error names values of the data, so it is for the data
//! owner's eyes and stays on the machine.

pub mod check;
mod csv_source;
mod csv_text;
mod dataset;
pub mod encode;
pub mod idx;
pub mod partition;
mod pictures;
mod problems;
pub mod resplit;
mod scattering;
pub mod split;
pub mod synthetic;
mod tokens;
mod truth;
mod value;

pub use csv_source::{CsvError, MAX_FIELDS, MAX_RECORD_BYTES};
pub use csv_text::CsvText;
pub use dataset::{Dataset, Examples, Labels};
pub use encode::{inspect, load};
