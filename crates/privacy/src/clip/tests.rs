//! Laws of clipping, with the inputs on which others fail (NaN passed through, zero divided by).

use super::*;
use proptest::prelude::*;

fn grid(bits: u8) -> Grid {
    Grid::new(bits).unwrap()
}

/// Any f32 at all, the odd ones often.
fn any_value() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => -3f32..3f32,
        1 => any::<f32>(),
        1 => prop::sample::select(vec![0.0, -0.0, 1e-45, -1e-40, 1e38, -1e38, f32::MAX, f32::MIN_POSITIVE]),
    ]
}

fn any_vector() -> impl Strategy<Value = Vec<f32>> {
    prop_oneof![
        4 => prop::collection::vec(any_value(), 0..40),
        // Many equal values just above half a unit: rounding lengthens these most.
        1 => (1usize..3000, 0f32..1e-3).prop_map(|(n, v)| vec![v; n]),
    ]
}

/// A bound, and a grid that suits it.
fn any_bound() -> impl Strategy<Value = (f64, Grid)> {
    (0.05f64..50.0, 13u8..=20).prop_map(|(bound, bits)| (bound, grid(bits)))
}

#[test]
fn zero_and_nothing_stay_what_they_are() {
    for values in [vec![], vec![0.0; 5], vec![1e-45, -1e-45]] {
        let n = values.len();
        let fixed = clip(RawUpdate::new(values), 1.0).unwrap().to_grid(grid(16)).unwrap();
        assert_eq!(fixed.units(), vec![0; n]);
    }
}

#[test]
fn a_short_update_is_only_rounded() {
    let fixed = clip(RawUpdate::new(vec![0.3, -0.4]), 1.0).unwrap().to_grid(grid(16)).unwrap();
    assert_eq!(fixed.units(), grid(16).encode(&[0.3, -0.4]).unwrap().units());
}

#[test]
fn a_huge_update_keeps_its_direction() {
    let fixed = clip(RawUpdate::new(vec![3e38, -3e38]), 1.0).unwrap().to_grid(grid(16)).unwrap();
    let (a, b) = (fixed.units()[0], fixed.units()[1]);
    assert!(a == -b && (46340 - a).abs() <= 1, "{a} {b}");
}

#[test]
fn what_is_not_finite_is_refused_with_its_place() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let e = clip(RawUpdate::new(vec![0.0, bad]), 1.0).unwrap_err();
        assert!(matches!(e, ClipError::NotFinite { index: 1, .. }), "{e}");
    }
    for bound in [f64::NAN, f64::INFINITY, 0.0, -1.0] {
        assert!(clip(RawUpdate::new(vec![1.0]), bound).is_err());
        assert!(clip_example_to_grid(&[1.0], bound, grid(16), &mut [0]).is_err());
    }
}

#[test]
fn a_bound_must_suit_the_grid() {
    assert!(matches!(bound_in_units(1.0, grid(7)), Err(BoundError::TooCoarse { units: 128, .. })));
    assert!(matches!(bound_in_units(20_000.0, grid(16)), Err(BoundError::TooFine { .. })));
    assert_eq!(bound_in_units(1.0, grid(16)), Ok(65536));
}

#[test]
fn the_receiver_notices_one_unit_too_much() {
    assert!(check_norm(&[65536, 0], grid(16), 1.0).is_ok());
    let e = check_norm(&[65536, 1], grid(16), 1.0).unwrap_err();
    assert_eq!(e.bound, 1.0);
    assert!(check_norm(&[MAX_FIXED; 3], grid(16), f64::NAN).is_err());
}

#[test]
fn nothing_is_printed() {
    let raw = RawUpdate::new(vec![0.125; 3]);
    assert_eq!(format!("{raw:?}"), "RawUpdate(3 values)");
    assert_eq!(format!("{:?}", clip(raw, 1.0).unwrap()), "ClippedUpdate(3 values within 1)");
}

/// Vectors at random fit at once; what little is left free for that is less than a thousandth.
#[test]
fn the_aim_is_just_below_the_bound() {
    assert!((0.9999 * 65536.0..65536.0).contains(&aim(65536.0, 40_000)));
    assert_eq!((aim(256.0, 1_000_000), aim(300.0, 5)), (256.0, 300.0));
    let mut x = 1u32;
    let mut values = || -> Vec<f32> {
        let next = |_| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            x as i32 as f32
        };
        (0..4000).map(next).collect()
    };
    for _ in 0..100 {
        let values = values();
        let aimed = aim(65536.0, values.len()) / l2_norm(&values);
        assert_eq!(Fit::of(&values, 65536, grid(16)).unwrap().factor, 65536.0 * (aimed / 65536.0));
    }
}

proptest! {
    /// Squares are summed in f64 as long as that is exact, and as integers beyond.
    #[test]
    fn both_ways_of_squaring_agree(
        values in prop::collection::vec(-1f32..1f32, 1..40), bound in 256f64..(MAX_FIXED as f64),
        edge in prop::sample::select(vec![None, Some(1u64 << 26), Some((1 << 26) - 40), Some(MAX_FIXED as u64)]),
        toward_zero in any::<bool>(),
    ) {
        prop_assume!(l2_norm(&values) > 1e-3);
        let bound = edge.unwrap_or(bound as u64);
        let fit = Fit { factor: bound as f64 / l2_norm(&values), toward_zero };
        let one_by_one = values.iter().map(|&v| u128::from(fit.units(v).unsigned_abs()).pow(2)).sum::<u128>();
        prop_assert_eq!(fit.squared_norm(&values, bound), one_by_one);
    }

    /// On the finest grids too.
    #[test]
    fn the_largest_bounds_hold(values in prop::collection::vec(-3f32..3f32, 1..40), bits in 25u8..=28) {
        let grid = grid(bits);
        let bound = grid.max_value().min(7.9);
        let mut sum = vec![0; values.len()];
        prop_assert!(clip_example_to_grid(&values, bound, grid, &mut sum).unwrap());
        let moved: u128 = sum.iter().map(|s| u128::from(s.unsigned_abs()).pow(2)).sum();
        prop_assert!(moved <= u128::from(integer_bound(grid, bound)).pow(2));
    }

    #[test]
    fn the_integer_norm_is_within_the_bound(values in any_vector(), (bound, grid) in any_bound()) {
        let finite = values.iter().all(|v| v.is_finite());
        match clip(RawUpdate::new(values.clone()), bound) {
            Err(ClipError::NotFinite { .. }) => prop_assert!(!finite),
            Err(e) => prop_assert!(false, "{}", e),
            Ok(clipped) => {
                prop_assert!(finite);
                let fixed = clipped.to_grid(grid).unwrap();
                prop_assert_eq!(fixed.units().len(), values.len());
                prop_assert!(check_norm(fixed.units(), grid, bound).is_ok());
            }
        }
    }

    /// Neighbouring batches: whatever one example is, the sum moves by at most the integer bound.
    #[test]
    fn one_example_moves_the_sum_by_at_most_the_bound(
        values in any_vector(), (bound, grid) in any_bound(), start in -1_000_000i64..1_000_000,
    ) {
        let mut sum = vec![start; values.len()];
        let counted = clip_example_to_grid(&values, bound, grid, &mut sum).unwrap();
        prop_assert_eq!(counted, values.iter().all(|v| v.is_finite()));
        let moved: u128 = sum.iter().map(|s| u128::from((s - start).unsigned_abs()).pow(2)).sum();
        let units = u128::from(integer_bound(grid, bound));
        prop_assert!(moved <= units * units);
        prop_assert!(counted || moved == 0);
    }

    /// Clipping may not take more than it must.
    #[test]
    fn a_long_vector_comes_out_nearly_as_long_as_allowed(
        values in prop::collection::vec(-3f32..3f32, 5..200), bound in 0.5f64..2.0,
    ) {
        prop_assume!(l2_norm(&values) > bound);
        let fixed = clip(RawUpdate::new(values), bound).unwrap().to_grid(grid(20)).unwrap();
        let norm = (fixed.squared_norm() as f64).sqrt() / grid(20).units_per_one();
        prop_assert!(norm > bound * 0.999, "{norm}");
    }
}
