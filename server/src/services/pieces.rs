//! Feeding a download: piece by piece, never more on its way than its reader takes.

use crate::shelf::{Shelf, read};
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use undertone::{ApiError, Fault};
use undertone_core::digest::Digest;
use undertone_store::{Blobs, LocalBlob};

/// Pieces of a download that are on their way: one that the network takes, and one that it finds when it is done.
const ON_THE_WAY: u32 = 2;
/// What a download reads for itself where the shelf is full, one piece at a time: what readers that do not read keep in memory
/// must not grow with their number.
const SMALL_BYTES: u64 = 32 << 10;

/// A piece of a blob. It is on its way until the last bit of `data` is dropped, which the network does when it has sent it.
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) data: Bytes,
}

/// Pieces, one after the other; an error is the last.
pub(super) type Pieces = mpsc::Receiver<Result<Piece, ApiError>>;

/// Looks after a download while it lasts.
pub(super) trait Overseer: Send + Sync + 'static {
    /// Whether the rest is still of use to its reader, who was given so many bytes (all but one piece are taken) and misses so many.
    ///
    /// # Errors
    /// Why it is not.
    fn check(&self, taken: u64, missing: u64) -> Result<(), ApiError>;

    /// The download ends before its end.
    fn ended(&self, why: &ApiError);
}

/// Of an operator's download.
impl Overseer for () {
    fn check(&self, _taken: u64, _missing: u64) -> Result<(), ApiError> {
        Ok(())
    }

    fn ended(&self, _why: &ApiError) {}
}

/// How often a download is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The pieces of a blob from an offset on. A reader that takes nothing for `idle` is left: it may go on from where it was.
///
/// # Errors
/// If the blob cannot be opened.
pub(super) async fn pieces(
    shelf: &Arc<Shelf>,
    blobs: &Arc<dyn Blobs>,
    digest: &Digest,
    offset: u64,
    idle: Duration,
    overseer: impl Overseer,
) -> Result<Pieces, ApiError> {
    let unreadable = |e: &dyn std::fmt::Display| {
        tracing::error!(error = %e, "cannot read a model");
        ApiError::new(
            Fault::Internal,
            "the coordinator cannot read the model; its operator finds the cause in its log",
        )
    };
    let blob = blobs.local(digest).await.map_err(|e| unreadable(&e))?;
    let bytes = blob.bytes().map_err(|e| unreadable(&e))?;
    // Room for all that is on its way and for the error that comes after it: nothing here waits for who takes from it.
    let (tx, rx) = mpsc::channel(ON_THE_WAY as usize + 1);
    let (shelf, digest) = (shelf.clone(), *digest);
    tokio::spawn(async move {
        let feed = Feed { shelf, blob, digest, bytes, idle, overseer };
        if let Err(e) = feed.run(offset, &tx).await {
            feed.overseer.ended(&e);
            // The task ends here, and with it what it has open. What is on its way stays until the call ends: the network does not
            // ask for more while its reader takes nothing.
            let _ = tx.try_send(Err(e));
        }
    });
    Ok(rx)
}

struct Feed<O> {
    shelf: Arc<Shelf>,
    blob: LocalBlob,
    digest: Digest,
    bytes: u64,
    idle: Duration,
    overseer: O,
}

impl<O: Overseer> Feed<O> {
    async fn run(&self, mut offset: u64, tx: &mpsc::Sender<Result<Piece, ApiError>>) -> Result<(), ApiError> {
        let broken = |e: io::Error| ApiError::new(Fault::Internal, format!("reading broke off: {e}"));
        let reader = self.shelf.reader();
        let way = Arc::new(Semaphore::new(ON_THE_WAY as usize));
        let (begun_at, mut looked) = (offset, Instant::now());
        while offset < self.bytes {
            // Not read before there is room for it.
            let mut room = self.room(&way, 1).await?;
            if looked.elapsed() >= LOOK {
                self.overseer.check(offset - begun_at, self.bytes - offset)?;
                looked = Instant::now();
            }
            let shared = reader.take(&self.blob, &self.digest, self.bytes, offset).await.map_err(broken)?;
            let data = match shared {
                Some(data) => data,
                None => {
                    room.merge(self.room(&way, ON_THE_WAY - 1).await?);
                    let len = SMALL_BYTES.min(self.bytes - offset) as usize;
                    read(&self.blob, len, offset).await.map_err(broken)?.into()
                }
            };
            let next = offset + data.len() as u64;
            let data = Bytes::from_owner(OnItsWay { data, _room: room });
            if tx.send(Ok(Piece { offset, data })).await.is_err() {
                return Ok(());
            }
            offset = next;
        }
        // The last ones are to be taken as well.
        for pieces in 1..=ON_THE_WAY {
            drop(self.room(&way, pieces).await?);
        }
        Ok(())
    }

    async fn room(&self, way: &Arc<Semaphore>, pieces: u32) -> Result<OwnedSemaphorePermit, ApiError> {
        let room = timeout(self.idle, way.clone().acquire_many_owned(pieces)).await.map_err(|_| {
            let text = format!("the download stood still for {} s", self.idle.as_secs());
            ApiError::new(Fault::Unavailable, text)
        })?;
        Ok(room.expect("it is never closed"))
    }
}

struct OnItsWay {
    data: Bytes,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for OnItsWay {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use undertone::limits::CHUNK_BYTES;
    use undertone_store::MemoryBlobs;

    const LONG: Duration = Duration::from_secs(600);

    async fn stored(bytes: usize) -> (Arc<dyn Blobs>, Digest, Vec<u8>) {
        let blobs: Arc<dyn Blobs> = Arc::new(MemoryBlobs::default());
        let content: Vec<u8> = (0..bytes).map(|i| (i / 97) as u8).collect();
        let (digest, _) = blobs.put(content.clone().into()).await.unwrap();
        (blobs, digest, content)
    }

    async fn all(mut pieces: Pieces, from: u64) -> Vec<u8> {
        let mut got = vec![];
        while let Some(piece) = pieces.recv().await {
            let piece = piece.map_err(|e| e.message).unwrap();
            assert_eq!(piece.offset, from + got.len() as u64);
            got.extend_from_slice(&piece.data);
        }
        got
    }

    #[tokio::test]
    async fn a_blob_comes_whole_from_wherever_it_is_asked() {
        let (blobs, digest, content) = stored(3 * CHUNK_BYTES + 5).await;
        let shelf = Arc::new(Shelf::new());
        for from in [0, 1, CHUNK_BYTES, 2 * CHUNK_BYTES - 1, content.len() - 1, content.len()] {
            let stream = pieces(&shelf, &blobs, &digest, from as u64, LONG, ()).await.unwrap();
            assert!(all(stream, from as u64).await == content[from..], "from {from}");
        }
    }

    #[tokio::test]
    async fn a_reader_that_keeps_what_it_gets_gets_two_pieces_and_is_left() {
        // In the middle, and where these two are the last ones.
        for chunks in [5, ON_THE_WAY as usize] {
            let (blobs, digest, _) = stored(chunks * CHUNK_BYTES).await;
            let shelf = Arc::new(Shelf::new());
            let idle = Duration::from_millis(50);
            let mut stream = pieces(&shelf, &blobs, &digest, 0, idle, ()).await.unwrap();
            let mut kept = vec![];
            let end = loop {
                match stream.recv().await.unwrap() {
                    Ok(piece) => kept.push(piece),
                    Err(e) => break e,
                }
            };
            assert_eq!(kept.len(), ON_THE_WAY as usize);
            assert_eq!(end.fault, Fault::Unavailable);
            assert!(stream.recv().await.is_none());
        }
    }

    /// The network asks for nothing where its reader takes nothing: what feeds it ends all the same, and closes what it has open.
    #[tokio::test]
    async fn who_asks_for_nothing_more_keeps_nothing_open() {
        struct Ends(mpsc::Sender<Fault>);
        impl Overseer for Ends {
            fn check(&self, _taken: u64, _missing: u64) -> Result<(), ApiError> {
                Ok(())
            }

            fn ended(&self, why: &ApiError) {
                self.0.try_send(why.fault).unwrap();
            }
        }
        let (blobs, digest, _) = stored(5 * CHUNK_BYTES).await;
        let (tx, mut ends) = mpsc::channel(1);
        let shelf = Arc::new(Shelf::new());
        let mut stream =
            pieces(&shelf, &blobs, &digest, 0, Duration::from_millis(50), Ends(tx)).await.unwrap();
        let left = timeout(LONG, ends.recv()).await.expect("it is left");
        assert_eq!(left, Some(Fault::Unavailable));
        assert!(ends.recv().await.is_none(), "what fed it is gone");
        for _ in 0..ON_THE_WAY {
            assert!(stream.recv().await.unwrap().is_ok());
        }
        assert!(stream.recv().await.unwrap().is_err());
    }

    /// Who takes a piece now and then, for ever.
    #[tokio::test]
    async fn a_reader_that_trickles_is_looked_at_and_left() {
        struct Impatient(Arc<std::sync::Mutex<Vec<String>>>);
        impl Overseer for Impatient {
            fn check(&self, taken: u64, missing: u64) -> Result<(), ApiError> {
                Err(ApiError::new(Fault::NotNow, format!("{taken} and {missing}")))
            }

            fn ended(&self, why: &ApiError) {
                self.0.lock().unwrap().push(why.message.clone());
            }
        }
        let (blobs, digest, _) = stored(50 * CHUNK_BYTES).await;
        let ends = Arc::default();
        let overseer = Impatient(Arc::clone(&ends));
        let mut stream = pieces(&Arc::new(Shelf::new()), &blobs, &digest, 5, LONG, overseer).await.unwrap();
        let (mut taken, begun) = (0, Instant::now());
        let end = loop {
            match stream.recv().await.unwrap() {
                Ok(piece) => taken += piece.data.len() as u64,
                Err(e) => break e,
            }
            tokio::time::sleep(LOOK / 5).await;
        };
        assert!(begun.elapsed() >= LOOK && taken < 50 * CHUNK_BYTES as u64 - 5);
        let missing = 50 * CHUNK_BYTES as u64 - 5 - taken;
        assert_eq!((end.fault, &end.message), (Fault::NotNow, &format!("{taken} and {missing}")));
        assert_eq!(*ends.lock().unwrap(), [end.message]);
    }

    #[tokio::test]
    async fn readers_that_hold_the_whole_shelf_stop_nobody() {
        let (blobs, digest, content) = stored(64 * CHUNK_BYTES).await;
        let shelf = Arc::new(Shelf::new());
        let mut stuck = vec![];
        // Two chunks each, and none that another has.
        for i in 0..16 {
            let from = 2 * i * CHUNK_BYTES as u64;
            let mut stream = pieces(&shelf, &blobs, &digest, from, LONG, ()).await.unwrap();
            let held = [stream.recv().await.unwrap(), stream.recv().await.unwrap()];
            stuck.push((stream, held.map(|piece| piece.map_err(|e| e.message).unwrap())));
        }
        let from = 60 * CHUNK_BYTES as u64;
        let mut rest = pieces(&shelf, &blobs, &digest, from, LONG, ()).await.unwrap();
        let first = rest.recv().await.unwrap().map_err(|e| e.message).unwrap();
        assert_eq!(first.data.len() as u64, SMALL_BYTES);
        let mut got = first.data.to_vec();
        drop(first);
        got.extend(all(rest, from + SMALL_BYTES).await);
        assert!(got == content[from as usize..]);
    }
}
