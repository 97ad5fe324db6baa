//! What can be wrong with a vector that is to be encoded, and with bytes that claim to be one.

use crate::fixed::MAX_FIXED;

/// Why a vector cannot be encoded. The sentences hold values of it: they are for the client's own log.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EncodeError {
    /// NaN or infinite.
    #[error("value {index} is {value}, not a finite number")]
    NotFinite {
        /// Position in the vector.
        index: usize,
        /// The value.
        value: f64,
    },
    /// Too far from zero for the encoding and the grid.
    #[error(
        "value {index} is {value}, beyond what {encoding} can say on this grid: lower fraction_bits or the norm"
    )]
    OutOfRange {
        /// Position in the vector.
        index: usize,
        /// The value.
        value: f64,
        /// The encoding, in words.
        encoding: String,
    },
    /// More or fewer values than announced.
    #[error("{found} values were given, {wanted} were announced")]
    WrongLength {
        /// Values given, or at least that many.
        found: usize,
        /// Values announced.
        wanted: usize,
    },
    /// The encoding's numbers are no good.
    #[error("{0}")]
    Invalid(String),
    /// The encoding wants the whole vector at once.
    #[error("{0} chooses among all values: it is encoded through its residual, not as a stream")]
    NeedsAllCoordinates(String),
    /// The vector is longer than its bound before anything was rounded.
    #[error("the update has an L2 norm of {norm} units, above its bound of {bound}: clip it first")]
    TooLong {
        /// Its norm in units.
        norm: f64,
        /// The bound in units.
        bound: u64,
    },
    /// What was not sent in earlier rounds grew beyond what a residual holds.
    #[error(
        "the error carried over for value {index} grew to {units} units, beyond ±{}: training diverges, or the \
         fraction that is sent is too small; begin with an empty residual",
        i32::MAX
    )]
    ResidualOverflow {
        /// Position in the vector.
        index: usize,
        /// What it would be.
        units: i64,
    },
}

/// Why bytes are not an encoded vector.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// A NaN or an infinity.
    #[error("value {index} is {value}, not a finite number")]
    NotFinite {
        /// Position in the vector.
        index: usize,
        /// The value.
        value: f64,
    },
    /// Beyond the integers of the grid, or beyond f32.
    #[error("value {index} is {value}, out of range (an update's integers are within ±{MAX_FIXED} units)")]
    OutOfRange {
        /// Position in the vector.
        index: usize,
        /// The value.
        value: f64,
    },
    /// The message goes on after its last value.
    #[error("the message goes on after the last of its {values} values")]
    TooLong {
        /// Values of the vector.
        values: usize,
    },
    /// The message ends early.
    #[error("the message ends after {found} of {wanted} values")]
    Truncated {
        /// Whole values that arrived.
        found: usize,
        /// Values that a message has.
        wanted: usize,
    },
    /// A scale, exponent or code that no encoder writes.
    #[error("the block at value {index} is malformed: {what}")]
    Malformed {
        /// First position of the block.
        index: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A position past the end, or one whose bytes are no number.
    #[error("entry {entry} names a position beyond the {values} values of the vector, or none")]
    Position {
        /// Which entry of the message.
        entry: usize,
        /// Values of the vector.
        values: usize,
    },
    /// The encoding's numbers are no good.
    #[error("{0}")]
    Invalid(String),
}

impl DecodeError {
    /// The error about a stretch, as one about the vector of which it begins at `start`.
    pub(super) fn moved(mut self, start: usize) -> Self {
        if let Self::NotFinite { index, .. }
        | Self::OutOfRange { index, .. }
        | Self::Malformed { index, .. } = &mut self
        {
            *index += start;
        }
        self
    }
}
