//! The one-run audit (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846): does what a job releases protect as much as
//! the accountant says?
//!
//! Canaries, each the strongest contribution that the contract lets anyone make (all of the clip norm on a coordinate of
//! its own), go in or stay out by fair coins; where neighbours replace a contribution, the coin decides between it and the
//! opposite. The job's own functions draw, clip, sum, noise and release over the planned rounds. Whoever sees what the
//! contract says may be seen guesses: a canary's score says how likely it is, the highest are said to be in, the lowest
//! out. So many right guesses refute every small ε ([`evidence`]): a lower bound on the true ε, to be held against the
//! claimed one. Above it, the accountant or the mechanism is wrong.
//!
//! | contract | a canary | seen |
//! |---|---|---|
//! | record level | a row of a client that trains with DP-SGD (`record_level`) | each noised gradient |
//! | client level, central | a client of a cohort of all (`client_level`) | released models |
//! | the same, drawn cohorts | a client that is in when it is drawn (`drawn_cohorts`) | released models |
//! | client level, local | a client that sends one of two updates (`local_messages`) | its messages |
//!
//! ```text
//! Design::new (δ, guesses, claim: all before the coins) ─run─▶ Outcome { right, measured }
//!     subject: JobUnderAudit     the job's functions
//!              WithoutNoise      the same but for the noise: the positive control, which must be found out
//! ```
//!
//! An audit that could not find out a job without noise is refused: it would never fail.

mod client_level;
mod design;
mod drawn_cohorts;
pub mod evidence;
mod local_messages;
mod record_level;
mod subject;

pub use design::{AuditError, Design, Wishes};
pub use subject::{JobUnderAudit, Subject, WithoutNoise};

use crate::noise::NoiseRng;
use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng as _, SeedableRng as _};
use evidence::Evidence;

/// Who is in: fair coins, independent of everything in the job.
#[derive(Debug)]
pub struct Coins(ChaCha20Rng);

impl Coins {
    /// The same coins each time. They are no part of a job: its noise and its batches stay unpredictable.
    pub fn seeded(seed: u64) -> Self {
        Self(ChaCha20Rng::seed_from_u64(seed))
    }

    /// Coins that nobody can foresee.
    pub fn fresh(rng: &mut NoiseRng) -> Self {
        Self::seeded(rng.bits())
    }

    fn toss(&mut self, canaries: u32) -> Vec<bool> {
        (0..canaries).map(|_| self.0.next_u64() >> 63 == 1).collect()
    }
}

/// What an audit found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Right guesses, out of how many.
    pub evidence: Evidence,
    /// With the design's confidence, ε at the design's δ is at least this much.
    pub measured: f64,
    /// The ε that the accountant says is enough.
    pub claimed: f64,
}

impl Outcome {
    /// Whether what was measured cannot be, if the claim is true.
    pub fn contradicts_the_claim(&self) -> bool {
        self.measured > self.claimed
    }
}

impl Design {
    /// Runs the experiment: tosses the coins, has the subject release, guesses, counts.
    ///
    /// # Errors
    /// [`AuditError::Refused`] if a step of the job refuses.
    pub fn run(&self, subject: &mut impl Subject, mut coins: Coins) -> Result<Outcome, AuditError> {
        let included = coins.toss(self.canaries());
        let scores = subject.scores(self.rounds(), &included)?;
        let right = self.right_guesses(&scores, &included);
        let evidence = Evidence::new(self.canaries(), self.guesses(), right)
            .expect("a guess is about one canary, right or wrong");
        let measured = evidence.epsilon_lower_bound(self.delta(), self.confidence());
        Ok(Outcome { evidence, measured, claimed: self.claimed() })
    }

    /// Guesses by score and counts the right ones.
    fn right_guesses(&self, scores: &[f64], included: &[bool]) -> u32 {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let (said_in, said_out) = (self.guesses_in() as usize, self.guesses_out() as usize);
        let highest = order[..said_in].iter().filter(|&&i| included[i]);
        let lowest = order[order.len() - said_out..].iter().filter(|&&i| !included[i]);
        (highest.count() + lowest.count()) as u32
    }
}

#[cfg(test)]
mod tests;
