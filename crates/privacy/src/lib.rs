//! The part of Undertone that makes the promise: privacy contracts, clipping, mechanisms, accountants, ledger rules.
//!
//! Meant to be read alone, in this order. What is promised: [`contract`], and with the planned schedule [`resolve`].
//! What it costs: [`pld`], the tight accountant; [`rdp`] where losses are chosen while results come in; [`gaussian`], the
//! closed form that both are tested against. What is done to a value in the client: [`clip`], [`l1`], [`sensitivity`].
//! The noise: [`noise`], [`discrete_gaussian`], [`discrete_laplace`], [`fast_gaussian`], [`local`]; correlated over the
//! rounds: [`blt`] with [`participation`]; of a clip norm that adapts: [`adaptive_clip`]; of
//! measurements: [`metrics`]. What the coordinator may let
//! out: [`ledger`] keeps the budget, [`release`] is the only way to a value that may leave.
//! What a client's training step may let out: [`dp_sgd`]. Whether all this holds on a job: [`audit`] attacks it.
//!
//! No clock, no disk, no network. The operating system's randomness enters in one line, in
//! [`noise::NoiseRng::from_os`].

pub mod adaptive_clip;
pub mod audit;
pub mod blt;
pub mod clip;
#[cfg(test)]
mod conformance;
pub mod contract;
pub mod discrete_gaussian;
pub mod discrete_laplace;
pub mod dp_sgd;
pub mod fast_gaussian;
pub mod gaussian;
#[cfg(test)]
mod known_mistakes;
pub mod l1;
pub mod ledger;
pub mod local;
pub mod metrics;
#[cfg(test)]
mod neighbour_replay;
pub mod noise;
mod normal;
pub mod pld;
pub mod rdp;
pub mod release;
pub mod resolve;
mod rounding;
pub mod sensitivity;

pub use undertone_core::participation;
