//! Small integer statistics (counts, histograms, metrics) within an L1 bound, and their sums.
//!
//! Each client clips its own statistic; a sum takes only clipped ones of its own bound, so that the sensitivity that
//! the noise is scaled to is the one that holds.

use crate::discrete_laplace::{DiscreteLaplace, LaplaceError};
use crate::noise::NoiseRng;
use crate::sensitivity::{Adjacency, L1Sensitivity};
use std::fmt;

/// Most values in one statistic: these are for counts, not for models.
pub const MAX_L1_VALUES: usize = 4096;
/// Largest bound.
pub const MAX_L1_BOUND: u64 = 1 << 30;

/// Why a statistic cannot be clipped or summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum L1Error {
    /// The bound.
    #[error("the L1 bound of a statistic must be 1 to {MAX_L1_BOUND}, not {0}")]
    Bound(u64),
    /// Too many values.
    #[error(
        "a statistic has 1 to {MAX_L1_VALUES} values, not {0}: Laplace noise is for small statistics, use the Gaussian"
    )]
    Length(usize),
    /// It belongs to another sum.
    #[error(
        "a statistic of {found_values} values within {found_bound} does not go into a sum of {values} within {bound}"
    )]
    Other {
        /// Values in the statistic.
        found_values: usize,
        /// Its bound.
        found_bound: u64,
        /// Values in the sum.
        values: usize,
        /// Bound of the sum.
        bound: u64,
    },
    /// The sum is full.
    #[error("a sum takes at most {} statistics", L1Sum::MAX_COUNT)]
    Full,
}

/// A statistic of one client with an L1 norm of at most its bound, exactly. Not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct L1Clipped {
    values: Vec<i64>,
    bound: u64,
}

/// Scales integers down to an L1 norm of at most `bound`, each rounded towards zero; a shorter statistic stays as it
/// is. Integer arithmetic throughout: ⌊|v|·bound/norm⌋ summed over all v is at most the bound.
///
/// # Errors
/// [`L1Error`] for a bound or a number of values out of range.
pub fn clip_l1(values: &[i64], bound: u64) -> Result<L1Clipped, L1Error> {
    check(values.len(), bound)?;
    // 2^12 values of 2^63 fit.
    let norm: u128 = values.iter().map(|v| u128::from(v.unsigned_abs())).sum();
    let scaled = |&v: &i64| {
        let magnitude = (u128::from(v.unsigned_abs()) * u128::from(bound) / norm) as i64;
        if v < 0 { -magnitude } else { magnitude }
    };
    let values =
        if norm <= u128::from(bound) { values.to_vec() } else { values.iter().map(scaled).collect() };
    Ok(L1Clipped { values, bound })
}

impl L1Clipped {
    /// The clipped values.
    pub fn values(&self) -> &[i64] {
        &self.values
    }
}

impl fmt::Debug for L1Clipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "L1Clipped({} values within {})", self.values.len(), self.bound)
    }
}

/// A sum of clipped statistics of one shape and bound. Not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct L1Sum {
    values: Vec<i64>,
    bound: u64,
    count: u32,
}

impl L1Sum {
    /// Most statistics in one sum: 2^24 of 2^30 stay below 2^54, and a draw of noise is below 2^57.
    pub const MAX_COUNT: u32 = 1 << 24;

    /// A sum of nothing, for statistics of `len` values within `bound`.
    ///
    /// # Errors
    /// [`L1Error`] for a bound or a number of values out of range.
    pub fn zero(len: usize, bound: u64) -> Result<Self, L1Error> {
        check(len, bound)?;
        Ok(Self { values: vec![0; len], bound, count: 0 })
    }

    /// Adds one client's statistic.
    ///
    /// # Errors
    /// [`L1Error`] if it has another shape or bound; the sum is then as it was.
    pub fn fold(&mut self, statistic: &L1Clipped) -> Result<(), L1Error> {
        let (found_values, found_bound) = (statistic.values.len(), statistic.bound);
        if found_values != self.values.len() || found_bound != self.bound {
            let (values, bound) = (self.values.len(), self.bound);
            return Err(L1Error::Other { found_values, found_bound, values, bound });
        }
        if self.count == Self::MAX_COUNT {
            return Err(L1Error::Full);
        }
        self.count += 1;
        for (sum, v) in self.values.iter_mut().zip(&statistic.values) {
            *sum += v;
        }
        Ok(())
    }

    /// How far one client can move the sum.
    pub fn sensitivity(&self, adjacency: Adjacency) -> L1Sensitivity {
        L1Sensitivity::of_bounded(self.bound, adjacency)
    }

    /// The sum with discrete Laplace noise on each value: `epsilon`-differentially private, δ = 0. The number of
    /// statistics in it is not part of it.
    ///
    /// The caller has charged `epsilon` to the ledger before.
    ///
    /// # Errors
    /// [`LaplaceError`].
    pub fn noised(
        mut self,
        epsilon: f64,
        adjacency: Adjacency,
        rng: &mut NoiseRng,
    ) -> Result<Vec<i64>, LaplaceError> {
        DiscreteLaplace::for_epsilon(self.sensitivity(adjacency), epsilon)?.add_to(&mut self.values, rng);
        Ok(self.values)
    }
}

impl fmt::Debug for L1Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "L1Sum({} values within {})", self.values.len(), self.bound)
    }
}

fn check(len: usize, bound: u64) -> Result<(), L1Error> {
    if !(1..=MAX_L1_BOUND).contains(&bound) {
        return Err(L1Error::Bound(bound));
    }
    if !(1..=MAX_L1_VALUES).contains(&len) {
        return Err(L1Error::Length(len));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_statistic() -> impl Strategy<Value = Vec<i64>> {
        let value = prop_oneof![-20i64..20, any::<i64>(), Just(i64::MIN), Just(i64::MAX), Just(0)];
        prop::collection::vec(value, 1..20)
    }

    proptest! {
        #[test]
        fn one_client_moves_the_sum_by_at_most_the_sensitivity(
            one in any_statistic(), other in any_statistic(), bound in 1u64..1000,
        ) {
            let len = one.len();
            let other: Vec<i64> = other.into_iter().cycle().take(len).collect();
            let with = |statistic: Option<&[i64]>| {
                let mut sum = L1Sum::zero(len, bound).unwrap();
                if let Some(values) = statistic {
                    sum.fold(&clip_l1(values, bound).unwrap()).unwrap();
                }
                sum
            };
            let distance = |a: &L1Sum, b: &L1Sum| -> u64 {
                a.values.iter().zip(&b.values).map(|(a, b)| a.abs_diff(*b)).sum()
            };
            let (none, one, other) = (with(None), with(Some(&one)), with(Some(&other)));
            prop_assert!(distance(&none, &one) <= none.sensitivity(Adjacency::AddRemove).units());
            prop_assert!(distance(&one, &other) <= none.sensitivity(Adjacency::ReplaceOne).units());
        }

        #[test]
        fn a_short_statistic_stays_and_a_long_one_keeps_its_signs(values in any_statistic(), bound in 1u64..1000) {
            let clipped = clip_l1(&values, bound).unwrap();
            let norm: u128 = values.iter().map(|v| u128::from(v.unsigned_abs())).sum();
            if norm <= u128::from(bound) {
                prop_assert_eq!(clipped.values(), &values);
            }
            for (was, is) in values.iter().zip(clipped.values()) {
                prop_assert!(is.signum() == was.signum() || *is == 0);
            }
        }
    }

    #[test]
    fn noise_fits_the_sensitivity_and_is_fresh() {
        let mut rng = NoiseRng::seeded_for_tests(4);
        let noised = |rng: &mut NoiseRng, adjacency| {
            L1Sum::zero(4096, 10).unwrap().noised(0.5, adjacency, rng).unwrap()
        };
        let mean_magnitude =
            |v: &[i64]| v.iter().map(|v| v.unsigned_abs() as f64).sum::<f64>() / v.len() as f64;
        // The mean magnitude of Laplace noise is nearly its scale: 10/0.5 and 20/0.5.
        for (adjacency, scale) in [(Adjacency::AddRemove, 20.0), (Adjacency::ReplaceOne, 40.0)] {
            let (a, b) = (noised(&mut rng, adjacency), noised(&mut rng, adjacency));
            assert_ne!(a, b);
            assert!((mean_magnitude(&a) / scale - 1.0).abs() < 0.1, "{}", mean_magnitude(&a));
        }
    }

    #[test]
    fn shapes_and_bounds_do_not_mix() {
        let mut sum = L1Sum::zero(2, 5).unwrap();
        assert!(matches!(sum.fold(&clip_l1(&[1], 5).unwrap()), Err(L1Error::Other { .. })));
        assert!(matches!(sum.fold(&clip_l1(&[1, 1], 6).unwrap()), Err(L1Error::Other { .. })));
        assert_eq!(clip_l1(&[1], 0), Err(L1Error::Bound(0)));
        assert_eq!(clip_l1(&[], 1), Err(L1Error::Length(0)));
        assert_eq!(L1Sum::zero(MAX_L1_VALUES + 1, 1), Err(L1Error::Length(4097)));
        assert_eq!(
            format!("{sum:?} {:?}", clip_l1(&[7], 5).unwrap()),
            "L1Sum(2 values within 5) L1Clipped(1 values within 5)"
        );
    }
}
