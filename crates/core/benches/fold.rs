//! Folding updates into the running sum, beside a plain multiply-add over the same bytes.
//!
//! `cargo bench -p undertone-core --bench fold`. The ceiling is what a C programmer would write without any promise:
//! `sum[i] += weight * update[i]` in f64 over f32, the model cut into one range a thread. It reads 4 bytes of update and
//! reads and writes 8 bytes of sum for each value, as the fold does, which also checks every value, sums exactly and
//! takes a bad update back. Both run in turn; the ratio is the median over the pairs.

use std::hint::black_box;
use std::thread;
use std::time::Instant;
use undertone_core::aggregate::IntegerSum;
use undertone_core::fixed::Grid;

const PAIRS: usize = 41;
const BYTES_PER_VALUE: f64 = 20.0;

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn median(mut list: Vec<f64>) -> f64 {
    list.sort_by(f64::total_cmp);
    list[list.len() / 2]
}

fn plain(sums: &mut [f64], update: &[f32], weight: f64, threads: usize) {
    let each = sums.len().div_ceil(threads);
    let mut parts = sums.chunks_mut(each).zip(update.chunks(each));
    let add = move |(sums, update): (&mut [f64], &[f32])| {
        for (s, &u) in sums.iter_mut().zip(update) {
            *s += weight * f64::from(u);
        }
    };
    let mine = parts.next();
    thread::scope(|scope| {
        parts.for_each(|part| drop(scope.spawn(move || add(part))));
        mine.into_iter().for_each(add);
    });
}

/// One line: median GB/s of the ceiling and of `fold`, and the median ratio.
fn line(what: &str, len: usize, mut ceiling: impl FnMut(), mut fold: impl FnMut()) {
    let (mut above, mut ours, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..=PAIRS {
        let (c, f) = (seconds(&mut ceiling), seconds(&mut fold));
        // The first pair only warms up.
        if pair > 0 {
            above.push(c);
            ours.push(f);
            ratio.push(c / f);
        }
    }
    let rate = |list| len as f64 * BYTES_PER_VALUE / median(list) / 1e9;
    println!("{what:34} {:9.2} {:9.2} {:7.2}", rate(above), rate(ours), median(ratio));
}

fn main() {
    println!("{:34} {:>9} {:>9} {:>7}", "GB/s, 20 bytes a value", "ceiling", "fold", "ratio");
    let grid = Grid::new(16).expect("in range");
    for (name, len) in [("1 M", 1 << 20), ("25 M", 25 << 20)] {
        let values: Vec<f32> = (0..len).map(|i| (i % 4099) as f32 * 1e-3 - 2.0).collect();
        let fixed = grid.encode(&values).expect("in range");
        let mut plain_sum = vec![0f64; len];
        for threads in [1, 2] {
            let mut sum = IntegerSum::zero(grid, len);
            line(
                &format!("{name} values, {threads} threads, i32"),
                len,
                || plain(black_box(&mut plain_sum), &values, 3.0, threads),
                || sum.fold_parallel(black_box(fixed.units()), 3, threads).expect("in range"),
            );
            let mut sum = IntegerSum::zero(grid, len);
            line(
                &format!("{name} values, {threads} threads, f32"),
                len,
                || plain(black_box(&mut plain_sum), &values, 3.0, threads),
                || sum.fold_values(black_box(&values), 3, threads).expect("in range"),
            );
        }
    }
}
