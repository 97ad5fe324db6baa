//! Any order, any split, any number of threads: the same bits, and a refused update leaves no trace.

use super::*;
use proptest::prelude::*;

fn grid() -> Grid {
    Grid::new(16).unwrap()
}

/// The loop that everything here is held against.
fn reference(updates: &[(Vec<i32>, u32)], len: usize) -> Vec<i64> {
    let mut sums = vec![0i64; len];
    for (units, weight) in updates {
        for (sum, &unit) in sums.iter_mut().zip(units) {
            *sum += i64::from(*weight) * i64::from(unit);
        }
    }
    sums
}

#[test]
fn a_refused_update_leaves_no_trace() {
    let mut sum = IntegerSum::zero(grid(), 2);
    sum.fold(&[1, 2], 3).unwrap();
    let before = sum.clone();
    assert!(sum.fold(&[1], 1).is_err());
    assert!(sum.fold(&[1, 1], 0).is_err());
    assert!(sum.fold(&[1, 1], MAX_WEIGHT + 1).is_err());
    for bad in [i32::MIN, i32::MIN + 1, -MAX_FIXED - 1, MAX_FIXED + 1, i32::MAX - 1, i32::MAX] {
        assert_eq!(sum.fold(&[1, bad], 1), Err(FoldError::OutOfRange { index: 1 }), "{bad}");
    }
    let limit = (f64::from(MAX_FIXED) / 65536.0) as f32;
    for bad in [
        f32::NAN,
        -f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MAX,
        f32::MIN,
        limit * 1.01,
        -limit * 1.01,
    ] {
        let refused = sum.fold_values(&[1.0, bad], 1, 1);
        assert_eq!(
            format!("{refused:?}"),
            format!("{:?}", grid().encode(&[1.0, bad]).map_err(FoldError::from)),
            "{bad}"
        );
        assert!(refused.is_err(), "{bad}");
    }
    assert_eq!(sum, before);
}

#[test]
fn threads_change_no_bit_and_the_one_bad_value_is_named() {
    // Long enough for five threads with a range of their own.
    let len = 5 * (1 << 15) + 7;
    let units: Vec<i32> = (0..len).map(|i| (i as i32).wrapping_mul(-1_640_531_527) >> 1).collect();
    let values: Vec<f32> = units.iter().map(|&u| u as f32 / 131_072.0).collect();
    let mut one = IntegerSum::zero(grid(), len);
    one.fold(&units, 77).unwrap();
    assert_eq!(one.units(), reference(&[(units.clone(), 77)], len));
    let mut real = IntegerSum::zero(grid(), len);
    real.fold(grid().encode(&values).unwrap().units(), 5).unwrap();
    for threads in [0, 1, 2, 3, 5, 64] {
        let mut sum = IntegerSum::zero(grid(), len);
        sum.fold_parallel(&units, 77, threads).unwrap();
        assert_eq!(sum, one, "{threads} threads");
        let mut sum = IntegerSum::zero(grid(), len);
        sum.fold_values(&values, 5, threads).unwrap();
        assert_eq!(sum, real, "{threads} threads");
        for index in [0, 40_000, len - 1] {
            let (mut bad, mut bad_value) = (units.clone(), values.clone());
            (bad[index], bad_value[index]) = (i32::MAX, f32::NAN);
            assert_eq!(sum.fold_parallel(&bad, 3, threads), Err(FoldError::OutOfRange { index }));
            let refused = sum.fold_values(&bad_value, 3, threads);
            assert!(
                matches!(refused, Err(FoldError::OffGrid(OffGrid::NotFinite { index: i, .. })) if i == index)
            );
            assert_eq!(sum, real, "{threads} threads, {index}");
        }
    }
}

#[test]
fn halves_and_their_neighbours_round_as_the_grid_rounds() {
    let mut values = Vec::new();
    for whole in [0u32, 1, 2, 3, 1023, 1 << 20, (1 << 22) - 1, 1 << 22, (1 << 23) - 1, 1 << 23, (1 << 24) + 2]
    {
        let half = (whole as f32 + 0.5) / 65_536.0;
        for bits in half.to_bits() - 3..=half.to_bits() + 3 {
            values.extend([f32::from_bits(bits), -f32::from_bits(bits)]);
        }
    }
    values.extend([0.0, -0.0, f32::MIN_POSITIVE, f32::from_bits(1), -f32::from_bits(1)]);
    for bits in [4, 16, 17, 20] {
        let grid = Grid::new(bits).unwrap();
        let mut sum = IntegerSum::zero(grid, values.len());
        sum.fold_values(&values, 1, 1).unwrap();
        let wanted: Vec<i64> = grid.encode(&values).unwrap().units().iter().map(|&u| u.into()).collect();
        assert_eq!(sum.units(), wanted, "{bits} bits");
    }
}

proptest! {
    #[test]
    fn any_order_and_any_split_give_the_same_bits(
        updates in prop::collection::vec((prop::collection::vec(-MAX_FIXED..=MAX_FIXED, 4), 1u32..=MAX_WEIGHT), 1..12),
        cut in 0usize..12,
    ) {
        let sum_of = |list: &[(Vec<i32>, u32)]| {
            let mut s = IntegerSum::zero(grid(), 4);
            for (u, w) in list { s.fold(u, *w).unwrap(); }
            s
        };
        let whole = sum_of(&updates);
        prop_assert_eq!(whole.units(), reference(&updates, 4));
        let mut reversed = updates.clone();
        reversed.reverse();
        prop_assert_eq!(&whole, &sum_of(&reversed));
        let cut = cut.min(updates.len());
        let mut left = sum_of(&updates[..cut]);
        left.merge(&sum_of(&updates[cut..])).unwrap();
        prop_assert_eq!(whole, left);
    }

    #[test]
    fn values_fold_as_they_encode_and_what_does_not_encode_does_not_fold(
        bits in prop::collection::vec(any::<u32>(), 1..9),
        small in prop::collection::vec(-20_000f32..20_000f32, 1..9),
        fraction_bits in 4u8..=28,
        weight in 1u32..=MAX_WEIGHT,
    ) {
        let grid = Grid::new(fraction_bits).unwrap();
        for values in [bits.iter().map(|&b| f32::from_bits(b)).collect(), small] {
            let mut folded = IntegerSum::zero(grid, values.len());
            let got = folded.fold_values(&values, weight, 1);
            match grid.encode(&values) {
                Ok(fixed) => {
                    let mut wanted = IntegerSum::zero(grid, values.len());
                    wanted.fold(fixed.units(), weight).unwrap();
                    prop_assert_eq!(got, Ok(()));
                    prop_assert_eq!(folded, wanted);
                }
                Err(e) => {
                    prop_assert_eq!(format!("{got:?}"), format!("{:?}", Err::<(), _>(FoldError::from(e))));
                    prop_assert_eq!(folded, IntegerSum::zero(grid, values.len()));
                }
            }
        }
    }
}
