//! Chunks of models on their way to whoever fetches them. Each is read once for all who need it at about the same time, and
//! together they take no more memory than the shelf has, however many fetch and however slowly.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, Weak};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use undertone::limits::CHUNK_BYTES;
use undertone_core::digest::Digest;
use undertone_store::LocalBlob;

use bytes::Bytes;

/// Chunks that are in memory at once: 8 MiB.
const CHUNKS: usize = 32;

/// The chunks that somebody needs, or needed a moment ago.
#[derive(Debug)]
pub(crate) struct Shelf {
    room: Arc<Semaphore>,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Where to find what is in memory.
    known: HashMap<(Digest, u64), Weak<Chunk>>,
    /// What stays for those who come a little later, the oldest first.
    recent: VecDeque<Arc<Chunk>>,
    readers: usize,
}

#[derive(Debug)]
struct Chunk {
    data: OnceCell<Vec<u8>>,
    _room: OwnedSemaphorePermit,
}

/// A chunk in memory as long as somebody holds this.
struct Held(Arc<Chunk>);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        self.0.data.get().map_or(&[], |data| data)
    }
}

/// Somebody who takes chunks. What is kept for those who come later goes with the last one.
#[derive(Debug)]
pub(crate) struct Reader(Arc<Shelf>);

impl Shelf {
    pub(crate) fn new() -> Self {
        Self { room: Arc::new(Semaphore::new(CHUNKS)), kept: Mutex::default() }
    }

    pub(crate) fn reader(self: &Arc<Self>) -> Reader {
        self.kept.lock().expect("no panic while locked").readers += 1;
        Reader(self.clone())
    }

    /// The place of the chunk that begins at `start`; none if all are taken by others.
    fn place(&self, digest: &Digest, start: u64) -> Option<Arc<Chunk>> {
        let mut kept = self.kept.lock().expect("no panic while locked");
        if let Some(chunk) = kept.known.get(&(*digest, start)).and_then(Weak::upgrade) {
            return Some(chunk);
        }
        let room = loop {
            match self.room.clone().try_acquire_owned() {
                Ok(room) => break room,
                // Gives its place back if nobody needs it any more.
                Err(_) => drop(kept.recent.pop_front()?),
            }
        };
        let chunk = Arc::new(Chunk { data: OnceCell::new(), _room: room });
        kept.known.retain(|_, chunk| chunk.strong_count() > 0);
        kept.known.insert((*digest, start), Arc::downgrade(&chunk));
        kept.recent.push_back(chunk.clone());
        Some(chunk)
    }
}

impl Reader {
    /// The bytes of a blob from `at` to the end of the chunk that they lie in; `None` if the shelf is full of what others need.
    ///
    /// # Errors
    /// If the disk fails.
    pub(crate) async fn take(
        &self,
        blob: &LocalBlob,
        digest: &Digest,
        bytes: u64,
        at: u64,
    ) -> io::Result<Option<Bytes>> {
        let start = at - at % CHUNK_BYTES as u64;
        let Some(chunk) = self.0.place(digest, start) else { return Ok(None) };
        let len = (bytes - start).min(CHUNK_BYTES as u64) as usize;
        chunk.data.get_or_try_init(|| read(blob, len, start)).await?;
        Ok(Some(Bytes::from_owner(Held(chunk)).slice((at - start) as usize..)))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut kept = self.0.kept.lock().expect("no panic while locked");
        kept.readers -= 1;
        if kept.readers == 0 {
            *kept = Kept::default();
        }
    }
}

/// Reads a piece of a blob beside the async tasks. It is not digested: whoever receives it does.
///
/// # Errors
/// If the disk fails.
pub(crate) async fn read(blob: &LocalBlob, len: usize, at: u64) -> io::Result<Vec<u8>> {
    let blob = blob.clone();
    let read = tokio::task::spawn_blocking(move || blob.read_vec(len, at));
    read.await.unwrap_or_else(|e| Err(io::Error::other(e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = CHUNK_BYTES as u64;

    fn blob(chunks: usize) -> (LocalBlob, Digest, u64) {
        let bytes: Vec<u8> = (0..chunks * CHUNK_BYTES - 7).map(|i| (i / 251) as u8).collect();
        (LocalBlob::Bytes(bytes.clone().into()), Digest::of(&bytes), bytes.len() as u64)
    }

    #[tokio::test]
    async fn who_needs_the_same_chunk_gets_the_same_memory() {
        let (blob, digest, bytes) = blob(3);
        let shelf = Arc::new(Shelf::new());
        let (a, b) = (shelf.reader(), shelf.reader());
        let whole = a.take(&blob, &digest, bytes, CHUNK).await.unwrap().unwrap();
        let tail = b.take(&blob, &digest, bytes, CHUNK + 5).await.unwrap().unwrap();
        assert_eq!(whole.len(), CHUNK_BYTES);
        assert_eq!(whole[5..].as_ptr(), tail.as_ptr());
        let last = a.take(&blob, &digest, bytes, 3 * CHUNK - 8).await.unwrap().unwrap();
        assert_eq!(last.len(), 1);
        let LocalBlob::Bytes(all) = &blob else { unreachable!() };
        assert!(all[CHUNK_BYTES..2 * CHUNK_BYTES] == whole[..] && all[all.len() - 1] == last[0]);
    }

    #[tokio::test]
    async fn a_full_shelf_has_no_place_and_an_idle_one_no_memory() {
        let (blob, digest, bytes) = blob(2 * CHUNKS);
        let shelf = Arc::new(Shelf::new());
        let reader = shelf.reader();
        let mut held = vec![];
        for i in 0..CHUNKS as u64 {
            held.push(reader.take(&blob, &digest, bytes, i * CHUNK).await.unwrap().unwrap());
        }
        assert!(reader.take(&blob, &digest, bytes, CHUNKS as u64 * CHUNK).await.unwrap().is_none());
        // What is held is found all the same.
        assert!(reader.take(&blob, &digest, bytes, 0).await.unwrap().is_some());
        held.truncate(1);
        // One that nobody holds goes: the shelf keeps the newest, and never more than it has room for.
        for i in 0..2 * CHUNKS as u64 {
            assert!(reader.take(&blob, &digest, bytes, i * CHUNK).await.unwrap().is_some(), "{i}");
        }
        drop((held, reader));
        assert_eq!(shelf.room.available_permits(), CHUNKS);
    }

    #[tokio::test]
    async fn what_cannot_be_read_can_be_asked_for_again() {
        let (blob, digest, bytes) = blob(1);
        let shelf = Arc::new(Shelf::new());
        let reader = shelf.reader();
        let short = LocalBlob::Bytes(vec![1].into());
        assert!(reader.take(&short, &digest, bytes, 0).await.is_err());
        assert!(reader.take(&blob, &digest, bytes, 0).await.unwrap().is_some());
    }
}
