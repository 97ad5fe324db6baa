//! Who is asked in a round.

use crate::id::ClientId;
use crate::limits::MAX_COHORT;
use rand::seq::SliceRandom as _;
use serde::{Deserialize, Serialize};

/// The cohort rule of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "lowercase", deny_unknown_fields)]
pub enum CohortRule {
    /// Everyone who is connected. `size` is the number that the job counts on: the fixed denominator.
    All {
        /// Clients expected.
        size: u32,
        /// A round with fewer usable updates is not released.
        min_clients: u32,
    },
    /// A uniform draw of `size` of those connected.
    Uniform {
        /// Clients drawn.
        size: u32,
        /// A round with fewer usable updates is not released.
        min_clients: u32,
    },
}

impl CohortRule {
    /// Checks the numbers.
    ///
    /// # Errors
    /// A sentence that says which number is wrong.
    pub fn validate(&self) -> Result<(), String> {
        let (size, min) = (self.size(), self.min_clients());
        if size == 0 || size > MAX_COHORT {
            Err(format!("cohort size must be 1 to {MAX_COHORT}, not {size}"))
        } else if min == 0 || min > size {
            Err(format!("min_clients must be 1 to the cohort's size ({size}), not {min}"))
        } else {
            Ok(())
        }
    }

    /// The number of clients that a round counts on.
    pub fn size(&self) -> u32 {
        match self {
            Self::All { size, .. } | Self::Uniform { size, .. } => *size,
        }
    }

    /// The fewest updates that a release may rest on.
    pub fn min_clients(&self) -> u32 {
        match self {
            Self::All { min_clients, .. } | Self::Uniform { min_clients, .. } => *min_clients,
        }
    }

    /// Draws the cohort, at most [`CohortRule::size`] clients, sorted by name. `None` while fewer than
    /// [`CohortRule::min_clients`] are there.
    ///
    /// `All` also stops at `size`: a fixed denominator must not meet more clients than it was set for.
    pub fn draw(&self, present: &[ClientId], rng: &mut impl rand::CryptoRng) -> Option<Vec<ClientId>> {
        if present.len() < self.min_clients() as usize {
            return None;
        }
        let mut drawn = present.to_vec();
        drawn.sort();
        drawn.dedup();
        drawn.shuffle(rng);
        drawn.truncate(self.size() as usize);
        drawn.sort();
        Some(drawn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    fn clients(n: usize) -> Vec<ClientId> {
        (0..n).map(|i| ClientId::new(format!("c{i:02}")).unwrap()).collect()
    }

    #[test]
    fn draws_are_bounded_and_uniform() {
        let mut rng = rand_chacha::ChaCha20Rng::seed_from_u64(1);
        let rule = CohortRule::Uniform { size: 3, min_clients: 2 };
        assert_eq!(rule.draw(&clients(1), &mut rng), None);
        let mut hits = [0u32; 10];
        for _ in 0..10_000 {
            let drawn = rule.draw(&clients(10), &mut rng).unwrap();
            assert_eq!(drawn.len(), 3);
            for c in drawn {
                hits[c.as_str()[1..].parse::<usize>().unwrap()] += 1;
            }
        }
        // Each of 10 clients is in 3 of 10 draws: 3000 ± 6 standard deviations (46 each).
        assert!(hits.iter().all(|&h| (2700..3300).contains(&h)), "{hits:?}");
    }

    #[test]
    fn impossible_rules_are_refused() {
        assert!(CohortRule::All { size: 0, min_clients: 0 }.validate().is_err());
        assert!(CohortRule::All { size: 2, min_clients: 3 }.validate().is_err());
        assert!(CohortRule::Uniform { size: 2, min_clients: 0 }.validate().is_err());
        assert!(CohortRule::Uniform { size: 2, min_clients: 2 }.validate().is_ok());
    }
}
