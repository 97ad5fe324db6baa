//! Everything about an audit that is fixed before the coins are tossed.

use super::drawn_cohorts::Draw;
use super::evidence::Evidence;
use crate::resolve::ResolvedContract;
use undertone_core::limits::MAX_COHORT;

/// Numbers of canaries that are tried in turn where none is asked for.
const USUAL_CANARIES: [u32; 6] = [1000, 2000, 5000, 10_000, 20_000, 50_000];
/// A share of guesses among canaries that is small enough: more canaries would only take longer.
const SHARE: f64 = 0.1;
/// Fewest canaries of one audit.
const MIN_CANARIES: u32 = 100;
/// Most canaries of one audit: at client level they are one cohort.
const MAX_CANARIES: u32 = MAX_COHORT;
/// Most draws of noise, a draw for each canary and noisy step, and what takes as long: some minutes.
const MAX_DRAWS: u64 = 1 << 30;
/// Smallest δ that the claim is looked at.
const MIN_DELTA: f64 = 1e-10;
/// A job without noise must be found out by this factor.
const MARGIN: f64 = 1.05;

/// What whoever audits asks for; the rest is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wishes {
    /// Canaries.
    pub canaries: Option<u32>,
    /// Guesses about them.
    pub guesses: Option<u32>,
    /// Rounds of those planned.
    pub rounds: Option<u32>,
    /// The probability with which the measured bound holds.
    pub confidence: f64,
}

/// Why there is no audit.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AuditError {
    /// `unit = "none"`.
    #[error("the job promises no privacy (unit = \"none\"): there is no claim to audit")]
    NoPromise,
    /// Too few or too many canaries.
    #[error("an audit has {MIN_CANARIES} to {MAX_CANARIES} canaries, not {0}")]
    Canaries(u32),
    /// Guesses that cannot all be right.
    #[error(
        "{canaries} canaries allow 1 to {most} guesses, not {guesses}: so many that coins make them all possible"
    )]
    Guesses {
        /// Asked for.
        guesses: u32,
        /// Canaries.
        canaries: u32,
        /// Most guesses.
        most: u32,
    },
    /// No probability that proves anything.
    #[error("a confidence is at least 0.5 and below 1, not {0}")]
    Confidence(f64),
    /// Not among those planned.
    #[error("the job plans {planned} rounds: audit 1 to {planned} of them, not {rounds}")]
    Rounds {
        /// Asked for.
        rounds: u32,
        /// Planned.
        planned: u32,
    },
    /// Hours of work.
    #[error("{canaries} canaries over {steps} noisy steps are too much work: audit fewer rounds or canaries")]
    TooMuchWork {
        /// Canaries.
        canaries: u32,
        /// Steps that add noise.
        steps: u64,
    },
    /// Even without noise the claim would stand.
    #[error(
        "{canaries} canaries cannot refute ε = {claimed:.2} at δ = {delta:e}, not even on a job without any noise, so this \
         audit would never fail: take more canaries or guesses, or audit fewer of the rounds"
    )]
    Powerless {
        /// Canaries.
        canaries: u32,
        /// The claim.
        claimed: f64,
        /// The δ of the claim.
        delta: f64,
    },
    /// A step of the job, on its way to a release.
    #[error("the job's own {step} refused a canary: {reason}")]
    Refused {
        /// The step.
        step: &'static str,
        /// What it said.
        reason: String,
    },
}

/// An audit before it is run.
///
/// The claim is held against the measurement at `delta`, which may be smaller than the contract's δ: a mechanism is
/// allowed to expose a canary with a probability of δ, so that one run refutes little at a δ of 1e-3 (with any number of
/// canaries nothing above 3.2 at 95 %), while the same noise promises an ε at every other δ too, by the same
/// accountant. The contract's δ is taken if a job without noise would be found out at it; otherwise the one, smaller by
/// powers of ten, at which the fewest guesses find it out: the fewer, the surer they are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Design {
    canaries: u32,
    guesses_in: u32,
    guesses_out: u32,
    rounds: u32,
    confidence: f64,
    delta: f64,
    claimed: f64,
}

impl Design {
    /// Fixes what `wishes` leaves open.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn new(contract: &ResolvedContract, wishes: Wishes) -> Result<Self, AuditError> {
        let confidence = wishes.confidence;
        if !Evidence::CONFIDENCES.contains(&confidence) {
            return Err(AuditError::Confidence(confidence));
        }
        let planned = contract.schedule().rounds;
        let rounds = wishes.rounds.unwrap_or(planned);
        if !(1..=planned).contains(&rounds) {
            return Err(AuditError::Rounds { rounds, planned });
        }
        let claims = claims(contract, rounds)?;
        let work = Work::of(contract, rounds);
        let exposure = Exposure::of(contract, work.steps);

        if let Some(canaries) = wishes.canaries {
            let chosen = choose(canaries, &claims, wishes, exposure, work)?;
            return Ok(Self::fixed(rounds, confidence, exposure, chosen));
        }
        // The fewer of the canaries must be guessed, the surer are the guesses.
        let mut best: Option<Chosen> = None;
        let mut refusal = None;
        for canaries in USUAL_CANARIES {
            match choose(canaries, &claims, wishes, exposure, work) {
                Ok(found) if best.is_none_or(|best| found.share() < best.share()) => best = Some(found),
                Ok(_) => {}
                Err(e) => refusal = Some(e),
            }
            if best.is_some_and(|best| best.share() <= SHARE) {
                break;
            }
        }
        match (best, refusal) {
            (Some(chosen), _) => Ok(Self::fixed(rounds, confidence, exposure, chosen)),
            (None, refusal) => Err(refusal.expect("there are usual numbers of canaries")),
        }
    }

    fn fixed(rounds: u32, confidence: f64, exposure: Exposure, chosen: Chosen) -> Self {
        let Chosen { canaries, guesses, delta, claimed } = chosen;
        let guesses_out = if exposure.low_means_out { guesses / 2 } else { 0 };
        Self { canaries, guesses_in: guesses - guesses_out, guesses_out, rounds, confidence, delta, claimed }
    }

    /// Canaries, each in or out by a coin.
    pub fn canaries(&self) -> u32 {
        self.canaries
    }

    /// Guesses in all.
    pub fn guesses(&self) -> u32 {
        self.guesses_in + self.guesses_out
    }

    /// So many of the highest scores are said to be in.
    pub fn guesses_in(&self) -> u32 {
        self.guesses_in
    }

    /// So many of the lowest scores are said to be out, or to be the other of the two neighbours. Zero where the contract samples: a low score may be that of a
    /// canary that is in and was never drawn.
    pub fn guesses_out(&self) -> u32 {
        self.guesses_out
    }

    /// Rounds of the job that are run.
    pub fn rounds(&self) -> u32 {
        self.rounds
    }

    /// The probability with which the measured bound holds.
    pub fn confidence(&self) -> f64 {
        self.confidence
    }

    /// The δ at which measurement and claim are compared.
    pub fn delta(&self) -> f64 {
        self.delta
    }

    /// The ε that the accountant says is enough for these rounds at [`Self::delta`].
    pub fn claimed(&self) -> f64 {
        self.claimed
    }
}

/// (δ, ε) of the rounds, from the contract's δ down by powers of ten.
fn claims(contract: &ResolvedContract, rounds: u32) -> Result<Vec<(f64, f64)>, AuditError> {
    let own = contract.delta().ok_or(AuditError::NoPromise)?;
    let (mut claims, mut power) = (vec![], 1.0);
    while claims.is_empty() || own / power >= MIN_DELTA {
        let delta = own / power;
        let claimed = contract.epsilon_at(rounds, delta).ok_or(AuditError::NoPromise)?;
        claims.push((delta, claimed));
        power *= 10.0;
    }
    Ok(claims)
}

/// What is left to choose once rounds and confidence are fixed.
#[derive(Debug, Clone, Copy)]
struct Chosen {
    canaries: u32,
    guesses: u32,
    delta: f64,
    claimed: f64,
}

impl Chosen {
    fn share(&self) -> f64 {
        f64::from(self.guesses) / f64::from(self.canaries)
    }
}

/// The δ, the contract's own if possible, and the fewest guesses at which so many canaries would find out a job without
/// noise.
fn choose(
    canaries: u32,
    claims: &[(f64, f64)],
    wishes: Wishes,
    exposure: Exposure,
    work: Work,
) -> Result<Chosen, AuditError> {
    if !(MIN_CANARIES..=MAX_CANARIES).contains(&canaries) {
        return Err(AuditError::Canaries(canaries));
    }
    if work.draws(canaries) > MAX_DRAWS {
        return Err(AuditError::TooMuchWork { canaries, steps: work.steps });
    }
    let most = exposure.most_guesses(canaries);
    if let Some(guesses) = wishes.guesses
        && !(1..=most).contains(&guesses)
    {
        return Err(AuditError::Guesses { guesses, canaries, most });
    }
    let at = |&(delta, claimed): &(f64, f64)| {
        let guesses = least_guesses(canaries, wishes.guesses, most, claimed, delta, wishes.confidence)?;
        Some(Chosen { canaries, guesses, delta, claimed })
    };
    let (own, smaller) = claims.split_first().expect("the contract's own δ is one");
    let found = at(own).or_else(|| smaller.iter().filter_map(at).min_by_key(|chosen| chosen.guesses));
    found.ok_or(AuditError::Powerless { canaries, claimed: own.1, delta: own.0 })
}

/// The fewest guesses that would refute the claim if all were right; `wished` if it would.
fn least_guesses(
    canaries: u32,
    wished: Option<u32>,
    most: u32,
    claimed: f64,
    delta: f64,
    confidence: f64,
) -> Option<u32> {
    let refutes = |guesses| {
        let all_right = Evidence::new(canaries, guesses, guesses).expect("at most as many as canaries");
        all_right.p_value(MARGIN * claimed, delta) <= 1.0 - confidence
    };
    let (mut low, mut high) = match wished {
        Some(guesses) => (guesses, guesses),
        None => (1, most),
    };
    if high == 0 || !claimed.is_finite() || !refutes(high) {
        return None;
    }
    while low < high {
        let middle = low + (high - low) / 2;
        if refutes(middle) { high = middle } else { low = middle + 1 }
    }
    Some(high)
}

/// What a run takes.
#[derive(Debug, Clone, Copy)]
struct Work {
    /// Steps that add noise.
    steps: u64,
    /// Draws of noise for a canary in a step, or what takes as long.
    each: u64,
}

impl Work {
    /// Clients whose values are summed while one is noised.
    const SUMMED_PER_DRAW: f64 = 128.0;

    fn of(contract: &ResolvedContract, rounds: u32) -> Self {
        let steps = u64::from(rounds) * u64::from(contract.charge());
        // Where everyone is asked the sum is the same in each round.
        let summed = Draw::of(contract).map_or(0.0, |draw| draw.expected_cohort() / Self::SUMMED_PER_DRAW);
        Self { steps, each: 1 + summed as u64 }
    }

    fn draws(&self, canaries: u32) -> u64 {
        u64::from(canaries).saturating_mul(self.steps).saturating_mul(self.each)
    }
}

/// How canaries show in the scores of a job without noise.
#[derive(Debug, Clone, Copy)]
struct Exposure {
    /// Whether all that are in show, so that a low score means out.
    low_means_out: bool,
    /// The probability that one that is in shows.
    shows: f64,
}

impl Exposure {
    fn of(contract: &ResolvedContract, steps: u64) -> Self {
        let rate = match Draw::of(contract) {
            Some(draw) => draw.least_rate(),
            None => contract.contract().sampling_rate().unwrap_or(1.0),
        };
        if rate < 1.0 {
            Self { low_means_out: false, shows: -libm::expm1(steps as f64 * libm::log1p(-rate)) }
        } else {
            Self { low_means_out: true, shows: 1.0 }
        }
    }

    /// So many guesses that without noise all could be right: six standard deviations of the coins are left.
    fn most_guesses(&self, canaries: u32) -> u32 {
        let (m, sides) = (f64::from(canaries), if self.low_means_out { 2.0 } else { 1.0 });
        (sides * (0.5 * m * self.shows - 3.0 * libm::sqrt(m))).max(0.0) as u32
    }
}
