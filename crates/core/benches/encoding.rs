//! GB a second of each encoding (of 4-byte values, one thread) beside a copy of the same memory, and its bytes on the
//! wire.
//!
//! `cargo bench -p undertone-core --bench encoding`. Plain timing, 1 M values, the fastest of many runs: the
//! one that other programs disturbed least. Updates are
//! normally distributed with a standard deviation of 2000 units; models with one of 0.05.

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use std::hint::black_box;
use std::time::Instant;
use undertone_core::digest::Digest;
use undertone_core::encoding::broadcast::{Broadcaster, Downlink, Pieces};
use undertone_core::encoding::delta::DeltaEncoding;
use undertone_core::encoding::domain::Domain;
use undertone_core::encoding::rebuild::{Rebuild, Sink};
use undertone_core::encoding::residual::Residual;
use undertone_core::encoding::rounding::Rounding;
use undertone_core::encoding::{Decoder, Encoder, Encoding, SparseValues, Units, Values};
use undertone_core::fixed::Grid;
use undertone_core::layout::{ModelLayout, TensorSpec};

const VALUES: usize = 1_000_000;
/// What a client hands over at once.
const CHUNK: usize = 65_536;
const RUNS: usize = 101;

/// GB a second of the vector's own bytes: the fastest of [`RUNS`].
fn rate(mut work: impl FnMut()) -> f64 {
    work();
    let timed = |_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    let fastest = (0..RUNS).map(timed).fold(f64::INFINITY, f64::min);
    4.0 * VALUES as f64 / fastest / 1e9
}

fn encode<D: Domain>(
    encoding: &Encoding,
    domain: D,
    items: &[D::Item],
    rounding: &Rounding,
    out: &mut Vec<u8>,
) {
    out.clear();
    let mut encoder = Encoder::new(encoding, domain, items.len(), rounding).expect("valid");
    for chunk in items.chunks(CHUNK) {
        encoder.push(chunk, out).expect("in range");
    }
    encoder.finish(out).expect("whole");
}

fn decode<D: Domain>(encoding: &Encoding, domain: D, bytes: &[u8], out: &mut [D::Item]) {
    let mut decoder = Decoder::new(encoding, domain, out.len()).expect("valid");
    for chunk in bytes.chunks(256 << 10) {
        let sink = &mut |start: usize, run: &[D::Item]| out[start..start + run.len()].copy_from_slice(run);
        decoder.push(chunk, sink).expect("well formed");
    }
    decoder.finish().expect("whole");
}

fn line(name: &str, encode: f64, decode: f64, bytes: usize) {
    println!("{name:<38} {encode:6.2} GB/s {decode:6.2} GB/s {bytes:>9} bytes");
}

fn main() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut normal = || (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
    let update: Vec<i32> = (0..VALUES).map(|_| (normal() * 2000.0) as i32).collect();
    let model: Vec<f32> = (0..VALUES).map(|_| (normal() * 0.05) as f32).collect();
    let next: Vec<f32> = model.iter().map(|v| v + (normal() * 5e-4) as f32).collect();
    let grid = Grid::new(16).expect("in range");
    let rounding = Rounding::draw(&mut ChaCha8Rng::seed_from_u64(2));

    let mut copy = vec![0i32; VALUES];
    let copied = rate(|| black_box(&mut copy).copy_from_slice(black_box(&update)));
    println!("{VALUES} values                           encode      decode");
    line("memory copy", copied, copied, 4 * VALUES);

    let dense = [
        Encoding::Fixed32,
        Encoding::F32,
        Encoding::Bf16,
        Encoding::Fixed { bits: 16 },
        Encoding::Fixed { bits: 12 },
        Encoding::Fixed { bits: 8 },
        Encoding::Fixed { bits: 5 },
        Encoding::Fixed { bits: 4 },
        Encoding::Fixed { bits: 2 },
        Encoding::Block { bits: 8, block: 64 },
        Encoding::Block { bits: 4, block: 64 },
    ];
    let mut bytes = Vec::with_capacity(4 * VALUES);
    for encoding in &dense {
        let encoded = rate(|| encode(encoding, Units::new(grid), black_box(&update), &rounding, &mut bytes));
        let mut out = vec![0i32; VALUES];
        let decoded = rate(|| decode(encoding, Units::new(grid), black_box(&bytes), &mut out));
        line(&format!("update, {encoding}"), encoded, decoded, bytes.len());
    }
    for (fraction, values) in
        [(0.01, SparseValues::Bf16), (0.1, SparseValues::Bf16), (0.1, SparseValues::F32)]
    {
        let encoding = Encoding::TopK { fraction, values };
        let mut residual = Residual::new(grid, VALUES);
        let encoded = rate(|| {
            residual = Residual::new(grid, VALUES);
            bytes = residual.encode(&encoding, black_box(&update), None).expect("in range");
        });
        let mut out = vec![0i32; VALUES];
        let decoded = rate(|| decode(&encoding, Units::new(grid), black_box(&bytes), &mut out));
        line(&format!("update, {encoding}"), encoded, decoded, bytes.len());
    }
    for encoding in &dense {
        let encoded = rate(|| encode(encoding, Values::new(grid), black_box(&model), &rounding, &mut bytes));
        let mut out = vec![0f32; VALUES];
        let decoded = rate(|| decode(encoding, Values::new(grid), black_box(&bytes), &mut out));
        line(&format!("model, {encoding}"), encoded, decoded, bytes.len());
    }
    let deltas = [
        Downlink { models: None, deltas: Some(DeltaEncoding::Exact) },
        Downlink { models: Some(Encoding::Bf16), deltas: Some(DeltaEncoding::Exact) },
        Downlink {
            models: None,
            deltas: Some(DeltaEncoding::Lossy { encoding: Encoding::Block { bits: 8, block: 64 } }),
        },
    ];
    let (owner, seed) = (Digest::of(b"job"), Digest::of(b"model"));
    let layout = ModelLayout::new(vec![TensorSpec { name: "weights".into(), shape: vec![VALUES] }]);
    let part = layout.expect("valid").whole();
    for down in deltas {
        let base = version(down, grid, &model);
        let mut out = Pieces::default();
        let encoded = rate(|| {
            out.whole.clear();
            out.delta.clear();
            let made = Broadcaster::new(down, grid, &part, owner, seed, true, &mut out);
            let mut made = made.expect("valid");
            made.push(black_box(&next), &base, &mut out).expect("finite");
            black_box(made.finish().expect("whole"));
        });
        let applied = rate(|| {
            let mut rebuild = Rebuild::delta(down, grid, &part).expect("valid");
            rebuild.push(black_box(&out.delta), &mut Base(&base)).expect("well formed");
            black_box(rebuild.finish().expect("whole"));
        });
        let models = down.models.map_or("f32".into(), |m| m.to_string());
        let name = format!("version and its delta, {models}, {}", down.deltas.expect("it has"));
        line(&name, encoded, applied, out.delta.len());
    }

    // What the search for a rounding within the bound costs on top, for an update as long as its bound.
    let norm = update.iter().map(|&u| f64::from(u) * f64::from(u)).sum::<f64>().sqrt().ceil() as u64;
    for bits in [2, 4, 8] {
        let encoding = Encoding::Fixed { bits };
        let within = || Rounding::within(&encoding, grid, &update, norm, &mut ChaCha8Rng::seed_from_u64(3));
        let found = within().expect("in range");
        let searched = rate(|| drop(black_box(within())));
        println!(
            "search within the norm bound, {bits} bits      {searched:6.2} GB/s, shrunk by {:.5}",
            found.shrink()
        );
    }
}

/// What clients hold of a model.
fn version(down: Downlink, grid: Grid, model: &[f32]) -> Vec<f32> {
    match down.models {
        Some(encoding) => {
            let mut bytes = Vec::new();
            let rounding = Rounding::of(Digest::of(b"model"));
            encode(&encoding, Values::new(grid), model, &rounding, &mut bytes);
            let mut out = vec![0f32; VALUES];
            decode(&encoding, Values::new(grid), &bytes, &mut out);
            out
        }
        None => model.to_vec(),
    }
}

/// A base in memory, and nowhere to put the version.
struct Base<'a>(&'a [f32]);

impl Sink for Base<'_> {
    fn held(&mut self, run: &mut [f32]) -> std::io::Result<()> {
        let (own, rest) = self.0.split_at(run.len());
        run.copy_from_slice(own);
        self.0 = rest;
        Ok(())
    }

    fn version(&mut self, run: &[f32]) -> std::io::Result<()> {
        black_box(run);
        Ok(())
    }
}
