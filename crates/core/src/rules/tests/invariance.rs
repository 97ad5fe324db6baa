//! The order of the rows, the number of threads and the size of the blocks change no bit of any rule.

use super::*;
use crate::fixed::MAX_FIXED;

fn bits(aggregate: &Aggregate) -> Vec<u64> {
    match aggregate {
        Aggregate::Exact { units, denominator } => {
            units.iter().map(|&u| u as u64).chain([*denominator]).collect()
        }
        Aggregate::Real { units } => units.iter().map(|u| u.to_bits()).collect(),
    }
}

/// A row with its weight.
type Client = (Vec<i32>, u32);

fn everything(clients: &[Client], tiling: Tiling, centre: &[f64]) -> Vec<Vec<u64>> {
    let rows = MemoryRows::new(clients.to_vec()).unwrap();
    every_rule()
        .iter()
        .map(|rule| bits(&rule.aggregate(&rows, grid(), tiling, Some(centre)).unwrap()))
        .collect()
}

#[test]
fn order_threads_and_blocks_change_no_bit() {
    for (seed, most) in [(1, 1), (2, 300), (3, 40_000), (4, 1 << 24), (5, MAX_FIXED)] {
        let mut draw = Draw(seed);
        let mut clients: Vec<Client> = updates(11, 1300, most, seed)
            .into_iter()
            .map(|update| (update, 1 + draw.next() % 1000))
            .collect();
        // Two of a kind, two that are each other's nearest, and one far away.
        clients[5].0 = clients[2].0.clone();
        clients[8].0 = clients[9].0.clone();
        clients[8].0[1299] ^= 1;
        clients[10].0.iter_mut().for_each(|u| *u = MAX_FIXED);
        let centre: Vec<f64> = (0..1300).map(|_| draw.normal()).collect();
        let wanted = everything(&clients, Tiling::with_block(1, 2048), &centre);
        for (threads, block) in [(1, 256), (2, 256), (3, 512), (7, 1024), (64, 1)] {
            let by = draw.next() as usize % clients.len();
            clients.rotate_left(by);
            clients.swap(0, 4);
            let found = everything(&clients, Tiling::with_block(threads, block), &centre);
            for (nth, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
                assert!(
                    found == wanted,
                    "rule {nth}, magnitude {most}, {threads} threads, blocks of {block}"
                );
            }
        }
    }
}

#[test]
fn memory_is_bounded_whatever_the_cohort() {
    for rows in [0, 1, 2, 31, 32, 33, 1000, 2048, 65_536] {
        let block = Tiling::new(2, rows).block();
        assert!((256..=16_384).contains(&block) && block.is_multiple_of(256));
        assert!(4 * rows * block <= 64 << 20, "{rows} rows");
        assert!(rows > 2048 || 4 * rows * block <= 2 << 20, "{rows} rows");
    }
}
