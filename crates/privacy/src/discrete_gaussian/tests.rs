//! Conformance of the sampler with the exact probabilities.

use super::*;
use proptest::prelude::*;

/// exp(-k²/2σ²) / Σ exp(-j²/2σ²) for k in -reach..=reach.
fn probabilities(sigma2: f64, reach: i64) -> Vec<f64> {
    let weight = |k: i64| (-(k * k) as f64 / (2.0 * sigma2)).exp();
    let far = reach + (40.0 * sigma2.sqrt()) as i64 + 40;
    let total: f64 = (-far..=far).map(weight).sum();
    (-reach..=reach).map(|k| weight(k) / total).collect()
}

/// The chi-square statistic and its degrees of freedom; cells with fewer than 10 expected are pooled into one.
fn chi_square(counts: &[u64], expected: &[f64]) -> (f64, usize) {
    let (mut statistic, mut cells) = (0.0, 0);
    let (mut rare, mut rare_expected) = (0, 0.0);
    for (&count, &e) in counts.iter().zip(expected) {
        if e < 10.0 {
            rare += count;
            rare_expected += e;
        } else {
            statistic += (count as f64 - e).powi(2) / e;
            cells += 1;
        }
    }
    if rare_expected > 1.0 {
        statistic += (rare as f64 - rare_expected).powi(2) / rare_expected;
        cells += 1;
    }
    (statistic, cells - 1)
}

#[test]
fn draws_have_the_exact_probabilities() {
    for sigma2 in [0.25f64, 1.0, 9.0, 1024.0] {
        let noise = DiscreteGaussian::new(sigma2.sqrt()).unwrap();
        assert_eq!(noise.sigma(), sigma2.sqrt());
        let mut rng = NoiseRng::seeded_for_tests(sigma2.to_bits());
        let n = 1_000_000;
        let reach = (8.0 * sigma2.sqrt()) as i64 + 4;
        let mut counts = vec![0u64; 2 * reach as usize + 1];
        let (mut sum, mut sum2, mut sum4, mut beyond_three) = (0.0, 0.0, 0.0, 0u64);
        for _ in 0..n {
            let k = noise.sample(&mut rng);
            counts[usize::try_from(k + reach).expect("eight standard deviations in a million draws")] += 1;
            let k = k as f64;
            sum += k;
            sum2 += k * k;
            sum4 += k.powi(4);
            beyond_three += u64::from(k.abs() > 3.0 * sigma2.sqrt());
        }
        let p = probabilities(sigma2, reach);
        let n = n as f64;
        let expected: Vec<f64> = p.iter().map(|p| p * n).collect();
        let (statistic, freedom) = chi_square(&counts, &expected);
        // Mean f, variance 2f: five standard deviations (and the skew of few cells) above.
        let limit = freedom as f64 + 5.0 * (2.0 * freedom as f64).sqrt() + 10.0;
        assert!(statistic < limit, "σ²={sigma2}: χ² {statistic} with {freedom} degrees of freedom");

        let moment =
            |power: i32| -> f64 { (-reach..=reach).zip(&p).map(|(k, p)| (k as f64).powi(power) * p).sum() };
        let (m2, m4) = (moment(2), moment(4));
        assert!((sum / n).abs() < 5.0 * (m2 / n).sqrt(), "σ²={sigma2}: mean {}", sum / n);
        let tolerance = 5.0 * ((m4 - m2 * m2) / n).sqrt();
        assert!((sum2 / n - m2).abs() < tolerance, "σ²={sigma2}: variance {} not {m2}", sum2 / n);
        assert!((sum4 / n / m4 - 1.0).abs() < 0.05, "σ²={sigma2}: fourth moment {} not {m4}", sum4 / n);
        let tail: f64 = (-reach..=reach)
            .zip(&p)
            .filter(|(k, _)| (k.abs() as f64) > 3.0 * sigma2.sqrt())
            .map(|(_, p)| p)
            .sum();
        let off = (beyond_three as f64 - n * tail).abs();
        assert!(
            off < 5.0 * (n * tail).sqrt() + 3.0,
            "σ²={sigma2}: {beyond_three} beyond 3σ, not {}",
            n * tail
        );
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
        let expected: Vec<f64> = (0..18)
            .map(|i| {
                let low = if i == 0 { 0.0 } else { phi((f64::from(i) - 9.0) / 2.0) };
                let high = if i == 17 { 1.0 } else { phi((f64::from(i) - 8.0) / 2.0) };
                (high - low) * f64::from(n)
            })
            .collect();
        let (statistic, freedom) = chi_square(&counts, &expected);
        assert!(statistic < 60.0, "σ={sigma}: χ² {statistic} with {freedom} degrees of freedom");
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
        // The largest proposal that is not thrown away.
        let largest = u128::from(noise.scale) * u128::from(DiscreteGaussian::MAX_SCALES);
        let distance = (largest * noise.factor).checked_sub(noise.centre).unwrap();
        prop_assert!(distance.checked_mul(distance).is_some());
        prop_assert!(noise.divisor < 1 << 97);
        prop_assert!(largest < 1 << 57);
    }

    #[test]
    fn noise_is_scaled_to_the_integer_bound(z in 0.3f64..10.0, clip in 0.01f64..100.0) {
        let grid = Grid::new(16).unwrap();
        let noise = DiscreteGaussian::for_clipped_sum(z, clip, grid).unwrap();
        let bound = (clip * 65536.0).floor();
        prop_assert!(noise.sigma() >= z * bound && noise.sigma() <= z * bound * (1.0 + 1e-6));
    }
}
