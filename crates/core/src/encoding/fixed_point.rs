//! Fixed point of b bits with stochastic rounding and a power-of-two step for each block.
//!
//! A block of [`BLOCK`] values is the exponent e of its step as a little-endian i16, then one code of b bits for each
//! value, packed: the code c + 2^(b-1) stands for c·2^e. |c| is at most 2^(b-1) - 1; the code 0 is not used.
//!
//! The step is the smallest power of two with which the block's largest magnitude can be said, and never below the
//! domain's own step. So values of an update decode to units of the job's grid without another rounding, and a block
//! whose largest magnitude needs no more than b bits on the grid arrives as it was.
//!
//! x = value/2^e becomes ⌊x + u⌋ with u uniform in [0, 1): one of the two neighbours, with the expectation x (unbiased
//! stochastic rounding, as in QSGD: Alistarh et al. 2017, section 3.1). u has 28 to 32 bits, no fewer than a unit
//! of the grid has below its step: for updates the expectation is x exactly, for f32 values within 2^-28 steps. The
//! error is below one step, its variance at most a quarter of the step squared.

use super::bits::{pack, packed_len};
use super::codec::{Codes, Undecodable, Unencodable, largest, place_of, read_codes, round_all};
use super::domain::Domain;
use super::rounding::Rounder;

/// Values that share a step.
pub const BLOCK: usize = 4096;

/// Bytes of the exponent.
const HEAD: usize = 2;

/// Exponents that an encoder writes: from the smallest f32 to one beyond the largest.
const EXPONENTS: std::ops::RangeInclusive<i16> = -149..=128;

/// Bytes of `values` values.
pub(super) fn encoded_len(bits: u8, values: u64) -> u64 {
    let tail = (values % BLOCK as u64) as usize;
    let whole = values / BLOCK as u64 * (HEAD + packed_len(bits, BLOCK)) as u64;
    whole + if tail == 0 { 0 } else { (HEAD + packed_len(bits, tail)) as u64 }
}

pub(super) fn encode_block<D: Domain>(
    domain: D,
    bits: u8,
    rounder: &mut Rounder,
    codes: &mut Codes,
    items: &[D::Item],
    out: &mut Vec<u8>,
) -> Result<(), Unencodable> {
    let magnitude = largest(domain, items);
    let exponent = step_exponent(magnitude, bits, domain.finest());
    let (step, per_step) = (power_of_two(exponent), power_of_two(-exponent));
    let farthest = (magnitude * per_step).ceil() * step;
    if !rounder.toward_zero() && !domain.admits(farthest) {
        return Err(place_of(domain, items, magnitude));
    }
    // From 2^bits to 2^(bits+1), an f64 has the bits of its integer part at the same place. So that is where the codes
    // are moved, and cutting off what is below rounds down.
    let base = power_of_two(bits.into());
    let (fraction, mask) = (52 - u32::from(bits), (1u32 << bits) - 1);
    let cut = |x: f64| (x.to_bits() >> fraction) as u32 & mask;
    let zero = base + base / 2.0;
    codes.clear();
    if rounder.toward_zero() {
        codes.extend(items.iter().map(|&item| cut((domain.real(item) * per_step).trunc() + zero)));
    } else {
        // The sum must hold u exactly, or it could be rounded up to the next integer.
        let unused = u32::from(bits).saturating_sub(20);
        let scale = power_of_two(unused as i32 - 32);
        codes.extend(items.iter().zip(rounder.words(items.len())).map(|(&item, word)| {
            let u = f64::from(word >> unused) * scale;
            cut(domain.real(item) * per_step + u + zero)
        }));
    }
    let exponent = i16::try_from(exponent).expect("the exponent of an f32 fits an i16");
    out.extend(exponent.to_le_bytes());
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
    let exponent = i16::from_le_bytes([bytes[0], bytes[1]]);
    if !EXPONENTS.contains(&exponent) {
        return Err(Undecodable::Block { offset: 0, what: "its exponent is not that of a number" });
    }
    read_codes(bits, &bytes[HEAD..], codes, items.len())?;
    let (step, zero) = (power_of_two(exponent.into()), 1i32 << (bits - 1));
    round_all(domain, codes.iter().map(|&code| f64::from(code as i32 - zero) * step), items)
}

/// The smallest exponent with which `magnitude` is at most 2^(bits-1) - 1 steps, and not below `finest`.
fn step_exponent(magnitude: f64, bits: u8, finest: i32) -> i32 {
    if magnitude == 0.0 {
        return finest;
    }
    let most = power_of_two(i32::from(bits) - 1) - 1.0;
    // Every f32 and every unit is a normal f64.
    let exponent_of = ((magnitude.to_bits() >> 52) & 0x7ff) as i32 - 1023;
    let exponent = (exponent_of + 2 - i32::from(bits)).max(finest);
    if most * power_of_two(exponent) < magnitude { exponent + 1 } else { exponent }
}

/// 2^exponent, for the normal f64 numbers.
fn power_of_two(exponent: i32) -> f64 {
    debug_assert!((-1022..=1023).contains(&exponent));
    f64::from_bits(((exponent + 1023) as u64) << 52)
}
