//! The thin gRPC ends: decode, check, hand over, answer.

mod enrolment;
mod operator;
mod participation;

pub(crate) use enrolment::EnrolmentService;
pub(crate) use operator::OperatorService;
pub(crate) use participation::ParticipationService;

use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::mpsc;
use tonic::Status;
use undertone::limits::CHUNK_BYTES;
use undertone::v1::Chunk;
use undertone::{ApiError, Fault};
use undertone_core::digest::Digest;
use undertone_store::Blobs;

/// Chunks of a blob that wait for a slow reader.
const CHUNKS_AHEAD: usize = 4;

/// Where the messages of a stream go.
type Sending<M> = mpsc::Sender<Result<M, Status>>;

/// Reads a blob from an offset and sends it in chunks made by `wrap`; memory is a few chunks whatever its size.
pub(crate) async fn send_blob<M: Send + 'static>(
    blobs: &Arc<dyn Blobs>,
    digest: &Digest,
    offset: u64,
    tx: Sending<M>,
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
        let mut at = offset;
        while at < bytes {
            // Some chunks at once: each read is a hop to another thread. Not digested here: whoever receives it does.
            let (from, blob) = (at, blob.clone());
            let read = tokio::task::spawn_blocking(move || {
                let len = (CHUNKS_READ * CHUNK_BYTES as u64).min(bytes - from) as usize;
                blob.read_vec(len, from).map(Bytes::from)
            });
            let mut data = match read.await.unwrap_or_else(|e| Err(std::io::Error::other(e))) {
                Ok(data) => data,
                Err(e) => {
                    let broken = ApiError::new(Fault::Internal, format!("reading broke off: {e}"));
                    let _ = tx.send(Err(Status::from(broken))).await;
                    return;
                }
            };
            while !data.is_empty() {
                let chunk = data.split_to(data.len().min(CHUNK_BYTES));
                let next = at + chunk.len() as u64;
                if tx.send(Ok(wrap(Chunk { offset: at, data: chunk }))).await.is_err() {
                    return;
                }
                at = next;
            }
        }
    });
    Ok(())
}

/// Chunks that are read at once.
const CHUNKS_READ: u64 = 4;

/// A channel of the right depth for [`send_blob`].
pub(crate) fn chunk_channel<M>() -> (Sending<M>, mpsc::Receiver<Result<M, Status>>) {
    mpsc::channel(CHUNKS_AHEAD)
}
