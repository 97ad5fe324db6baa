//! Who is who: the deployment's CA, and what a peer's certificate says.

mod authority;
mod peer;

pub use authority::{Authority, IdentityError, KeyAndCertificate, SignedRequest, Subject, new_serial};
pub(crate) use peer::{Peer, peer_of, require_operator};
