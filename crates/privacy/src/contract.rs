//! The privacy contract of a job: what is promised to whom, fixed before round 1.
//!
//! Code that clips, samples or adds noise reads its numbers from here and from nowhere else (most privacy bugs of
//! other systems are a loose number somewhere). A contract that has no proof cannot be constructed: deserialising
//! goes through the same checks.
//!
//! ```toml
//! [privacy]
//! unit = "record"            # or "client" with trust = "central" or "local" and no sampling_rate, or "none" alone
//! trust = "local"
//! clip_norm = 1.0
//! sampling_rate = 0.25
//! target_epsilon = 5.0       # or noise_multiplier
//! delta = 1e-3
//! budget_epsilon = 10.0
//! adjacency = "add-remove"   # the default, or "replace-one" with unit = "client" (the default with trust = "local")
//!
//! metrics = { epsilon = 0.1, max_loss = 4.0 }   # noise on each measurement on evaluators' data; left out: none
//!
//! mechanism = "discrete-gaussian"     # the default; or "fast-gaussian" (with unit = "record", or trust = "central")
//!
//! # With unit = "client", trust = "central":
//! mechanism = "blt"          # with [cohort] participations, separation
//! adaptive_clip = { min = 0.1, max = 10.0, target_quantile = 0.5, learning_rate = 0.2, count_noise = 2.0 }
//! max_weight = 100           # with [aggregation] weights = "declared_rows"; the noise grows with it
//! ```

use crate::adaptive_clip::AdaptiveClip;
use crate::metrics::MetricsPrivacy;
use crate::rdp::{MAX_NOISE_MULTIPLIER, MIN_NOISE_MULTIPLIER};
use crate::sensitivity::Adjacency;
use serde::{Deserialize, Serialize};
use undertone_core::digest::{Digest, Digester};
use undertone_core::limits::MAX_WEIGHT;
use undertone_core::trainer::RecordMechanism;

/// Who is protected: what may be added or removed without anyone being able to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// One row of one client.
    Record,
    /// All that one client has.
    Client,
    /// Nobody: no privacy is promised.
    None,
}

/// Who must be trusted with more than the released models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trust {
    /// Nobody: each client adds all the noise itself, before anything leaves.
    Local,
    /// The coordinator, which sees clipped updates and adds the noise to their sum.
    Central,
}

/// How the coordinator draws the noise of a central contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CentralMechanism {
    /// Independent exact discrete Gaussian noise in each round ([`crate::discrete_gaussian`]).
    #[default]
    DiscreteGaussian,
    /// Independent floating-point Gaussian noise, rounded to the grid ([`crate::fast_gaussian`]): several times faster, for
    /// very large models. Its distribution is the Gaussian's to within what 53 bits can say, not exactly.
    FastGaussian,
    /// Noise that is correlated over the rounds ([`crate::blt`]): one Gaussian mechanism for the whole run, for clients
    /// that take part a limited number of times and that nobody samples.
    Blt,
}

/// How much noise: one of the two, the other follows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Noise {
    /// Standard deviation in multiples of the sensitivity: the clip norm, or twice that where neighbours replace one
    /// client ([`Adjacency::ReplaceOne`]).
    Multiplier(f64),
    /// The ε that the planned rounds may reach together.
    TargetEpsilon(f64),
}

/// A checked privacy contract.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawContract", into = "RawContract")]
pub struct PrivacyContract {
    kind: Kind,
    /// How measurements on evaluators' data are kept private.
    metrics: Option<MetricsPrivacy>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    NoPromise,
    RecordLocal { promise: Promise, sampling_rate: f64, mechanism: RecordMechanism },
    ClientCentral { promise: Promise, adjacency: Adjacency, central: Central },
    ClientLocal { promise: Promise, adjacency: Adjacency },
}

/// What only a coordinator that adds the noise can do.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Central {
    mechanism: CentralMechanism,
    adaptive_clip: Option<AdaptiveClip>,
    max_weight: u32,
}

impl Default for Central {
    fn default() -> Self {
        Self { mechanism: CentralMechanism::default(), adaptive_clip: None, max_weight: 1 }
    }
}

/// The numbers that every promise has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Promise {
    pub(crate) clip_norm: f64,
    pub(crate) noise: Noise,
    pub(crate) delta: f64,
    pub(crate) budget_epsilon: f64,
}

const VALID: &str = "valid contracts are unit = \"record\" with trust = \"local\" (each client trains with DP-SGD), \
     unit = \"client\" with trust = \"central\" (the coordinator adds noise to the sum), unit = \"client\" with \
     trust = \"local\" (each client adds all the noise to its own update), and unit = \"none\" with no other key";

/// Why a contract is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidContract {
    /// A combination of keys that no proof covers.
    #[error("privacy contract: {problem}; {VALID}")]
    Combination {
        /// What is wrong.
        problem: String,
    },
    /// A number out of its range.
    #[error("privacy contract: {key} must be {wanted}, not {found}")]
    Number {
        /// The key.
        key: &'static str,
        /// The range.
        wanted: String,
        /// The number.
        found: f64,
    },
}

impl PrivacyContract {
    /// The explicit contract that promises nothing.
    pub fn none() -> Self {
        Self::of(Kind::NoPromise)
    }

    fn of(kind: Kind) -> Self {
        Self { kind, metrics: None }
    }

    /// Record level, DP-SGD in each client.
    ///
    /// # Errors
    /// [`InvalidContract`] for a number out of range.
    pub fn record_local(
        clip_norm: f64,
        sampling_rate: f64,
        noise: Noise,
        delta: f64,
        budget_epsilon: f64,
    ) -> Result<Self, InvalidContract> {
        if !(sampling_rate > 0.0 && sampling_rate <= 1.0) {
            return number("sampling_rate", "above 0 and at most 1", sampling_rate);
        }
        let promise = Promise { clip_norm, noise, delta, budget_epsilon }.checked()?;
        let mechanism = RecordMechanism::default();
        Ok(Self::of(Kind::RecordLocal { promise, sampling_rate, mechanism }))
    }

    /// Client level, noise added to the sum by the coordinator. No amplification is claimed: a round is one
    /// Gaussian release.
    ///
    /// # Errors
    /// [`InvalidContract`] for a number out of range.
    pub fn client_central(
        clip_norm: f64,
        noise: Noise,
        delta: f64,
        budget_epsilon: f64,
    ) -> Result<Self, InvalidContract> {
        let promise = Promise { clip_norm, noise, delta, budget_epsilon }.checked()?;
        Ok(Self::of(Kind::ClientCentral {
            promise,
            adjacency: Adjacency::AddRemove,
            central: Central::default(),
        }))
    }

    /// Client level, all the noise added by each client to its own update before it leaves. Neighbours are any two
    /// updates of a client ([`Adjacency::ReplaceOne`]), as local differential privacy is commonly understood.
    ///
    /// # Errors
    /// [`InvalidContract`] for a number out of range.
    pub fn client_local(
        clip_norm: f64,
        noise: Noise,
        delta: f64,
        budget_epsilon: f64,
    ) -> Result<Self, InvalidContract> {
        let promise = Promise { clip_norm, noise, delta, budget_epsilon }.checked()?;
        Ok(Self::of(Kind::ClientLocal { promise, adjacency: Adjacency::ReplaceOne }))
    }

    /// The same contract for other neighbours. Noise is counted in sensitivities: a replaced client costs twice the
    /// noise, and the same ε.
    ///
    /// # Errors
    /// [`InvalidContract`] where the accountant covers no such neighbours: at record level, where batches are Poisson
    /// samples, add/remove alone, and nothing where nothing is promised.
    pub fn with_adjacency(self, adjacency: Adjacency) -> Result<Self, InvalidContract> {
        match self.kind {
            Kind::ClientCentral { promise, central, .. } => {
                Ok(Self { kind: Kind::ClientCentral { promise, adjacency, central }, ..self })
            }
            Kind::ClientLocal { promise, .. } => {
                Ok(Self { kind: Kind::ClientLocal { promise, adjacency }, ..self })
            }
            // Poisson sampling under replacement has another (greater) loss than the one that is charged.
            Kind::RecordLocal { .. } if adjacency == Adjacency::AddRemove => Ok(self),
            Kind::RecordLocal { .. } => raw::refuse(
                "adjacency = \"replace-one\" does not go with unit = \"record\": the loss of a sampled batch is accounted \
                 for adjacency = \"add-remove\" alone",
            ),
            Kind::NoPromise => raw::refuse(
                "unit = \"none\" promises no privacy, so adjacency would mean nothing: leave it out",
            ),
        }
    }

    /// The same contract with noise that is drawn in another way: by the coordinator, or at record level by each client (then
    /// as [`RecordMechanism`] says).
    ///
    /// # Errors
    /// [`InvalidContract`] where each client adds all the noise to its whole update, for correlated noise at record level, and
    /// for correlated noise under a clip norm that moves.
    pub fn with_mechanism(self, mechanism: CentralMechanism) -> Result<Self, InvalidContract> {
        match (self.kind, mechanism) {
            (Kind::RecordLocal { promise, sampling_rate, .. }, _) => {
                let mechanism = match mechanism {
                    CentralMechanism::DiscreteGaussian => RecordMechanism::DiscreteGaussian,
                    CentralMechanism::FastGaussian => RecordMechanism::FastGaussian,
                    CentralMechanism::Blt => {
                        return raw::refuse(
                            "mechanism = \"blt\" goes with unit = \"client\", trust = \"central\" alone, where the coordinator \
                             draws the noise of all rounds",
                        );
                    }
                };
                Ok(Self { kind: Kind::RecordLocal { promise, sampling_rate, mechanism }, ..self })
            }
            _ => self.with_central("mechanism", |central| Central { mechanism, ..central }),
        }
    }

    /// The same contract with a clip norm that follows the updates' norms. It begins at the contract's clip norm; that of
    /// `rule` must be the same.
    ///
    /// # Errors
    /// [`InvalidContract`] unless the coordinator draws the noise, and for correlated noise, whose sensitivity is one for
    /// the whole run.
    pub fn with_adaptive_clip(self, rule: AdaptiveClip) -> Result<Self, InvalidContract> {
        if self.clip_norm().is_some_and(|c| c != rule.start().clip_norm()) {
            return raw::refuse("adaptive_clip begins at clip_norm: give one number for both");
        }
        self.with_central("adaptive_clip", |central| Central { adaptive_clip: Some(rule), ..central })
    }

    /// The same contract for updates that count up to `max_weight` times: the sensitivity of the sum is as many clip norms,
    /// and it is divided by as many times the cohort's fixed size.
    ///
    /// # Errors
    /// [`InvalidContract`] unless the coordinator draws the noise, and for a weight out of range.
    pub fn with_max_weight(self, max_weight: u32) -> Result<Self, InvalidContract> {
        if !(1..=MAX_WEIGHT).contains(&max_weight) {
            return number("max_weight", format!("1 to {MAX_WEIGHT}"), f64::from(max_weight));
        }
        self.with_central("max_weight", |central| Central { max_weight, ..central })
    }

    fn with_central(
        self,
        key: &str,
        change: impl FnOnce(Central) -> Central,
    ) -> Result<Self, InvalidContract> {
        let Kind::ClientCentral { promise, adjacency, central } = self.kind else {
            return raw::refuse(format!(
                "{key} goes with unit = \"client\", trust = \"central\" alone, where the coordinator draws the noise"
            ));
        };
        let central = change(central);
        if central.mechanism == CentralMechanism::Blt && central.adaptive_clip.is_some() {
            return raw::refuse(
                "adaptive_clip does not go with mechanism = \"blt\": its noise rests on one clip norm for the whole run; \
                 leave adaptive_clip out, or take mechanism = \"discrete-gaussian\"",
            );
        }
        Ok(Self { kind: Kind::ClientCentral { promise, adjacency, central }, ..self })
    }

    /// The same contract with noise on measurements, for the rows or the whole data of evaluators.
    ///
    /// # Errors
    /// [`InvalidContract`] where nothing is promised.
    pub fn with_metrics(self, metrics: MetricsPrivacy) -> Result<Self, InvalidContract> {
        if matches!(self.kind, Kind::NoPromise) {
            return raw::refuse(
                "unit = \"none\" promises no privacy, so metrics would mean nothing: leave it out",
            );
        }
        Ok(Self { metrics: Some(metrics), ..self })
    }

    /// How measurements on evaluators' data are kept private; `None`: they leave as they are, and nothing is promised to
    /// evaluators.
    pub fn metrics(&self) -> Option<MetricsPrivacy> {
        self.metrics
    }

    /// How the coordinator draws the noise; `None` where it draws none.
    pub fn mechanism(&self) -> Option<CentralMechanism> {
        self.central().map(|c| c.mechanism)
    }

    /// How each client sums gradients and draws the noise; `None` unless the contract is record-level.
    pub fn record_mechanism(&self) -> Option<RecordMechanism> {
        match self.kind {
            Kind::RecordLocal { mechanism, .. } => Some(mechanism),
            _ => None,
        }
    }

    /// The mechanism as it is written, where there is a choice of one.
    fn chosen_mechanism(&self) -> Option<CentralMechanism> {
        self.mechanism().or(self.record_mechanism().map(|m| match m {
            RecordMechanism::DiscreteGaussian => CentralMechanism::DiscreteGaussian,
            RecordMechanism::FastGaussian => CentralMechanism::FastGaussian,
        }))
    }

    /// How the clip norm moves; `None` where it stays.
    pub fn adaptive_clip(&self) -> Option<AdaptiveClip> {
        self.central().and_then(|c| c.adaptive_clip)
    }

    /// How often one update may count in a sum that the coordinator noises. 1: all count the same.
    pub fn max_weight(&self) -> u32 {
        self.central().map_or(1, |c| c.max_weight)
    }

    fn central(&self) -> Option<Central> {
        match self.kind {
            Kind::ClientCentral { central, .. } => Some(central),
            _ => None,
        }
    }

    /// Who is protected.
    pub fn unit(&self) -> Unit {
        match self.kind {
            Kind::NoPromise => Unit::None,
            Kind::RecordLocal { .. } => Unit::Record,
            Kind::ClientCentral { .. } | Kind::ClientLocal { .. } => Unit::Client,
        }
    }

    /// Who must be trusted; `None` where nothing is promised.
    pub fn trust(&self) -> Option<Trust> {
        match self.kind {
            Kind::NoPromise => None,
            Kind::RecordLocal { .. } | Kind::ClientLocal { .. } => Some(Trust::Local),
            Kind::ClientCentral { .. } => Some(Trust::Central),
        }
    }

    /// The L2 norm that one record's gradient, or one client's update, is scaled down to; in round 1, where it moves.
    pub fn clip_norm(&self) -> Option<f64> {
        self.promise().map(|p| p.clip_norm)
    }

    /// The probability with which a record is in a batch (record level only).
    pub fn sampling_rate(&self) -> Option<f64> {
        match self.kind {
            Kind::RecordLocal { sampling_rate, .. } => Some(sampling_rate),
            _ => None,
        }
    }

    /// Which data sets the promise makes hard to tell apart; `None` where nothing is promised.
    pub fn adjacency(&self) -> Option<Adjacency> {
        match self.kind {
            Kind::NoPromise => None,
            Kind::RecordLocal { .. } => Some(Adjacency::AddRemove),
            Kind::ClientCentral { adjacency, .. } | Kind::ClientLocal { adjacency, .. } => Some(adjacency),
        }
    }

    /// The neighbours of a contract that does not say which.
    fn default_adjacency(&self) -> Option<Adjacency> {
        match self.kind {
            Kind::NoPromise => None,
            Kind::RecordLocal { .. } | Kind::ClientCentral { .. } => Some(Adjacency::AddRemove),
            Kind::ClientLocal { .. } => Some(Adjacency::ReplaceOne),
        }
    }

    /// How the contract says how much noise there is.
    pub fn noise(&self) -> Option<Noise> {
        self.promise().map(|p| p.noise)
    }

    /// δ: the probability that the promise of ε does not cover.
    pub fn delta(&self) -> Option<f64> {
        self.promise().map(|p| p.delta)
    }

    /// The ε that the job may never exceed, retries included.
    pub fn budget_epsilon(&self) -> Option<f64> {
        self.promise().map(|p| p.budget_epsilon)
    }

    pub(crate) fn promise(&self) -> Option<Promise> {
        match self.kind {
            Kind::NoPromise => None,
            Kind::RecordLocal { promise, .. }
            | Kind::ClientCentral { promise, .. }
            | Kind::ClientLocal { promise, .. } => Some(promise),
        }
    }

    /// The digest of all terms.
    pub fn digest(&self) -> Digest {
        let mut d = Digester::new();
        d.field(b"undertone privacy contract 2");
        d.field(self.unit().as_str().as_bytes());
        d.field(self.trust().map_or("", Trust::as_str).as_bytes());
        d.field(self.adjacency().map_or("", Adjacency::as_str).as_bytes());
        let mut value = |number: Option<f64>| match number {
            Some(x) => d.field(&x.to_bits().to_le_bytes()),
            None => d.field(b""),
        };
        value(self.clip_norm());
        value(self.sampling_rate());
        let noise = self.noise();
        value(noise.and_then(|n| if let Noise::Multiplier(z) = n { Some(z) } else { None }));
        value(noise.and_then(|n| if let Noise::TargetEpsilon(e) = n { Some(e) } else { None }));
        value(self.delta());
        value(self.budget_epsilon());
        // Written only where they are not what they were before there was a choice.
        if let Some(mechanism) = self.chosen_mechanism().filter(|m| *m != CentralMechanism::default()) {
            d.field(b"mechanism");
            d.field(mechanism.as_str().as_bytes());
        }
        if let Some(rule) = self.adaptive_clip() {
            d.field(b"adaptive clip");
            rule.numbers().iter().for_each(|x| d.field(&x.to_bits().to_le_bytes()));
        }
        if self.max_weight() != 1 {
            d.field(b"max weight");
            d.field(&self.max_weight().to_le_bytes());
        }
        if let Some(metrics) = self.metrics {
            d.field(b"metrics");
            d.field(&metrics.epsilon().to_bits().to_le_bytes());
            d.field(&metrics.max_loss().to_bits().to_le_bytes());
        }
        d.finish()
    }
}

impl Promise {
    fn checked(self) -> Result<Self, InvalidContract> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        if !positive(self.clip_norm) {
            return number("clip_norm", "a finite number above 0", self.clip_norm);
        }
        if !(self.delta > 0.0 && self.delta < 1.0) {
            return number("delta", "above 0 and below 1", self.delta);
        }
        if !positive(self.budget_epsilon) {
            return number("budget_epsilon", "a finite number above 0", self.budget_epsilon);
        }
        match self.noise {
            Noise::Multiplier(z) if !(MIN_NOISE_MULTIPLIER..=MAX_NOISE_MULTIPLIER).contains(&z) => number(
                "noise_multiplier",
                format!(
                    "{MIN_NOISE_MULTIPLIER} to {MAX_NOISE_MULTIPLIER} (the accountant refuses less: it would \
                     promise nothing)"
                ),
                z,
            ),
            Noise::TargetEpsilon(e) if !positive(e) => number("target_epsilon", "a finite number above 0", e),
            Noise::TargetEpsilon(e) if e > self.budget_epsilon => {
                number("target_epsilon", format!("at most budget_epsilon ({})", self.budget_epsilon), e)
            }
            _ => Ok(self),
        }
    }
}

impl Unit {
    /// The word in config, reports and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::Client => "client",
            Self::None => "none",
        }
    }
}

impl Trust {
    /// The word in config, reports and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Central => "central",
        }
    }
}

impl CentralMechanism {
    /// The word in config, reports and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DiscreteGaussian => "discrete-gaussian",
            Self::FastGaussian => "fast-gaussian",
            Self::Blt => "blt",
        }
    }
}

fn number<T>(key: &'static str, wanted: impl Into<String>, found: f64) -> Result<T, InvalidContract> {
    Err(InvalidContract::Number { key, wanted: wanted.into(), found })
}

mod raw;
use raw::RawContract;

#[cfg(test)]
mod tests;
