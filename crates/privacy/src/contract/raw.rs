//! The contract as it is written in a file, before it is checked.

use super::{CentralMechanism, InvalidContract, Noise, PrivacyContract, Trust, Unit};
use crate::adaptive_clip::{AdaptiveClip, Rule};
use crate::metrics::MetricsPrivacy;
use crate::sensitivity::Adjacency;
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawContract {
    unit: Unit,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trust: Option<Trust>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    adjacency: Option<Adjacency>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    clip_norm: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sampling_rate: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    noise_multiplier: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target_epsilon: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    delta: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    budget_epsilon: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mechanism: Option<CentralMechanism>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    adaptive_clip: Option<RawAdaptiveClip>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_weight: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metrics: Option<MetricsPrivacy>,
}

/// The rule without its first clip norm, which is the contract's.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAdaptiveClip {
    min: f64,
    max: f64,
    #[serde(default = "median")]
    target_quantile: f64,
    #[serde(default = "published_rate")]
    learning_rate: f64,
    count_noise: f64,
}

fn median() -> f64 {
    0.5
}

/// Andrew et al. 2021, section 4.
fn published_rate() -> f64 {
    0.2
}

impl RawAdaptiveClip {
    fn rule(self, initial: f64) -> Result<AdaptiveClip, InvalidContract> {
        let Self { min, max, target_quantile, learning_rate, count_noise } = self;
        let rule = Rule { initial, min, max, target_quantile, learning_rate, count_noise };
        AdaptiveClip::try_from(rule)
            .or_else(|e| refuse(e.to_string().replace("initial must be", "clip_norm must be")))
    }
}

impl From<AdaptiveClip> for RawAdaptiveClip {
    fn from(rule: AdaptiveClip) -> Self {
        let Rule { min, max, target_quantile, learning_rate, count_noise, .. } = rule.into();
        Self { min, max, target_quantile, learning_rate, count_noise }
    }
}

impl RawContract {
    /// The numbers that are given, by key.
    fn given(&self) -> Vec<&'static str> {
        [
            ("clip_norm", self.clip_norm),
            ("sampling_rate", self.sampling_rate),
            ("noise_multiplier", self.noise_multiplier),
            ("target_epsilon", self.target_epsilon),
            ("delta", self.delta),
            ("budget_epsilon", self.budget_epsilon),
        ]
        .into_iter()
        .filter_map(|(key, value)| value.map(|_| key))
        .chain(self.adjacency.map(|_| "adjacency"))
        .chain(self.mechanism.map(|_| "mechanism"))
        .chain(self.adaptive_clip.map(|_| "adaptive_clip"))
        .chain(self.max_weight.map(|_| "max_weight"))
        .chain(self.metrics.map(|_| "metrics"))
        .collect()
    }

    fn noise(&self) -> Result<Noise, InvalidContract> {
        match (self.noise_multiplier, self.target_epsilon) {
            (Some(z), None) => Ok(Noise::Multiplier(z)),
            (None, Some(e)) => Ok(Noise::TargetEpsilon(e)),
            (None, None) => refuse("give noise_multiplier or target_epsilon"),
            (Some(_), Some(_)) => refuse(
                "give one of noise_multiplier and target_epsilon, not both: one follows from the other",
            ),
        }
    }
}

impl TryFrom<RawContract> for PrivacyContract {
    type Error = InvalidContract;

    fn try_from(raw: RawContract) -> Result<Self, InvalidContract> {
        let needed = |key: &str, value: Option<f64>| match value {
            Some(x) => Ok(x),
            None => refuse(format!("unit = \"{}\" needs {key}", raw.unit.as_str())),
        };
        let contract = match (raw.unit, raw.trust) {
            (Unit::None, None) if raw.given().is_empty() => Ok(Self::none()),
            (Unit::None, None) => refuse(format!(
                "unit = \"none\" promises no privacy, so {} would mean nothing: leave it out",
                raw.given().join(", ")
            )),
            (Unit::Record, Some(Trust::Local)) => Self::record_local(
                needed("clip_norm", raw.clip_norm)?,
                needed("sampling_rate", raw.sampling_rate)?,
                raw.noise()?,
                needed("delta", raw.delta)?,
                needed("budget_epsilon", raw.budget_epsilon)?,
            ),
            (Unit::Client, Some(_)) if raw.sampling_rate.is_some() => refuse(
                "unit = \"client\" takes no sampling_rate: for cohorts of everyone or of a fixed size no amplification by \
                 sampling can be claimed, and one that is drawn with [cohort] rule = \"poisson\" has its rate there",
            ),
            (Unit::Client, Some(Trust::Central)) => Self::client_central(
                needed("clip_norm", raw.clip_norm)?,
                raw.noise()?,
                needed("delta", raw.delta)?,
                needed("budget_epsilon", raw.budget_epsilon)?,
            ),
            (Unit::Client, Some(Trust::Local)) => Self::client_local(
                needed("clip_norm", raw.clip_norm)?,
                raw.noise()?,
                needed("delta", raw.delta)?,
                needed("budget_epsilon", raw.budget_epsilon)?,
            ),
            (unit, None) => refuse(format!("unit = \"{}\" needs trust", unit.as_str())),
            (unit, Some(trust)) => refuse(format!(
                "unit = \"{}\" does not go with trust = \"{}\"",
                unit.as_str(),
                trust.as_str()
            )),
        }?;
        let contract = match raw.adjacency {
            Some(adjacency) => contract.with_adjacency(adjacency)?,
            None => contract,
        };
        let contract = match raw.mechanism {
            Some(mechanism) => contract.with_mechanism(mechanism)?,
            None => contract,
        };
        let contract = match raw.max_weight {
            Some(max_weight) => contract.with_max_weight(max_weight)?,
            None => contract,
        };
        let contract = match (raw.adaptive_clip, contract.clip_norm()) {
            (Some(rule), Some(initial)) => contract.with_adaptive_clip(rule.rule(initial)?)?,
            _ => contract,
        };
        match raw.metrics {
            Some(metrics) => contract.with_metrics(metrics),
            None => Ok(contract),
        }
    }
}

impl From<PrivacyContract> for RawContract {
    fn from(contract: PrivacyContract) -> Self {
        let (noise_multiplier, target_epsilon) = match contract.noise() {
            Some(Noise::Multiplier(z)) => (Some(z), None),
            Some(Noise::TargetEpsilon(e)) => (None, Some(e)),
            None => (None, None),
        };
        Self {
            unit: contract.unit(),
            trust: contract.trust(),
            // The default stays unwritten, as it was before the key existed.
            adjacency: contract.adjacency().filter(|a| Some(*a) != contract.default_adjacency()),
            clip_norm: contract.clip_norm(),
            sampling_rate: contract.sampling_rate(),
            noise_multiplier,
            target_epsilon,
            delta: contract.delta(),
            budget_epsilon: contract.budget_epsilon(),
            mechanism: contract.chosen_mechanism().filter(|m| *m != CentralMechanism::default()),
            adaptive_clip: contract.adaptive_clip().map(RawAdaptiveClip::from),
            max_weight: Some(contract.max_weight()).filter(|w| *w != 1),
            metrics: contract.metrics(),
        }
    }
}

pub(super) fn refuse<T>(problem: impl Into<String>) -> Result<T, InvalidContract> {
    Err(InvalidContract::Combination { problem: problem.into() })
}
