//! ε after any number of uses of one mechanism, each number computed once.

use super::{AccountantError, Adjacency, Composition, EpsilonInterval, MAX_COMPOSITIONS, Mechanism};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// ε at one δ as a function of the number of uses of one mechanism. Answers are kept; each is the same whatever was
/// asked before.
#[derive(Debug)]
pub struct Curve {
    adjacency: Adjacency,
    mechanism: Mechanism,
    delta: f64,
    upper: Mutex<BTreeMap<u64, f64>>,
}

impl Curve {
    /// The curve at `delta`. Checks it, and that a single use can be accounted for.
    ///
    /// # Errors
    /// [`AccountantError`].
    pub fn new(mechanism: Mechanism, adjacency: Adjacency, delta: f64) -> Result<Self, AccountantError> {
        let curve = Self { adjacency, mechanism, delta, upper: Mutex::new(BTreeMap::new()) };
        curve.upper(1)?;
        Ok(curve)
    }

    /// The mechanism.
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// The upper bound of ε after `count` uses: zero after none.
    ///
    /// # Errors
    /// [`AccountantError`] if ε is beyond [`super::MAX_EPSILON`] or `count` beyond [`MAX_COMPOSITIONS`].
    pub fn upper(&self, count: u64) -> Result<f64, AccountantError> {
        if let Some(known) = self.known().get(&count) {
            return Ok(*known);
        }
        let upper = self.composition(count)?.epsilon_upper(self.delta)?;
        self.known().insert(count, upper);
        Ok(upper)
    }

    /// Both bounds after `count` uses.
    ///
    /// # Errors
    /// As [`Self::upper`].
    pub fn interval(&self, count: u64) -> Result<EpsilonInterval, AccountantError> {
        self.composition(count)?.epsilon(self.delta)
    }

    /// The largest number of uses, up to `most`, whose upper bound is at most `epsilon`, to be told how many rounds
    /// would fit. By bisection: about twenty queries.
    ///
    /// # Errors
    /// [`AccountantError`] for nonsense; an ε beyond computing counts as too large.
    pub fn most_within(&self, epsilon: f64, most: u64) -> Result<u64, AccountantError> {
        let fits = |count: u64| match self.upper(count) {
            Ok(upper) => Ok(upper <= epsilon),
            Err(AccountantError::Epsilon(_)) => Ok(false),
            Err(e) => Err(e),
        };
        let most = most.min(MAX_COMPOSITIONS);
        // Doubling first: what is small is cheap.
        let (mut low, mut high) = (0, 1);
        while high <= most && fits(high)? {
            low = high;
            high = high.saturating_mul(2);
        }
        high = high.min(most + 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if fits(middle)? { low = middle } else { high = middle }
        }
        Ok(low)
    }

    fn composition(&self, count: u64) -> Result<Composition, AccountantError> {
        Composition::new(self.adjacency).add(self.mechanism, count)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, f64>> {
        // A panic while it is held leaves a map of right answers.
        self.upper.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Clone for Curve {
    fn clone(&self) -> Self {
        let upper = Mutex::new(self.known().clone());
        Self { adjacency: self.adjacency, mechanism: self.mechanism, delta: self.delta, upper }
    }
}

/// Curves are equal if their questions are; what has been answered already does not count.
impl PartialEq for Curve {
    fn eq(&self, other: &Self) -> bool {
        (self.adjacency, self.mechanism, self.delta.to_bits())
            == (other.adjacency, other.mechanism, other.delta.to_bits())
    }
}
