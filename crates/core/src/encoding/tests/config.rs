//! What a job may say about encodings.

use super::*;
use crate::encoding::composition::{Combination, Promise, Surroundings};
use crate::encoding::{Direction, EncodedLen};

fn read(text: &str) -> Result<Encoding, String> {
    toml::from_str(text).map_err(|e| e.message().to_owned())
}

#[test]
fn a_kind_has_its_keys_with_defaults_and_no_other() {
    assert_eq!(Encoding::default(), Encoding::Fixed32);
    assert_eq!(read("kind = \"fixed32\""), Ok(Encoding::Fixed32));
    assert_eq!(read("kind = \"f32\""), Ok(Encoding::F32));
    assert_eq!(read("kind = \"bf16\""), Ok(Encoding::Bf16));
    assert_eq!(read("kind = \"fixed\""), Ok(Encoding::Fixed { bits: 8 }));
    assert_eq!(read("kind = \"block\"\nbits = 4"), Ok(Encoding::Block { bits: 4, block: 64 }));
    let values = SparseValues::Bf16;
    assert_eq!(read("kind = \"top-k\""), Ok(Encoding::TopK { fraction: 0.01, values }));
    let values = SparseValues::F32;
    let text = "kind = \"top-k\"\nfraction = 0.1\nvalues = \"f32\"";
    assert_eq!(read(text), Ok(Encoding::TopK { fraction: 0.1, values }));

    for (text, says) in [
        ("bits = 8", "missing field `kind`"),
        ("kind = \"bf16\"\nbits = 8", "kind \"bf16\" has no key bits; its keys are: none"),
        ("kind = \"fixed\"\nfraction = 0.1", "has no key fraction; its keys are: bits"),
        ("kind = \"fixed32\"\nscale = 1", "unknown field `scale`"),
        ("kind = \"fixed\"\nbits = 1", "must be 2 to 24, not 1"),
        ("kind = \"fixed\"\nbits = 25", "must be 2 to 24, not 25"),
        ("kind = \"block\"\nbits = 5", "must be 8 or 4, not 5"),
        ("kind = \"block\"\nblock = 48", "a power of two from 16 to 4096, not 48"),
        ("kind = \"block\"\nblock = 8192", "a power of two from 16 to 4096, not 8192"),
        ("kind = \"top-k\"\nfraction = 0.0", "above 0 and at most 0.5, not 0"),
        ("kind = \"top-k\"\nfraction = nan", "above 0 and at most 0.5, not NaN"),
        ("kind = \"top-k\"\nfraction = 0.9", "a dense encoding"),
        ("kind = \"zip\"", "unknown variant `zip`"),
    ] {
        let e = read(text).unwrap_err();
        assert!(e.contains(says), "{text}: {e}");
    }
}

#[test]
fn what_is_written_reads_back() {
    for encoding in dense().into_iter().chain(sparse()) {
        assert_eq!(read(&toml::to_string(&encoding).unwrap()), Ok(encoding));
        let json = serde_json::to_string(&encoding).unwrap();
        assert_eq!(serde_json::from_str::<Encoding>(&json).unwrap(), encoding, "{json}");
    }
}

#[test]
fn numbers_that_no_job_has_are_refused_in_code_too() {
    for bad in [
        Encoding::Fixed { bits: 0 },
        Encoding::Fixed { bits: 33 },
        Encoding::Block { bits: 8, block: 0 },
        Encoding::TopK { fraction: -1.0, values: SparseValues::F32 },
    ] {
        assert!(Encoder::new(&bad, units(), 3, &Rounding::toward_zero()).is_err());
        assert!(crate::encoding::Decoder::new(&bad, units(), 3).is_err());
    }
    let whole = sparse()[0];
    assert!(whole.needs_all_coordinates() && !Encoding::Bf16.needs_all_coordinates());
    let refused = Encoder::new(&whole, units(), 3, &Rounding::toward_zero()).err();
    assert!(matches!(refused, Some(EncodeError::NeedsAllCoordinates(_))));
}

#[test]
fn sizes_on_the_wire() {
    let million = |encoding: Encoding| encoding.encoded_len(1_000_000);
    assert_eq!(million(Encoding::Fixed32), EncodedLen::Exact(4_000_000));
    assert_eq!(million(Encoding::Bf16), EncodedLen::Exact(2_000_000));
    // 245 blocks.
    assert_eq!(million(Encoding::Fixed { bits: 8 }), EncodedLen::Exact(1_000_000 + 2 * 245));
    assert_eq!(million(Encoding::Fixed { bits: 5 }), EncodedLen::Exact(625_000 + 2 * 245));
    assert_eq!(million(Encoding::Block { bits: 4, block: 64 }), EncodedLen::Exact(500_000 + 2 * 15_625));
    let top = Encoding::TopK { fraction: 0.01, values: SparseValues::Bf16 };
    assert_eq!(million(top), EncodedLen::AtMost(10_000 * 3 + 7_812 + 61));
    assert!(million(top).admits(30_000) && !million(top).admits(40_000));
    for encoding in dense().into_iter().chain(sparse()) {
        assert_eq!(encoding.encoded_len(0).max(), 0);
    }
}

#[test]
fn what_does_not_go_together_is_said_in_a_sentence() {
    let plain =
        Surroundings { promise: Promise::None, secure_aggregation: false, combination: Combination::Sum };
    let top = sparse()[0];
    for encoding in dense().into_iter().chain(sparse()) {
        assert_eq!(encoding.composes_with(&plain), Ok(()));
        assert_eq!(encoding.composes_with(&Surroundings { promise: Promise::RecordLocal, ..plain }), Ok(()));
        for promise in [Promise::ClientCentral, Promise::ClientLocal] {
            let with = Surroundings { promise, ..plain };
            assert_eq!(encoding.composes_with(&with).is_err(), encoding.needs_all_coordinates());
        }
        let masked = Surroundings { secure_aggregation: true, ..plain };
        assert_eq!(encoding.composes_with(&masked).is_ok(), encoding == Encoding::Fixed32);
        let dense = !encoding.needs_all_coordinates();
        assert_eq!(encoding.carries_models().is_ok(), dense && encoding != Encoding::Fixed32);
        assert!(encoding == Encoding::Fixed32 || encoding.is_lossy(Direction::Up));
        assert!(encoding == Encoding::F32 || encoding.is_lossy(Direction::Down));
    }
    let all = Surroundings {
        promise: Promise::ClientLocal,
        secure_aggregation: true,
        combination: Combination::Distances,
    };
    let reasons = top.composes_with(&all).unwrap_err();
    assert_eq!(reasons.len(), 3);
    assert!(reasons.iter().all(|reason| reason.starts_with("top-k does not go with")), "{reasons:?}");
    assert!(top.composes_with(&Surroundings { combination: Combination::Coordinates, ..plain }).is_err());
}
