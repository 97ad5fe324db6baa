//! The wire API of Undertone, version 1.
//!
//! [`v1`] holds the generated messages and services. Everything else turns them into domain types or refuses
//! them: wire types stop at this crate and at the thin services that speak it.

mod codec;
mod convert;
mod error;
pub mod join_token;
pub mod limits;
pub mod version;

pub use codec::{SmallBuffers, chunk_head};
pub use convert::{InvalidMessage, client_role, evaluation_metrics, required, role_message};
pub use error::{ApiError, Fault};

/// Generated from `proto/undertone/v1/*.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("undertone.v1");

    /// The compiled descriptors, for gRPC reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/undertone.v1.bin"));
}
