//! Every aggregation rule over 32 updates of 1 M values, on one thread and two.
//!
//! `cargo bench -p undertone-core --bench rules`. The floor is what no rule that looks at everything can be under: the
//! same threads read all updates once and add them up with wrapping 32-bit additions. The last column is how many times
//! the floor a rule takes. Updates lie in memory; blocks are copied out of them as a server would read them from files.

use std::hint::black_box;
use std::thread;
use std::time::Instant;
use undertone_core::fixed::Grid;
use undertone_core::rules::bulyan::Bulyan;
use undertone_core::rules::centred_clipping::CentredClipping;
use undertone_core::rules::geometric_median::GeometricMedian;
use undertone_core::rules::krum::{Krum, MultiKrum};
use undertone_core::rules::norm_bounded_mean::NormBoundedMean;
use undertone_core::rules::trimmed_mean::TrimmedMean;
use undertone_core::rules::{MemoryRows, Rows, Rule, Tiling};

const UPDATES: usize = 32;
const VALUES: usize = 1_000_000;
const RUNS: usize = 11;

/// Median, least and greatest milliseconds.
fn milliseconds(mut work: impl FnMut()) -> [f64; 3] {
    work();
    let mut list: Vec<f64> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    list.sort_by(f64::total_cmp);
    [list[RUNS / 2], list[0], list[RUNS - 1]]
}

fn read_all(updates: &[Vec<i32>], threads: usize) {
    thread::scope(|scope| {
        for updates in updates.chunks(updates.len().div_ceil(threads)) {
            scope.spawn(move || {
                for update in updates {
                    black_box(update.iter().fold(0i32, |sum, &unit| sum.wrapping_add(unit)));
                }
            });
        }
    });
}

fn main() {
    let grid = Grid::new(16).expect("in range");
    // Values as of a clipped update: about a thousandth each, different for each client.
    let mut state = 1u64;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 48) as i32 - (1 << 15)
    };
    let updates: Vec<Vec<i32>> = (0..UPDATES).map(|_| (0..VALUES).map(|_| draw() >> 6).collect()).collect();
    let rows = MemoryRows::new(updates.iter().map(|u| (u.clone(), 1)).collect()).expect("alike");
    let huge = updates.iter().map(|u| (u.iter().map(|v| v << 20).collect(), 1)).collect();
    let huge = MemoryRows::new(huge).expect("alike");
    let rules: [(&str, Rule, &dyn Rows); 10] = [
        ("mean", Rule::Mean {}, &rows),
        ("median", Rule::Median {}, &rows),
        ("trimmed mean, beta 0.1", Rule::TrimmedMean(TrimmedMean { beta: 0.1 }), &rows),
        ("krum, f 7", Rule::Krum(Krum { byzantine: 7 }), &rows),
        ("krum, f 7, values at the limit", Rule::Krum(Krum { byzantine: 7 }), &huge),
        ("multi-krum, f 7", Rule::MultiKrum(MultiKrum { byzantine: 7, keep: None }), &rows),
        ("bulyan, f 7", Rule::Bulyan(Bulyan { byzantine: 7 }), &rows),
        ("geometric median, 3 iterations", Rule::GeometricMedian(GeometricMedian::default()), &rows),
        ("norm-bounded mean", Rule::NormBoundedMean(NormBoundedMean { bound: 1.0 }), &rows),
        (
            "centred clipping, 1 iteration",
            Rule::CentredClipping(CentredClipping { radius: 1.0, iterations: 1 }),
            &rows,
        ),
    ];
    println!(
        "{UPDATES} updates of {VALUES} values          threads   median ms      least   greatest  x floor"
    );
    for threads in [1, 2] {
        let floor = milliseconds(|| read_all(black_box(&updates), threads));
        let line = |name: &str, [median, least, greatest]: [f64; 3]| {
            let times = median / floor[0];
            println!("{name:36} {threads:7} {median:11.1} {least:10.1} {greatest:10.1} {times:8.1}");
        };
        line("floor: reading everything", floor);
        for (name, rule, rows) in &rules {
            let tiling = Tiling::new(threads, UPDATES);
            let found = milliseconds(|| {
                black_box(rule.aggregate(*rows, grid, tiling, None).expect("it can be read"));
            });
            line(name, found);
        }
    }
}
