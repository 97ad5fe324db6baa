//! By how many representable numbers each value moved: a difference of models without loss.
//!
//! The bit patterns of f32 are numbered in the order of their values, negative ones below zero; the difference of two
//! numbers (modulo 2^32, so that any bits may follow any others, NaN included) is small where the values are near each
//! other. Differences 0, -1, 1, -2, … are coded as 0, 1, 2, 3, …. Of values that are bf16 the upper halves are numbered:
//! a weight moves by less than one of those steps in most rounds.
//!
//! A block of [`BLOCK`] values is a width w in one byte, then w bits for each code, packed, then what did not fit: a code
//! of w ones stands for the next u32 behind the packed codes. (No width fits all: a value that crosses zero jumps over
//! all exponents.) w is the one that makes the block smallest; at 32 nothing is left to stand for, and at 0 no value has
//! moved.

use super::bits::{pack, packed_len, unpack};
use super::codec::RUN;

/// Values that share a width; a run holds whole blocks.
const BLOCK: usize = 128;
const _: () = assert!(RUN.is_multiple_of(BLOCK));

/// Which numbers are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Steps {
    /// All f32.
    F32,
    /// Those whose lower half is zero.
    Bf16,
}

/// No difference of `values` values is longer: a width for each block, and all bits.
pub(super) fn largest_len(values: usize) -> u64 {
    (values.div_ceil(BLOCK) + 4 * values) as u64
}

/// Appends the difference of a run, block by block. All runs but the last are whole blocks.
pub(super) fn encode_run(steps: Steps, old: &[f32], new: &[f32], out: &mut Vec<u8>) {
    let (mut codes, mut rest) = (Vec::with_capacity(BLOCK), Vec::new());
    for (old, new) in old.chunks(BLOCK).zip(new.chunks(BLOCK)) {
        codes.clear();
        codes.extend(old.iter().zip(new).map(|(old, new)| steps.code(*old, *new)));
        let width = best_width(&codes);
        rest.clear();
        if (1..32).contains(&width) {
            let escape = escape(width);
            for code in codes.iter_mut().filter(|code| **code >= escape) {
                rest.extend(code.to_le_bytes());
                *code = escape;
            }
        }
        out.push(width);
        if width > 0 {
            pack(width, &codes, out);
        }
        out.extend_from_slice(&rest);
    }
}

impl Steps {
    fn dropped_bits(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::Bf16 => 16,
        }
    }

    /// The value's place in the order of values.
    fn place(self, value: f32) -> u32 {
        let bits = value.to_bits();
        (if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }) >> self.dropped_bits()
    }

    fn value(self, place: u32) -> f32 {
        // The bits that were dropped are those of a zero, whose complement is ones.
        let positive = place >> (31 - self.dropped_bits()) == 1;
        let upper = place << self.dropped_bits();
        let ones = (1 << self.dropped_bits()) - 1;
        f32::from_bits(if positive { upper & !(1 << 31) } else { !(upper | ones) })
    }

    fn code(self, old: f32, new: f32) -> u32 {
        let moved = self.place(new).wrapping_sub(self.place(old)) as i32;
        (moved << 1 ^ moved >> 31) as u32
    }

    /// The value after a move.
    pub(super) fn moved(self, old: f32, code: u32) -> f32 {
        let by = code >> 1 ^ (code & 1).wrapping_neg();
        self.value(self.place(old).wrapping_add(by))
    }
}

/// The code of a width that stands for a longer one.
fn escape(width: u8) -> u32 {
    u32::MAX >> (32 - width)
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

/// Reads a difference that arrives in pieces, cut anywhere.
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

    /// Gives the sink the moves of the next values, in order, and back what follows the last of them. The error says what
    /// is wrong with the bytes.
    pub(super) fn push<'a>(
        &mut self,
        mut bytes: &'a [u8],
        sink: &mut impl FnMut(&[u32]),
    ) -> Result<&'a [u8], &'static str> {
        while self.done < self.len && !bytes.is_empty() {
            let block = BLOCK.min(self.len - self.done);
            let wanted = match self.awaits {
                Awaits::Width => 1,
                Awaits::Codes { width } => packed_len(width, block),
                Awaits::Rest { count, .. } => 4 * count,
            };
            let (own, rest) = bytes.split_at(bytes.len().min(wanted - self.carry.len()));
            self.carry.extend_from_slice(own);
            bytes = rest;
            if self.carry.len() == wanted {
                self.step(block, sink)?;
                self.carry.clear();
            }
        }
        Ok(bytes)
    }

    /// Whether all values have had their move.
    pub(super) fn is_whole(&self) -> bool {
        self.done == self.len
    }

    fn step(&mut self, block: usize, sink: &mut impl FnMut(&[u32])) -> Result<(), &'static str> {
        match self.awaits {
            Awaits::Width => match self.carry[0] {
                0 => {
                    self.codes.clear();
                    self.codes.resize(block, 0);
                    self.end_block(sink);
                }
                width @ 1..=32 => self.awaits = Awaits::Codes { width },
                _ => return Err("a block has a width beyond 32 bits"),
            },
            Awaits::Codes { width } => {
                self.codes.resize(block, 0);
                if !unpack(width, &self.carry, &mut self.codes) {
                    return Err("there are bits after the last value of a block");
                }
                let longer = |code: &&u32| width < 32 && **code == escape(width);
                match self.codes.iter().filter(longer).count() {
                    0 => self.end_block(sink),
                    count => self.awaits = Awaits::Rest { width, count },
                }
            }
            Awaits::Rest { width, .. } => {
                let mut rest = self.carry.as_chunks().0.iter();
                for code in self.codes.iter_mut().filter(|code| **code == escape(width)) {
                    *code = u32::from_le_bytes(*rest.next().expect("counted before"));
                }
                self.end_block(sink);
            }
        }
        Ok(())
    }

    fn end_block(&mut self, sink: &mut impl FnMut(&[u32])) {
        sink(&self.codes);
        self.done += self.codes.len();
        self.awaits = Awaits::Width;
    }
}
