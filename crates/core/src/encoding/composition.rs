//! What an encoding does not go with, in sentences for the one who submits the job.
//!
//! The rule behind them: what protects a client must cover everything that leaves it. An encoding whose *values* are
//! changed after the noise is post-processing and takes nothing from the promise; one that is applied before the noise
//! of the coordinator is covered because the norm bound is checked on the decoded integers, which are what is summed
//! ([`super::rounding`]); one whose *positions* depend on the data is covered by neither.

use super::Encoding;

/// Who is promised what by the job's privacy contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// Nothing is promised.
    None,
    /// Each record, by noise within the client's training: an update is private before it is encoded.
    RecordLocal,
    /// Each client, by the coordinator's noise on the sum.
    ClientCentral,
    /// Each client, by its own noise on its update.
    ClientLocal,
}

/// How the coordinator combines updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combination {
    /// A (weighted) sum.
    Sum,
    /// Order statistics of each coordinate: median, trimmed mean.
    Coordinates,
    /// Distances between whole updates: Krum, Bulyan, geometric median, centred clipping.
    Distances,
}

/// What an encoding is to go with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Surroundings {
    /// The privacy contract.
    pub promise: Promise,
    /// Whether updates are masked, so that the coordinator learns nothing but their sum.
    pub secure_aggregation: bool,
    /// The aggregation rule.
    pub combination: Combination,
}

impl Encoding {
    /// Whether updates may travel like this in a job with these surroundings.
    ///
    /// # Errors
    /// All reasons against it, one sentence each.
    pub fn composes_with(&self, with: &Surroundings) -> Result<(), Vec<&'static str>> {
        let mut reasons = Vec::new();
        if let Self::TopK { .. } = self {
            match with.promise {
                Promise::None | Promise::RecordLocal => {}
                Promise::ClientCentral => reasons.push(
                    "top-k does not go with a client-level contract: which positions a client sends is chosen by its \
                     data, and the noise on the sum covers values only; use fixed, block or bf16",
                ),
                Promise::ClientLocal => reasons.push(
                    "top-k does not go with a client-level contract with local trust: chosen before the noise, the \
                     positions tell about the data; chosen after it, they are those of the largest noise; use fixed, \
                     block or bf16",
                ),
            }
            match with.combination {
                Combination::Sum => {}
                Combination::Coordinates => reasons.push(
                    "top-k does not go with a median or trimmed mean: most clients send zero at a position, so zero is \
                     what the rule gives; use a mean, or a dense encoding",
                ),
                Combination::Distances => reasons.push(
                    "top-k does not go with a rule that compares whole updates: two honest updates with different \
                     positions are as far apart as an honest and a false one; use a mean, or a dense encoding",
                ),
            }
        }
        if with.secure_aggregation {
            match self {
                Self::Fixed32 => {}
                Self::TopK { .. } => reasons.push(
                    "top-k does not go with secure aggregation: its positions travel in the clear, and masks cover \
                     every position; use fixed32",
                ),
                Self::F32 | Self::Bf16 => reasons.push(
                    "floating point does not go with secure aggregation: masks cancel in sums of integers only; use \
                     fixed32",
                ),
                Self::Fixed { .. } | Self::Block { .. } => reasons.push(
                    "scales per block do not go with secure aggregation: masked integers can be summed only if all \
                     clients use one step, and these choose theirs by the data; use fixed32",
                ),
            }
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    /// Whether whole models may travel down like this.
    ///
    /// # Errors
    /// The reason against it.
    pub fn carries_models(&self) -> Result<(), &'static str> {
        match self {
            Self::TopK { .. } => Err(
                "top-k does not carry models: all weights but a few would arrive as zero; use bf16, fixed, block or \
                 deltas",
            ),
            Self::Fixed32 => Err(
                "fixed32 does not carry models: its range is that of updates, and it takes as many bytes as f32; use f32, \
                 bf16, fixed or block",
            ),
            _ => Ok(()),
        }
    }
}
