//! Samples per second and core of each mechanism, beside the rate of the generator that feeds them.
//!
//! `cargo bench -p undertone-privacy --bench noise`. Plain timing, the median of several runs.

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng as _, SeedableRng as _};
use std::hint::black_box;
use std::time::Instant;
use undertone_core::fixed::Grid;
use undertone_core::trainer::{RecordMechanism, RecordPrivacy};
use undertone_privacy::blt::{BltMechanism, BltNoise, optimise};
use undertone_privacy::contract::{Noise, PrivacyContract};
use undertone_privacy::discrete_gaussian::DiscreteGaussian;
use undertone_privacy::discrete_laplace::DiscreteLaplace;
use undertone_privacy::dp_sgd::GradientMechanism;
use undertone_privacy::fast_gaussian::FastGaussian;
use undertone_privacy::noise::NoiseRng;
use undertone_privacy::participation::Participation;
use undertone_privacy::resolve::{Schedule, Terms};
use undertone_privacy::sensitivity::{Adjacency, L2Sensitivity};

/// Runs are short and many, so that the median is of runs that no other program interrupted.
const RUNS: usize = 151;

/// Million items a second: the median over [`RUNS`] of `work`, which handles `items` each time.
fn rate(items: usize, mut work: impl FnMut()) -> f64 {
    work();
    let mut rates: Vec<f64> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            work();
            items as f64 / start.elapsed().as_secs_f64() / 1e6
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[RUNS / 2]
}

fn main() {
    let mut rng = NoiseRng::from_os().expect("the operating system gives randomness");
    let n = 1 << 14;
    let mut units = vec![0i64; n];
    let mut chacha = ChaCha20Rng::from_seed([7; 32]);
    let mut bytes = vec![0u8; 8 * n];
    let filled = rate(n, || chacha.fill_bytes(black_box(&mut bytes)));
    println!("chacha20, filling                  {filled:8.1} M words/s ({:.2} GB/s)", filled * 8e-3);
    let drawn = rate(n, || {
        for _ in 0..n {
            black_box(chacha.next_u64());
        }
    });
    println!("chacha20, word by word             {drawn:8.1} M words/s");
    for sigma in [4.0, 16.0, 64.0, 256.0, 1000.0, 65_536.0] {
        let noise = DiscreteGaussian::new(sigma).expect("in range");
        let found = rate(n, || noise.add_to(black_box(&mut units), &mut rng));
        println!("discrete gaussian, sigma {sigma:>6}   {found:8.1} M samples/s");
    }
    for scale in [1.0, 50.0] {
        let noise = DiscreteLaplace::new(scale).expect("in range");
        let found = rate(n, || noise.add_to(black_box(&mut units), &mut rng));
        println!("discrete laplace, scale {scale:>6}     {found:8.1} M samples/s");
    }
    let contract = PrivacyContract::client_central(1.0, Noise::Multiplier(1.0), 1e-6, 50.0).expect("valid");
    let resolved = contract.resolve(Schedule { rounds: 1, local_steps: 1 }).expect("valid");
    let Terms::ClientCentral(terms) = resolved.terms() else { unreachable!("the contract is central") };
    let fast = FastGaussian::for_clipped_sum(terms, 1.0, Grid::new(16).expect("in range")).expect("in range");
    let found = rate(n, || fast.add_to(black_box(&mut units), &mut rng));
    println!("fast gaussian, sigma {:>6.0}        {found:8.1} M samples/s", fast.sigma());

    let record = RecordPrivacy {
        clip_norm: 1.0,
        noise_multiplier: 1.0,
        sampling_rate: 0.1,
        expected_batch: 256.0,
        mechanism: RecordMechanism::FastGaussian,
    };
    let mechanism = GradientMechanism::new(&record).expect("valid");
    let clipping = mechanism.float_clipping().expect("sums are floating-point");
    let found = rate(n, || {
        let mut sum = mechanism.empty_sum(n);
        sum.add_clipped_sum(&clipping, vec![0.5; n]);
        black_box(sum.noised(&mut rng).into_mean());
    });
    println!("a step's noise, rounded and scaled {found:8.1} M samples/s");

    let participation = Participation::new(4, 256).expect("valid");
    for buffers in [1, 2, 4] {
        let start = Instant::now();
        let parameters = optimise(buffers, 1024, participation).expect("in range");
        let took = start.elapsed().as_secs_f64() * 1e3;
        let product = parameters.sensitivity(1024, participation) * parameters.prefix_error(1024);
        let sensitivity =
            L2Sensitivity::of_clipped(1.0, Grid::new(16).expect("in range"), Adjacency::AddRemove);
        let mechanism =
            BltMechanism::new(parameters, 1024, participation, 1.0, sensitivity.expect("suits the grid"), n)
                .expect("in range");
        let mut noise = Some(BltNoise::start(mechanism));
        let found = rate(n, || {
            let state = noise.take().expect("left by the round before");
            noise = Some(state.add_to(black_box(&mut units), &mut rng).expect("rounds are left"));
        });
        println!(
            "blt, {buffers} buffers                     {found:8.1} M samples/s   optimised for 1024 rounds in {took:.0} ms, \
             sens x rmse {product:.4}"
        );
    }
}
