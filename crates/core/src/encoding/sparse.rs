//! The bytes of a sparse message: positions and values, in order.
//!
//! An entry is the number of values that are left out since the entry before it (LEB128, at most five bytes, no
//! leading zeros), then the value as f32 or bf16. So positions ascend and are unique whatever the bytes are; only one
//! past the end must be refused. How many entries there are is known from the job, and each message has them all.

use super::decoder::bad_value;
use super::domain::Domain;
use super::plain::of_bf16;
use super::{DecodeError, SparseValues};

/// Most bytes of an entry.
const ENTRY: usize = 9;

impl SparseValues {
    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// No message of `entries` entries over `values` values is longer. The gaps sum to less than `values`, so at most
/// `values`/2^(7j) of them have more than j bytes.
pub(super) fn largest_len(entries: usize, kind: SparseValues, values: usize) -> u64 {
    let of_gaps: u64 = (0..5).map(|j| (entries as u64).min(values as u64 >> (7 * j))).sum();
    of_gaps + entries as u64 * kind.bytes() as u64
}

/// Appends an entry. `gap` values were left out before it.
pub(super) fn write<D: Domain>(
    domain: D,
    kind: SparseValues,
    toward_zero: bool,
    mut gap: u32,
    item: D::Item,
    out: &mut Vec<u8>,
) {
    while gap >= 0x80 {
        out.push(gap as u8 | 0x80);
        gap >>= 7;
    }
    out.push(gap as u8);
    match kind {
        SparseValues::F32 => out.extend(domain.to_f32(item, toward_zero).to_le_bytes()),
        SparseValues::Bf16 => out.extend(domain.to_bf16(item, toward_zero).to_le_bytes()),
    }
}

/// What arrives of an item.
pub(super) fn arrives<D: Domain>(domain: D, kind: SparseValues, toward_zero: bool, item: D::Item) -> D::Item {
    domain.of_f32(match kind {
        SparseValues::F32 => domain.to_f32(item, toward_zero),
        SparseValues::Bf16 => of_bf16(domain.to_bf16(item, toward_zero)),
    })
}

enum Parsed {
    Entry { gap: u32, value: f32, bytes: usize },
    Incomplete,
    NoNumber,
}

fn parse(kind: SparseValues, bytes: &[u8]) -> Parsed {
    let mut gap = 0u64;
    for (i, &byte) in bytes.iter().enumerate().take(5) {
        gap |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            let (Ok(gap), false) = (u32::try_from(gap), byte == 0 && i > 0) else { return Parsed::NoNumber };
            let start = i + 1;
            let Some(value) = bytes.get(start..start + kind.bytes()) else { return Parsed::Incomplete };
            let value = match kind {
                SparseValues::F32 => f32::from_le_bytes([value[0], value[1], value[2], value[3]]),
                SparseValues::Bf16 => of_bf16(u16::from_le_bytes([value[0], value[1]])),
            };
            return Parsed::Entry { gap, value, bytes: start + kind.bytes() };
        }
    }
    if bytes.len() < 5 { Parsed::Incomplete } else { Parsed::NoNumber }
}

/// Reads entries from bytes that arrive in pieces.
pub(super) struct SparseDecoder {
    kind: SparseValues,
    len: usize,
    entries: usize,
    read: usize,
    next: usize,
    carry: Vec<u8>,
}

impl SparseDecoder {
    /// A decoder of `entries` entries over `len` values.
    pub(super) fn new(kind: SparseValues, len: usize, entries: usize) -> Self {
        Self { kind, len, entries, read: 0, next: 0, carry: Vec::with_capacity(ENTRY) }
    }

    pub(super) fn push<D: Domain>(
        &mut self,
        domain: D,
        mut bytes: &[u8],
        sink: &mut impl FnMut(usize, &[D::Item]),
    ) -> Result<(), DecodeError> {
        while !bytes.is_empty() {
            if self.read == self.entries {
                return Err(DecodeError::TooLong { values: self.entries });
            }
            if self.carry.is_empty() && bytes.len() >= ENTRY {
                bytes = &bytes[self.entry(domain, bytes, sink)?..];
            } else {
                // Byte by byte: an entry says only as it goes on how long it is.
                self.carry.push(bytes[0]);
                bytes = &bytes[1..];
                let carry = std::mem::take(&mut self.carry);
                let used = self.entry(domain, &carry, sink)?;
                self.carry = carry;
                if used > 0 {
                    self.carry.clear();
                }
            }
        }
        Ok(())
    }

    /// Reads one entry from the front; gives back its bytes, 0 if it is not whole.
    fn entry<D: Domain>(
        &mut self,
        domain: D,
        bytes: &[u8],
        sink: &mut impl FnMut(usize, &[D::Item]),
    ) -> Result<usize, DecodeError> {
        let out_of_place = DecodeError::Position { entry: self.read, values: self.len };
        match parse(self.kind, bytes) {
            Parsed::Incomplete => Ok(0),
            Parsed::NoNumber => Err(out_of_place),
            Parsed::Entry { gap, value, bytes } => {
                let index = self.next + gap as usize;
                if index >= self.len {
                    return Err(out_of_place);
                }
                if !domain.admits(f64::from(value)) {
                    return Err(bad_value(index, f64::from(value)));
                }
                sink(index, &[domain.of_f32(value)]);
                self.next = index + 1;
                self.read += 1;
                Ok(bytes)
            }
        }
    }

    pub(super) fn finish(self) -> Result<(), DecodeError> {
        if self.read < self.entries {
            return Err(DecodeError::Truncated { found: self.read, wanted: self.entries });
        }
        Ok(())
    }
}
