//! Where streams are cut changes nothing.

use super::*;
use crate::encoding::residual::Residual;
use crate::encoding::{Decoder, Values};
use proptest::prelude::*;

/// Lengths around the borders of blocks and runs.
fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..300, 4090usize..4105, 8185usize..8200]
}

/// Pieces of random sizes, empty ones among them.
fn pieces<'a, T>(mut all: &'a [T], rng: &mut ChaCha8Rng) -> Vec<&'a [T]> {
    let mut pieces = Vec::new();
    while !all.is_empty() {
        let most = [2, 30, 5000, 20_000][rng.random_range(0..4)];
        let (piece, rest) = all.split_at(rng.random_range(0..most).min(all.len()));
        pieces.push(piece);
        all = rest;
    }
    pieces
}

fn check<D: Domain>(encoding: &Encoding, domain: D, items: &[D::Item], seed: u64) {
    let rounding = Rounding::draw(&mut rng(seed));
    let whole = encode(encoding, domain, items, &rounding).unwrap();
    let mut rng = rng(seed);
    let mut encoder = Encoder::new(encoding, domain, items.len(), &rounding).unwrap();
    let mut bytes = Vec::new();
    for piece in pieces(items, &mut rng) {
        encoder.push(piece, &mut bytes).unwrap();
    }
    encoder.finish(&mut bytes).unwrap();
    assert!(bytes == whole, "{encoding}: the encoder's pieces make other bytes");
    check_decoder(encoding, domain, items.len(), &bytes, &mut rng);
}

fn check_decoder<D: Domain>(encoding: &Encoding, domain: D, len: usize, bytes: &[u8], rng: &mut ChaCha8Rng) {
    let wanted = decode_all(encoding, domain, len, bytes).unwrap();
    let mut decoder = Decoder::new(encoding, domain, len).unwrap();
    let mut got = vec![D::Item::default(); len];
    let mut next = 0;
    for piece in pieces(bytes, rng) {
        let sink = &mut |start: usize, run: &[D::Item]| {
            assert!(start >= next, "runs are in order");
            next = start + run.len();
            got[start..next].copy_from_slice(run);
        };
        decoder.push(piece, sink).unwrap();
    }
    decoder.finish().unwrap();
    assert!(got == wanted, "{encoding}: the decoder's pieces make other values");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn any_cuts_give_the_same(len in lengths(), seed in any::<u64>()) {
        let update = update(len, seed);
        let values: Vec<f32> = update.iter().map(|&u| u as f32 / 65_536.0).collect();
        for encoding in dense() {
            check(&encoding, units(), &update, seed);
            check(&encoding, Values::new(grid()), &values, seed);
        }
        for encoding in sparse() {
            let message = Residual::new(grid(), len).encode(&encoding, &update, None).unwrap();
            prop_assert!(encoding.encoded_len(len).admits(message.len() as u64));
            check_decoder(&encoding, units(), len, &message, &mut rng(seed));
        }
    }
}

/// What a stream holds does not grow with the vector.
#[test]
fn bytes_come_out_as_values_go_in() {
    for encoding in dense() {
        let mut encoder = Encoder::new(&encoding, units(), 100_000, &Rounding::draw(&mut rng(1))).unwrap();
        let mut bytes = Vec::new();
        let mut total = 0;
        for piece in update(100_000, 5).chunks(10_000) {
            encoder.push(piece, &mut bytes).unwrap();
            total += 10_000;
            let held = encoding.encoded_len(total).max() - bytes.len() as u64;
            assert!(held <= encoding.encoded_len(4096).max(), "{encoding}: {held}");
        }
        encoder.finish(&mut bytes).unwrap();
    }
}
