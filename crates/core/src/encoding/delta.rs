//! From one version of a model to the next in fewer bytes than the model has.
//!
//! Every client must hold the same bits, or the sums of a round mean nothing. So a delta names the digest of the model
//! that it starts from and ends with the digest of the one that it leads to, and [`Apply`] gives nothing back that has
//! another. There are two kinds:
//!
//! - `exact` leads to the new model itself. It says by how many representable numbers each value moved
//!   (`bit_difference.rs`): some 70 % of the model's bytes where values move by a hundredth of their size, 50 % at a
//!   ten-thousandth, next to nothing where they stand still.
//! - `lossy` sends new minus old with an encoding. It leads to old plus what was decoded, which is near the new model and
//!   not the same: the *reference*. The server keeps the reference and makes the next delta from it, so what one delta
//!   rounds away is part of the next, and errors do not add up.
//!
//! A message is 8 bytes of magic and version, the digest of the old values (SHA-256 over their little-endian bytes), their
//! number as u64, the difference, the digest of the new values.

use super::bit_difference::{self, BitDifference};
use super::codec::{Codes, RUN};
use super::decoder::Decoder;
use super::domain::{Domain as _, Values};
use super::rounding::{Rounder, Rounding, codec_of, unencodable};
use super::{DecodeError, EncodeError, EncodedLen, Encoding};
use crate::digest::{Digest, Digester};
use crate::fixed::Grid;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How the difference of two models travels.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum DeltaEncoding {
    /// To the last bit.
    Exact {},
    /// As the encoding has it. The server keeps what clients have.
    Lossy {
        /// The encoding; not top-k.
        encoding: Encoding,
    },
}

/// Why a delta does not lead to a model.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DeltaError {
    /// It starts from another model.
    #[error(
        "the delta starts from model {wanted} of {wanted_len} values, here is {found} of {found_len}: fetch the whole model"
    )]
    OtherBase {
        /// The model that it starts from.
        wanted: Digest,
        /// Its number of values.
        wanted_len: u64,
        /// The model that is here.
        found: Digest,
        /// Its number of values.
        found_len: u64,
    },
    /// The bytes are no delta.
    #[error("the delta is malformed: {0}")]
    Malformed(&'static str),
    /// The difference is no message of its encoding.
    #[error("the delta is malformed: {0}")]
    Decode(#[from] DecodeError),
    /// It leads to another model than it says.
    #[error("the delta leads to model {found}, not to {wanted} as it says: fetch the whole model")]
    OtherTarget {
        /// What it says.
        wanted: Digest,
        /// What it leads to.
        found: Digest,
    },
}

const MAGIC: &[u8; 8] = b"UTDELTA1";
const HEAD: usize = 8 + 32 + 8;
const TAIL: usize = 32;

/// The digest of a model's values, which deltas are named by.
pub fn values_digest(values: &[f32]) -> Digest {
    let mut digester = Digester::new();
    let mut bytes = vec![0; 4 * RUN.min(values.len())];
    for run in values.chunks(RUN) {
        let bytes = &mut bytes[..4 * run.len()];
        for (to, value) in bytes.as_chunks_mut().0.iter_mut().zip(run) {
            *to = value.to_le_bytes();
        }
        digester.update(bytes);
    }
    digester.finish()
}

impl DeltaEncoding {
    /// Checks that the encoding carries differences.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn validate(&self) -> Result<(), String> {
        match self {
            Self::Exact {} => Ok(()),
            Self::Lossy { encoding } => codec_of(encoding).map(|_| ()).map_err(|e| e.to_string()),
        }
    }

    /// The size of a delta of `values` values.
    pub fn encoded_len(&self, values: usize) -> EncodedLen {
        let frame = (HEAD + TAIL) as u64;
        match self {
            Self::Exact {} => EncodedLen::AtMost(frame + bit_difference::largest_len(values)),
            Self::Lossy { encoding } => match encoding.encoded_len(values) {
                EncodedLen::Exact(bytes) => EncodedLen::Exact(frame + bytes),
                EncodedLen::AtMost(bytes) => EncodedLen::AtMost(frame + bytes),
            },
        }
    }

    /// Makes the delta from `old`, which clients have, towards `new`; `emit` is given its bytes in pieces of a few KiB.
    /// Gives back what clients have after it, with its digest: the `old` of the next delta.
    ///
    /// # Errors
    /// [`EncodeError`] if the lengths differ or a difference cannot be encoded; what was emitted is then of no use.
    pub fn encode(
        &self,
        grid: Grid,
        mut old: Vec<f32>,
        new: &[f32],
        rounding: &Rounding,
        emit: &mut impl FnMut(&[u8]),
    ) -> Result<(Vec<f32>, Digest), EncodeError> {
        if old.len() != new.len() {
            return Err(EncodeError::WrongLength { found: new.len(), wanted: old.len() });
        }
        emit(MAGIC);
        emit(values_digest(&old).as_bytes());
        emit(&(old.len() as u64).to_le_bytes());
        match self {
            Self::Exact {} => {
                bit_difference::encode(&old, new, emit);
                old.copy_from_slice(new);
            }
            Self::Lossy { encoding } => approach(encoding, grid, &mut old, new, rounding, emit)?,
        }
        let digest = values_digest(&old);
        emit(digest.as_bytes());
        Ok((old, digest))
    }
}

/// Emits new minus reference and moves the reference by what will be decoded.
fn approach(
    encoding: &Encoding,
    grid: Grid,
    reference: &mut [f32],
    new: &[f32],
    rounding: &Rounding,
    emit: &mut impl FnMut(&[u8]),
) -> Result<(), EncodeError> {
    let (codec, domain) = (codec_of(encoding)?, Values::new(grid));
    let mut rounder = Rounder::new(rounding);
    let (mut codes, mut bytes, mut decoded) = (Codes::new(), Vec::new(), vec![0.0; RUN]);
    for (i, (have, want)) in reference.chunks_mut(RUN).zip(new.chunks(RUN)).enumerate() {
        let difference: Vec<f32> = want.iter().zip(&*have).map(|(want, have)| want - have).collect();
        bytes.clear();
        codec
            .encode_run(domain, &mut rounder, &mut codes, &difference, &mut bytes)
            .map_err(|at| unencodable(domain, encoding, &difference, i * RUN, at))?;
        let decoded = &mut decoded[..have.len()];
        codec.decode_run(domain, &mut codes, &bytes, decoded).expect("what was encoded can be decoded");
        for (offset, (have, moved)) in have.iter_mut().zip(decoded).enumerate() {
            *have += *moved;
            if !domain.valid(*have) {
                let (index, value) = (i * RUN + offset, f64::from(*have));
                return Err(EncodeError::OutOfRange { index, value, encoding: encoding.to_string() });
            }
        }
        emit(&bytes);
    }
    Ok(())
}

/// Moves a model by a delta that arrives in pieces, cut anywhere.
///
/// It owns the model meanwhile and gives it back only if it has become what the delta says; after an error the old
/// model is gone, and the whole new one must be fetched.
pub struct Apply {
    values: Vec<f32>,
    digest: Digest,
    difference: Difference,
    head: Vec<u8>,
    tail: Vec<u8>,
    failed: Option<DeltaError>,
}

enum Difference {
    Exact(BitDifference),
    /// The decoder, and the bytes that it still takes.
    Lossy(Box<Decoder<Values>>, u64),
}

impl Apply {
    /// Begins with the model that the client has.
    ///
    /// # Errors
    /// [`DeltaError`] if the encoding carries no differences.
    pub fn new(encoding: &DeltaEncoding, grid: Grid, old: Vec<f32>) -> Result<Self, DeltaError> {
        encoding.validate().map_err(DecodeError::Invalid)?;
        let difference = match encoding {
            DeltaEncoding::Exact {} => Difference::Exact(BitDifference::new(old.len())),
            DeltaEncoding::Lossy { encoding } => {
                let decoder = Decoder::new(encoding, Values::new(grid), old.len())?;
                Difference::Lossy(Box::new(decoder), encoding.encoded_len(old.len()).max())
            }
        };
        let digest = values_digest(&old);
        Ok(Self { values: old, digest, difference, head: Vec::new(), tail: Vec::new(), failed: None })
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`DeltaError`]. All later calls give it again.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), DeltaError> {
        if let Some(e) = &self.failed {
            return Err(e.clone());
        }
        self.take(bytes).inspect_err(|e| self.failed = Some(e.clone()))
    }

    /// Ends the delta and gives back the new model.
    ///
    /// # Errors
    /// [`DeltaError`] if the delta is not whole, failed before, or led elsewhere.
    pub fn finish(self) -> Result<Vec<f32>, DeltaError> {
        if let Some(e) = self.failed {
            return Err(e);
        }
        let Ok(wanted) = Digest::try_from(self.tail.as_slice()) else {
            return Err(DeltaError::Malformed("it ends early"));
        };
        let found = values_digest(&self.values);
        if found == wanted { Ok(self.values) } else { Err(DeltaError::OtherTarget { wanted, found }) }
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), DeltaError> {
        if self.head.len() < HEAD {
            bytes = fill(&mut self.head, HEAD, bytes);
            if self.head.len() < HEAD {
                return Ok(());
            }
            self.check_head()?;
        }
        let values = &mut self.values;
        bytes = match &mut self.difference {
            Difference::Exact(difference) => difference.apply(values, bytes)?,
            Difference::Lossy(decoder, left) => {
                let (own, rest) =
                    bytes.split_at(bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX)));
                *left -= own.len() as u64;
                decoder.push(own, &mut |start, run| {
                    for (value, moved) in values[start..].iter_mut().zip(run) {
                        *value += *moved;
                    }
                })?;
                rest
            }
        };
        if fill(&mut self.tail, TAIL, bytes).is_empty() {
            Ok(())
        } else {
            Err(DeltaError::Malformed("it goes on after its end"))
        }
    }

    fn check_head(&self) -> Result<(), DeltaError> {
        let head = self.head.strip_prefix(MAGIC).ok_or(DeltaError::Malformed("it does not begin as one"))?;
        let (digest, len) = head.split_at(32);
        let wanted = Digest::try_from(digest).expect("32 bytes are a digest");
        let wanted_len = u64::from_le_bytes(len.try_into().expect("eight bytes are left of the head"));
        let (found, found_len) = (self.digest, self.values.len() as u64);
        if (found, found_len) == (wanted, wanted_len) {
            Ok(())
        } else {
            Err(DeltaError::OtherBase { wanted, wanted_len, found, found_len })
        }
    }
}

/// Moves bytes over until there are `len`; gives back the rest.
pub(super) fn fill<'a>(buffer: &mut Vec<u8>, len: usize, bytes: &'a [u8]) -> &'a [u8] {
    let (own, rest) = bytes.split_at(bytes.len().min(len - buffer.len()));
    buffer.extend_from_slice(own);
    rest
}

impl fmt::Debug for Apply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Apply({} values of {}, failed: {:?})", self.values.len(), self.digest.short(), self.failed)
    }
}
