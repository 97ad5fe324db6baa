//! Encodings: how a vector travels in fewer bytes, up as an update and down as a model.
//!
//! | kind | a value on the wire | what it changes |
//! |---|---|---|
//! | `fixed32` | 4 bytes: the unit of the job's grid | nothing in an update |
//! | `f32` | 4 bytes | units beyond 2^24 are rounded; nothing in a model |
//! | `bf16` | 2 bytes | rounded to nearest even, 8 bits are kept |
//! | `fixed` | `bits` bits and 2 bytes for each 4096 values | unbiased stochastic rounding ([`mod@fixed_point`]) |
//! | `block` | 8 or 4 bits and 2 bytes a block | rounded to nearest, scaled by the block's largest ([`mod@block`]) |
//! | `top-k` | some 3 to 6 bytes for each value that is sent | the rest waits in a [`residual::Residual`] ([`mod@top_k`]) |
//!
//! Whatever travelled, an update arrives as i32 units of the job's grid ([`Units`]), so that sums stay exact and do not
//! depend on the order, and a model arrives as f32 ([`Values`]). Decoding is integer arithmetic and correctly rounded
//! f64 arithmetic only: the same bits on every machine. [`encoder`] and [`decoder`] work on streams that may be cut
//! anywhere and hold one block; [`rounding`] keeps an update within its norm bound through a rounding that may lengthen
//! it; [`broadcast`] makes what a model is sent as, whole and as the difference from the one before ([`delta`]), and
//! [`rebuild`] makes the model of it again, beside what is [`frozen`]; [`composition`] says what does not go together.
//!
//! Messages carry no header: the job names the encoding, the model's layout the number of values, and the transfer the
//! digest.

mod bit_difference;
mod bits;
pub mod block;
pub mod broadcast;
mod codec;
pub mod composition;
mod config;
pub mod decoder;
pub mod delta;
pub mod domain;
pub mod encoder;
mod error;
pub mod fixed_point;
pub mod frozen;
mod plain;
pub mod rebuild;
pub mod residual;
pub mod rounding;
mod sparse;
#[cfg(test)]
mod tests;
pub mod top_k;

pub use decoder::Decoder;
pub use domain::{Units, Values};
pub use encoder::Encoder;
pub use error::{DecodeError, EncodeError};

use crate::fixed::MAX_FIXED;
use codec::RUN;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;

/// How vectors of a job travel; in a job's file a table with `kind` and the numbers that the kind has.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "config::RawEncoding", into = "config::RawEncoding")]
pub enum Encoding {
    /// Little-endian i32 on the job's grid.
    #[default]
    Fixed32,
    /// Little-endian IEEE binary32.
    F32,
    /// The upper half of a binary32, rounded to nearest even.
    Bf16,
    /// Fixed point with a power-of-two step for each 4096 values, rounded up or down by chance so that the expectation
    /// is the value.
    Fixed {
        /// Bits of one value, 2 to 24.
        bits: u8,
    },
    /// Only the values that are furthest from zero, with error feedback.
    TopK {
        /// Share of the values that is sent, above 0 and at most 0.5, rounded up to whole values.
        fraction: f64,
        /// How the values that are sent travel.
        values: SparseValues,
    },
    /// Small integers scaled by the largest magnitude of their block.
    Block {
        /// Bits of one value, 8 or 4.
        bits: u8,
        /// Values that share a scale: a power of two from 16 to 4096.
        block: u16,
    },
}

/// How the values of a sparse message travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SparseValues {
    /// Four bytes.
    F32,
    /// Two bytes.
    Bf16,
}

/// Which way a vector travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// An update, which is on the job's grid already.
    Up,
    /// A model of f32 values.
    Down,
}

/// The size of a message in bytes, known before its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncodedLen {
    /// Every message has this size.
    Exact(u64),
    /// A message is at most this large; how large depends on the values.
    AtMost(u64),
}

impl EncodedLen {
    /// The largest size.
    pub fn max(self) -> u64 {
        let (Self::Exact(bytes) | Self::AtMost(bytes)) = self;
        bytes
    }

    /// The size of this and that.
    pub(crate) fn plus(self, other: Self) -> Self {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b)) => Self::Exact(a + b),
            (a, b) => Self::AtMost(a.max() + b.max()),
        }
    }

    /// Whether a whole message may have this many bytes.
    pub fn admits(self, bytes: u64) -> bool {
        match self {
            Self::Exact(exact) => bytes == exact,
            Self::AtMost(most) => bytes <= most,
        }
    }
}

impl Encoding {
    /// Checks the numbers. An encoding that was read from a file is checked already.
    ///
    /// # Errors
    /// A sentence that says which number is wrong.
    pub fn validate(&self) -> Result<(), String> {
        match *self {
            Self::Fixed { bits } if !(2..=24).contains(&bits) => {
                Err(format!("bits of a fixed encoding must be 2 to 24, not {bits}"))
            }
            Self::Block { bits, .. } if bits != 8 && bits != 4 => {
                Err(format!("bits of a block encoding must be 8 or 4, not {bits}"))
            }
            Self::Block { block, .. } if !(16..=4096).contains(&block) || !block.is_power_of_two() => {
                Err(format!("block must be a power of two from 16 to 4096, not {block}"))
            }
            Self::TopK { fraction, .. } if !(fraction > 0.0 && fraction <= 0.5) => Err(format!(
                "fraction of a top-k encoding must be above 0 and at most 0.5, not {fraction}; to send more, a dense \
                 encoding (bf16, fixed) is smaller"
            )),
            _ => Ok(()),
        }
    }

    /// The size of a message of `values` values. Sizes of all kinds but top-k do not depend on the values.
    pub fn encoded_len(&self, values: usize) -> EncodedLen {
        match *self {
            Self::Fixed32 | Self::F32 => EncodedLen::Exact(4 * values as u64),
            Self::Bf16 => EncodedLen::Exact(2 * values as u64),
            Self::Fixed { bits } => EncodedLen::Exact(fixed_point::encoded_len(bits, values as u64)),
            Self::Block { bits, block } => EncodedLen::Exact(block::encoded_len(bits, block, values as u64)),
            Self::TopK { fraction, values: kind } => {
                EncodedLen::AtMost(sparse::largest_len(top_k::kept(fraction, values), kind, values))
            }
        }
    }

    /// Where in a message of `len` values the values of `range` lie, to be decoded alone as a message of `range.len()` values;
    /// `None` if such a message has no places (top-k).
    ///
    /// # Panics
    /// If the range does not begin at a multiple of 4096, or ends at neither one nor the end.
    pub fn part(&self, range: Range<usize>, len: usize) -> Option<Range<u64>> {
        let whole = |at: usize| at.is_multiple_of(RUN);
        assert!(
            whole(range.start) && (whole(range.end) || range.end == len) && range.end <= len,
            "values {range:?} of {len} are no part of a message"
        );
        let bytes = |values| match self.encoded_len(values) {
            EncodedLen::Exact(bytes) => Some(bytes),
            EncodedLen::AtMost(_) => None,
        };
        Some(bytes(range.start)?..bytes(range.end)?)
    }

    /// Whether what arrives may differ from what was sent (apart from what an error is made of).
    pub fn is_lossy(&self, direction: Direction) -> bool {
        match (self, direction) {
            (Self::Fixed32, Direction::Up) | (Self::F32, Direction::Down) => false,
            // A model is rounded to the grid; of a unit, f32 keeps 24 bits.
            (Self::Fixed32, Direction::Down) | (Self::F32, Direction::Up) => true,
            (Self::Bf16 | Self::Fixed { .. } | Self::TopK { .. } | Self::Block { .. }, _) => true,
        }
    }

    /// The largest magnitude, in units, of which every update can be encoded, whatever the coins; a norm bound within it
    /// makes sure that no honest update is refused. With `fixed` the topmost values of the wire's range could be rounded
    /// up to beyond it.
    pub fn largest_units(&self) -> u64 {
        match self {
            Self::Fixed { .. } => 1 << 29,
            Self::Fixed32 | Self::F32 | Self::Bf16 | Self::TopK { .. } | Self::Block { .. } => {
                MAX_FIXED as u64
            }
        }
    }

    /// Whether the whole vector must be known before the first byte can be made. Such an encoding has no
    /// [`Encoder`]: see [`residual::Residual::encode`].
    pub fn needs_all_coordinates(&self) -> bool {
        matches!(self, Self::TopK { .. })
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed32 => f.write_str("fixed32"),
            Self::F32 => f.write_str("f32"),
            Self::Bf16 => f.write_str("bf16"),
            Self::Fixed { bits } => write!(f, "fixed with {bits} bits"),
            Self::TopK { fraction, values: SparseValues::F32 } => write!(f, "top-k of {fraction} in f32"),
            Self::TopK { fraction, values: SparseValues::Bf16 } => write!(f, "top-k of {fraction} in bf16"),
            Self::Block { bits, block } => write!(f, "blocks of {block} with {bits} bits"),
        }
    }
}
