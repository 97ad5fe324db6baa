//! Blobs that are forgotten: for tests and simulation.

use super::{BlobError, BlobWriter, Blobs, LocalBlob, check_expected, check_name};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::HashMap;
use std::io::Cursor;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::AsyncRead;
use undertone_core::digest::Digest;

/// [`Blobs`] in memory.
#[derive(Debug, Clone, Default)]
pub struct MemoryBlobs {
    kept: Kept,
    unfinished: Unfinished,
}

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<HashMap<Digest, Arc<[u8]>>>>);

/// Unfinished blobs by name; `None` while one is being written.
#[derive(Clone, Default)]
struct Unfinished(Arc<Mutex<HashMap<String, Option<Vec<u8>>>>>);

impl Unfinished {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Option<Vec<u8>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Unfinished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} unfinished", self.lock().len())
    }
}

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
    /// Where the bytes go back to if they are not committed.
    resumed: Option<(String, Unfinished)>,
}

impl Drop for MemoryWriter {
    fn drop(&mut self) {
        if let Some((name, unfinished)) = self.resumed.take()
            // Unless it was abandoned meanwhile.
            && let Some(place) = unfinished.lock().get_mut(&name)
        {
            *place = Some(std::mem::take(&mut self.bytes));
        }
    }
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
        Ok(Box::new(MemoryWriter { kept: self.kept.clone(), bytes: Vec::new(), resumed: None }))
    }

    async fn resume(
        &self,
        name: &str,
        sink: &mut (dyn for<'a> FnMut(&'a [u8]) + Send),
    ) -> Result<Box<dyn BlobWriter>, BlobError> {
        check_name(name)?;
        let place = self.unfinished.lock().insert(name.to_owned(), None);
        let bytes = match place {
            Some(None) => return Err(BlobError::InUse { name: name.into() }),
            Some(Some(bytes)) => bytes,
            None => Vec::new(),
        };
        sink(&bytes);
        let resumed = Some((name.to_owned(), self.unfinished.clone()));
        Ok(Box::new(MemoryWriter { kept: self.kept.clone(), bytes, resumed }))
    }

    async fn unfinished(&self) -> Result<Vec<(String, u64)>, BlobError> {
        Ok(self.unfinished.lock().keys().map(|name| (name.clone(), 0)).collect())
    }

    async fn written(&self, name: &str) -> Result<u64, BlobError> {
        let unfinished = self.unfinished.lock();
        Ok(unfinished.get(name).and_then(Option::as_ref).map_or(0, |bytes| bytes.len() as u64))
    }

    async fn abandon(&self, name: &str) -> Result<(), BlobError> {
        self.unfinished.lock().remove(name);
        Ok(())
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
    async fn write(&mut self, bytes: Bytes) -> Result<(), BlobError> {
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn settle(&mut self) -> Result<Digest, BlobError> {
        Ok(Digest::of(&self.bytes))
    }

    async fn commit(mut self: Box<Self>, expected: Option<Digest>) -> Result<(Digest, u64), BlobError> {
        let digest = Digest::of(&self.bytes);
        if let Some((name, unfinished)) = self.resumed.take() {
            unfinished.lock().remove(&name);
        }
        check_expected(expected, digest)?;
        let bytes = std::mem::take(&mut self.bytes);
        let len = bytes.len() as u64;
        self.kept.lock().insert(digest, bytes.into());
        Ok((digest, len))
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
