//! After a delta every client has the bits that it says.

use super::*;
use crate::encoding::delta::{Apply, DeltaEncoding, DeltaError, values_digest};
use proptest::prelude::*;

const EXACT: DeltaEncoding = DeltaEncoding::Exact {};

fn lossy(encoding: Encoding) -> DeltaEncoding {
    DeltaEncoding::Lossy { encoding }
}

/// The delta, and what the server says that clients have then.
fn make(encoding: &DeltaEncoding, old: &[f32], new: &[f32], seed: u64) -> (Vec<u8>, Vec<f32>) {
    let mut bytes = Vec::new();
    let rounding = Rounding::draw(&mut rng(seed));
    let (after, digest) = encoding
        .encode(grid(), old.to_vec(), new, &rounding, &mut |piece| bytes.extend_from_slice(piece))
        .unwrap();
    assert_eq!(digest, values_digest(&after));
    assert!(encoding.encoded_len(old.len()).admits(bytes.len() as u64));
    (bytes, after)
}

fn apply(encoding: &DeltaEncoding, old: &[f32], pieces: &[&[u8]]) -> Result<Vec<f32>, DeltaError> {
    let mut apply = Apply::new(encoding, grid(), old.to_vec())?;
    for piece in pieces {
        apply.push(piece)?;
    }
    apply.finish()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn model(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = rng(seed);
    (0..len).map(|_| (normal(&mut rng) * 0.05) as f32).collect()
}

/// The model after another step of training.
fn trained(model: &[f32], step: f64, seed: u64) -> Vec<f32> {
    let mut rng = rng(seed);
    model.iter().map(|&v| (f64::from(v) + normal(&mut rng) * step) as f32).collect()
}

proptest! {
    #[test]
    fn exact_leads_from_any_bits_to_any_bits(
        pairs in prop::collection::vec((any::<u32>(), any::<u32>(), 0u8..3), 0..400),
        cut in 0usize..3000,
    ) {
        let old: Vec<f32> = pairs.iter().map(|p| f32::from_bits(p.0)).collect();
        let near = |p: &(u32, u32, u8)| match p.2 {
            0 => p.0,
            1 => p.0.wrapping_add(p.1 % 1000),
            _ => p.1,
        };
        let new: Vec<f32> = pairs.iter().map(|p| f32::from_bits(near(p))).collect();
        let (bytes, after) = make(&EXACT, &old, &new, 1);
        prop_assert_eq!(bits(&after), bits(&new));
        let (head, tail) = bytes.split_at(cut.min(bytes.len()));
        prop_assert_eq!(bits(&apply(&EXACT, &old, &[head, tail]).unwrap()), bits(&new));
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(bits(&apply(&EXACT, &old, &single).unwrap()), bits(&new));
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), 0u8..34], 0..600),
        len in 0usize..300,
        cut in 0usize..600,
    ) {
        // A right head, so that the rest is looked at.
        let old = model(len, 1);
        for encoding in [EXACT, lossy(Encoding::Fixed { bits: 5 }), lossy(Encoding::F32)] {
            let head = &make(&encoding, &old, &old, 1).0[..48];
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            prop_assert!(apply(&encoding, &old, &[head, first, second]).is_err());
            prop_assert!(apply(&encoding, &old, &[first, second]).is_err());
        }
    }
}

#[test]
fn every_client_has_the_bits_of_the_server_round_after_round() {
    for encoding in dense() {
        let (mut server, mut client, mut master) = (model(9000, 1), model(9000, 1), model(9000, 1));
        for round in 0..4 {
            master = trained(&master, 1e-3, 100 + round);
            let (bytes, after) = make(&lossy(encoding), &server, &master, round);
            server = after;
            let pieces: Vec<&[u8]> = bytes.chunks(777).collect();
            client = apply(&lossy(encoding), &client, &pieces).unwrap();
            assert_eq!(bits(&client), bits(&server), "{encoding}");
        }
    }
}

/// The reference follows the model: what one delta rounds away is in the next one.
#[test]
fn errors_of_lossy_deltas_do_not_add_up() {
    let encoding = lossy(Encoding::Block { bits: 4, block: 64 });
    let (mut reference, mut master) = (model(5000, 1), model(5000, 1));
    let mut worst = Vec::new();
    for round in 0..40 {
        master = trained(&master, 1e-3, 100 + round);
        reference = make(&encoding, &reference, &master, round).1;
        let distance = |(a, b): (&f32, &f32)| f64::from((a - b).abs());
        worst.push(master.iter().zip(&reference).map(distance).fold(0.0, f64::max));
    }
    // Half a step of differences of at most some five standard deviations: 5e-3/14.
    assert!(worst.iter().all(|&w| w < 5e-4), "{worst:?}");
}

#[test]
fn exact_deltas_are_small_where_little_moved() {
    let old = model(100_000, 1);
    let part = |new: &[f32]| make(&EXACT, &old, new, 1).0.len() as f64 / 400_000.0;
    assert!(part(&old) < 0.003, "nothing moved: {}", part(&old));
    let little = part(&trained(&old, 5e-4, 2));
    assert!((0.6..0.75).contains(&little), "a hundredth of the values' size: {little}");
    let less = part(&trained(&old, 5e-6, 2));
    assert!((0.45..0.55).contains(&less), "a ten-thousandth: {less}");
    let mut tenth = old.clone();
    tenth[..10_000].copy_from_slice(&model(10_000, 3));
    assert!(part(&tenth) < 0.11, "a tenth replaced: {}", part(&tenth));
    let other = part(&model(100_000, 9));
    assert!((0.8..1.003).contains(&other), "another model: {other}");
}

#[test]
fn a_delta_leads_nowhere_else() {
    let (old, new) = (model(1000, 1), model(1000, 2));
    for encoding in [EXACT, lossy(Encoding::Bf16), lossy(Encoding::Fixed { bits: 8 })] {
        let (bytes, _) = make(&encoding, &old, &new, 1);
        let e = apply(&encoding, &new, &[&bytes]).unwrap_err();
        assert!(matches!(e, DeltaError::OtherBase { .. }), "{e}");
        assert!(matches!(apply(&encoding, &old[1..], &[&bytes]), Err(DeltaError::OtherBase { .. })));
        for end in 0..bytes.len() {
            assert!(apply(&encoding, &old, &[&bytes[..end]]).is_err(), "{end} bytes");
        }
        assert_eq!(
            apply(&encoding, &old, &[&bytes, &[0]]),
            Err(DeltaError::Malformed("it goes on after its end"))
        );
        for at in (0..bytes.len()).step_by(7) {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert!(apply(&encoding, &old, &[&changed]).is_err(), "byte {at}");
        }
        let mut failed = Apply::new(&encoding, grid(), new.clone()).unwrap();
        let e = failed.push(&bytes).unwrap_err();
        assert_eq!(failed.push(&bytes), Err(e.clone()));
        assert_eq!(failed.finish(), Err(e));
    }
}

#[test]
fn what_carries_no_difference_is_refused() {
    let top = lossy(sparse()[0]);
    assert!(top.validate().unwrap_err().contains("chooses among all values"));
    assert!(Apply::new(&top, grid(), vec![0.0]).is_err());
    let draw = Rounding::draw(&mut rng(1));
    let encode = |encoding: &DeltaEncoding, old: &[f32], new: &[f32]| {
        encoding.encode(grid(), old.to_vec(), new, &draw, &mut |_| {}).map(|_| ()).unwrap_err()
    };
    assert!(matches!(encode(&EXACT, &[1.0], &[]), EncodeError::WrongLength { found: 0, wanted: 1 }));
    let bf16 = lossy(Encoding::Bf16);
    let e = encode(&bf16, &[1.0, 1.0], &[1.0, f32::NAN]);
    assert!(matches!(e, EncodeError::NotFinite { index: 1, .. }), "{e}");
    let e = encode(&bf16, &[-f32::MAX], &[f32::MAX]);
    assert!(matches!(e, EncodeError::NotFinite { index: 0, .. }), "{e}");
    let read = |text: &str| toml::from_str::<DeltaEncoding>(text);
    assert_eq!(read("kind = \"exact\"").unwrap(), EXACT);
    let text = "kind = \"lossy\"\nencoding = { kind = \"fixed\", bits = 6 }";
    assert_eq!(read(text).unwrap(), lossy(Encoding::Fixed { bits: 6 }));
    for bad in
        ["kind = \"exact\"\nbits = 3", "kind = \"lossy\"", "kind = \"lossy\"\nencoding = { kind = \"zip\" }"]
    {
        assert!(read(bad).is_err(), "{bad}");
    }
}
