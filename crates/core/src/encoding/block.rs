//! Small integers scaled by the largest magnitude of their block.
//!
//! A block is its step as a bf16, then one code of 8 or 4 bits for each value, packed: the code c + 2^(bits-1) stands for
//! c·step. |c| is at most 2^(bits-1) - 1 (127 or 7); the code 0 is not used. The step is the block's largest magnitude
//! divided by that, rounded up to a bf16, so that no value is beyond the largest code; a block of zeros has step zero.
//! Such symmetric "absmax" blocks are what Dettmers et al. 2022 (8-bit optimizers, section 2.1) quantise with.
//!
//! Values are rounded to the nearest code, ties to even: the error is at most half a step (on an update another half
//! unit of the grid), and it is not unbiased: small values beside a large one vanish. Where that matters, `fixed` has
//! no bias.

use super::bits::{pack, packed_len};
use super::codec::{Codes, Undecodable, Unencodable, largest, place_of, read_codes, round_all};
use super::domain::{Domain, ONES};
use super::plain::of_bf16;

/// Bytes of the step.
const HEAD: usize = 2;

/// Bytes of `values` values.
pub(super) fn encoded_len(bits: u8, block: u16, values: u64) -> u64 {
    let block = u64::from(block);
    let tail = (values % block) as usize;
    let whole = values / block * (HEAD + packed_len(bits, block as usize)) as u64;
    whole + if tail == 0 { 0 } else { (HEAD + packed_len(bits, tail)) as u64 }
}

pub(super) fn encode_block<D: Domain>(
    domain: D,
    bits: u8,
    toward_zero: bool,
    codes: &mut Codes,
    items: &[D::Item],
    out: &mut Vec<u8>,
) -> Result<(), Unencodable> {
    let zero = 1i32 << (bits - 1);
    let most = f64::from(zero - 1);
    let magnitude = largest(domain, items);
    let step_bits = bf16_above(magnitude / most);
    let step = f64::from(of_bf16(step_bits));
    if !step.is_finite() {
        return Err(place_of(domain, items, magnitude));
    }
    codes.clear();
    if magnitude == 0.0 {
        codes.resize(items.len(), zero as u32);
    } else if toward_zero {
        codes.extend(items.iter().map(|&item| ((domain.real(item) / step) as i32 + zero) as u32));
    } else if domain.admits(most * step) {
        let (per_step, shift) = (1.0 / step, ONES + ONES / 2.0 + f64::from(zero));
        codes.extend(items.iter().map(|&item| (domain.real(item) * per_step + shift).to_bits() as u32));
    } else {
        // At the edge of the range the largest code says more than may be said.
        codes.extend(items.iter().map(|&item| {
            let code = (domain.real(item) / step).round_ties_even() as i32;
            let code = if domain.admits(f64::from(code) * step) { code } else { code - code.signum() };
            (code + zero) as u32
        }));
    }
    out.extend(step_bits.to_le_bytes());
    pack(bits, codes, out);
    Ok(())
}

pub(super) fn decode_block<D: Domain>(
    domain: D,
    bits: u8,
    codes: &mut Codes,
    bytes: &[u8],
    items: &mut [D::Item],
) -> Result<(), Undecodable> {
    let malformed = |what| Err(Undecodable::Block { offset: 0, what });
    let step_bits = u16::from_le_bytes([bytes[0], bytes[1]]);
    let step = f64::from(of_bf16(step_bits));
    if !step.is_finite() || step_bits >> 15 == 1 {
        return malformed("its step is not a number from zero up");
    }
    read_codes(bits, &bytes[HEAD..], codes, items.len())?;
    let zero = 1i32 << (bits - 1);
    if step == 0.0 && codes.iter().any(|&code| code != zero as u32) {
        return malformed("its step is zero and its values are not");
    }
    round_all(domain, codes.iter().map(|&code| f64::from(code as i32 - zero) * step), items)
}

/// The bits of the smallest bf16 that is at least `x` (zero or above, at most what an f32 holds): infinity beyond the
/// largest.
fn bf16_above(x: f64) -> u16 {
    let nearest = x as f32;
    let bits = nearest.to_bits() + u32::from(f64::from(nearest) < x);
    ((bits + 0xffff) >> 16) as u16
}
