//! Limits of the wire.

/// Largest message either side accepts. Models and updates travel in chunks, job documents are the largest rest.
pub const MAX_MESSAGE_BYTES: usize = 8 << 20;
/// Size of a chunk of a model or an update: full speed and flat memory on loopback and long links alike.
pub const CHUNK_BYTES: usize = 256 << 10;
/// Largest HTTP/2 frame either side accepts: of the standard's 16 KiB each would fill a TLS record and begin another.
pub const FRAME_BYTES: u32 = 64 << 10;
/// Largest chunk either side accepts.
pub const MAX_CHUNK_BYTES: usize = 4 << 20;
/// Largest certificate signing request, DER.
pub const MAX_CSR_BYTES: usize = 8 << 10;
/// Length of a join token's secret.
pub const TOKEN_SECRET_BYTES: usize = 32;
