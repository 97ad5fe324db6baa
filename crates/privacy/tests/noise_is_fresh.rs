//! Noise is independent across chunks, rounds, threads and restarts, and never the same twice.

use undertone_privacy::discrete_gaussian::DiscreteGaussian;
use undertone_privacy::noise::NoiseRng;

const SIGMA: f64 = 20.0;
const LEN: usize = 100_000;

fn draw(rng: &mut NoiseRng) -> Vec<i64> {
    let mut units = vec![0; LEN];
    DiscreteGaussian::new(SIGMA).unwrap().add_to(&mut units, rng);
    units
}

/// Asserts that two streams have no correlation at lags -3 to 3 and share no run of eight values.
fn assert_independent(a: &[i64], b: &[i64], what: &str) {
    for lag in 0..4 {
        for (x, y) in [(&a[lag..], b), (a, &b[lag..])] {
            let products: Vec<f64> = x.iter().zip(y).map(|(x, y)| (x * y) as f64).collect();
            let correlation = products.iter().sum::<f64>() / (products.len() as f64 * SIGMA * SIGMA);
            // One standard deviation is 1/√n; seven are beyond 1e-11.
            assert!(
                correlation.abs() < 7.0 / (products.len() as f64).sqrt(),
                "{what}, lag {lag}: {correlation}"
            );
        }
    }
    let runs: std::collections::HashSet<&[i64]> = a.windows(8).collect();
    assert!(!b.windows(8).any(|run| runs.contains(run)), "{what}: a run of noise came up again");
}

#[test]
fn rounds_of_one_generator_are_independent() {
    let mut rng = NoiseRng::from_os().unwrap();
    let rounds: Vec<_> = (0..4).map(|_| draw(&mut rng)).collect();
    for (i, a) in rounds.iter().enumerate() {
        for b in &rounds[..i] {
            assert_independent(a, b, "rounds");
        }
    }
}

#[test]
fn chunks_of_one_vector_are_independent() {
    let mut rng = NoiseRng::from_os().unwrap();
    let all = draw(&mut rng);
    // Lengths around those of the generator's blocks and buffer.
    for chunk in [8, 16, 64, 128, 1000] {
        let every_other = |first: usize| -> Vec<i64> {
            all.chunks_exact(chunk).skip(first).step_by(2).flatten().copied().collect()
        };
        let (even, odd) = (every_other(0), every_other(1));
        let len = even.len().min(odd.len());
        assert_independent(&even[..len], &odd[..len], "chunks");
    }
}

#[test]
fn threads_and_restarts_are_independent() {
    // A restart is a new generator: nothing of the old one is kept, on disk or elsewhere.
    let threads: Vec<_> =
        (0..4).map(|_| std::thread::spawn(|| draw(&mut NoiseRng::from_os().unwrap()))).collect();
    let mut streams: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    streams.push(draw(&mut NoiseRng::from_os().unwrap()));
    streams.push(draw(&mut NoiseRng::from_os().unwrap()));
    for (i, a) in streams.iter().enumerate() {
        for b in &streams[..i] {
            assert_independent(a, b, "generators");
        }
    }
}
