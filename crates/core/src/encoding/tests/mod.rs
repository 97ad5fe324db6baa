//! What all encodings promise, checked on all of them.

mod broadcast_parts;
mod broadcasts;
mod chunks;
mod config;
mod malformed;
mod norms;
mod parts;
mod residuals;
mod round_trips;

use super::decoder::decode_all;
use super::domain::Domain;
use super::rounding::Rounding;
use super::{EncodeError, Encoder, Encoding, SparseValues, Units};
use crate::fixed::Grid;
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;

fn grid() -> Grid {
    Grid::new(16).unwrap()
}

fn units() -> Units {
    Units::new(grid())
}

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Every dense kind, fixed with each number of bits.
fn dense() -> Vec<Encoding> {
    let mut all = vec![Encoding::Fixed32, Encoding::F32, Encoding::Bf16];
    all.extend((2..=24).map(|bits| Encoding::Fixed { bits }));
    for bits in [8, 4] {
        all.extend([16, 64, 4096].map(|block| Encoding::Block { bits, block }));
    }
    all
}

fn sparse() -> Vec<Encoding> {
    let kinds = [SparseValues::F32, SparseValues::Bf16];
    kinds
        .into_iter()
        .flat_map(|values| [0.5, 0.01].map(|fraction| Encoding::TopK { fraction, values }))
        .collect()
}

/// Normally distributed, more or less: the sum of twelve uniform numbers.
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0
}

/// An update with values of many sizes, zeros among them.
fn update(len: usize, seed: u64) -> Vec<i32> {
    let mut rng = rng(seed);
    (0..len)
        .map(|_| {
            let size = rng.random_range(0..25);
            (normal(&mut rng) * f64::from(1u32 << size)) as i32
        })
        .collect()
}

fn encode<D: Domain>(
    encoding: &Encoding,
    domain: D,
    items: &[D::Item],
    rounding: &Rounding,
) -> Result<Vec<u8>, EncodeError> {
    let mut encoder = Encoder::new(encoding, domain, items.len(), rounding)?;
    let mut bytes = Vec::new();
    encoder.push(items, &mut bytes)?;
    encoder.finish(&mut bytes)?;
    assert!(encoding.encoded_len(items.len()).admits(bytes.len() as u64), "{encoding}");
    Ok(bytes)
}

/// What arrives.
fn sent<D: Domain>(encoding: &Encoding, domain: D, items: &[D::Item], rounding: &Rounding) -> Vec<D::Item> {
    decode_all(encoding, domain, items.len(), &encode(encoding, domain, items, rounding).unwrap()).unwrap()
}
