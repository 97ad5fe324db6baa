//! Bytes by digest: models and updates.

mod bucket;
mod error;
mod folder;
mod local;
mod memory;
mod near;
mod verify;

use async_trait::async_trait;
use bytes::Bytes;
use std::fmt::Debug;
use tokio::io::{AsyncRead, AsyncReadExt};
use undertone_core::digest::Digest;

pub use bucket::{BucketBlobs, BucketConfig, BucketKey, BucketProbe};
pub use error::BlobError;
pub use folder::FolderBlobs;
pub use local::LocalBlob;
pub use memory::MemoryBlobs;

/// Content-addressed bytes: written once, whole or not at all, never changed.
#[async_trait]
pub trait Blobs: Send + Sync + Debug {
    /// Begins a blob. Nobody sees it before [`BlobWriter::commit`]; dropped before that, it leaves nothing.
    async fn writer(&self) -> Result<Box<dyn BlobWriter>, BlobError>;

    /// Goes on with the unfinished blob of this name, or begins it. What is written stays when the writer is dropped, and
    /// over a restart, until it is committed or [abandoned](Self::abandon): not for ever durable, for who resumes it checks
    /// the whole by its digest. What is there already is given to `sink` first, in order. A name is 1 to 128 of a-z, 0-9
    /// and `-`.
    ///
    /// # Errors
    /// [`BlobError::InUse`] while another writer has it.
    async fn resume(
        &self,
        name: &str,
        sink: &mut (dyn for<'a> FnMut(&'a [u8]) + Send),
    ) -> Result<Box<dyn BlobWriter>, BlobError>;

    /// The names of unfinished blobs that can be resumed, each with the seconds since somebody wrote to it.
    async fn unfinished(&self) -> Result<Vec<(String, u64)>, BlobError>;

    /// How much of an unfinished blob there is; 0 if there is none.
    async fn written(&self, name: &str) -> Result<u64, BlobError>;

    /// Forgets the unfinished blob of this name, if there is one. Who writes to it may write on, for nothing.
    async fn abandon(&self, name: &str) -> Result<(), BlobError>;

    /// The bytes of a blob from `offset` on; nothing if `offset` is its length.
    ///
    /// Read from 0 to its end, a damaged blob ends in an error instead of an end: its last bytes are not to be
    /// believed before the end has been read. From a later offset on nothing is checked.
    ///
    /// # Errors
    /// [`BlobError::NotFound`], [`BlobError::PastEnd`].
    async fn open(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> Result<Box<dyn AsyncRead + Send + Unpin>, BlobError>;

    /// A blob on this machine, to be read at any place by several threads, also after it was deleted. Nothing is checked:
    /// [`LocalBlob::verified`] reads it once and does.
    ///
    /// # Errors
    /// [`BlobError::NotFound`].
    async fn local(&self, digest: &Digest) -> Result<LocalBlob, BlobError>;

    /// The length of a blob in bytes.
    ///
    /// # Errors
    /// [`BlobError::NotFound`] if there is none.
    async fn len(&self, digest: &Digest) -> Result<u64, BlobError>;

    /// Sees to it that there is no such blob. Readers that have it open may read on. The caller knows that
    /// nobody needs it, or is writing it again.
    async fn delete(&self, digest: &Digest) -> Result<(), BlobError>;

    /// The digests of all blobs, in no order; what is being written is not among them.
    async fn list(&self) -> Result<Vec<Digest>, BlobError>;

    /// Keeps `bytes`; returns their digest and length.
    async fn put(&self, bytes: Bytes) -> Result<(Digest, u64), BlobError> {
        let mut writer = self.writer().await?;
        writer.write(bytes).await?;
        writer.commit(None).await
    }

    /// All bytes of a blob of at most `max_bytes`, checked against its digest.
    ///
    /// # Errors
    /// [`BlobError::NotFound`], [`BlobError::TooLarge`], [`BlobError::Damaged`].
    async fn get(&self, digest: &Digest, max_bytes: u64) -> Result<Vec<u8>, BlobError> {
        let bytes = self.len(digest).await?;
        if bytes > max_bytes {
            return Err(BlobError::TooLarge { digest: *digest, bytes, max_bytes });
        }
        let mut blob = Vec::with_capacity(bytes as usize);
        // One byte more than there should be, so that the end is reached and with it the check.
        self.open(digest, 0).await?.take(bytes + 1).read_to_end(&mut blob).await?;
        if blob.len() as u64 == bytes {
            Ok(blob)
        } else {
            Err(BlobError::Damaged { digest: *digest, found: Digest::of(&blob) })
        }
    }
}

/// A blob being written.
#[async_trait]
pub trait BlobWriter: Send + Debug {
    /// Adds bytes at the end. They may be on their way still when it returns, so that whoever writes can make the next ones
    /// meanwhile: what goes wrong is told at the latest by [`settle`](Self::settle) or [`commit`](Self::commit). A writer
    /// that failed, or whose `write` was dropped before it returned, is spoilt.
    async fn write(&mut self, bytes: Bytes) -> Result<(), BlobError>;

    /// Waits until all bytes so far are where they belong, and gives their digest.
    async fn settle(&mut self) -> Result<Digest, BlobError>;

    /// Makes the blob durable (see [`Durability`](crate::Durability)) and seen; returns its digest and length.
    /// Equal bytes are one blob, however often they are written.
    ///
    /// # Errors
    /// [`BlobError::Mismatch`] if the digest is not the `expected` one; then nothing is kept.
    async fn commit(self: Box<Self>, expected: Option<Digest>) -> Result<(Digest, u64), BlobError>;
}

/// Whether a name is one of an unfinished blob.
fn check_name(name: &str) -> Result<(), BlobError> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if (1..=128).contains(&name.len()) && name.bytes().all(good) {
        return Ok(());
    }
    let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a name of an unfinished blob");
    Err(BlobError::Failed { at: format!("{name:?}"), source })
}

/// Whether the bytes are what the caller says they are.
fn check_expected(expected: Option<Digest>, found: Digest) -> Result<(), BlobError> {
    match expected {
        Some(expected) if expected != found => Err(BlobError::Mismatch { expected, found }),
        _ => Ok(()),
    }
}
