//! What guesses prove: the largest ε that they refute (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846).
//!
//! m canaries are in or out by fair coins, or one of two neighbours each; r guesses about them are made from the output, v of them right. If the
//! mechanism is (ε, δ)-differentially private, v is no larger, up to δ, than a binomial number W of r trials with a
//! chance of q = e^ε/(1 + e^ε) (their theorem for approximate differential privacy), and at least v right guesses have
//! a probability of at most
//!
//! ```text
//! p(ε) = Pr[W ≥ v] + 2mδ · max over i in 1..=v of (Pr[W ≥ v-i] - Pr[W ≥ v])/i
//! ```
//!
//! An ε with p(ε) ≤ 1 - confidence is refuted. p grows with ε wherever it is below one half (a property test looks), so
//! that bisection finds the largest. The bound is rounded down.

use std::ops::RangeInclusive;

/// Floating point errs by less than one part in 10^9 here (differences of log-gamma up to 10^6): p counts for more.
const CAUTION: f64 = 1.0 + 1e-8;

/// The outcome of an experiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence {
    canaries: u32,
    guesses: u32,
    right: u32,
}

impl Evidence {
    /// Confidences that a bound can be had at. p is no p-value to bisect on above one half.
    pub const CONFIDENCES: RangeInclusive<f64> = 0.5..=1.0 - 1e-9;

    /// `right` of `guesses` guesses about `canaries` canaries. `None` unless right ≤ guesses ≤ canaries.
    pub fn new(canaries: u32, guesses: u32, right: u32) -> Option<Self> {
        (right <= guesses && guesses <= canaries).then_some(Self { canaries, guesses, right })
    }

    /// Canaries that were in or out by a coin.
    pub fn canaries(&self) -> u32 {
        self.canaries
    }

    /// Canaries that a guess was made about.
    pub fn guesses(&self) -> u32 {
        self.guesses
    }

    /// Guesses that were right.
    pub fn right(&self) -> u32 {
        self.right
    }

    /// The largest probability of evidence like this, or stronger, under any (`epsilon`, `delta`)-differentially
    /// private mechanism; at most 1.
    ///
    /// # Panics
    /// If `epsilon` is not a finite number from zero, or `delta` is not from zero to one.
    pub fn p_value(&self, epsilon: f64, delta: f64) -> f64 {
        Tails::new(*self).p_value(epsilon, delta)
    }

    /// The ε that this evidence refutes at `delta` and all below it: zero if it refutes none. With a probability of
    /// `confidence` (over coins and noise) no (ε, δ)-differentially private mechanism gives a bound above its own ε.
    ///
    /// # Panics
    /// If `delta` is not from zero to one or `confidence` is not in [`Self::CONFIDENCES`].
    pub fn epsilon_lower_bound(&self, delta: f64, confidence: f64) -> f64 {
        assert!(Self::CONFIDENCES.contains(&confidence), "a confidence of {confidence}");
        let tails = Tails::new(*self);
        let refuted = |epsilon| tails.p_value(epsilon, delta) * CAUTION <= 1.0 - confidence;
        if !refuted(0.0) {
            return 0.0;
        }
        // p tends to 1: the search ends.
        let (mut low, mut high) = (0.0, 1.0);
        while refuted(high) {
            (low, high) = (high, 2.0 * high);
        }
        while high - low > 1e-9 {
            let middle = 0.5 * (low + high);
            if refuted(middle) { low = middle } else { high = middle }
        }
        low
    }
}

/// log C(r, k) for each k, once for all ε.
struct Tails {
    evidence: Evidence,
    log_choose: Vec<f64>,
}

impl Tails {
    fn new(evidence: Evidence) -> Self {
        let r = evidence.guesses;
        let log_factorial: Vec<f64> = (0..=r).map(|k| libm::lgamma(f64::from(k) + 1.0)).collect();
        let whole = log_factorial[r as usize];
        let log_choose = log_factorial.iter().zip(log_factorial.iter().rev()).map(|(a, b)| whole - a - b);
        Self { evidence, log_choose: log_choose.collect() }
    }

    fn p_value(&self, epsilon: f64, delta: f64) -> f64 {
        assert!(epsilon.is_finite() && epsilon >= 0.0 && (0.0..=1.0).contains(&delta));
        let Evidence { canaries, guesses, right } = self.evidence;
        // log q and log(1 - q), neither of which loses digits at large ε.
        let log_right = -libm::log1p(libm::exp(-epsilon));
        let log_wrong = log_right - epsilon;
        let probability = |k: u32| {
            let log =
                self.log_choose[k as usize] + f64::from(k) * log_right + f64::from(guesses - k) * log_wrong;
            libm::exp(log)
        };
        let tail: f64 = (right..=guesses).rev().map(probability).sum();
        let (mut below, mut steepest) = (0.0, 0f64);
        if delta > 0.0 {
            for i in 1..=right {
                below += probability(right - i);
                steepest = steepest.max(below / f64::from(i));
            }
        }
        (tail + 2.0 * f64::from(canaries) * delta * steepest).min(1.0)
    }
}

#[cfg(test)]
mod tests;
