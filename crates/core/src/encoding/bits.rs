//! Integers of b bits, one behind the other without a gap.
//!
//! Value i takes bits i·b to (i+1)·b of the byte string, counted from the lowest bit of the first byte. 32 values fill b
//! little-endian words, so whole groups are packed with shifts that the compiler knows; what is left at the end is
//! packed as a group filled up with zeros and cut to whole bytes. Bits after the last value are zero.

/// Values of a group.
const GROUP: usize = 32;

/// Bytes of `values` integers of `bits` bits.
pub(super) fn packed_len(bits: u8, values: usize) -> usize {
    (values * usize::from(bits)).div_ceil(8)
}

/// Runs a statement with a constant number of bits.
macro_rules! with_constant_bits {
    ($bits:expr, $name:ident => $body:expr) => {
        with_constant_bits!(@arms $bits, $name, $body,
            1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32)
    };
    (@arms $bits:expr, $name:ident, $body:expr, $($n:literal)*) => {
        match $bits {
            $($n => { const $name: usize = $n; $body })*
            other => unreachable!("{other} bits a value"),
        }
    };
}

/// Appends `codes`, each below 2^bits.
pub(super) fn pack(bits: u8, codes: &[u32], out: &mut Vec<u8>) {
    let at = out.len();
    out.resize(at + packed_len(bits, codes.len()), 0);
    let bytes = &mut out[at..];
    with_constant_bits!(bits, B => {
        let (groups, rest) = codes.as_chunks::<GROUP>();
        let (whole, tail) = bytes.split_at_mut(groups.len() * 4 * B);
        for (group, to) in groups.iter().zip(whole.chunks_exact_mut(4 * B)) {
            pack_group::<B>(group, to);
        }
        if !rest.is_empty() {
            let mut group = [0; GROUP];
            group[..rest.len()].copy_from_slice(rest);
            let mut padded = [0; 4 * B];
            pack_group::<B>(&group, &mut padded);
            tail.copy_from_slice(&padded[..tail.len()]);
        }
    });
}

/// Reads as many codes as `codes` holds from exactly [`packed_len`] bytes. Gives back whether the bits after the last
/// code are zero, as they must be.
pub(super) fn unpack(bits: u8, bytes: &[u8], codes: &mut [u32]) -> bool {
    debug_assert_eq!(bytes.len(), packed_len(bits, codes.len()));
    with_constant_bits!(bits, B => {
        let (groups, rest) = codes.as_chunks_mut::<GROUP>();
        let (whole, tail) = bytes.split_at(groups.len() * 4 * B);
        for (group, from) in groups.iter_mut().zip(whole.chunks_exact(4 * B)) {
            unpack_group::<B>(from, group);
        }
        if rest.is_empty() {
            return true;
        }
        let mut group = [0; GROUP];
        let mut padded = [0; 4 * B];
        padded[..tail.len()].copy_from_slice(tail);
        unpack_group::<B>(&padded, &mut group);
        rest.copy_from_slice(&group[..rest.len()]);
        group[rest.len()..].iter().all(|&code| code == 0)
    })
}

#[inline]
fn pack_group<const B: usize>(codes: &[u32; GROUP], to: &mut [u8]) {
    let mut words = to.chunks_exact_mut(4);
    let (mut held, mut fill) = (0u64, 0);
    for &code in codes {
        held |= u64::from(code) << fill;
        fill += B;
        if fill >= 32 {
            let word = words.next().expect("32 codes of B bits fill B words");
            word.copy_from_slice(&(held as u32).to_le_bytes());
            held >>= 32;
            fill -= 32;
        }
    }
}

#[inline]
fn unpack_group<const B: usize>(from: &[u8], codes: &mut [u32; GROUP]) {
    let mask = u64::MAX >> (64 - B);
    let mut words = from.chunks_exact(4);
    let (mut held, mut fill) = (0u64, 0);
    for code in codes {
        if fill < B {
            let word = words.next().expect("B words hold 32 codes of B bits");
            held |= u64::from(u32::from_le_bytes([word[0], word[1], word[2], word[3]])) << fill;
            fill += 32;
        }
        *code = (held & mask) as u32;
        held >>= B;
        fill -= B;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_order_of_the_bits_is_the_documented_one() {
        let mut bytes = Vec::new();
        pack(3, &[0b001, 0b011, 0b101], &mut bytes);
        assert_eq!(bytes, [0b0101_1001, 0b1]);
        let mut codes = [0; 3];
        assert!(unpack(3, &bytes, &mut codes));
        assert_eq!(codes, [1, 3, 5]);
        assert!(!unpack(3, &[0b0101_1001, 0b11], &mut codes), "a bit after the last code");
    }

    proptest! {
        #[test]
        fn any_width_and_length_round_trips(bits in 1u8..=32, words in prop::collection::vec(any::<u32>(), 0..200)) {
            let codes: Vec<u32> = words.iter().map(|w| w >> (32 - bits)).collect();
            let mut bytes = vec![7];
            pack(bits, &codes, &mut bytes);
            prop_assert_eq!(bytes.len(), 1 + packed_len(bits, codes.len()));
            let mut back = vec![u32::MAX; codes.len()];
            prop_assert!(unpack(bits, &bytes[1..], &mut back));
            prop_assert_eq!(back, codes.clone());
            // The same as bit by bit.
            for (i, code) in codes.iter().enumerate() {
                for j in 0..usize::from(bits) {
                    let at = i * usize::from(bits) + j;
                    prop_assert_eq!(u32::from(bytes[1 + at / 8] >> (at % 8) & 1), code >> j & 1);
                }
            }
        }
    }
}
