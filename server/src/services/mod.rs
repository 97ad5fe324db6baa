//! The thin gRPC ends: decode, check, hand over, answer.

mod enrolment;
mod operator;
mod participation;

pub(crate) use enrolment::EnrolmentService;
pub(crate) use operator::OperatorService;
pub(crate) use participation::ParticipationService;

use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::Status;
use undertone::limits::CHUNK_BYTES;
use undertone::v1::Chunk;
use undertone::{ApiError, Fault};
use undertone_core::digest::Digest;
use undertone_store::Blobs;

/// Chunks of a blob that wait for a slow reader, and that are read at once: each read is a hop to another thread.
const CHUNKS_AHEAD: usize = 4;
/// Downloads beyond which each holds one chunk, and beyond which that is a small one: what readers that do not read keep in
/// memory must not grow with their number.
const FEW_DOWNLOADS: usize = 16;
const MANY_DOWNLOADS: usize = 128;
const SMALL_CHUNK_BYTES: usize = 32 << 10;

/// How long an operator's download may stand still; a participant's is the job's `transfer_idle`.
const OPERATOR_IDLE: Duration = Duration::from_secs(120);

/// Downloads under way in this process.
static DOWNLOADS: AtomicUsize = AtomicUsize::new(0);

struct Download;

impl Download {
    fn begin() -> Self {
        DOWNLOADS.fetch_add(1, Ordering::Relaxed);
        Self
    }

    /// The size of a chunk, and how many are read at once.
    fn chunks() -> (usize, usize) {
        let now = DOWNLOADS.load(Ordering::Relaxed);
        if now <= FEW_DOWNLOADS {
            (CHUNK_BYTES, CHUNKS_AHEAD)
        } else if now <= MANY_DOWNLOADS {
            (CHUNK_BYTES, 1)
        } else {
            (SMALL_CHUNK_BYTES, 1)
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        DOWNLOADS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where the messages of a stream go.
type Sending<M> = mpsc::Sender<Result<M, Status>>;

/// Reads a blob from an offset and sends it in chunks made by `wrap`; memory is a few chunks whatever its size. A reader that
/// takes nothing for `idle` is left: it may go on from where it was.
pub(crate) async fn send_blob<M: Send + 'static>(
    blobs: &Arc<dyn Blobs>,
    digest: &Digest,
    offset: u64,
    tx: Sending<M>,
    idle: Duration,
    wrap: impl Fn(Chunk) -> M + Send + 'static,
) -> Result<(), ApiError> {
    let unreadable = |e: &dyn std::fmt::Display| {
        tracing::error!(error = %e, "cannot read a model");
        ApiError::new(
            Fault::Internal,
            "the coordinator cannot read the model; its operator finds the cause in its log",
        )
    };
    let blob = blobs.local(digest).await.map_err(|e| unreadable(&e))?;
    let bytes = blob.bytes().map_err(|e| unreadable(&e))?;
    tokio::spawn(async move {
        let _one_more = Download::begin();
        let mut at = offset;
        while at < bytes {
            let (chunk_bytes, chunks) = Download::chunks();
            let len = ((chunks * chunk_bytes) as u64).min(bytes - at) as usize;
            // Not read before there is room for it.
            let room = tokio::time::timeout(idle, tx.reserve_many(len.div_ceil(chunk_bytes)));
            let Ok(Ok(mut room)) = room.await else { return };
            // Not digested here: whoever receives it does.
            let (from, blob) = (at, blob.clone());
            let read = tokio::task::spawn_blocking(move || blob.read_vec(len, from).map(Bytes::from));
            let mut data = match read.await.unwrap_or_else(|e| Err(std::io::Error::other(e))) {
                Ok(data) => data,
                Err(e) => {
                    let broken = ApiError::new(Fault::Internal, format!("reading broke off: {e}"));
                    room.next().expect("room for one at least").send(Err(Status::from(broken)));
                    return;
                }
            };
            for place in room {
                let chunk = data.split_to(data.len().min(chunk_bytes));
                let next = at + chunk.len() as u64;
                place.send(Ok(wrap(Chunk { offset: at, data: chunk })));
                at = next;
            }
        }
    });
    Ok(())
}

/// A channel of the right depth for [`send_blob`].
pub(crate) fn chunk_channel<M>() -> (Sending<M>, mpsc::Receiver<Result<M, Status>>) {
    mpsc::channel(CHUNKS_AHEAD)
}
