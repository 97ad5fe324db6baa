//! Both mechanisms.

use super::*;
use proptest::prelude::*;
use undertone_core::fixed::integer_bound;

fn privacy(clip_norm: f64, noise_multiplier: f64) -> RecordPrivacy {
    RecordPrivacy {
        clip_norm,
        noise_multiplier,
        sampling_rate: 0.5,
        expected_batch: 2.0,
        mechanism: RecordMechanism::DiscreteGaussian,
    }
}

#[test]
fn sigma_is_not_rounded_down_on_any_grid() {
    for clip_norm in [1e-5, 0.01, 0.7, 1.0, 1.9999, 2.0, 123.4, 1e5] {
        for noise_multiplier in [0.3, 1.1, 7.7] {
            let m = GradientMechanism::new(&privacy(clip_norm, noise_multiplier)).unwrap();
            let units = integer_bound(m.grid(), clip_norm);
            let sigma = m.deviation() * m.grid().units_per_one();
            assert!(sigma >= noise_multiplier * units as f64, "{clip_norm} {noise_multiplier}");
            assert!(sigma <= noise_multiplier * units as f64 * 1.001);
            if (0.001..1000.0).contains(&clip_norm) {
                assert!((1 << 16..=1 << 17).contains(&units), "{clip_norm}: {units} units");
            }
            let mut sum = m.empty_sum(3);
            sum.add(&[1e9, -1e9, 1e9]);
            let squared: i128 = sum.units().iter().map(|&u| i128::from(u) * i128::from(u)).sum();
            assert!(squared <= i128::from(units) * i128::from(units), "{sum:?} beyond {units}");
        }
    }
}

#[test]
fn what_suits_no_grid_is_refused() {
    for clip_norm in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-300, 1e300] {
        assert!(GradientMechanism::new(&privacy(clip_norm, 1.0)).is_err(), "{clip_norm}");
    }
    for noise_multiplier in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(GradientMechanism::new(&privacy(1.0, noise_multiplier)).is_err(), "{noise_multiplier}");
    }
}

#[test]
fn an_empty_batch_and_one_that_is_not_finite_are_noised_like_any_other() {
    let m = GradientMechanism::new(&privacy(1.0, 1.0)).unwrap();
    for gradient in [None, Some(f32::NAN), Some(f32::INFINITY)] {
        let mut rng = NoiseRng::seeded_for_tests(5);
        let mut sum = m.empty_sum(10_000);
        if let Some(bad) = gradient {
            sum.add(&vec![bad; 10_000]);
        }
        let noised = sum.noised(&mut rng);
        // σ is the clip norm; the mean is over an expected batch of two.
        let deviation = (noised.mean().map(|v| v * v).sum::<f64>() / 10_000.0).sqrt();
        assert!((0.48..0.52).contains(&deviation), "{deviation}");
    }
}

/// No place is left without noise, whatever the length is to the block that noise is drawn in.
#[test]
fn every_value_gets_its_own_fast_noise() {
    let m = GradientMechanism::new(&fast(1.0, 1.0)).unwrap();
    for len in [0, 1, 511, 512, 513, 1025] {
        for sums in [vec![], vec![0.25f32], vec![0.25, f32::NAN], vec![0.25, -0.25]] {
            let mut gradient = m.empty_sum(len);
            for value in &sums {
                gradient.add_clipped_sum(&m.float_clipping().unwrap(), vec![*value; len]);
            }
            let mean = gradient.noised(&mut NoiseRng::seeded_for_tests(9)).into_mean();
            assert_eq!(mean.len(), len);
            // The sum that is noised, over the expected batch of two.
            let plain = (sums.iter().filter(|v| v.is_finite()).sum::<f32>()) / 2.0;
            assert!(mean.iter().all(|v| *v != plain), "{len} values, {sums:?}: one has no noise");
            if len > 1024 {
                assert_ne!(mean[..512], mean[512..1024], "the same noise twice");
            }
            assert!(mean.iter().all(|v| v.is_finite()));
        }
    }
}

/// Far beyond what a step may sum up the sum is rounded like any other, and stays what it is.
#[test]
fn sums_beyond_the_exact_range_are_rounded_and_no_worse() {
    let m = GradientMechanism::new(&fast(1.0, 1.0)).unwrap();
    let mut gradient = m.empty_sum(3);
    for _ in 0..2 {
        gradient.add_clipped_sum(&m.float_clipping().unwrap(), vec![3e30, -3e30, 3e30]);
    }
    let mean = gradient.noised(&mut NoiseRng::seeded_for_tests(9)).into_mean();
    // Over the expected batch of two.
    for (found, wanted) in mean.iter().zip([3e30, -3e30, 3e30]) {
        assert!((f64::from(*found) / wanted - 1.0).abs() < 1e-6, "{mean:?}");
    }
}

proptest! {
    #[test]
    fn the_mean_is_that_of_clipped_gradients_up_to_the_noise(
        gradients in prop::collection::vec(prop::collection::vec(-2f32..2.0, 3), 0..6), seed: u64,
    ) {
        // With the least noise there is, the mean shows what was summed.
        let m = GradientMechanism::new(&privacy(1.0, 1e-6)).unwrap();
        let mut sum = m.empty_sum(3);
        let mut wanted = [0.0; 3];
        for g in &gradients {
            sum.add(g);
            let norm = g.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            wanted.iter_mut().zip(g).for_each(|(w, &v)| *w += f64::from(v) / norm.max(1.0) / 2.0);
        }
        let noised = sum.noised(&mut NoiseRng::seeded_for_tests(seed));
        prop_assert!(noised.mean().zip(wanted).all(|(m, w)| (m - w).abs() < 1e-3));
    }

    #[test]
    fn a_batch_is_in_order_and_within_the_rows(rows in 0usize..500, rate in 0f64..=1.0, seed: u64) {
        let mut rng = NoiseRng::seeded_for_tests(seed);
        let batch: Vec<usize> = poisson_batch(rows, rate, || rng.bits()).collect();
        prop_assert!(batch.is_sorted() && batch.iter().all(|&row| row < rows));
        prop_assert_eq!(rng.words_drawn(), rows as u64);
        let expected = rate * rows as f64;
        prop_assert!((batch.len() as f64 - expected).abs() <= 7.0 * (expected + 1.0).sqrt());
        prop_assert_eq!(poisson_batch(rows, 1.0, || u64::MAX).count(), rows);
        prop_assert_eq!(poisson_batch(rows, 0.0, || 0).count(), 0);
    }
}

fn fast(clip_norm: f64, noise_multiplier: f64) -> RecordPrivacy {
    RecordPrivacy { mechanism: RecordMechanism::FastGaussian, ..privacy(clip_norm, noise_multiplier) }
}

#[test]
fn the_fast_noise_has_room_for_rounding_at_every_clip_norm_and_multiplier() {
    for clip_norm in [1e-3, 0.7, 1.0, 1e3] {
        for noise_multiplier in [0.3, 1.1, 500.0, 1e6] {
            let m = GradientMechanism::new(&fast(clip_norm, noise_multiplier)).unwrap();
            let ratio = m.deviation() / (noise_multiplier * clip_norm);
            let rounding = 0.001f64.max(noise_multiplier * 2e-7);
            let range = 1.0 + SENSITIVITY_MARGIN..1.0 + SENSITIVITY_MARGIN + rounding;
            assert!(range.contains(&ratio), "{clip_norm} {noise_multiplier}: {ratio}");
        }
    }
    for clip_norm in [0.0, f64::NAN, f64::INFINITY] {
        assert!(GradientMechanism::new(&fast(clip_norm, 1.0)).is_err(), "{clip_norm}");
    }
    for noise_multiplier in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(GradientMechanism::new(&fast(1.0, noise_multiplier)).is_err(), "{noise_multiplier}");
    }
}

#[test]
fn only_the_fast_mechanism_takes_sums_in_floating_point() {
    assert!(GradientMechanism::new(&privacy(1.0, 1.0)).unwrap().float_clipping().is_none());
    assert!(GradientMechanism::new(&fast(1.0, 1.0)).unwrap().float_clipping().is_some());
}

#[test]
fn factors_bring_each_norm_within_the_clip_norm() {
    let clipping = GradientMechanism::new(&fast(2.0, 1.0)).unwrap().float_clipping().unwrap();
    let factors = clipping.factors(&[0.0, 1.0, 4.0, 16.0, 1e300, -1e-9, f64::NAN, f64::INFINITY]);
    assert_eq!(factors, [1.0, 1.0, 1.0, 0.5, 2e-150f64 as f32, 1.0, 0.0, 0.0]);
}

#[test]
fn the_fast_noise_has_the_stated_deviation_also_on_an_empty_batch() {
    let m = GradientMechanism::new(&fast(1.0, 1.5)).unwrap();
    for sum in [None, Some(0.0), Some(f32::NAN)] {
        let mut rng = NoiseRng::seeded_for_tests(6);
        let mut gradient = m.empty_sum(100_000);
        if let Some(value) = sum {
            gradient.add_clipped_sum(&m.float_clipping().unwrap(), vec![value; 100_000]);
        }
        let noised = gradient.noised(&mut rng);
        let deviation = (noised.mean().map(|v| v * v).sum::<f64>() / 1e5).sqrt();
        assert!((2.0 * deviation / m.deviation() - 1.0).abs() < 0.02, "{deviation}");
        assert_eq!(noised.mean().len(), 100_000);
    }
}

proptest! {
    /// Single gradients and sums meet in one mean; each may come in any number of pieces.
    #[test]
    fn the_fast_mean_is_that_of_all_that_was_added(
        gradients in prop::collection::vec(prop::collection::vec(-0.5f32..0.5, 3), 0..6),
        sums in prop::collection::vec(prop::collection::vec(-9f32..9.0, 3), 0..4), seed: u64,
    ) {
        let m = GradientMechanism::new(&fast(1.0, 1e-6)).unwrap();
        let mut sum = m.empty_sum(3);
        let mut wanted = [0.0; 3];
        for g in &gradients {
            sum.add(g);
        }
        for s in &sums {
            sum.add_clipped_sum(&m.float_clipping().unwrap(), s.clone());
        }
        for v in gradients.iter().chain(&sums) {
            wanted.iter_mut().zip(v).for_each(|(w, &v)| *w += f64::from(v) / 2.0);
        }
        let noised = sum.noised(&mut NoiseRng::seeded_for_tests(seed));
        prop_assert!(noised.mean().zip(wanted).all(|(m, w)| (m - w).abs() < 1e-3));
    }
}
