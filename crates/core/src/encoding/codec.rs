//! One run of values to bytes and back: what the dense encodings have in common.
//!
//! A codec cuts a vector into blocks of values that are coded together (a block of one value where each stands for
//! itself). A run is up to [`RUN`] values that begin at a block; only the last block of a vector may be shorter.

use super::bits::unpack;
use super::domain::Domain;
use super::rounding::Rounder;
use super::{Encoding, block, fixed_point, plain};

/// Most values that are handled at once. Every block size divides it.
pub(super) const RUN: usize = 4096;

/// An encoding that is made run by run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Codec {
    Fixed32,
    F32,
    Bf16,
    Fixed { bits: u8 },
    Block { bits: u8, block: usize },
}

/// A value that cannot be encoded, by its place in the run. Why is a question to the value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Unencodable(pub(super) usize);

/// What is wrong with the bytes of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Undecodable {
    /// A value that the domain does not admit, by its place in the run.
    Value { offset: usize, value: f64 },
    /// A block, by the place of its first value in the run.
    Block { offset: usize, what: &'static str },
}

/// Room for the integers of a run between values and bits.
pub(super) type Codes = Vec<u32>;

impl Codec {
    /// `None` for an encoding that is not made run by run.
    pub(super) fn of(encoding: &Encoding) -> Result<Option<Self>, String> {
        encoding.validate()?;
        Ok(match *encoding {
            Encoding::Fixed32 => Some(Self::Fixed32),
            Encoding::F32 => Some(Self::F32),
            Encoding::Bf16 => Some(Self::Bf16),
            Encoding::Fixed { bits } => Some(Self::Fixed { bits }),
            Encoding::Block { bits, block } => Some(Self::Block { bits, block: block.into() }),
            Encoding::TopK { .. } => None,
        })
    }

    /// Values of a block.
    pub(super) fn block(self) -> usize {
        match self {
            Self::Fixed32 | Self::F32 | Self::Bf16 => 1,
            Self::Fixed { .. } => fixed_point::BLOCK,
            Self::Block { block, .. } => block,
        }
    }

    /// Bytes of a run of `values` values.
    pub(super) fn bytes(self, values: usize) -> usize {
        match self {
            Self::Fixed32 | Self::F32 => 4 * values,
            Self::Bf16 => 2 * values,
            Self::Fixed { bits } => fixed_point::encoded_len(bits, values as u64) as usize,
            Self::Block { bits, block } => block::encoded_len(bits, block as u16, values as u64) as usize,
        }
    }

    /// Appends the bytes of a run.
    pub(super) fn encode_run<D: Domain>(
        self,
        domain: D,
        rounder: &mut Rounder,
        codes: &mut Codes,
        items: &[D::Item],
        out: &mut Vec<u8>,
    ) -> Result<(), Unencodable> {
        if !items.iter().fold(true, |all, &item| all & domain.valid(item)) {
            let offset = items.iter().position(|&item| !domain.valid(item));
            return Err(Unencodable(offset.expect("one of them is not valid")));
        }
        match self {
            Self::Fixed32 => plain::encode_fixed32(domain, items, out),
            Self::F32 => plain::encode_f32(domain, rounder.toward_zero(), items, out),
            Self::Bf16 => plain::encode_bf16(domain, rounder.toward_zero(), items, out),
            Self::Fixed { bits } => fixed_point::encode_block(domain, bits, rounder, codes, items, out),
            Self::Block { bits, block } => items.chunks(block).enumerate().try_for_each(|(i, items)| {
                block::encode_block(domain, bits, rounder.toward_zero(), codes, items, out)
                    .map_err(|Unencodable(offset)| Unencodable(i * block + offset))
            }),
        }
    }

    /// Fills a run from exactly its bytes.
    pub(super) fn decode_run<D: Domain>(
        self,
        domain: D,
        codes: &mut Codes,
        bytes: &[u8],
        items: &mut [D::Item],
    ) -> Result<(), Undecodable> {
        match self {
            Self::Fixed32 => plain::decode_fixed32(domain, bytes, items),
            Self::F32 => plain::decode_f32(domain, bytes, items),
            Self::Bf16 => plain::decode_bf16(domain, bytes, items),
            Self::Fixed { bits } => fixed_point::decode_block(domain, bits, codes, bytes, items),
            Self::Block { bits, block } => {
                let block_bytes = self.bytes(block);
                let blocks = items.chunks_mut(block).zip(bytes.chunks(block_bytes));
                blocks.enumerate().try_for_each(|(i, (items, bytes))| {
                    block::decode_block(domain, bits, codes, bytes, items).map_err(|e| e.moved(i * block))
                })
            }
        }
    }
}

impl Undecodable {
    fn moved(self, by: usize) -> Self {
        match self {
            Self::Value { offset, value } => Self::Value { offset: offset + by, value },
            Self::Block { offset, what } => Self::Block { offset: offset + by, what },
        }
    }
}

/// The codes of a block of `len` values, of which none is 0.
pub(super) fn read_codes(bits: u8, bytes: &[u8], codes: &mut Codes, len: usize) -> Result<(), Undecodable> {
    let malformed = |what| Err(Undecodable::Block { offset: 0, what });
    codes.resize(len, 0);
    if !unpack(bits, bytes, codes) {
        return malformed("there are bits after its last value");
    }
    if codes.iter().fold(false, |any, &code| any | (code == 0)) {
        return malformed("a value has the code that none has");
    }
    Ok(())
}

/// Rounds reals to items, all or nothing; the loop has no early end, so that it is vectorised.
#[inline]
pub(super) fn round_all<D: Domain>(
    domain: D,
    reals: impl Iterator<Item = f64> + Clone,
    items: &mut [D::Item],
) -> Result<(), Undecodable> {
    let mut all = true;
    for (item, real) in items.iter_mut().zip(reals.clone()) {
        all &= domain.admits(real);
        *item = domain.round(real);
    }
    if all {
        return Ok(());
    }
    let (offset, value) =
        reals.enumerate().find(|&(_, real)| !domain.admits(real)).expect("one is not admitted");
    Err(Undecodable::Value { offset, value })
}

/// The largest magnitude; eight at a time, because the compiler may not reorder comparisons of floats.
#[inline]
pub(super) fn largest<D: Domain>(domain: D, items: &[D::Item]) -> f64 {
    let larger = |a: f64, b: f64| if b > a { b } else { a };
    let mut lanes = [0.0; 8];
    let (chunks, rest) = items.as_chunks::<8>();
    for chunk in chunks {
        for (lane, &item) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, domain.real(item).abs());
        }
    }
    let rest = rest.iter().fold(0.0, |m, &item| larger(m, domain.real(item).abs()));
    lanes.iter().fold(rest, |m, &lane| larger(m, lane))
}

/// Where the value of that magnitude stands: for an error message.
pub(super) fn place_of<D: Domain>(domain: D, items: &[D::Item], magnitude: f64) -> Unencodable {
    let place = items.iter().position(|&item| domain.real(item).abs() == magnitude);
    Unencodable(place.expect("it is the magnitude of one of them"))
}
