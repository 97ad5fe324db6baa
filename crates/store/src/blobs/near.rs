//! The folder in front of a bucket: what was used last stays, the rest makes room.

use super::{BlobError, Blobs as _, FolderBlobs};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use undertone_core::digest::Digest;

/// A folder with room for some bytes. Clones are the same one.
#[derive(Debug, Clone)]
pub(super) struct Near {
    folder: FolderBlobs,
    room: u64,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    blobs: HashMap<Digest, Blob>,
    bytes: u64,
    /// Counts uses.
    now: u64,
    /// Who fetches what.
    turns: HashMap<Digest, Weak<AsyncMutex<()>>>,
}

#[derive(Debug)]
struct Blob {
    bytes: u64,
    used: u64,
}

impl Near {
    /// Takes up what an earlier process left in the folder.
    pub(super) async fn open(folder: FolderBlobs, room: u64) -> Result<Self, BlobError> {
        let near = Self { folder, room, kept: Arc::default() };
        for digest in near.folder.list().await? {
            let bytes = near.folder.len(&digest).await?;
            near.lock().note(digest, bytes);
        }
        near.make_room(None).await?;
        Ok(near)
    }

    pub(super) fn folder(&self) -> &FolderBlobs {
        &self.folder
    }

    /// Notes a blob that is in the folder now, and lets go of others if there is no room for it.
    pub(super) async fn came(&self, digest: &Digest, bytes: u64) -> Result<(), BlobError> {
        self.lock().note(*digest, bytes);
        self.make_room(Some(digest)).await
    }

    /// Notes that a blob was used just now.
    pub(super) fn used(&self, digest: &Digest) {
        let mut kept = self.lock();
        kept.now += 1;
        let now = kept.now;
        if let Some(blob) = kept.blobs.get_mut(digest) {
            blob.used = now;
        }
    }

    /// Whether a blob is in the folder.
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.lock().blobs.contains_key(digest)
    }

    /// Lets go of a blob.
    pub(super) async fn gone(&self, digest: &Digest) -> Result<(), BlobError> {
        self.lock().forget(digest);
        self.folder.delete(digest).await
    }

    /// Held by whoever fetches a blob.
    pub(super) async fn turn(&self, digest: &Digest) -> OwnedMutexGuard<()> {
        let turn = {
            let mut kept = self.lock();
            kept.turns.retain(|_, turn| turn.strong_count() > 0);
            let held = kept.turns.get(digest).and_then(Weak::upgrade);
            held.unwrap_or_else(|| {
                let turn = Arc::default();
                kept.turns.insert(*digest, Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }

    /// The last one that came stays, also if it alone is more than there is room for: somebody is about to read it.
    async fn make_room(&self, last: Option<&Digest>) -> Result<(), BlobError> {
        loop {
            let oldest = {
                let mut kept = self.lock();
                if kept.bytes <= self.room {
                    return Ok(());
                }
                let others = kept.blobs.iter().filter(|(digest, _)| Some(*digest) != last);
                let Some(oldest) = others.min_by_key(|(_, blob)| blob.used).map(|(digest, _)| *digest) else {
                    return Ok(());
                };
                kept.forget(&oldest);
                oldest
            };
            self.folder.delete(&oldest).await?;
        }
    }

    /// No change panics half-way, so a poisoned lock guards a whole state.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn note(&mut self, digest: Digest, bytes: u64) {
        self.now += 1;
        let used = self.now;
        let before = self.blobs.insert(digest, Blob { bytes, used });
        self.bytes += bytes - before.map_or(0, |before| before.bytes);
    }

    fn forget(&mut self, digest: &Digest) {
        self.bytes -= self.blobs.remove(digest).map_or(0, |blob| blob.bytes);
    }
}
