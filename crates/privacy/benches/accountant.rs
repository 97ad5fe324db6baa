//! How long the accountants take: `cargo bench -p undertone-privacy --bench accountant`.
//!
//! Prints the median of some runs of each query and calibration, with the interval that it found.

use std::hint::black_box;
use std::time::{Duration, Instant};
use undertone_privacy::pld::calibrate::least_noise_multiplier;
use undertone_privacy::pld::{Adjacency, Composition, Mechanism};
use undertone_privacy::rdp::RdpCurve;

const RUNS: usize = 9;

/// z, q, uses, δ.
const QUERIES: &[(f64, f64, u64, f64)] = &[
    (1.0, 0.01, 1, 1e-5),
    (1.0, 0.01, 1000, 1e-5),
    (1.0, 0.01, 1000, 1e-12),
    (0.8, 0.001, 10_000, 1e-6),
    (0.5, 0.0001, 2000, 1e-6),
    (2.0, 0.1, 500, 1e-6),
    (1.1, 256.0 / 60_000.0, 14_062, 1e-5),
    (1.3, 0.01, 100_000, 1e-6),
    (1.0, 0.01, 1_000_000, 1e-6),
    (5.0, 1.0, 100, 1e-6),
    // Rare participations with large losses, and ever more uses.
    (1.0, 0.001, 10_000, 1e-3),
    (0.8, 0.001, 100_000, 1e-6),
    (0.5, 0.000_01, 1000, 1e-6),
    (0.5, 0.000_01, 1_000_000, 1e-10),
    (20.0, 0.5, 1_000_000, 1e-3),
    (1.0, 0.001, 10_000_000, 1e-10),
];

/// ε, q, uses, δ.
const CALIBRATIONS: &[(f64, f64, u64, f64)] =
    &[(2.0, 0.01, 1000, 1e-5), (2.0, 0.001, 1500, 1e-6), (8.0, 0.25, 40, 1e-3), (3.0, 0.01, 100_000, 1e-6)];

fn main() {
    println!(
        "{:>8} {:>9} {:>8} {:>6}  {:>10} {:>10} {:>9}  {:>9} {:>9} {:>9}",
        "z", "q", "uses", "δ", "ε from", "ε to", "RDP", "upper", "interval", "RDP"
    );
    let (mut slowest_upper, mut slowest_both): (f64, f64) = (0.0, 0.0);
    for &(z, q, uses, delta) in QUERIES {
        let mechanism = Mechanism::poisson_gaussian(z, q).expect("in range");
        let composition = Composition::new(Adjacency::AddRemove).add(mechanism, uses).expect("in range");
        let epsilon = composition.epsilon(delta).expect("in range");
        let renyi = RdpCurve::new(z, q).expect("in range").epsilon(uses, delta);
        let upper = median(|| composition.epsilon_upper(delta));
        let both = median(|| composition.epsilon(delta));
        (slowest_upper, slowest_both) = (slowest_upper.max(upper), slowest_both.max(both));
        let rdp = median(|| RdpCurve::new(z, q).map(|c| c.epsilon(uses, delta)));
        println!(
            "{z:>8} {q:>9.6} {uses:>8} {delta:>6.0e}  {:>10.6} {:>10.6} {renyi:>9.4}  {:>6.1} ms {:>6.1} ms {:>6.1} ms",
            epsilon.lower, epsilon.upper, upper, both, rdp
        );
    }
    println!("slowest query: {slowest_upper:.1} ms, with both bounds {slowest_both:.1} ms");
    println!("{:>8} {:>9} {:>8} {:>6}  {:>10}  {:>9}", "ε", "q", "uses", "δ", "z", "calibrate");
    for &(epsilon, q, uses, delta) in CALIBRATIONS {
        let find = || least_noise_multiplier(epsilon, delta, q, uses, Adjacency::AddRemove);
        let z = find().expect("in range");
        let time = median(find);
        println!("{epsilon:>8} {q:>9.6} {uses:>8} {delta:>6.0e}  {z:>10.6}  {time:>6.1} ms");
    }
}

/// The median of the runs, in milliseconds.
fn median<T>(run: impl Fn() -> T) -> f64 {
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            black_box(run());
            start.elapsed()
        })
        .collect();
    times.sort();
    times[RUNS / 2].as_secs_f64() * 1e3
}
