//! Tables of a job file: how updates and models travel, are summed and measured, and how long things may take.

use serde::{Deserialize, Serialize};
use undertone_core::duration::Span;
use undertone_core::encoding::Encoding;
use undertone_core::encoding::broadcast::Downlink;
use undertone_core::encoding::delta::{self, DeltaEncoding};
use undertone_core::fixed::Grid;
use undertone_core::optimizer::ServerOptimizer;
use undertone_core::rules::Rule;
use undertone_core::rules::rescale::Rescale;

/// How updates become a new model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Aggregation {
    /// How much an update counts.
    pub weights: Weights,
    /// The largest weight of one client; weights beyond it are cut to it by the client and refused by the server.
    pub max_weight: u32,
    /// Values travel as multiples of 2^-fraction_bits.
    pub fraction_bits: Grid,
    /// An update with a larger L2 norm is refused. With a client-level contract its `clip_norm` stands instead.
    pub max_update_norm: f64,
    /// How updates become one: the mean, or a rule that some bad updates cannot carry away.
    #[serde(skip_serializing_if = "is_mean")]
    pub rule: Rule,
    /// How the mean (or what the rule makes instead) moves the model.
    pub server: ServerOptimizer,
    /// Whether clients rescale their updates, and by what.
    #[serde(skip_serializing_if = "Rescale::is_plain")]
    pub rescale: Rescale,
}

fn is_mean(rule: &Rule) -> bool {
    *rule == Rule::default()
}

/// How updates and models travel: in fewer bytes, at the price of precision.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Transport {
    /// How a client's update is encoded. Whatever it is, the coordinator sums integers on the job's grid.
    pub updates: Encoding,
    /// How the model that clients train from is encoded; `None`: it is sent as the file that it is. Whatever it is, the
    /// coordinator's own model keeps all its bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub models: Option<Encoding>,
    /// How a client that has the model of the round before is brought to this round's; `None`: it is sent the whole one.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "delta::read")]
    pub deltas: Option<DeltaEncoding>,
}

impl Transport {
    /// How models travel down.
    pub fn down(&self) -> Downlink {
        Downlink { models: self.models, deltas: self.deltas }
    }

    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How much an update counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// All the same.
    #[default]
    Uniform,
    /// By the number of rows that the data owner declares (a public figure).
    DeclaredRows,
}

impl Default for Aggregation {
    fn default() -> Self {
        Self {
            weights: Weights::Uniform,
            max_weight: 10_000,
            fraction_bits: Grid::new(16).expect("16 is within the bounds"),
            max_update_norm: 1000.0,
            rule: Rule::default(),
            server: ServerOptimizer::default(),
            rescale: Rescale::default(),
        }
    }
}

/// Measuring released models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Evaluation {
    /// Ask evaluators after every n-th round, and after the last. 0: never.
    pub every: u32,
    /// Stop the job once so many measurements in a row brought no loss below the best one before. 0: never. What is decided
    /// by measurements costs no privacy beyond them.
    #[serde(skip_serializing_if = "is_zero")]
    pub patience: u32,
    /// By how much a loss must be below the best one to count as better, in nats.
    #[serde(skip_serializing_if = "is_nothing")]
    pub min_improvement: f64,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

fn is_nothing(x: &f64) -> bool {
    *x == 0.0
}

impl Default for Evaluation {
    fn default() -> Self {
        Self { every: 1, patience: 0, min_improvement: 0.0 }
    }
}

impl Evaluation {
    /// Whether a round of `rounds` is measured.
    pub fn wants(&self, round: u32, rounds: u32) -> bool {
        self.every > 0 && (round == rounds || round.is_multiple_of(self.every))
    }
}

/// How long things may take, and how often they are tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Deadlines {
    /// From the offers of an attempt to its end.
    pub round: Span,
    /// How long a client whose session broke may stay away before the attempt goes on without it.
    pub reconnect: Span,
    /// How long a job waits for enough clients to begin an attempt; then it fails.
    pub gather: Span,
    /// How long evaluators have for the last model.
    pub evaluation: Span,
    /// How long a transfer may stand still.
    pub transfer_idle: Span,
    /// Attempts at one round.
    pub max_attempts: u32,
}

impl Deadlines {
    /// How long a client may stay away, in milliseconds.
    pub(crate) fn reconnect_ms(&self) -> u64 {
        self.reconnect.0.as_millis() as u64
    }
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            round: Span::seconds(600),
            reconnect: Span::seconds(30),
            gather: Span::seconds(3600),
            evaluation: Span::seconds(60),
            transfer_idle: Span::seconds(30),
            max_attempts: 3,
        }
    }
}
