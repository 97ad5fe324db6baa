//! Bytes back to a vector, as a stream.

use super::codec::{Codec, Codes, RUN, Undecodable};
use super::domain::Domain;
use super::sparse::SparseDecoder;
use super::top_k::kept;
use super::{DecodeError, Encoding};
use std::fmt;

/// Decodes a message that arrives in pieces, cut anywhere; where it is cut changes nothing. Holds less than one block
/// of bytes and one run of values.
///
/// Values go to a sink as runs: where a run begins, and its items. Runs come in order and do not overlap; what lies
/// between them is zero (only top-k leaves something out). A message counts when [`Decoder::finish`] has found it whole:
/// until then the sink must be able to forget what it was given.
pub struct Decoder<D: Domain> {
    domain: D,
    len: usize,
    kind: Kind<D>,
    failed: Option<DecodeError>,
}

enum Kind<D: Domain> {
    Dense(Dense<D>),
    Sparse(SparseDecoder),
}

struct Dense<D: Domain> {
    codec: Codec,
    done: usize,
    carry: Vec<u8>,
    codes: Codes,
    items: Vec<D::Item>,
}

impl<D: Domain> Decoder<D> {
    /// A decoder of a message of `len` values.
    ///
    /// # Errors
    /// [`DecodeError::Invalid`] if the encoding's numbers are no good.
    pub fn new(encoding: &Encoding, domain: D, len: usize) -> Result<Self, DecodeError> {
        let kind = match (Codec::of(encoding).map_err(DecodeError::Invalid)?, *encoding) {
            (Some(codec), _) => Kind::Dense(Dense {
                codec,
                done: 0,
                carry: Vec::new(),
                codes: Codes::new(),
                items: vec![D::Item::default(); RUN.min(len)],
            }),
            (None, Encoding::TopK { fraction, values }) => {
                Kind::Sparse(SparseDecoder::new(values, len, kept(fraction, len)))
            }
            (None, _) => unreachable!("every other encoding is made run by run"),
        };
        Ok(Self { domain, len, kind, failed: None })
    }

    /// Takes the next bytes and gives the sink all values that are now whole.
    ///
    /// # Errors
    /// [`DecodeError`] with the position. All later calls give it again.
    pub fn push(
        &mut self,
        bytes: &[u8],
        sink: &mut impl FnMut(usize, &[D::Item]),
    ) -> Result<(), DecodeError> {
        if let Some(e) = &self.failed {
            return Err(e.clone());
        }
        let taken = match &mut self.kind {
            Kind::Dense(dense) => dense.push(self.domain, self.len, bytes, sink),
            Kind::Sparse(sparse) => sparse.push(self.domain, bytes, sink),
        };
        taken.inspect_err(|e| self.failed = Some(e.clone()))
    }

    /// Ends the message.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not whole, or failed before.
    pub fn finish(self) -> Result<(), DecodeError> {
        if let Some(e) = self.failed {
            return Err(e);
        }
        match self.kind {
            Kind::Dense(dense) if dense.done < self.len => {
                Err(DecodeError::Truncated { found: dense.done, wanted: self.len })
            }
            Kind::Dense(_) => Ok(()),
            Kind::Sparse(sparse) => sparse.finish(),
        }
    }
}

impl<D: Domain> Dense<D> {
    fn push(
        &mut self,
        domain: D,
        len: usize,
        mut bytes: &[u8],
        sink: &mut impl FnMut(usize, &[D::Item]),
    ) -> Result<(), DecodeError> {
        let block = self.codec.block();
        while !bytes.is_empty() {
            let left = len - self.done;
            if left == 0 {
                return Err(DecodeError::TooLong { values: len });
            }
            let next = block.min(left);
            let next_bytes = self.codec.bytes(next);
            if self.carry.is_empty() && bytes.len() >= next_bytes {
                let run = RUN.min(left);
                let values = if bytes.len() >= self.codec.bytes(run) {
                    run
                } else {
                    // The run is not whole, so all blocks that are have full size, or it is the last one alone.
                    (bytes.len() / next_bytes * block).min(left)
                };
                let (whole, rest) = bytes.split_at(self.codec.bytes(values));
                self.decode(domain, whole, values, sink)?;
                bytes = rest;
            } else {
                let (head, rest) = bytes.split_at(bytes.len().min(next_bytes - self.carry.len()));
                self.carry.extend_from_slice(head);
                bytes = rest;
                if self.carry.len() == next_bytes {
                    let mut carry = std::mem::take(&mut self.carry);
                    self.decode(domain, &carry, next, sink)?;
                    carry.clear();
                    self.carry = carry;
                }
            }
        }
        Ok(())
    }

    fn decode(
        &mut self,
        domain: D,
        bytes: &[u8],
        values: usize,
        sink: &mut impl FnMut(usize, &[D::Item]),
    ) -> Result<(), DecodeError> {
        let items = &mut self.items[..values];
        self.codec.decode_run(domain, &mut self.codes, bytes, items).map_err(|e| match e {
            Undecodable::Value { offset, value } => bad_value(self.done + offset, value),
            Undecodable::Block { offset, what } => DecodeError::Malformed { index: self.done + offset, what },
        })?;
        sink(self.done, items);
        self.done += values;
        Ok(())
    }
}

/// The error about a value that the domain does not admit.
pub(super) fn bad_value(index: usize, value: f64) -> DecodeError {
    if value.is_finite() {
        DecodeError::OutOfRange { index, value }
    } else {
        DecodeError::NotFinite { index, value }
    }
}

/// Decodes a whole message into a whole vector.
///
/// # Errors
/// [`DecodeError`].
pub fn decode_all<D: Domain>(
    encoding: &Encoding,
    domain: D,
    len: usize,
    bytes: &[u8],
) -> Result<Vec<D::Item>, DecodeError> {
    let mut decoder = Decoder::new(encoding, domain, len)?;
    let mut items = vec![D::Item::default(); len];
    decoder.push(bytes, &mut |start, run| items[start..start + run.len()].copy_from_slice(run))?;
    decoder.finish()?;
    Ok(items)
}

impl<D: Domain> fmt::Debug for Decoder<D> {
    /// Without the values that it holds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Decoder({} values, failed: {:?})", self.len, self.failed)
    }
}
