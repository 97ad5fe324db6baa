//! Blobs that are forgotten: for tests and simulation.

use super::{BlobError, BlobWriter, Blobs, LocalBlob, check_expected};
use async_trait::async_trait;
use std::collections::HashMap;
use std::io::Cursor;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::AsyncRead;
use undertone_core::digest::Digest;

/// [`Blobs`] in memory.
#[derive(Debug, Clone, Default)]
pub struct MemoryBlobs {
    kept: Kept,
}

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<HashMap<Digest, Arc<[u8]>>>>);

impl Kept {
    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Arc<[u8]>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} blobs", self.lock().len())
    }
}

struct MemoryWriter {
    kept: Kept,
    bytes: Vec<u8>,
}

impl std::fmt::Debug for MemoryWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a blob of {} bytes so far", self.bytes.len())
    }
}

impl MemoryBlobs {
    /// No blobs.
    pub fn new() -> Self {
        Self::default()
    }

    fn find(&self, digest: &Digest) -> Result<Arc<[u8]>, BlobError> {
        self.kept.lock().get(digest).cloned().ok_or(BlobError::NotFound { digest: *digest })
    }
}

#[async_trait]
impl Blobs for MemoryBlobs {
    async fn writer(&self) -> Result<Box<dyn BlobWriter>, BlobError> {
        Ok(Box::new(MemoryWriter { kept: self.kept.clone(), bytes: Vec::new() }))
    }

    async fn open(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> Result<Box<dyn AsyncRead + Send + Unpin>, BlobError> {
        let blob = self.find(digest)?;
        let bytes = blob.len() as u64;
        if offset > bytes {
            return Err(BlobError::PastEnd { digest: *digest, bytes, offset });
        }
        let mut reader = Cursor::new(blob);
        reader.set_position(offset);
        Ok(Box::new(reader))
    }

    async fn local(&self, digest: &Digest) -> Result<LocalBlob, BlobError> {
        Ok(LocalBlob::Bytes(self.find(digest)?))
    }

    async fn len(&self, digest: &Digest) -> Result<u64, BlobError> {
        Ok(self.find(digest)?.len() as u64)
    }

    async fn delete(&self, digest: &Digest) -> Result<(), BlobError> {
        self.kept.lock().remove(digest);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Digest>, BlobError> {
        Ok(self.kept.lock().keys().copied().collect())
    }
}

#[async_trait]
impl BlobWriter for MemoryWriter {
    async fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    async fn commit(self: Box<Self>, expected: Option<Digest>) -> Result<(Digest, u64), BlobError> {
        let digest = Digest::of(&self.bytes);
        check_expected(expected, digest)?;
        let bytes = self.bytes.len() as u64;
        self.kept.lock().insert(digest, self.bytes.into());
        Ok((digest, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::blobs_contract;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn keeps_the_contract() {
        blobs_contract(async || Arc::new(MemoryBlobs::new()) as Arc<dyn Blobs>).await;
    }
}
