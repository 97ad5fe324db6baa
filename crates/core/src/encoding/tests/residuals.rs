//! Error feedback loses nothing.

use super::*;
use crate::encoding::residual::{Residual, ResidualError, TakeBackError};
use crate::fixed::{MAX_FIXED, squared_norm};
use proptest::prelude::*;

/// The residual's values, from its documented bytes.
fn waiting(residual: &Residual) -> Vec<i64> {
    let bytes = residual.to_bytes();
    let values = &bytes[17..bytes.len() - 32];
    values.as_chunks().0.iter().map(|&b| i64::from(i32::from_le_bytes(b))).collect()
}

proptest! {
    #[test]
    fn what_arrived_and_what_waits_is_what_was_given(
        len in 1usize..400,
        rounds in 1u64..6,
        seed in any::<u64>(),
        bound in prop::option::of(1u64..100_000),
    ) {
        for encoding in sparse() {
            let mut residual = Residual::new(grid(), len);
            let mut given = vec![0i64; len];
            let mut arrived = vec![0i64; len];
            for round in 0..rounds {
                let update = update(len, seed ^ round);
                let message = residual.encode(&encoding, &update, bound).unwrap();
                prop_assert!(encoding.encoded_len(len).admits(message.len() as u64));
                let got = decode_all(&encoding, units(), len, &message).unwrap();
                if let Some(bound) = bound {
                    prop_assert!(squared_norm(&got) <= u128::from(bound).pow(2));
                }
                given.iter_mut().zip(&update).for_each(|(sum, &u)| *sum += i64::from(u));
                arrived.iter_mut().zip(&got).for_each(|(sum, &u)| *sum += i64::from(u));
                let both: Vec<i64> = arrived.iter().zip(waiting(&residual)).map(|(a, w)| a + w).collect();
                prop_assert_eq!(&both, &given);
            }
        }
    }

    #[test]
    fn a_message_that_did_not_count_is_taken_back(len in 1usize..300, seed in any::<u64>()) {
        for encoding in sparse() {
            let mut residual = Residual::new(grid(), len);
            residual.encode(&encoding, &update(len, seed), None).unwrap();
            let (before, next) = (waiting(&residual), update(len, !seed));
            let message = residual.encode(&encoding, &next, Some(5000)).unwrap();
            residual.take_back(&encoding, &message).unwrap();
            let wanted: Vec<i64> = before.iter().zip(&next).map(|(w, &u)| w + i64::from(u)).collect();
            prop_assert_eq!(waiting(&residual), wanted);
            let before = residual.clone();
            prop_assert!(residual.take_back(&encoding, &message[..message.len() - 1]).is_err());
            prop_assert_eq!(&residual, &before);
        }
    }

    #[test]
    fn arbitrary_bytes_are_no_residual(bytes in prop::collection::vec(any::<u8>(), 0..200), len in 0usize..40) {
        prop_assert_eq!(Residual::from_bytes(&bytes, grid(), len), Err(ResidualError::Damaged));
    }
}

#[test]
fn the_largest_are_sent_first_and_the_rest_later() {
    let encoding = Encoding::TopK { fraction: 0.25, values: SparseValues::F32 };
    let mut residual = Residual::new(grid(), 8);
    let mut round = |update: &[i32]| {
        let message = residual.encode(&encoding, update, None).unwrap();
        decode_all(&encoding, units(), 8, &message).unwrap()
    };
    assert_eq!(round(&[1, -9, 3, 0, 8, 7, 0, 0]), [0, -9, 0, 0, 8, 0, 0, 0]);
    assert_eq!(round(&[0, 0, 3, 0, 0, 0, 0, 0]), [0, 0, 6, 0, 0, 7, 0, 0]);
    assert_eq!(
        round(&[0; 8]),
        [1, 0, 0, 0, 0, 0, 0, 0],
        "among equals the first, and zero is sent if need be"
    );
    assert_eq!(round(&[0; 8]), [0; 8]);
}

#[test]
fn it_is_stored_and_read_back_only_whole_and_for_its_job() {
    let mut residual = Residual::new(grid(), 500);
    residual.encode(&sparse()[1], &update(500, 3), None).unwrap();
    let bytes = residual.to_bytes();
    assert_eq!(Residual::from_bytes(&bytes, grid(), 500), Ok(residual.clone()));
    let other = Residual::from_bytes(&bytes, grid(), 501).unwrap_err();
    assert_eq!(other, ResidualError::OtherShape { found_len: 500, found_bits: 16, len: 501, bits: 16 });
    assert!(Residual::from_bytes(&bytes, Grid::new(15).unwrap(), 500).is_err());
    for at in [0, 8, 9, 40, bytes.len() - 40, bytes.len() - 1] {
        let mut changed = bytes.clone();
        changed[at] ^= 4;
        assert_eq!(Residual::from_bytes(&changed, grid(), 500), Err(ResidualError::Damaged), "byte {at}");
        assert_eq!(Residual::from_bytes(&bytes[..at], grid(), 500), Err(ResidualError::Damaged));
    }
    assert_eq!(format!("{residual:?}"), "Residual(500 values)");
}

#[test]
fn a_failure_leaves_it_as_it_was() {
    let encoding = Encoding::TopK { fraction: 0.01, values: SparseValues::Bf16 };
    let mut residual = Residual::new(grid(), 3);
    for _ in 0..2 {
        // The second and third wait, round after round.
        residual.encode(&encoding, &[MAX_FIXED, MAX_FIXED - 1, 5], None).unwrap();
    }
    let before = residual.clone();
    let e = residual.encode(&encoding, &[0, i32::MAX, 0], None).unwrap_err();
    assert!(matches!(e, EncodeError::OutOfRange { index: 1, .. }), "{e}");
    assert!(residual.encode(&encoding, &[0, 0], None).is_err());
    assert!(residual.encode(&Encoding::Bf16, &[0, 0, 0], None).is_err());
    assert_eq!(residual, before);

    let mut residual = Residual::new(grid(), 200);
    let many = vec![MAX_FIXED; 200];
    residual.encode(&encoding, &many, None).unwrap();
    let message = residual.encode(&encoding, &many, None).unwrap();
    let before = residual.clone();
    let e = residual.encode(&encoding, &many, None).unwrap_err();
    assert!(matches!(e, EncodeError::ResidualOverflow { index: 0, .. }), "{e}");
    assert_eq!(residual, before);
    residual.take_back(&encoding, &message).unwrap();
    let full = residual.clone();
    let e = residual.take_back(&encoding, &message).unwrap_err();
    assert!(matches!(e, TakeBackError::Overflow { index: 2 }), "{e}");
    assert_eq!(residual, full);
    assert!(Residual::new(grid(), 0).encode(&encoding, &[], Some(3)).unwrap().is_empty());
}
