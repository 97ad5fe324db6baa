//! The accountant of privacy loss distributions: ε of a composition as an interval that holds the exact value.
//!
//! For a dominating pair (P, Q) of one use, δ(ε) of T uses is E_P[(1 - e^{ε-ΣL})₊] with the losses L = log P/Q drawn
//! T times. In order: [`mechanism`] says what is used, `pair` what its loss is, `one_step` puts a loss on a grid so
//! that δ only grows (connect the dots) and says what the same rounding costs the other way, `scout` looks where ε
//! is by and large and chooses the tilts, `layout` the grid and, with the bounds of `tails`, the window, `fft` and
//! `convolution` compose with bounded errors, `bounds` reads ε and δ off, [`Composition`] puts the directions of the
//! adjacency together, [`Curve`] keeps answers, [`calibrate`] finds the least noise.
//!
//! Removing and adding are composed apart and the worse is taken at the end: which is worse may change with the
//! number of uses (Lebeda, Regehr, Kamath and Steinke 2024, arXiv 2405.20769).
//!
//! All arithmetic is `libm`'s and our own FFT's: the same bits on every machine.

pub(crate) mod binomial;
mod bounds;
pub mod calibrate;
mod closed_form;
mod composition;
mod convolution;
mod curve;
mod fft;
mod layout;
pub mod mechanism;
mod one_step;
mod pair;
mod scout;
mod tails;

pub use composition::{Composition, DeltaInterval, EpsilonInterval};
pub use curve::Curve;
pub use mechanism::{Adjacency, Mechanism};

/// What the accountant is called in reports.
pub const ACCOUNTANT: &str = "pld";

/// The most uses in a composition.
pub const MAX_COMPOSITIONS: u64 = 100_000_000;
/// The smallest δ that can be asked for.
pub const MIN_DELTA: f64 = 1e-200;
/// A larger ε promises nothing and is not computed.
pub const MAX_EPSILON: f64 = 1e5;

/// Why the accountant cannot speak.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum AccountantError {
    /// A number of a mechanism out of its range.
    #[error("the accountant takes {name} from {least} to {most}, not {value}")]
    Number {
        /// What it is.
        name: &'static str,
        /// What was given.
        value: f64,
        /// The least that is accepted.
        least: f64,
        /// The most that is accepted.
        most: f64,
    },
    /// δ is no probability, or too small to compute with.
    #[error("delta must be from {MIN_DELTA:e} to below 1, not {0}")]
    Delta(f64),
    /// Too many uses.
    #[error(
        "the accountant composes at most {MAX_COMPOSITIONS} uses of mechanisms, not {0}: plan fewer rounds or steps"
    )]
    Compositions(u64),
    /// ε is beyond any meaning.
    #[error(
        "epsilon would be about {0:.0}, above {MAX_EPSILON}, which promises nothing: add noise or plan fewer rounds"
    )]
    Epsilon(f64),
    /// No proof for replace-one.
    #[error(
        "replace-one adjacency is proved here for Gaussian mechanisms with and without Poisson sampling; for Laplace \
         and discrete noise use add-remove and give the scale for the sensitivity of a replacement"
    )]
    ReplaceOne,
    /// No amount of noise is enough.
    #[error(
        "epsilon = {epsilon} cannot be kept over {count} uses with any noise: plan fewer, or allow a larger epsilon"
    )]
    Unreachable {
        /// The target.
        epsilon: f64,
        /// How many uses.
        count: u64,
    },
}

#[cfg(test)]
mod tests;
