//! Bytes that no encoder made.

use super::*;
use crate::encoding::{DecodeError, Decoder, Values};
use crate::fixed::MAX_FIXED;
use proptest::prelude::*;

/// Decodes and checks that whatever is let through is a vector of the domain.
fn probe<D: Domain>(
    encoding: &Encoding,
    domain: D,
    len: usize,
    bytes: &[u8],
    cut: usize,
) -> Result<(), DecodeError> {
    let mut decoder = Decoder::new(encoding, domain, len).unwrap();
    let mut next = 0;
    let (head, tail) = bytes.split_at(cut.min(bytes.len()));
    for piece in [head, tail] {
        let sink = &mut |start: usize, run: &[D::Item]| {
            assert!(start >= next && start + run.len() <= len);
            next = start + run.len();
            assert!(run.iter().all(|&item| domain.valid(item)));
        };
        if let Err(e) = decoder.push(piece, sink) {
            // As text: NaN is not equal to itself.
            let again = decoder.push(&[], &mut |_, _| panic!("after an error")).unwrap_err();
            assert_eq!(again.to_string(), e.to_string());
            return Err(e);
        }
    }
    decoder.finish()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0u8), Just(0xff)], 0..400),
        len in 0usize..200,
        cut in 0usize..400,
    ) {
        for encoding in dense().into_iter().chain(sparse()) {
            let units = probe(&encoding, units(), len, &bytes, cut);
            let text = |found: &Result<(), DecodeError>| format!("{found:?}");
            let uncut = probe(&encoding, self::units(), len, &bytes, 0);
            prop_assert_eq!(text(&units), text(&uncut), "errors do not depend on cuts");
            let values = probe(&encoding, Values::new(grid()), len, &bytes, cut);
            let fits = encoding.encoded_len(len).admits(bytes.len() as u64);
            prop_assert!(fits || (units.is_err() && values.is_err()));
        }
    }

    #[test]
    fn a_changed_message_is_another_vector_or_none(len in 1usize..5000, seed in any::<u64>(), flips in 1usize..4) {
        let update = update(len, seed);
        for encoding in dense() {
            let mut bytes = encode(&encoding, units(), &update, &Rounding::draw(&mut rng(seed))).unwrap();
            let mut rng = rng(seed);
            for _ in 0..flips {
                let at = rng.random_range(0..bytes.len());
                bytes[at] ^= 1 << rng.random_range(0..8);
            }
            let _ = probe(&encoding, units(), len, &bytes, rng.random_range(0..=bytes.len()));
        }
    }
}

#[test]
fn part_of_a_message_is_no_message_and_nothing_follows_it() {
    let update = update(600, 9);
    for encoding in dense().into_iter().chain(sparse()) {
        let bytes = if encoding.needs_all_coordinates() {
            let mut residual = crate::encoding::residual::Residual::new(grid(), update.len());
            residual.encode(&encoding, &update, None).unwrap()
        } else {
            encode(&encoding, units(), &update, &Rounding::draw(&mut rng(1))).unwrap()
        };
        for end in 0..bytes.len() {
            let e = probe(&encoding, units(), update.len(), &bytes[..end], end / 2).unwrap_err();
            assert!(matches!(e, DecodeError::Truncated { .. }), "{encoding}, {end} bytes: {e}");
        }
        let e = probe(&encoding, units(), update.len(), &[&bytes[..], &[0]].concat(), 7).unwrap_err();
        assert!(matches!(e, DecodeError::TooLong { .. }), "{encoding}: {e}");
    }
}

/// One vector for each way to be wrong, made by hand from the documented formats.
#[test]
fn must_fail() {
    let fixed = Encoding::Fixed { bits: 3 };
    let block = Encoding::Block { bits: 8, block: 16 };
    let top = |values| Encoding::TopK { fraction: 0.5, values };
    let (f32s, bf16s) = (top(SparseValues::F32), top(SparseValues::Bf16));
    let decode = |encoding: &Encoding, len, bytes: &[u8]| decode_all(encoding, units(), len, bytes);
    let whole = |f: f32| f.to_le_bytes();

    // First, that the formats are as documented: 3 and -1 steps of 2^-1; 2 and -127 steps of 0.5; one entry of two values.
    let half = 1 << 15;
    assert_eq!(decode(&fixed, 2, &[0xff, 0xff, 0b01_1111]), Ok(vec![3 * half, -half]));
    assert_eq!(decode(&block, 2, &[0x00, 0x3f, 130, 1]), Ok(vec![2 * half, -127 * half]));
    assert_eq!(decode(&bf16s, 2, &[1, 0x80, 0xbf]), Ok(vec![0, -2 * half]));
    assert_eq!(decode(&Encoding::F32, 1, &whole(1.5)), Ok(vec![3 * half]));

    let nan =
        |index| move |e: &DecodeError| matches!(e, DecodeError::NotFinite { index: i, .. } if *i == index);
    let range =
        |index| move |e: &DecodeError| matches!(e, DecodeError::OutOfRange { index: i, .. } if *i == index);
    let malformed = |e: &DecodeError| matches!(e, DecodeError::Malformed { .. });
    let place = |e: &DecodeError| matches!(e, DecodeError::Position { .. });
    type Says<'a> = Box<dyn Fn(&DecodeError) -> bool + 'a>;
    let cases: Vec<(&str, Encoding, usize, Vec<u8>, Says<'_>)> = vec![
        ("NaN", Encoding::F32, 2, [whole(0.0), whole(f32::NAN)].concat(), Box::new(nan(1))),
        ("infinity", Encoding::F32, 1, whole(f32::INFINITY).to_vec(), Box::new(nan(0))),
        ("beyond the grid", Encoding::F32, 2, [whole(1.0), whole(16_384.0)].concat(), Box::new(range(1))),
        ("bf16 infinity", Encoding::Bf16, 2, vec![0, 0, 0x80, 0xff], Box::new(nan(1))),
        ("too many units", Encoding::Fixed32, 1, (MAX_FIXED + 1).to_le_bytes().to_vec(), Box::new(range(0))),
        ("the least unit", Encoding::Fixed32, 1, i32::MIN.to_le_bytes().to_vec(), Box::new(range(0))),
        ("code zero", fixed, 2, vec![0, 0, 0b00_0111], Box::new(malformed)),
        ("bits behind", fixed, 2, vec![0, 0, 0b0101_1111], Box::new(malformed)),
        ("an exponent of 129", fixed, 1, vec![129, 0, 5], Box::new(malformed)),
        ("an exponent of -150", fixed, 1, vec![0x6a, 0xff, 5], Box::new(malformed)),
        ("3 times 2^14", fixed, 1, vec![14, 0, 7], Box::new(range(0))),
        ("block code zero", block, 2, vec![0, 0x3f, 130, 0], Box::new(malformed)),
        ("a step of NaN", block, 1, vec![0xc0, 0x7f, 130], Box::new(malformed)),
        ("a step below zero", block, 1, vec![0, 0xbf, 130], Box::new(malformed)),
        ("a step of minus zero", block, 1, vec![0, 0x80, 128], Box::new(malformed)),
        ("values without a step", block, 1, vec![0, 0, 129], Box::new(malformed)),
        ("127 times 256", block, 1, vec![0x80, 0x43, 255], Box::new(range(0))),
        ("a position past the end", bf16s, 2, vec![2, 0x80, 0x3f], Box::new(place)),
        ("a later position past the end", bf16s, 4, vec![3, 0, 0, 0, 0, 0], Box::new(place)),
        ("a gap with a leading zero", bf16s, 2, vec![0x81, 0, 0x80, 0x3f], Box::new(place)),
        ("a gap of 2^32", bf16s, 2, vec![0x80, 0x80, 0x80, 0x80, 0x10], Box::new(place)),
        ("a gap without an end", f32s, 2, vec![0x80; 12], Box::new(place)),
        ("a sparse NaN", f32s, 2, [&[1][..], &whole(f32::NAN)].concat(), Box::new(nan(1))),
        ("a sparse value beyond the grid", f32s, 2, [&[1][..], &whole(-1e9)].concat(), Box::new(range(1))),
    ];
    for (what, encoding, len, bytes, says) in cases {
        for cut in 0..=bytes.len() {
            let e = probe(&encoding, units(), len, &bytes, cut).expect_err(what);
            assert!(says(&e), "{what}: {e}");
        }
    }
    // A model may hold what an update may not.
    let far = decode_all(&Encoding::F32, Values::new(grid()), 1, &whole(1e30));
    assert_eq!(far, Ok(vec![1e30]));
    let e = decode_all(&fixed, Values::new(grid()), 1, &[128, 0, 5]).unwrap_err();
    assert!(matches!(e, DecodeError::OutOfRange { index: 0, .. }), "2^128: {e}");
}
