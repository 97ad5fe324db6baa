//! FedBuff's weights: updates that were made from an older model count less (Nguyen et al. 2022, "Federated learning
//! with buffered asynchronous aggregation").

use crate::limits::MAX_WEIGHT;
use serde::{Deserialize, Serialize};

/// How an update's weight falls with its staleness s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// 1/√(1+s), as in the paper's section 5.
    #[default]
    InverseSqrt,
    /// Not at all: only the bound counts.
    Constant,
}

impl Decay {
    /// The word in job files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InverseSqrt => "inverse-sqrt",
            Self::Constant => "constant",
        }
    }
}

/// Weights by staleness as integers, for the exact sum: a fixed power of two times the [`Decay`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Staleness {
    bound: u32,
    decay: Decay,
    one: u32,
}

/// An update that was made from too old a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the update was made {staleness} models ago, and the job takes none that is older than {bound}")]
pub struct TooStale {
    /// Models that were released since the one it began with.
    pub staleness: u32,
    /// The job's bound.
    pub bound: u32,
}

impl Staleness {
    /// What a fresh update of weight 1 weighs, at most.
    pub const FINEST: u32 = 1 << 16;
    /// What a fresh update of weight 1 weighs, at least: coarser would not tell 1/√1 from 1/√2 to a percent.
    pub const COARSEST: u32 = 1 << 7;

    /// Takes updates up to `bound` models old. What a fresh update of weight 1 weighs is 1 where weights do not fall, else
    /// the largest power of two, up to 2^16, with which a client's largest weight fits [`MAX_WEIGHT`].
    ///
    /// # Errors
    /// A sentence, if `max_weight` leaves no room for fractions.
    pub fn new(decay: Decay, bound: u32, max_weight: u32) -> Result<Self, String> {
        if decay == Decay::Constant {
            return Ok(Self { bound, decay, one: 1 });
        }
        let room = MAX_WEIGHT.checked_div(max_weight).unwrap_or(0);
        if room < Self::COARSEST {
            let most = MAX_WEIGHT / Self::COARSEST;
            return Err(format!("max_weight must be 1 to {most} where staleness counts, not {max_weight}"));
        }
        Ok(Self { bound, decay, one: (1 << room.ilog2()).min(Self::FINEST) })
    }

    /// What a fresh update of weight 1 weighs. The mean of a buffer of K updates of weight 1 is their sum over K times
    /// this (not over the sum of their weights: in the paper stale updates make the step smaller).
    pub fn one(&self) -> u32 {
        self.one
    }

    /// Whether an update of this staleness is taken.
    ///
    /// # Errors
    /// [`TooStale`].
    pub fn check(&self, staleness: u32) -> Result<(), TooStale> {
        if staleness > self.bound { Err(TooStale { staleness, bound: self.bound }) } else { Ok(()) }
    }

    /// `weight`·[`one`](Self::one), or the integer nearest to that over √(1+`staleness`), at least 1, computed in integers.
    ///
    /// # Errors
    /// [`TooStale`].
    ///
    /// # Panics
    /// If `weight` is zero or beyond the `max_weight` this was made for.
    pub fn weight(&self, weight: u32, staleness: u32) -> Result<u32, TooStale> {
        let fresh = u64::from(weight) * u64::from(self.one);
        assert!(
            (1..=u64::from(MAX_WEIGHT)).contains(&fresh),
            "the weight {weight} is beyond the job's bound"
        );
        self.check(staleness)?;
        if self.decay == Decay::Constant {
            return Ok(weight);
        }
        // ⌊(⌊2√x⌋ + 1)/2⌋ is √x to the nearest integer, and ⌊2√x⌋ = ⌊√⌊4x⌋⌋.
        let twice = (4 * fresh * fresh / (1 + u64::from(staleness))).isqrt();
        Ok(twice.div_ceil(2).max(1) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_one_over_the_root_to_the_nearest_integer() {
        let staleness = Staleness::new(Decay::InverseSqrt, 1000, 1).unwrap();
        assert_eq!(staleness.one(), 65_536);
        for s in 0..=1000u32 {
            let wanted = (65_536.0 / f64::from(1 + s).sqrt()).round() as u32;
            assert_eq!(staleness.weight(1, s), Ok(wanted), "{s}");
        }
        assert_eq!(staleness.weight(1, 3), Ok(32_768));
        assert_eq!(staleness.weight(1, 1001), Err(TooStale { staleness: 1001, bound: 1000 }));
        assert_eq!(
            Staleness::new(Decay::InverseSqrt, u32::MAX, 8192).unwrap().weight(1, u32::MAX),
            Ok(1),
            "never nothing"
        );
    }

    #[test]
    fn weights_that_do_not_fall_are_the_clients_own() {
        let constant = Staleness::new(Decay::Constant, 3, MAX_WEIGHT).unwrap();
        assert_eq!(constant.one(), 1);
        assert_eq!((constant.weight(7, 0), constant.weight(7, 3)), (Ok(7), Ok(7)));
        assert_eq!(constant.weight(7, 4), Err(TooStale { staleness: 4, bound: 3 }));
        assert_eq!(constant.check(3), Ok(()));
    }

    #[test]
    fn the_heaviest_fresh_update_fits_the_sum_and_heavier_jobs_are_refused() {
        for max_weight in [1, 2, 15, 16, 17, 100, 8191, 8192] {
            let staleness = Staleness::new(Decay::InverseSqrt, 10, max_weight).unwrap();
            let heaviest = staleness.weight(max_weight, 0).unwrap();
            assert_eq!(heaviest, max_weight * staleness.one());
            assert!(heaviest <= MAX_WEIGHT);
            assert!(heaviest * 2 > MAX_WEIGHT || staleness.one() == Staleness::FINEST);
        }
        for max_weight in [0, 8193, MAX_WEIGHT, u32::MAX] {
            assert!(
                Staleness::new(Decay::InverseSqrt, 10, max_weight)
                    .unwrap_err()
                    .contains(&max_weight.to_string())
            );
        }
    }
}
