//! Encodings in which each value stands for itself: `fixed32`, `f32`, `bf16`.

use super::codec::{Undecodable, Unencodable, round_all};
use super::domain::Domain;
use crate::fixed::MAX_FIXED;

pub(super) fn encode_fixed32<D: Domain>(
    domain: D,
    items: &[D::Item],
    out: &mut Vec<u8>,
) -> Result<(), Unencodable> {
    let at = out.len();
    out.resize(at + 4 * items.len(), 0);
    let mut all = true;
    for (bytes, &item) in out[at..].as_chunks_mut().0.iter_mut().zip(items) {
        let unit = domain.to_unit(item);
        all &= unit.is_some();
        *bytes = unit.unwrap_or(0).to_le_bytes();
    }
    if all {
        return Ok(());
    }
    out.truncate(at);
    let offset = items.iter().position(|&item| domain.to_unit(item).is_none());
    Err(Unencodable(offset.expect("one is off the grid")))
}

pub(super) fn decode_fixed32<D: Domain>(
    domain: D,
    bytes: &[u8],
    items: &mut [D::Item],
) -> Result<(), Undecodable> {
    let units = bytes.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b));
    let mut all = true;
    for (item, unit) in items.iter_mut().zip(units.clone()) {
        all &= unit.unsigned_abs() <= MAX_FIXED as u32;
        *item = domain.of_unit(unit);
    }
    if all {
        return Ok(());
    }
    let (offset, unit) =
        units.enumerate().find(|(_, u)| u.unsigned_abs() > MAX_FIXED as u32).expect("one is too large");
    Err(Undecodable::Value { offset, value: domain.real_of_unit(unit) })
}

pub(super) fn encode_f32<D: Domain>(
    domain: D,
    toward_zero: bool,
    items: &[D::Item],
    out: &mut Vec<u8>,
) -> Result<(), Unencodable> {
    append(items, out, |item| domain.to_f32(item, toward_zero).to_le_bytes());
    Ok(())
}

pub(super) fn decode_f32<D: Domain>(
    domain: D,
    bytes: &[u8],
    items: &mut [D::Item],
) -> Result<(), Undecodable> {
    of_f32s(domain, bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)), items)
}

pub(super) fn encode_bf16<D: Domain>(
    domain: D,
    toward_zero: bool,
    items: &[D::Item],
    out: &mut Vec<u8>,
) -> Result<(), Unencodable> {
    append(items, out, |item| domain.to_bf16(item, toward_zero).to_le_bytes());
    Ok(())
}

/// N bytes for each item, where all of them can be said.
#[inline]
fn append<T: Copy, const N: usize>(items: &[T], out: &mut Vec<u8>, bytes_of: impl Fn(T) -> [u8; N]) {
    let at = out.len();
    out.resize(at + N * items.len(), 0);
    for (bytes, &item) in out[at..].as_chunks_mut().0.iter_mut().zip(items) {
        *bytes = bytes_of(item);
    }
}

pub(super) fn decode_bf16<D: Domain>(
    domain: D,
    bytes: &[u8],
    items: &mut [D::Item],
) -> Result<(), Undecodable> {
    of_f32s(domain, bytes.as_chunks().0.iter().map(|&b| of_bf16(u16::from_le_bytes(b))), items)
}

/// The f32 of which these are the upper half.
#[inline]
pub(super) fn of_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[inline]
fn of_f32s<D: Domain>(
    domain: D,
    values: impl Iterator<Item = f32> + Clone,
    items: &mut [D::Item],
) -> Result<(), Undecodable> {
    let mut all = true;
    for (item, value) in items.iter_mut().zip(values.clone()) {
        all &= domain.admits(f64::from(value));
        *item = domain.of_f32(value);
    }
    // Only to find the place of what is wrong.
    if all { Ok(()) } else { round_all(domain, values.map(f64::from), items) }
}
