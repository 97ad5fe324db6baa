//! Error feedback: what a sparse update leaves out is kept by the client and sent later.
//!
//! In each round the client adds its residual to its update, sends the largest values of the sum, and keeps what did
//! not arrive (Seide et al. 2014; Stich, Cordonnier and Jaggi 2018, algorithm 1). All of it is integers on the job's grid, so
//! nothing is ever lost to rounding: what arrived in all rounds plus the residual is the sum of all updates, exactly.
//!
//! A residual is data of the client as much as an update is. It never leaves the machine, and it is not printed.

use super::domain::{Domain, Units};
use super::sparse::{arrives, write};
use super::top_k::{Threshold, kept};
use super::{DecodeError, Decoder, EncodeError, Encoding, SparseValues};
use crate::digest::{Digest, Digester};
use crate::fixed::{Grid, MAX_FIXED, squared_norm};
use std::fmt;

/// What did not arrive of a client's updates so far, as units of the job's grid.
#[derive(Clone, PartialEq, Eq)]
pub struct Residual {
    grid: Grid,
    units: Vec<i32>,
}

/// Why stored bytes are not the residual that is looked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResidualError {
    /// Cut, changed, or never a residual.
    #[error("the stored residual is damaged: delete it to begin with an empty one")]
    Damaged,
    /// Another job's.
    #[error(
        "the stored residual has {found_len} values with {found_bits} fraction bits, the job has {len} with {bits}"
    )]
    OtherShape {
        /// Values that are stored.
        found_len: u64,
        /// Fraction bits of their grid.
        found_bits: u8,
        /// Values of the job's updates.
        len: u64,
        /// Fraction bits of the job's grid.
        bits: u8,
    },
}

/// First bytes of a stored residual; the number is the version.
const MAGIC: &[u8; 8] = b"UTRESID1";

/// Magic, fraction bits, number of values.
const HEAD: usize = 8 + 1 + 8;

impl Residual {
    /// Nothing left out yet.
    pub fn new(grid: Grid, len: usize) -> Self {
        Self { grid, units: vec![0; len] }
    }

    /// The L2 norm of what waits, in units.
    pub fn norm(&self) -> f64 {
        (squared_norm(&self.units) as f64).sqrt()
    }

    /// Makes the message of this round with a top-k encoding and keeps what it leaves out. With a `bound`, the decoded
    /// message has an L2 norm of at most that many units, exactly: values are scaled down together, and what that takes
    /// from them stays in the residual as well.
    ///
    /// Until the message is known to count, keep what is needed to undo it: the residual as it was, or the message for
    /// [`Residual::take_back`].
    ///
    /// # Errors
    /// [`EncodeError`]; the residual is then as it was.
    pub fn encode(
        &mut self,
        encoding: &Encoding,
        units: &[i32],
        bound: Option<u64>,
    ) -> Result<Vec<u8>, EncodeError> {
        encoding.validate().map_err(EncodeError::Invalid)?;
        let &Encoding::TopK { fraction, values } = encoding else {
            return Err(EncodeError::Invalid(format!("{encoding} leaves nothing out and has no residual")));
        };
        self.check(encoding, units)?;
        if units.is_empty() {
            return Ok(Vec::new());
        }
        let mut entries = self.largest(units, kept(fraction, units.len()));
        let domain = Units::new(self.grid);
        let toward_zero = bound.is_some_and(|bound| shorten(domain, values, &mut entries, bound));

        for (waiting, &unit) in self.units.iter_mut().zip(units) {
            *waiting = (i64::from(*waiting) + i64::from(unit)) as i32;
        }
        let mut message = Vec::new();
        let mut next = 0;
        for &(index, item) in &entries {
            write(domain, values, toward_zero, index - next, item, &mut message);
            next = index + 1;
            self.units[index as usize] -= arrives(domain, values, toward_zero, item);
        }
        Ok(message)
    }

    /// Puts the values of a message back that did not count after all (its round was aborted, it came too late).
    ///
    /// # Errors
    /// [`TakeBackError`] if these bytes are no message of this encoding, or what waits grows too large; the residual is
    /// then as it was.
    pub fn take_back(&mut self, encoding: &Encoding, message: &[u8]) -> Result<(), TakeBackError> {
        let domain = Units::new(self.grid);
        let mut too_large = None;
        let mut check = Decoder::new(encoding, domain, self.units.len())?;
        check.push(message, &mut |start, run| {
            for (index, &unit) in (start..).zip(run) {
                if self.units[index].checked_add(unit).is_none_or(|sum| sum == i32::MIN) {
                    too_large.get_or_insert(index);
                }
            }
        })?;
        check.finish()?;
        if let Some(index) = too_large {
            return Err(TakeBackError::Overflow { index });
        }
        let mut decoder = Decoder::new(encoding, domain, self.units.len())?;
        decoder.push(message, &mut |start, run| {
            for (waiting, &unit) in self.units[start..].iter_mut().zip(run) {
                *waiting += unit;
            }
        })?;
        Ok(decoder.finish()?)
    }

    /// The bytes to store: a version, the grid, the number of values, the values, a digest of it all.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD + 4 * self.units.len() + 32);
        bytes.extend(MAGIC);
        bytes.push(self.grid.into());
        bytes.extend((self.units.len() as u64).to_le_bytes());
        for unit in &self.units {
            bytes.extend(unit.to_le_bytes());
        }
        let digest = Digest::of(&bytes);
        bytes.extend(digest.as_bytes());
        bytes
    }

    /// Reads what [`Residual::to_bytes`] made for updates of `len` values on this grid.
    ///
    /// # Errors
    /// [`ResidualError`].
    pub fn from_bytes(bytes: &[u8], grid: Grid, len: usize) -> Result<Self, ResidualError> {
        let (content, digest) = bytes.split_last_chunk::<32>().ok_or(ResidualError::Damaged)?;
        let mut digester = Digester::new();
        digester.update(content);
        if digester.finish().as_bytes() != digest || content.len() < HEAD || !content.starts_with(MAGIC) {
            return Err(ResidualError::Damaged);
        }
        let (head, values) = content.split_at(HEAD);
        let found_bits = head[8];
        let found_len = u64::from_le_bytes(head[9..].try_into().expect("eight bytes are left of the head"));
        let (len, bits) = (len as u64, grid.into());
        if (found_len, found_bits) != (len, bits) {
            return Err(ResidualError::OtherShape { found_len, found_bits, len, bits });
        }
        if len.checked_mul(4) != Some(values.len() as u64) {
            return Err(ResidualError::Damaged);
        }
        let units: Vec<i32> = values.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b)).collect();
        if units.contains(&i32::MIN) { Err(ResidualError::Damaged) } else { Ok(Self { grid, units }) }
    }

    /// That the update can be added to what waits.
    fn check(&self, encoding: &Encoding, units: &[i32]) -> Result<(), EncodeError> {
        let (found, wanted) = (units.len(), self.units.len());
        if found != wanted {
            return Err(EncodeError::WrongLength { found, wanted });
        }
        for (index, (&unit, sum)) in units.iter().zip(self.corrected(units)).enumerate() {
            if unit.unsigned_abs() > MAX_FIXED as u32 {
                let value = f64::from(unit) / self.grid.units_per_one();
                return Err(EncodeError::OutOfRange { index, value, encoding: encoding.to_string() });
            }
            if sum.unsigned_abs() > i32::MAX as u64 {
                return Err(EncodeError::ResidualOverflow { index, units: sum });
            }
        }
        Ok(())
    }

    /// Update plus residual.
    fn corrected<'a>(&'a self, units: &'a [i32]) -> impl Iterator<Item = i64> + Clone + 'a {
        self.units.iter().zip(units).map(|(&waiting, &unit)| i64::from(waiting) + i64::from(unit))
    }

    /// Positions and values of the `k` largest of update plus residual; of a value beyond the wire's range, as much as
    /// goes.
    fn largest(&self, units: &[i32], k: usize) -> Vec<(u32, i32)> {
        let corrected = self.corrected(units);
        let mut threshold = Threshold::of(corrected.clone().map(|sum| sum.unsigned_abs() as u32), k);
        let mut entries = Vec::with_capacity(k);
        for (index, sum) in (0u32..).zip(corrected) {
            if threshold.admits(sum.unsigned_abs() as u32) {
                let limit = i64::from(MAX_FIXED);
                entries.push((index, sum.clamp(-limit, limit) as i32));
            }
        }
        entries
    }
}

/// Why a message cannot be taken back.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TakeBackError {
    /// It is no message of this encoding.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Together with what waits it is too much.
    #[error("value {index} of the message and of the residual together are beyond ±{} units", i32::MAX)]
    Overflow {
        /// Position in the vector.
        index: usize,
    },
}

/// Scales the entries down until what arrives of them is within the bound. Gives back whether it had to, in which case
/// they are to be written rounded towards zero.
fn shorten(domain: Units, kind: SparseValues, entries: &mut [(u32, i32)], bound: u64) -> bool {
    let limit = u128::from(bound) * u128::from(bound);
    let squared = |entries: &[(u32, i32)], toward_zero| -> u128 {
        let each = entries.iter().map(|&(_, item)| arrives(domain, kind, toward_zero, item));
        each.map(|unit| u128::from(unit.unsigned_abs()).pow(2)).sum()
    };
    if squared(entries, false) <= limit {
        return false;
    }
    // Nothing here lengthens a vector, so the first factor does but for the rounding of the norm; each next is smaller.
    for try_ in 0.. {
        let norm = (entries.iter().map(|&(_, item)| u128::from(item.unsigned_abs()).pow(2)).sum::<u128>()
            as f64)
            .sqrt();
        let margin = f64::from(1u32 << (try_ + 1).min(30)) / f64::from(1u32 << 30);
        let factor = (bound as f64 / norm).min(1.0) * (1.0 - margin);
        entries.iter_mut().for_each(|(_, item)| *item = domain.shrunk(*item, factor));
        if squared(entries, true) <= limit {
            break;
        }
    }
    true
}

impl fmt::Debug for Residual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Residual({} values)", self.units.len())
    }
}
