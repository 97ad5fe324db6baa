//! The order of the rows, the number of threads and the size of the blocks change no bit of any rule.

use super::*;
use crate::fixed::MAX_FIXED;
use crate::rules::fednova::{self, LocalSolver};
use crate::rules::q_fedavg::QFedAvg;

fn bits(aggregate: &Aggregate) -> Vec<u64> {
    match aggregate {
        Aggregate::Exact { units, denominator } => {
            units.iter().map(|&u| u as u64).chain([*denominator]).collect()
        }
        Aggregate::Real { units } => units.iter().map(|u| u.to_bits()).collect(),
    }
}

/// A row with its weight, its local steps and its loss.
type Client = (Vec<i32>, u32, u32, f64);

fn everything(clients: &[Client], tiling: Tiling, centre: &[f64]) -> Vec<Vec<u64>> {
    let rows = MemoryRows::new(clients.iter().map(|c| (c.0.clone(), c.1)).collect()).unwrap();
    let steps: Vec<u32> = clients.iter().map(|c| c.2).collect();
    let losses: Vec<f64> = clients.iter().map(|c| c.3).collect();
    let mut found: Vec<Aggregate> = every_rule()
        .iter()
        .map(|rule| rule.aggregate(&rows, grid(), tiling, Some(centre)).unwrap())
        .collect();
    found.push(fednova::aggregate(&rows, tiling, &LocalSolver::Sgd {}, &steps).unwrap());
    let fair = QFedAvg { q: 0.7, lipschitz: 10.0 };
    found.push(fair.aggregate(&rows, grid(), tiling, &losses).unwrap());
    found.iter().map(bits).collect()
}

#[test]
fn order_threads_and_blocks_change_no_bit() {
    for (seed, most) in [(1, 1), (2, 300), (3, 40_000), (4, 1 << 24), (5, MAX_FIXED)] {
        let mut draw = Draw(seed);
        let mut clients: Vec<Client> = updates(11, 1300, most, seed)
            .into_iter()
            .map(|update| {
                (update, 1 + draw.next() % 1000, 1 + draw.next() % 50, f64::from(draw.next() % 1000) / 7.0)
            })
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
