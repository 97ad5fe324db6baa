//! A vector to bytes, as a stream.

use super::codec::{Codec, Codes, RUN};
use super::domain::Domain;
use super::rounding::{Rounder, Rounding, codec_of, unencodable};
use super::{EncodeError, Encoding};
use std::fmt;

/// Encodes a vector that arrives in pieces, cut anywhere. Holds less than one block of values; what it has made is
/// appended to the caller's buffer, which the caller empties as it likes.
///
/// ```
/// # use undertone_core::{encoding::*, fixed::Grid};
/// # let mut rng = rand_chacha::ChaCha8Rng::from_seed([0; 32]);
/// # use rand_chacha::rand_core::SeedableRng as _;
/// let (encoding, grid) = (Encoding::Fixed { bits: 12 }, Grid::new(16).unwrap());
/// let update = vec![700, -3, 50_000];
/// let rounding = rounding::Rounding::within(&encoding, grid, &update, 50_010, &mut rng).unwrap();
/// let mut encoder = Encoder::new(&encoding, Units::new(grid), update.len(), &rounding).unwrap();
/// let mut bytes = Vec::new();
/// encoder.push(&update, &mut bytes).unwrap();
/// encoder.finish(&mut bytes).unwrap();
/// assert!(encoding.encoded_len(3).admits(bytes.len() as u64));
/// ```
pub struct Encoder<D: Domain> {
    encoding: Encoding,
    codec: Codec,
    domain: D,
    len: usize,
    done: usize,
    carry: Vec<D::Item>,
    rounder: Rounder,
    codes: Codes,
}

impl<D: Domain> Encoder<D> {
    /// An encoder of `len` values.
    ///
    /// # Errors
    /// If the encoding's numbers are no good, or it needs the whole vector at once.
    pub fn new(encoding: &Encoding, domain: D, len: usize, rounding: &Rounding) -> Result<Self, EncodeError> {
        Ok(Self {
            encoding: *encoding,
            codec: codec_of(encoding)?,
            domain,
            len,
            done: 0,
            carry: Vec::new(),
            rounder: Rounder::new(rounding),
            codes: Codes::new(),
        })
    }

    /// Takes the next values and appends the bytes of all blocks that are now whole.
    ///
    /// # Errors
    /// [`EncodeError`] with the position; the encoder is then of no more use.
    pub fn push(&mut self, mut items: &[D::Item], out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let found = self.done + self.carry.len() + items.len();
        if found > self.len {
            return Err(EncodeError::WrongLength { found, wanted: self.len });
        }
        let block = self.codec.block();
        if !self.carry.is_empty() {
            let (head, rest) = items.split_at(items.len().min(block - self.carry.len()));
            self.carry.extend_from_slice(head);
            items = rest;
            if self.carry.len() < block {
                return Ok(());
            }
            self.encode_carry(out)?;
        }
        let (whole, rest) = items.split_at(items.len() / block * block);
        for run in whole.chunks(RUN) {
            self.encode(run, out)?;
        }
        self.carry.extend_from_slice(rest);
        Ok(())
    }

    /// Appends the last bytes.
    ///
    /// # Errors
    /// [`EncodeError`] if there were fewer values than announced, or the last cannot be encoded.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let found = self.done + self.carry.len();
        if found != self.len {
            return Err(EncodeError::WrongLength { found, wanted: self.len });
        }
        if self.carry.is_empty() { Ok(()) } else { self.encode_carry(out) }
    }

    fn encode_carry(&mut self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let mut carry = std::mem::take(&mut self.carry);
        self.encode(&carry, out)?;
        carry.clear();
        self.carry = carry;
        Ok(())
    }

    fn encode(&mut self, run: &[D::Item], out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let run = self.rounder.shrunk(self.domain, run);
        self.codec
            .encode_run(self.domain, &mut self.rounder, &mut self.codes, &run, out)
            .map_err(|at| unencodable(self.domain, &self.encoding, &run, self.done, at))?;
        self.done += run.len();
        Ok(())
    }
}

impl<D: Domain> fmt::Debug for Encoder<D> {
    /// Without the values that it holds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encoder({}, {} of {} values)", self.encoding, self.done, self.len)
    }
}
