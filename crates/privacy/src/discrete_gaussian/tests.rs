//! Conformance of the sampler with the exact probabilities.

use super::*;
use crate::conformance::assert_conforms;
use proptest::prelude::*;

/// χ², moments, tails, and the variance to 0.5 %.
fn conforms(sigma2: f64) {
    let noise = DiscreteGaussian::new(sigma2.sqrt()).unwrap();
    assert_eq!(noise.sigma(), sigma2.sqrt());
    let mut rng = NoiseRng::seeded_for_tests(sigma2.to_bits());
    let mut draws = vec![0; 2_000_000];
    noise.add_to(&mut draws, &mut rng);
    let weight = |k: i64| libm::exp(-((k * k) as f64) / (2.0 * sigma2));
    assert_conforms(draws.iter().copied(), weight, sigma2.sqrt());

    let reach = (20.0 * sigma2.sqrt()) as i64 + 20;
    let sum_of = |f: &dyn Fn(i64) -> f64| (-reach..=reach).map(|k| f(k) * weight(k)).sum::<f64>();
    let total = sum_of(&|_| 1.0);
    let (n, variance) = (draws.len() as f64, sum_of(&|k| (k * k) as f64) / total);
    let found = draws.iter().map(|&k| (k * k) as f64).sum::<f64>() / n;
    assert!((found / variance - 1.0).abs() < 0.005, "σ²={sigma2}: variance {found} not {variance}");
    for deviations in [2.0, 3.0, 4.0] {
        let is_far = |k: i64| k.abs() as f64 > deviations * sigma2.sqrt();
        let tail = sum_of(&|k| f64::from(u8::from(is_far(k)))) / total;
        let far = draws.iter().filter(|&&k| is_far(k)).count() as f64;
        assert!(
            (far - n * tail).abs() < 5.0 * (n * tail).sqrt() + 3.0,
            "{far} beyond {deviations}σ, not {}",
            n * tail
        );
    }
}

#[test]
fn draws_conform_at_variance_a_quarter() {
    conforms(0.25);
}

#[test]
fn draws_conform_at_variance_1() {
    conforms(1.0);
}

#[test]
fn draws_conform_at_variance_9() {
    conforms(9.0);
}

#[test]
fn draws_conform_at_variance_1024() {
    conforms(1024.0);
}

/// A single wrong weight of the envelope must not pass: the test has the power to see it.
#[test]
#[should_panic(expected = "χ²")]
fn conformance_notices_a_sigma_that_is_one_percent_off() {
    let noise = DiscreteGaussian::new(3.03).unwrap();
    let mut rng = NoiseRng::seeded_for_tests(1);
    let draws = (0..400_000).map(|_| noise.sample(&mut rng));
    assert_conforms(draws, |k| libm::exp(-((k * k) as f64) / 18.0), 3.0);
}

#[test]
fn the_envelope_covers_the_gaussian() {
    let mut rng = NoiseRng::seeded_for_tests(7);
    let mut weight = 0;
    for bits in 0..1u64 << 16 {
        let level = Level::of(bits, &mut rng).unwrap();
        weight += u64::from(level.k < 5);
        assert_eq!(level.odds().numerator as f64 / 2f64.powi(level.odds().shift as i32), level.envelope);
    }
    assert_eq!((weight, WEIGHTS.iter().sum::<u64>()), (65_534, 65_534));
    for k in 0..LEVELS {
        let level = match usize::try_from(k).ok().filter(|&k| k < 5) {
            Some(k) => Level::of(WEIGHTS[..k].iter().sum(), &mut rng).unwrap(),
            None => Level::in_tail(k - 5).unwrap(),
        };
        assert_eq!(level.k, u64::from(k));
        let needed = libm::exp(-f64::from(k * k) / 2.0);
        assert!(level.envelope >= needed * (1.0 + 1e-12), "level {k}");
    }
    assert!(Level::in_tail(LEVELS - 5).is_none());
}

/// The whole sampler on the integers alone, for the distribution does not depend on the filter.
#[test]
fn draws_without_the_filter_are_the_same_draws() {
    for sigma in [0.5, 3.0, 700.0] {
        let noise = DiscreteGaussian::new(sigma).unwrap();
        for seed in 0..200 {
            let (mut fast, mut slow) = (NoiseRng::seeded_for_tests(seed), NoiseRng::seeded_for_tests(seed));
            for _ in 0..20 {
                assert_eq!(noise.sample(&mut fast), sample_by_integers(&noise, &mut slow));
            }
        }
    }
}

fn sample_by_integers(noise: &DiscreteGaussian, rng: &mut NoiseRng) -> i64 {
    loop {
        let word = rng.bits();
        let product = u128::from(word >> 17) * u128::from(noise.t);
        if product % (1 << 47) < (1 << 47) % u128::from(noise.t) {
            continue;
        }
        let Some(level) = Level::of(word & 0xffff, rng) else { continue };
        let magnitude = (level.k * noise.t + (product >> 47) as u64) as i64;
        let negative = (word >> 16) & 1 == 1;
        if negative && magnitude == 0 {
            continue;
        }
        let first = rng.bits();
        if noise.decide(magnitude as u64, level, first, || rng.bits()) {
            return if negative { -magnitude } else { magnitude };
        }
    }
}

#[test]
fn wide_noise_is_gaussian() {
    // One σ on each side of the change of representation and one near the end.
    for sigma in [65_536.7, 2_097_151.3, 2_097_153.4, 2f64.powi(39) + 0.5] {
        let noise = DiscreteGaussian::new(sigma).unwrap();
        let mut rng = NoiseRng::seeded_for_tests(sigma.to_bits());
        let n = 400_000;
        // Cells half a σ wide from -4σ to 4σ.
        let mut counts = [0u64; 18];
        for _ in 0..n {
            let y = noise.sample(&mut rng) as f64 / sigma;
            counts[((y * 2.0).floor() + 9.0).clamp(0.0, 17.0) as usize] += 1;
        }
        let phi = |x: f64| 0.5 * libm::erfc(-x / std::f64::consts::SQRT_2);
        let statistic: f64 = (0..18)
            .map(|i| {
                let low = if i == 0 { 0.0 } else { phi((f64::from(i) - 9.0) / 2.0) };
                let high = if i == 17 { 1.0 } else { phi((f64::from(i) - 8.0) / 2.0) };
                let expected = (high - low) * f64::from(n);
                (counts[i as usize] as f64 - expected).powi(2) / expected
            })
            .sum();
        assert!(statistic < 60.0, "σ={sigma}: χ² {statistic} with 17 degrees of freedom");
    }
}

#[test]
fn draws_are_independent_of_the_one_before() {
    let noise = DiscreteGaussian::new(3.0).unwrap();
    let mut rng = NoiseRng::seeded_for_tests(5);
    let mut draws = vec![0; 1_000_000];
    noise.add_to(&mut draws, &mut rng);
    let product: f64 = draws.windows(2).map(|w| (w[0] * w[1]) as f64).sum();
    // Each product has standard deviation 9, a million of them 9000.
    assert!(product.abs() < 5.0 * 9000.0, "{product}");
}

#[test]
fn what_cannot_be_drawn_exactly_is_refused() {
    for sigma in [0.0, -1.0, 0.06, f64::NAN, f64::INFINITY, 1.1e12] {
        assert!(matches!(DiscreteGaussian::new(sigma), Err(NoiseError::Sigma(_))), "{sigma}");
    }
    let grid = Grid::new(16).unwrap();
    assert!(matches!(DiscreteGaussian::for_clipped_sum(1.0, f64::NAN, grid), Err(NoiseError::Bound(_))));
    assert!(matches!(DiscreteGaussian::for_clipped_sum(1e6, 1e4, grid), Err(NoiseError::Sigma(_))));
}

proptest! {
    #[test]
    fn sigma_is_rounded_up_by_a_hair_and_operands_fit(log_sigma in -2.77f64..27.7) {
        let sigma = log_sigma.exp().clamp(DiscreteGaussian::MIN_SIGMA, DiscreteGaussian::MAX_SIGMA);
        let noise = DiscreteGaussian::new(sigma).unwrap();
        prop_assert!(noise.sigma() >= sigma);
        prop_assert!(noise.sigma() <= sigma * (1.0 + 1.0 / f64::from(1u32 << 18)));
        prop_assert!(sigma < 0.5 || noise.sigma() <= sigma * (1.0 + 1.0 / f64::from(1u32 << 21)));
        prop_assert_eq!(noise.t as f64, noise.sigma().ceil());
        // The largest proposal that is not thrown away.
        let largest = noise.t * u64::from(LEVELS);
        prop_assert!(largest < 1 << 51);
        prop_assert!(largest * noise.r <= 1 << 50);
        prop_assert!(u128::from(noise.p) * u128::from(noise.p) <= 1 << 80);
    }

    /// What the floating-point filter says is what the integers say, near the line where they could part.
    #[test]
    fn the_filter_agrees_with_the_integers(
        log_sigma in -2.77f64..27.7, bits in 0u64..65_534, heads in 0u32..40, tail: bool, place: f64, near in 0u32..50,
        above: bool, word: u64,
    ) {
        let sigma = log_sigma.exp().clamp(DiscreteGaussian::MIN_SIGMA, DiscreteGaussian::MAX_SIGMA);
        let noise = DiscreteGaussian::new(sigma).unwrap();
        let mut rng = NoiseRng::seeded_for_tests(word);
        let level = if tail { Level::in_tail(heads) } else { Level::of(bits, &mut rng) }.unwrap();
        let magnitude = level.k * noise.t + (place.fract().abs() * noise.t as f64) as u64 % noise.t;
        let x = (magnitude as f64 / noise.sigma()).powi(2) / 2.0;
        // V from the line exp(-x)/(λW) by one part in 2^near, above or below.
        let line = libm::exp(-x) / level.envelope * TWO_64;
        let off = line / 2f64.powi(near as i32);
        let first = if above { line + off } else { line - off } as u64;
        for first in [first, word] {
            if let Some(filtered) = noise.filter(magnitude, level, first) {
                prop_assert_eq!(filtered, noise.decide(magnitude, level, first, || word));
            }
        }
    }

    #[test]
    fn noise_is_scaled_to_the_integer_bound(z in 0.3f64..10.0, clip in 0.01f64..100.0) {
        let grid = Grid::new(16).unwrap();
        let noise = DiscreteGaussian::for_clipped_sum(z, clip, grid).unwrap();
        let bound = (clip * 65536.0).floor();
        prop_assert!(noise.sigma() >= z * bound && noise.sigma() <= z * bound * (1.0 + 1e-6));
    }
}
