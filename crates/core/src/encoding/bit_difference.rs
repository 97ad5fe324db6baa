//! By how many representable numbers each f32 moved: a difference of models without loss.
//!
//! The bit patterns of f32 are numbered in the order of their values, negative ones below zero; the difference of two
//! numbers (modulo 2^32, so that any bits may follow any others, NaN included) is small where the values are near each
//! other. Differences 0, -1, 1, -2, … are coded as 0, 1, 2, 3, ….
//!
//! A block of [`BLOCK`] values is a width w in one byte, then w bits for each code, packed, then what did not fit: a code
//! of w ones stands for the next u32 behind the packed codes. (No width fits all: a value that crosses zero jumps over
//! all exponents.) w is the one that makes the block smallest; at 32 nothing is left to stand for, and at 0 no value has
//! moved.

use super::bits::{pack, packed_len, unpack};
use super::delta::{DeltaError, fill};

/// Values that share a width.
const BLOCK: usize = 128;

/// No difference of `values` values is longer: a width for each block, and all bits.
pub(super) fn largest_len(values: usize) -> u64 {
    (values.div_ceil(BLOCK) + 4 * values) as u64
}

/// Emits the difference, block by block.
pub(super) fn encode(old: &[f32], new: &[f32], emit: &mut impl FnMut(&[u8])) {
    let (mut codes, mut bytes, mut rest) = (Vec::new(), Vec::new(), Vec::new());
    for (old, new) in old.chunks(BLOCK).zip(new.chunks(BLOCK)) {
        codes.clear();
        codes.extend(old.iter().zip(new).map(|(old, new)| code(*old, *new)));
        let width = best_width(&codes);
        rest.clear();
        if (1..32).contains(&width) {
            let escape = escape(width);
            for code in codes.iter_mut().filter(|code| **code >= escape) {
                rest.extend(code.to_le_bytes());
                *code = escape;
            }
        }
        bytes.clear();
        bytes.push(width);
        if width > 0 {
            pack(width, &codes, &mut bytes);
        }
        bytes.extend_from_slice(&rest);
        emit(&bytes);
    }
}

/// The code of a width that stands for a longer one.
fn escape(width: u8) -> u32 {
    u32::MAX >> (32 - width)
}

/// The bits of an f32 as its place in the order of values.
fn place(value: f32) -> u32 {
    let bits = value.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

fn value(place: u32) -> f32 {
    f32::from_bits(if place >> 31 == 1 { place & !(1 << 31) } else { !place })
}

fn code(old: f32, new: f32) -> u32 {
    let moved = place(new).wrapping_sub(place(old)) as i32;
    (moved << 1 ^ moved >> 31) as u32
}

fn moved(old: f32, code: u32) -> f32 {
    let by = code >> 1 ^ (code & 1).wrapping_neg();
    value(place(old).wrapping_add(by))
}

/// The width with the fewest bytes.
fn best_width(codes: &[u32]) -> u8 {
    // How many codes need each width; one of w ones needs a larger one than w.
    let mut needing = [0usize; 34];
    for &code in codes {
        needing[if code == 0 { 0 } else { 64 - (u64::from(code) + 1).leading_zeros() as usize }] += 1;
    }
    if needing[0] == codes.len() {
        return 0;
    }
    let mut longer = codes.len() - needing[0];
    let (mut best, mut fewest) = (32, 4 * codes.len());
    for width in 1..32u8 {
        longer -= needing[usize::from(width)];
        let bytes = packed_len(width, codes.len()) + 4 * longer;
        if bytes < fewest {
            (best, fewest) = (width, bytes);
        }
    }
    best
}

/// Applies a difference that arrives in pieces.
pub(super) struct BitDifference {
    len: usize,
    done: usize,
    awaits: Awaits,
    carry: Vec<u8>,
    codes: Vec<u32>,
}

/// What the bytes that are gathered are to become.
#[derive(Clone, Copy)]
enum Awaits {
    Width,
    Codes { width: u8 },
    Rest { width: u8, count: usize },
}

impl BitDifference {
    pub(super) fn new(len: usize) -> Self {
        Self { len, done: 0, awaits: Awaits::Width, carry: Vec::new(), codes: Vec::new() }
    }

    /// Moves the values that the bytes tell of; gives back the bytes after the last value.
    pub(super) fn apply<'a>(
        &mut self,
        values: &mut [f32],
        mut bytes: &'a [u8],
    ) -> Result<&'a [u8], DeltaError> {
        while self.done < self.len && !bytes.is_empty() {
            let block = BLOCK.min(self.len - self.done);
            let wanted = match self.awaits {
                Awaits::Width => 1,
                Awaits::Codes { width } => packed_len(width, block),
                Awaits::Rest { count, .. } => 4 * count,
            };
            bytes = fill(&mut self.carry, wanted, bytes);
            if self.carry.len() == wanted {
                self.step(values, block)?;
                self.carry.clear();
            }
        }
        Ok(bytes)
    }

    fn step(&mut self, values: &mut [f32], block: usize) -> Result<(), DeltaError> {
        match self.awaits {
            Awaits::Width => match self.carry[0] {
                0 => self.done += block,
                width @ 1..=32 => self.awaits = Awaits::Codes { width },
                _ => return Err(DeltaError::Malformed("a block has a width beyond 32 bits")),
            },
            Awaits::Codes { width } => {
                self.codes.resize(block, 0);
                if !unpack(width, &self.carry, &mut self.codes) {
                    return Err(DeltaError::Malformed("there are bits after the last value of a block"));
                }
                let longer = |code: &&u32| width < 32 && **code == escape(width);
                match self.codes.iter().filter(longer).count() {
                    0 => self.move_block(values, block),
                    count => self.awaits = Awaits::Rest { width, count },
                }
            }
            Awaits::Rest { width, .. } => {
                let mut rest = self.carry.as_chunks().0.iter();
                for code in self.codes.iter_mut().filter(|code| **code == escape(width)) {
                    *code = u32::from_le_bytes(*rest.next().expect("counted before"));
                }
                self.move_block(values, block);
            }
        }
        Ok(())
    }

    fn move_block(&mut self, values: &mut [f32], block: usize) {
        for (value, &code) in values[self.done..self.done + block].iter_mut().zip(&self.codes) {
            *value = moved(*value, code);
        }
        self.done += block;
        self.awaits = Awaits::Width;
    }
}
