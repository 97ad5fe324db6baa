//! Reference values and laws of the accountant.

use super::*;
use crate::gaussian::analytic_delta;
use proptest::prelude::*;

/// z, q, steps, δ, ε by the reference's Rényi accountant, ε by its privacy loss distribution.
///
/// dp-accounting 0.6.0 (add/remove adjacency, sensitivity 1). The second number is at most 1e-3 above the exact ε:
/// a sound accountant is never below it, ours never above the first.
const REFERENCE: &[(f64, f64, u64, f64, f64, f64)] = &[
    (1.0, 0.01, 1000, 1e-2, 0.963_363_940_2, 0.746_896_717_5),
    (1.0, 0.01, 1000, 1e-3, 1.386_390_399_5, 1.162_517_897_9),
    (1.0, 0.01, 1000, 1e-4, 1.755_058_300_8, 1.512_701_491_1),
    (1.0, 0.01, 1000, 1e-5, 2.101_366_525_4, 1.828_243_645_6),
    (1.0, 0.01, 1000, 1e-6, 2.436_693_803_0, 2.124_522_525_7),
    (1.0, 0.01, 1000, 1e-7, 2.764_672_725_7, 2.411_695_715_1),
    (1.0, 0.01, 1000, 1e-8, 3.088_439_443_6, 2.697_875_498_4),
    (1.0, 0.01, 1000, 1e-9, 3.408_242_928_7, 2.989_590_718_6),
    (1.0, 0.01, 1000, 1e-10, 3.725_234_728_5, 3.290_460_106_7),
    (0.8, 0.02, 500, 1e-5, 5.371_863_220_4, 4.668_013_366_3),
    (4.0, 1.0, 100, 1e-6, 15.327_984_026_5, 14.450_776_968_6),
    (0.6, 0.001, 10_000, 1e-6, 3.999_185_852_8, 3.152_227_030_8),
    (1.1, 0.004_266_666_666_666_667, 14_100, 1e-5, 2.600_342_939_4, 2.385_210_788_7),
    (1.472, 0.001_523, 2523, 1e-5, 0.326_132_589_6, 0.196_509_451_5),
    (0.612, 0.000_719, 255, 1e-6, 2.561_976_050_2, 1.177_199_902_8),
    (2.556, 0.046_642, 17_824, 1e-5, 14.423_664_307_1, 13.461_063_258_0),
    (2.993, 0.016_378, 9789, 1e-6, 2.744_510_137_3, 2.556_475_213_3),
    (5.038, 1.0, 65, 1e-8, 10.337_958_588_4, 9.833_300_480_5),
    (2.482, 1.0, 1, 1e-6, 1.912_643_366_6, 1.779_619_404_3),
    (35.698, 1.0, 51, 1e-8, 1.082_751_674_0, 1.021_446_511_6),
    (1.3, 0.01, 100_000, 1e-6, 18.053_040_475_7, 17.017_096_739_3),
    (20.0, 0.1, 2000, 1e-6, 1.017_347_316_8, 0.943_154_112_5),
    (0.3, 0.01, 200, 1e-5, 40.039_875_066_0, 34.164_331_877_9),
    // A second table: the second number is at a finer discretisation, the first knows fewer fractional orders.
    (0.8, 0.001, 10_000, 1e-6, 1.7036, 0.947_197),
    (2.0, 0.1, 500, 1e-6, 6.6793, 6.216_698),
    (0.5, 0.0001, 2000, 1e-6, 3.1903, 1.388_938),
    (0.6, 0.02, 5000, 1e-6, 41.158, 37.156_432),
    (5.0, 1.0, 100, 1e-6, 11.6886, 10.997_151),
];

#[test]
fn reference_values_are_met_from_the_right_side() {
    for &(z, q, steps, delta, rdp, pld) in REFERENCE {
        let epsilon = RdpCurve::new(z, q).unwrap().epsilon(steps, delta);
        let case = format!("z={z} q={q} T={steps} δ={delta}: {epsilon}, reference {rdp}, tight {pld}");
        assert!(epsilon >= pld, "below a tight bound: {case}");
        // The orders of the reference are among ours; the second table has three or four decimals.
        assert!(epsilon <= rdp * (1.0 + 1e-8) + 5e-5, "above the reference: {case}");
        assert!(epsilon >= rdp * 0.97, "suspiciously far below the reference: {case}");
    }
}

#[test]
fn curves_of_different_mechanisms_compose_order_by_order() {
    // Reference case "heterogeneous": 500 steps at (1, 0.01), 300 at (1.5, 0.02), one Gaussian release at 8.
    let parts = [(1.0, 0.01, 500.0), (1.5, 0.02, 300.0), (8.0, 1.0, 1.0)];
    let curves = parts.map(|(z, q, steps)| (RdpCurve::new(z, q).unwrap(), steps));
    let points = (0..curves[0].0.points.len())
        .map(|i| (curves[0].0.points[i].0, curves.iter().map(|(c, steps)| steps * c.points[i].1).sum()));
    let epsilon = RdpCurve { points: points.collect() }.epsilon(1, 1e-5);
    assert!((1.752_831..=2.015_028).contains(&epsilon), "{epsilon}");
}

#[test]
fn one_release_without_sampling_is_never_below_the_exact_curve() {
    for z in [0.3, 0.5, 1.0, 3.0, 10.0, 100.0, 3000.0] {
        for delta in [1e-2, 1e-5, 1e-9] {
            let epsilon = RdpCurve::new(z, 1.0).unwrap().epsilon(1, delta);
            assert!(analytic_delta(1.0 / z, epsilon) <= delta, "z={z} δ={delta}: {epsilon} is too small");
            // And not absurdly above: at 0.6 of it (and with some room where ε is near 0) δ is exceeded.
            let smaller = 0.6 * epsilon - 1e-3;
            if smaller > 0.0 {
                assert!(analytic_delta(1.0 / z, smaller) > delta, "z={z} δ={delta}: {epsilon} is too large");
            }
        }
    }
}

#[test]
fn nonsense_is_refused() {
    for z in [0.0, -1.0, 0.29, f64::NAN, f64::INFINITY, 1e7] {
        assert!(matches!(RdpCurve::new(z, 0.1), Err(AccountantError::NoiseMultiplier(_))), "{z}");
    }
    for q in [0.0, -0.1, 1.1, f64::NAN] {
        assert!(matches!(RdpCurve::new(1.0, q), Err(AccountantError::SamplingRate(_))), "{q}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn more_of_anything_costs_more_and_less_noise_costs_more(
        z in 0.3f64..20.0, more_noise in 1.0f64..2.0,
        log_q in -12.0f64..0.0, more_q in 1.0f64..2.0,
        steps in 1u64..1_000_000, more_steps in 0u64..1_000_000,
        log_delta in -40.0f64..-0.01, more_delta in 0.0f64..1.0,
    ) {
        let (q, delta) = (log_q.exp(), log_delta.exp());
        let curve = RdpCurve::new(z, q).unwrap();
        let epsilon = curve.epsilon(steps, delta);
        prop_assert!(epsilon.is_finite() && epsilon >= 0.0);
        // Twice the margin of rounding.
        let at_most = |small: f64, large: f64| small <= large * (1.0 + 2.0 * ROUNDING_MARGIN);
        prop_assert!(at_most(epsilon, curve.epsilon(steps + more_steps, delta)));
        prop_assert!(at_most(curve.epsilon(steps, delta.powf(1.0 - more_delta)), epsilon));
        let noisier = RdpCurve::new(z * more_noise, q).unwrap();
        prop_assert!(at_most(noisier.epsilon(steps, delta), epsilon));
        let denser = RdpCurve::new(z, (q * more_q).min(1.0)).unwrap();
        prop_assert!(at_most(epsilon, denser.epsilon(steps, delta)));
    }

    #[test]
    fn tiny_and_huge_numbers_stay_numbers(log_z in -1.2f64..13.8, log_q in -700.0f64..0.0, steps: u64, log_delta in -700.0f64..-1e-12) {
        let epsilon = RdpCurve::new(log_z.exp().clamp(0.3, 1e6), log_q.exp()).unwrap().epsilon(steps, log_delta.exp());
        prop_assert!(epsilon.is_finite() && epsilon >= 0.0, "{epsilon}");
    }
}
