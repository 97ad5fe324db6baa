//! The norm bound holds for what is decoded.

use super::*;
use crate::fixed::squared_norm;
use proptest::prelude::*;

fn within(encoding: &Encoding, update: &[i32], bound: u64, seed: u64) -> (Rounding, u128) {
    let rounding = Rounding::within(encoding, grid(), update, bound, &mut rng(seed)).unwrap();
    let got = sent(encoding, units(), update, &rounding);
    // The same rounding again: the same bytes.
    let bytes = |rounding| encode(encoding, units(), update, rounding).unwrap();
    assert_eq!(bytes(&rounding), bytes(&rounding.clone()));
    (rounding, squared_norm(&got))
}

fn ceil_norm(update: &[i32]) -> u64 {
    let squared = squared_norm(update);
    let near = (squared as f64).sqrt() as u64;
    (near.saturating_sub(2)..).find(|&n| u128::from(n) * u128::from(n) >= squared).unwrap()
}

/// The hardest case there is: an update that was clipped to the bound.
#[test]
fn an_update_as_long_as_its_bound_stays_within_it() {
    let mut rng = rng(11);
    let update: Vec<i32> = (0..20_000).map(|_| (normal(&mut rng) * 3000.0) as i32).collect();
    let bound = ceil_norm(&update);
    for encoding in dense() {
        let (rounding, squared) = within(&encoding, &update, bound, 3);
        assert!(squared <= u128::from(bound).pow(2), "{encoding}");
        let kept = (squared as f64).sqrt() / bound as f64;
        let least = match encoding {
            Encoding::Fixed32 | Encoding::F32 => 0.999_99,
            Encoding::Fixed { bits: 2 } => 0.8,
            Encoding::Fixed { bits: 3 } => 0.95,
            Encoding::Fixed { bits: 4..=7 } => 0.99,
            _ => 0.999,
        };
        assert!(kept >= least, "{encoding}: {kept} of the bound is used, {rounding:?}");
        assert!(!rounding.is_toward_zero(), "{encoding}");
        if let Encoding::Fixed { bits } = encoding {
            let least = match bits {
                2 => 0.15,
                3 => 0.6,
                4 => 0.9,
                5..=7 => 0.97,
                _ => 0.999,
            };
            assert!(rounding.shrink() >= least, "{encoding}: {}", rounding.shrink());
        }
    }
}

/// Stochastic rounding alone would break the bound: what the retries are for.
#[test]
fn without_a_bound_rounding_does_lengthen() {
    let mut rng = rng(11);
    let update: Vec<i32> = (0..20_000).map(|_| (normal(&mut rng) * 3000.0) as i32).collect();
    for bits in [2, 4, 8] {
        let got = sent(&Encoding::Fixed { bits }, units(), &update, &Rounding::draw(&mut rng));
        assert!(squared_norm(&got) > squared_norm(&update), "{bits} bits");
    }
}

#[test]
fn a_short_update_is_not_shrunk_and_a_long_one_is_refused() {
    let update = update(5000, 2);
    let norm = ceil_norm(&update);
    for encoding in dense() {
        let (rounding, _) = within(&encoding, &update, norm * 8, 1);
        assert_eq!((rounding.shrink(), rounding.is_toward_zero()), (1.0, false), "{encoding}");
        let e = Rounding::within(&encoding, grid(), &update, norm - 1, &mut rng(1)).unwrap_err();
        assert!(matches!(e, EncodeError::TooLong { .. }), "{e}");
    }
    let e = Rounding::within(&sparse()[0], grid(), &update, norm, &mut rng(1)).unwrap_err();
    assert!(matches!(e, EncodeError::NeedsAllCoordinates(_)));
}

proptest! {
    #[test]
    fn whatever_the_update(
        update in prop::collection::vec(prop_oneof![-(1i32 << 29)..=1 << 29, -500..=500, Just(0)], 0..40),
        slack in 0u64..3,
        seed in any::<u64>(),
    ) {
        let bound = ceil_norm(&update) + slack;
        for encoding in dense() {
            let (_, squared) = within(&encoding, &update, bound, seed);
            prop_assert!(squared <= u128::from(bound).pow(2), "{}", encoding);
        }
    }
}
