//! How far what arrives may be from what was sent.

use super::*;
use crate::encoding::Values;
use crate::encoding::fixed_point::BLOCK;
use crate::fixed::MAX_FIXED;
use proptest::prelude::*;

/// Finite f32 values of all sizes.
fn finite() -> impl Strategy<Value = f32> {
    any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |v| v.is_finite())
}

/// Units within what stochastic rounding can say with few bits: see [`the_edge_of_the_range`].
fn inner() -> impl Strategy<Value = i32> {
    let limit = MAX_FIXED / 2;
    prop_oneof![-limit..=limit, -300..=300, Just(0)]
}

/// The step with which a block of this magnitude is sent, in units, found by trying.
fn step_of(magnitude: u32, bits: u8) -> i64 {
    let most = (1i64 << (bits - 1)) - 1;
    (0..).map(|k| 1i64 << k).find(|step| most * step >= i64::from(magnitude)).unwrap()
}

fn largest_of(block: &[i32]) -> u32 {
    block.iter().map(|u| u.unsigned_abs()).max().unwrap()
}

proptest! {
    #[test]
    fn fixed32_changes_nothing_in_an_update(update in prop::collection::vec(-MAX_FIXED..=MAX_FIXED, 0..100)) {
        let bytes = encode(&Encoding::Fixed32, units(), &update, &Rounding::toward_zero()).unwrap();
        let today: Vec<u8> = update.iter().flat_map(|u| u.to_le_bytes()).collect();
        prop_assert_eq!(&bytes, &today);
        prop_assert_eq!(decode_all(&Encoding::Fixed32, units(), update.len(), &bytes).unwrap(), update);
    }

    #[test]
    fn f32_keeps_24_bits_and_lands_on_the_grid_like_the_grid_itself(
        update in prop::collection::vec(-MAX_FIXED..=MAX_FIXED, 1..50),
        fraction_bits in 4u8..=28,
        values in prop::collection::vec(-3f32..3.0, 1..50),
    ) {
        let grid = Grid::new(fraction_bits).unwrap();
        for (&u, got) in update.iter().zip(sent(&Encoding::F32, Units::new(grid), &update, &Rounding::draw(&mut rng(1)))) {
            prop_assert!((i64::from(u) - i64::from(got)).abs() <= 32);
            prop_assert!(u.unsigned_abs() > 1 << 24 || u == got);
        }
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let got = decode_all(&Encoding::F32, Units::new(grid), values.len(), &bytes).unwrap();
        let wanted = grid.encode(&values).unwrap();
        prop_assert_eq!(got, wanted.units());
    }

    #[test]
    fn bf16_is_the_nearest_of_its_kind(update in prop::collection::vec(-MAX_FIXED..=MAX_FIXED, 1..50)) {
        for (&u, got) in update.iter().zip(sent(&Encoding::Bf16, units(), &update, &Rounding::draw(&mut rng(1)))) {
            // Of a magnitude with n bits, n - 8 are rounded away.
            let gone = (32 - u.unsigned_abs().leading_zeros()).saturating_sub(8);
            let rounded = got == if u < 0 { -1 } else { 1 } * (MAX_FIXED & !((1 << 22) - 1));
            prop_assert!(u.abs_diff(got) <= (1 << gone) / 2 || rounded, "{u} {got}");
            prop_assert_eq!(got & ((1 << gone) - 1), 0);
            let half = u.abs_diff(got) * 2 == 1 << gone && gone > 0;
            prop_assert!(!half || (got >> gone) & 1 == 0 || rounded, "a tie goes to the even one: {u} {got}");
        }
    }

    #[test]
    fn fixed_is_within_one_step_and_exact_where_bits_suffice(
        mut update in prop::collection::vec(inner(), 1..200),
        bits in 2u8..=24,
        shift in 0u32..20,
        seed in any::<u64>(),
    ) {
        update.iter_mut().for_each(|u| *u >>= shift);
        let step = step_of(largest_of(&update), bits);
        for rounding in [Rounding::draw(&mut rng(seed)), Rounding::toward_zero()] {
            for (&u, got) in update.iter().zip(sent(&Encoding::Fixed { bits }, units(), &update, &rounding)) {
                let (u, got) = (i64::from(u), i64::from(got));
                prop_assert!((u - got).abs() < step, "{u} {got} {step}");
                prop_assert_eq!(got % step, 0);
                prop_assert!(u % step != 0 || u == got);
                prop_assert!(!rounding.is_toward_zero() || got.abs() <= u.abs());
            }
        }
    }

    #[test]
    fn block_is_within_half_a_step(
        update in prop::collection::vec(-MAX_FIXED..=MAX_FIXED, 1..200),
        four in any::<bool>(),
        shift in 0u32..28,
    ) {
        let update: Vec<i32> = update.into_iter().map(|u| u >> shift).collect();
        let bits = if four { 4 } else { 8 };
        let encoding = Encoding::Block { bits, block: 16 };
        let got = sent(&encoding, units(), &update, &Rounding::draw(&mut rng(1)));
        let cut = sent(&encoding, units(), &update, &Rounding::toward_zero());
        for ((block, got), cut) in update.chunks(16).zip(got.chunks(16)).zip(cut.chunks(16)) {
            let most = f64::from((1 << (bits - 1)) - 1);
            // A step is rounded up to eight bits.
            let step = f64::from(largest_of(block)) / most * (1.0 + 1.0 / 128.0);
            let at_the_edge = largest_of(block) > MAX_FIXED as u32 - 16_000_000;
            for ((&u, &got), &cut) in block.iter().zip(got).zip(cut) {
                let allowed = if at_the_edge { step } else { step / 2.0 } + 0.5;
                prop_assert!(f64::from(u.abs_diff(got)) <= allowed, "{u} {got} {step}");
                prop_assert!(cut.unsigned_abs() <= u.unsigned_abs() && f64::from(u.abs_diff(cut)) <= step + 0.5);
            }
        }
    }

    #[test]
    fn models_of_any_values(values in prop::collection::vec(finite(), 1..60), seed in any::<u64>()) {
        let domain = Values::new(grid());
        let rounding = Rounding::draw(&mut rng(seed));
        let same = sent(&Encoding::F32, domain, &values, &rounding);
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&same), bits(&values));
        let real = |v: f32| f64::from(v);
        let magnitude = values.iter().fold(0.0f64, |m, &v| m.max(real(v).abs()));
        for (&v, got) in values.iter().zip(sent(&Encoding::Bf16, domain, &values, &rounding)) {
            // Half of 2^-8, or of the smallest bf16; at the upper end there is none above.
            let allowed = (real(v).abs() / 256.0).max(2f64.powi(-134)) * if real(v).abs() > 3.38e38 { 2.0 } else { 1.0 };
            prop_assert!((real(v) - real(got)).abs() <= allowed, "{v} {got}");
        }
        for bits in [2, 7, 8, 24] {
            // The next power of two may be beyond f32.
            if magnitude < 1e38 {
                let most = f64::from((1 << (bits - 1)) - 1);
                let step = (magnitude / most * 2.0).max(2f64.powi(-149));
                for (&v, got) in values.iter().zip(sent(&Encoding::Fixed { bits }, domain, &values, &rounding)) {
                    prop_assert!((real(v) - real(got)).abs() < step || v == got, "{v} {got} {step}");
                }
            }
        }
        if magnitude < 3.3e38 {
            for (bits, most) in [(8, 127.0), (4, 7.0)] {
                let got = sent(&Encoding::Block { bits, block: 64 }, domain, &values, &rounding);
                let step = (magnitude / most * (1.0 + 1.0 / 128.0)).max(2f64.powi(-133));
                for (&v, got) in values.iter().zip(got) {
                    prop_assert!((real(v) - real(got)).abs() <= step / 2.0 * (1.0 + 1e-6), "{v} {got} {step}");
                }
            }
        }
    }

    #[test]
    fn fixed32_puts_models_on_the_grid(values in prop::collection::vec(-1000f32..1000.0, 1..50)) {
        let domain = Values::new(grid());
        let wanted = grid().encode(&values).unwrap().decode();
        prop_assert_eq!(sent(&Encoding::Fixed32, domain, &values, &Rounding::draw(&mut rng(1))), wanted);
    }
}

/// Each of many equal values is rounded by its own coin; the share that goes up is the fraction, within five standard
/// errors (of 100 checks, one fails by chance in 17,000 runs; the seeds are fixed).
#[test]
fn stochastic_rounding_is_unbiased() {
    const COPIES: usize = BLOCK - 1;
    const BLOCKS: usize = 24;
    for bits in [2u8, 3, 8, 16, 21, 22, 24] {
        for unit in [1, -1, 77, -131_071, 3 << 20, -(1 << 22) - 1, (1 << 23) + 12_345] {
            // The first value of each block fixes the step.
            let mut block = vec![MAX_FIXED / 2; 1];
            block.extend([unit; COPIES]);
            let update = block.repeat(BLOCKS);
            let step = step_of(MAX_FIXED as u32 / 2, bits);
            let got = sent(&Encoding::Fixed { bits }, units(), &update, &Rounding::draw(&mut rng(3)));
            let n = (COPIES * BLOCKS) as f64;
            let below = i64::from(unit).div_euclid(step) * step;
            let up = got
                .chunks(BLOCK)
                .flat_map(|block| &block[1..])
                .map(|&got| {
                    assert!([below, below + step].contains(&i64::from(got)), "{unit} {got} {step}");
                    f64::from(i64::from(got) != below)
                })
                .sum::<f64>();
            let p = (i64::from(unit) - below) as f64 / step as f64;
            assert!((up / n - p).abs() <= 5.0 * (p * (1.0 - p) / n).sqrt(), "{bits} {unit}: {} {p}", up / n);
        }
    }
}

/// Coins are not shared between values, nor between roundings.
#[test]
fn every_value_has_its_own_coin() {
    let update = [[1 << 20].as_slice(), &[1 << 12; 4000]].concat();
    let encoding = Encoding::Fixed { bits: 8 };
    let first = sent(&encoding, units(), &update, &Rounding::draw(&mut rng(1)));
    let second = sent(&encoding, units(), &update, &Rounding::draw(&mut rng(2)));
    let ups = |got: &[i32]| got[1..].iter().map(|&u| u64::from(u > 0)).sum::<u64>();
    // A quarter of the step goes up: 1000 ± 5 · 27.
    assert!((865..=1135).contains(&ups(&first)) && (865..=1135).contains(&ups(&second)));
    let both = first[1..].iter().zip(&second[1..]).filter(|(a, b)| **a > 0 && **b > 0).count();
    assert!((173..=327).contains(&both), "a sixteenth goes up in both: 250 ± 5 · 15, not {both}");
    let pairs = first[1..].windows(2).filter(|pair| pair[0] > 0 && pair[1] > 0).count();
    assert!((163..=337).contains(&pairs), "and a sixteenth of neighbours, not {pairs}");
}

#[test]
fn the_edge_of_the_range() {
    let top = [MAX_FIXED, -MAX_FIXED];
    let draw = Rounding::draw(&mut rng(1));
    // The next bf16 and the next f32 are beyond the wire's range; the one below is sent.
    assert_eq!(sent(&Encoding::Bf16, units(), &top, &draw), [0xff << 22, -(0xff << 22)]);
    assert_eq!(sent(&Encoding::F32, units(), &top, &draw), [0xff_ffff << 6, -(0xff_ffff << 6)]);
    for bits in [8, 4] {
        let got = sent(&Encoding::Block { bits, block: 64 }, units(), &top, &draw);
        assert!(got[0] <= MAX_FIXED && got[0] > MAX_FIXED / 8 * 6 && got[1] == -got[0], "{got:?}");
    }
    for bits in 2..=24 {
        // It could be rounded up to beyond the range, so it is refused, with its place; rounded down it goes.
        let e = encode(&Encoding::Fixed { bits }, units(), &[1, -MAX_FIXED], &draw).unwrap_err();
        assert!(matches!(e, EncodeError::OutOfRange { index: 1, .. }), "{e}");
        let down = sent(&Encoding::Fixed { bits }, units(), &top, &Rounding::toward_zero());
        assert!(down[0] <= MAX_FIXED && (bits == 2 || down[0] > MAX_FIXED / 2), "{bits}: {down:?}");
    }
}

#[test]
fn up_to_the_largest_units_nothing_is_refused() {
    for encoding in dense() {
        let most = i32::try_from(encoding.largest_units()).unwrap();
        for below in [0, 1, 2, 1000, most / 3, most / 2] {
            let update = [most - below, 1, below - most];
            for seed in 0..5 {
                encode(&encoding, units(), &update, &Rounding::draw(&mut rng(seed))).unwrap();
            }
        }
    }
}

#[test]
fn what_cannot_be_encoded_is_refused_with_its_place() {
    let draw = Rounding::draw(&mut rng(1));
    let domain = Values::new(grid());
    for encoding in dense() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![0.5; 5000];
            values[4711] = bad;
            let e = encode(&encoding, domain, &values, &draw).unwrap_err();
            assert!(matches!(e, EncodeError::NotFinite { index: 4711, .. }), "{encoding}: {e}");
        }
        let mut update = vec![1; 5000];
        update[4444] = i32::MIN;
        let e = encode(&encoding, units(), &update, &draw).unwrap_err();
        assert!(matches!(e, EncodeError::OutOfRange { index: 4444, .. }), "{encoding}: {e}");
        // Fewer and more values than announced.
        let mut encoder = Encoder::new(&encoding, units(), 3, &draw).unwrap();
        assert!(encoder.push(&[1; 4], &mut Vec::new()).is_err());
        encoder.push(&[1; 2], &mut Vec::new()).unwrap();
        let e = encoder.finish(&mut Vec::new()).unwrap_err();
        assert_eq!(e, EncodeError::WrongLength { found: 2, wanted: 3 });
    }
    let e = encode(&Encoding::Fixed32, domain, &[0.0, 1e6], &draw).unwrap_err();
    assert!(matches!(e, EncodeError::OutOfRange { index: 1, .. }), "{e}");
    for bits in [2, 24] {
        let e = encode(&Encoding::Fixed { bits }, domain, &[0.0, f32::MAX], &draw).unwrap_err();
        assert!(matches!(e, EncodeError::OutOfRange { index: 1, .. }), "{e}");
    }
}
