//! Parts of a message are messages of their own.

use super::super::decoder::decode_all;
use super::super::*;
use crate::fixed::Grid;

#[test]
fn a_part_decodes_to_its_values() {
    let grid = Grid::new(16).unwrap();
    let units: Vec<i32> = (0..10_000).map(|i: i32| (i * 7919) % 65_536 - 30_000).collect();
    let kinds = [
        Encoding::Fixed32,
        Encoding::F32,
        Encoding::Bf16,
        Encoding::Fixed { bits: 2 },
        Encoding::Fixed { bits: 7 },
        Encoding::Fixed { bits: 24 },
        Encoding::Block { bits: 8, block: 16 },
        Encoding::Block { bits: 4, block: 4096 },
    ];
    for kind in kinds {
        let rounding =
            rounding::Rounding::within(&kind, grid, &units, u64::MAX >> 32, &mut super::rng(1)).unwrap();
        let mut bytes = vec![];
        let mut encoder = Encoder::new(&kind, Units::new(grid), units.len(), &rounding).unwrap();
        encoder.push(&units, &mut bytes).unwrap();
        encoder.finish(&mut bytes).unwrap();
        let whole = decode_all(&kind, Units::new(grid), units.len(), &bytes).unwrap();
        for range in [0..4096, 4096..8192, 8192..10_000, 0..8192, 0..10_000, 8192..8192] {
            let at = kind.part(range.clone(), units.len()).unwrap();
            let part = &bytes[at.start as usize..at.end as usize];
            let decoded = decode_all(&kind, Units::new(grid), range.len(), part).unwrap();
            assert_eq!(decoded, whole[range], "{kind}");
        }
    }
    let top_k = Encoding::TopK { fraction: 0.1, values: SparseValues::F32 };
    assert_eq!(top_k.part(0..4096, 10_000), None);
}

#[test]
#[should_panic(expected = "no part of a message")]
fn a_part_begins_at_a_run() {
    let _ = Encoding::Bf16.part(5..4096, 10_000);
}
