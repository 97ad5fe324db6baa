//! How the difference of two models travels.
//!
//! - `exact` leads to the new model itself. It says by how many representable numbers each value moved
//!   (`bit_difference.rs`). Of f32 models it takes some 70 % of the bytes where values move by a hundredth of their size,
//!   50 % at a ten-thousandth; of bf16 models, where most values stand still in a round, a tenth to a quarter; next to
//!   nothing where nothing moved.
//! - `lossy` sends new minus old with an encoding. It leads to old plus what was decoded, which is near the new model and
//!   not the same. The next difference starts there, so what one rounds away is part of the next, and errors do not add
//!   up.

use super::bit_difference;
use super::config::RawEncoding;
use super::rounding::codec_of;
use super::{EncodedLen, Encoding};
use serde::de::{self, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// How the difference of two models travels; in a job's file `true` (exact), or a table like that of an encoding, whose
/// kind may also be `exact`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DeltaEncoding {
    /// To the last bit.
    Exact,
    /// As the encoding has it. The coordinator keeps what clients have.
    Lossy {
        /// The encoding.
        encoding: Encoding,
    },
}

impl DeltaEncoding {
    /// Checks that the encoding carries differences, in fewer bytes than a model has.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn validate(&self) -> Result<(), String> {
        match self {
            Self::Exact => Ok(()),
            Self::Lossy { encoding: encoding @ (Encoding::Fixed32 | Encoding::F32) } => Err(format!(
                "a difference in {encoding} takes as many bytes as the model: take exact, bf16, fixed or block"
            )),
            Self::Lossy { encoding } => codec_of(encoding).map(|_| ()).map_err(|e| e.to_string()),
        }
    }

    /// The size of the difference of `values` values.
    pub fn encoded_len(&self, values: usize) -> EncodedLen {
        match self {
            Self::Exact => EncodedLen::AtMost(bit_difference::largest_len(values)),
            Self::Lossy { encoding } => encoding.encoded_len(values),
        }
    }
}

impl fmt::Display for DeltaEncoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact => f.write_str("exact"),
            Self::Lossy { encoding } => encoding.fmt(f),
        }
    }
}

impl Serialize for DeltaEncoding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self::Exact => RawEncoding::exact().serialize(serializer),
            Self::Lossy { encoding } => encoding.serialize(serializer),
        }
    }
}

/// Reads the value of a job's `deltas`: `false` is none, `true` is exact.
///
/// # Errors
/// Of the format, with a sentence that says which number is wrong.
pub fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DeltaEncoding>, D::Error> {
    deserializer.deserialize_any(Deltas)
}

struct Deltas;

impl<'de> de::Visitor<'de> for Deltas {
    type Value = Option<DeltaEncoding>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("true, false, or a table with the kind of the difference's encoding")
    }

    fn visit_bool<E: de::Error>(self, wanted: bool) -> Result<Self::Value, E> {
        Ok(wanted.then_some(DeltaEncoding::Exact))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        let raw = RawEncoding::deserialize(MapAccessDeserializer::new(map))?;
        let delta = if raw.is_exact() {
            DeltaEncoding::Exact
        } else {
            DeltaEncoding::Lossy { encoding: raw.try_into().map_err(de::Error::custom)? }
        };
        Ok(Some(delta))
    }
}
