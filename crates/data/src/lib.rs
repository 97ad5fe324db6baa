//! Local data: from a CSV file on the data owner's disk to features that a model can train on.
//!
//! Read in this order: `csv_source` turns bytes into records, within limits; `value` says when two written
//! values mean the same; [`check`] holds a file against the job's data contract and tells the data owner what
//! to mend; [`encode`] turns a file that meets the contract into numbers. Around it, for demos and studies:
//! [`split`] and [`partition`] deal rows out, [`resplit`] rebuilds the split of a shipped example, and
//! [`synthetic`] makes a classification set from a seed.
//!
//! No torch here, and nothing leaves: a report or an error names values of the data, so it is for the data
//! owner's eyes and stays on the machine.

pub mod check;
mod csv_source;
mod csv_text;
pub mod encode;
pub mod partition;
pub mod resplit;
pub mod split;
pub mod synthetic;
mod value;

pub use csv_source::{CsvError, MAX_FIELDS, MAX_RECORD_BYTES};
pub use csv_text::CsvText;
pub use encode::{Dataset, inspect, load};
