//! A clip norm that follows a quantile of the updates' norms (Andrew, Thakkar, McMahan and Ramaswamy 2021, arXiv
//! 1905.03871).
//!
//! Each client says with one bit whether its update is *within* the clip norm. The share of bits is released with noise,
//! and the clip norm moves geometrically towards the norm that a fraction γ of the updates is within:
//!
//! b̄ = (Σ(bᵢ - ½) + N(0, σ_b²))/n₀ + ½,  C ← C·exp(-η(b̄ - γ)).
//!
//! Three things go wrong elsewhere. With the bit inverted C runs away to zero or infinity. Without the shift by ½ one
//! client moves the count by 1 and not by ½. And the count is not free: it takes its share of the round's noise, so that
//! the update's noise multiplier must rise from z to z_Δ = (z⁻² - (2σ_b)⁻²)^(-½), which [`AdaptiveClip::update_noise`]
//! gives. Both together then cost exactly what one Gaussian of z does.
//!
//! Missing reports count as ½ through the fixed divisor n₀: they pull b̄ towards ½ and tell nothing. A client that has no
//! update (unfit data, failed training) must be one of them: a bit of its own beside zeros would make neighbours differ by a
//! whole client.

use crate::clip::{BoundError, RawUpdate, bound_in_units, l2_norm};
use crate::discrete_gaussian::{DiscreteGaussian, NoiseError};
use crate::noise::NoiseRng;
use crate::sensitivity::Adjacency;
use serde::{Deserialize, Serialize};
use undertone_core::fixed::Grid;

/// ½ in units of the count: fine enough for the accountant (see [`crate::rdp`]), and noise is then on a grid.
const HALF: i64 = 1024;

/// How the clip norm moves: part of the contract, fixed before round 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Rule", into = "Rule")]
pub struct AdaptiveClip(Rule);

/// The terms as they are written.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// C of round 1.
    pub initial: f64,
    /// C never falls below this.
    pub min: f64,
    /// C never rises above this.
    pub max: f64,
    /// γ: the share of updates that are to be within C.
    pub target_quantile: f64,
    /// η: how far C moves; Andrew et al. use 0.2.
    pub learning_rate: f64,
    /// σ_b: standard deviation of the noise on the count of clients; Andrew et al. use a twentieth of the cohort.
    pub count_noise: f64,
}

/// Why there is no such rule, or no such noise.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum AdaptiveClipError {
    /// A number out of its range.
    #[error("adaptive clipping: {key} must be {wanted}, not {found}")]
    Number {
        /// The key.
        key: &'static str,
        /// The range.
        wanted: &'static str,
        /// The number.
        found: f64,
    },
    /// The count alone would cost as much as the round may.
    #[error(
        "a noise multiplier of {noise_multiplier} leaves nothing for the update beside a count with count_noise = \
         {count_noise}: count_noise must be above {}, half the noise multiplier",
        noise_multiplier / 2.0
    )]
    CountNoise {
        /// z of the round.
        noise_multiplier: f64,
        /// σ_b.
        count_noise: f64,
    },
    /// The clip norm is frozen.
    #[error("the clip norm is frozen at {0}: the mechanism in use allows no change before it restarts")]
    Frozen(f64),
}

impl TryFrom<Rule> for AdaptiveClip {
    type Error = AdaptiveClipError;

    fn try_from(rule: Rule) -> Result<Self, AdaptiveClipError> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let number = |key, wanted, found| Err(AdaptiveClipError::Number { key, wanted, found });
        if !positive(rule.min) {
            return number("min", "a finite number above 0", rule.min);
        }
        if !(rule.max.is_finite() && rule.max >= rule.min) {
            return number("max", "a finite number of at least min", rule.max);
        }
        if !(rule.min..=rule.max).contains(&rule.initial) {
            return number("initial", "between min and max", rule.initial);
        }
        if !(rule.target_quantile > 0.0 && rule.target_quantile < 1.0) {
            return number("target_quantile", "above 0 and below 1", rule.target_quantile);
        }
        if !(rule.learning_rate > 0.0 && rule.learning_rate <= 1.0) {
            return number("learning_rate", "above 0 and at most 1", rule.learning_rate);
        }
        if !(0.25..=1e6).contains(&rule.count_noise) {
            return number("count_noise", "0.25 to 1e6 clients", rule.count_noise);
        }
        Ok(Self(rule))
    }
}

impl From<AdaptiveClip> for Rule {
    fn from(rule: AdaptiveClip) -> Self {
        rule.0
    }
}

impl AdaptiveClip {
    /// z_Δ: the noise multiplier of the update that, together with the count, costs what one Gaussian of
    /// `noise_multiplier` does. Rounded up. The same under either adjacency: both sensitivities double.
    ///
    /// # Errors
    /// [`AdaptiveClipError::CountNoise`] unless z < 2σ_b.
    pub fn update_noise(&self, noise_multiplier: f64) -> Result<f64, AdaptiveClipError> {
        let (z, count) = (noise_multiplier, 2.0 * self.0.count_noise);
        // Also refuses NaN.
        if !(z > 0.0 && z < count) {
            return Err(AdaptiveClipError::CountNoise { noise_multiplier, count_noise: self.0.count_noise });
        }
        // z/√(1 - (z/2σ_b)²), without the cancellation of the difference of squares.
        let rest = (1.0 - z / count) * (1.0 + z / count);
        Ok(z / libm::sqrt(rest) * (1.0 + 4.0 * f64::EPSILON))
    }

    /// The terms in a fixed order, for digests.
    pub(crate) fn numbers(&self) -> [f64; 6] {
        let Rule { initial, min, max, target_quantile, learning_rate, count_noise } = self.0;
        [initial, min, max, target_quantile, learning_rate, count_noise]
    }

    /// The largest clip norm.
    pub fn max(&self) -> f64 {
        self.0.max
    }

    /// The nearest clip norm that the rule allows; its lowest for NaN.
    pub(crate) fn clamp(&self, clip_norm: f64) -> f64 {
        clip_norm.max(self.0.min).min(self.0.max)
    }

    /// Whether the clip norm may ever be this.
    pub fn allows(&self, clip_norm: f64) -> bool {
        (self.0.min..=self.0.max).contains(&clip_norm)
    }

    /// Whether every clip norm that may come up suits the grid.
    ///
    /// # Errors
    /// [`BoundError`] of the clamp that does not.
    pub fn check_grid(&self, grid: Grid) -> Result<(), BoundError> {
        bound_in_units(self.0.min, grid)?;
        bound_in_units(self.0.max, grid).map(|_| ())
    }

    /// The state before round 1.
    pub fn start(&self) -> ClipState {
        ClipState { clip_norm: self.0.initial, frozen: false }
    }
}

/// One client's answer: is its update within the clip norm? Not printed: it is private until it is summed and noised.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct WithinBit(bool);

impl WithinBit {
    /// What the client says of its update before clipping. A norm that is NaN or infinite is not within anything.
    pub fn of(update: &RawUpdate, clip_norm: f64) -> Self {
        Self::of_norm(l2_norm(update.values()), clip_norm)
    }

    fn of_norm(norm: f64, clip_norm: f64) -> Self {
        Self(norm <= clip_norm)
    }

    /// The bit as it travels.
    pub fn from_wire(bit: bool) -> Self {
        Self(bit)
    }

    /// The bit as it travels.
    pub fn to_wire(self) -> bool {
        self.0
    }
}

impl std::fmt::Debug for WithinBit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WithinBit")
    }
}

/// Σ(bᵢ - ½): an integer in units of 1/2048.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CountSum(i64);

impl CountSum {
    /// Adds one client's bit, which moves the sum by half a client.
    pub fn fold(&mut self, bit: WithinBit) {
        self.0 += if bit.0 { HALF } else { -HALF };
    }

    /// A sum that was made elsewhere: as [`units`](Self::units) gives it.
    pub fn of_units(units: i64) -> Self {
        Self(units)
    }

    /// The sum, in units of 1/2048 of a client. Without noise: for whoever sums on.
    pub fn units(self) -> i64 {
        self.0
    }

    /// Adds the sum over other clients of the same round.
    pub fn merge(&mut self, other: Self) {
        self.0 += other.0;
    }

    /// The share of the cohort that is within the clip norm, with noise on the count of σ_b clients, or twice that where
    /// neighbours replace one client, whose bit then moves the count by 1 and not by ½. `denominator` is
    /// the public number of clients that the round counts on.
    ///
    /// # Errors
    /// [`NoiseError`] if σ_b cannot be drawn.
    ///
    /// # Panics
    /// If `denominator` is not above 0.
    pub fn noised(
        self,
        rule: &AdaptiveClip,
        adjacency: Adjacency,
        denominator: f64,
        rng: &mut NoiseRng,
    ) -> Result<NoisedShare, NoiseError> {
        assert!(denominator > 0.0, "the public denominator is {denominator}");
        let client = 2.0 * HALF as f64;
        let sigma = rule.0.count_noise * client * adjacency.contributions() as f64;
        let noise = DiscreteGaussian::new(sigma.next_up())?;
        let noised = self.0 + noise.sample(rng);
        Ok(NoisedShare(noised as f64 / (client * denominator) + 0.5))
    }
}

/// b̄: public. Noise may carry it outside of 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoisedShare(f64);

impl NoisedShare {
    /// The share.
    pub fn value(self) -> f64 {
        self.0
    }
}

/// The clip norm of the round to come. Durable: part of the job's state.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipState {
    clip_norm: f64,
    frozen: bool,
}

impl ClipState {
    /// C of the round to come.
    pub fn clip_norm(&self) -> f64 {
        self.clip_norm
    }

    /// Whether C may still move.
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Fixes C from here on, where a mechanism spreads one sensitivity over many rounds ([`crate::blt`]).
    #[must_use]
    pub fn freeze(self) -> Self {
        Self { frozen: true, ..self }
    }

    /// C after a round, by libm: the same bits on every machine. A state that was read back with a clip norm outside
    /// of the rule's clamps comes back within them.
    ///
    /// # Errors
    /// [`AdaptiveClipError::Frozen`].
    pub fn after(self, rule: &AdaptiveClip, share: NoisedShare) -> Result<Self, AdaptiveClipError> {
        if self.frozen {
            return Err(AdaptiveClipError::Frozen(self.clip_norm));
        }
        let Rule { min, max, target_quantile, learning_rate, .. } = rule.0;
        let moved = self.clip_norm * libm::exp(-learning_rate * (share.0 - target_quantile));
        // `max` and `min` ignore NaN, so that even a damaged state ends up within the clamps.
        Ok(Self { clip_norm: moved.max(min).min(max), frozen: false })
    }
}

#[cfg(test)]
mod tests;
