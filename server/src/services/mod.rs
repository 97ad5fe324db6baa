//! The thin gRPC ends: decode, check, hand over, answer.

mod enrolment;
mod operator;
mod participation;

pub(crate) use enrolment::EnrolmentService;
pub(crate) use operator::OperatorService;
pub(crate) use participation::ParticipationService;

use bytes::Bytes;
use std::sync::Arc;
use tokio::io::AsyncReadExt as _;
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
    let mut reader = blobs.open(digest, offset).await.map_err(|e| {
        tracing::error!(error = %e, "cannot read a model");
        ApiError::new(
            Fault::Internal,
            "the coordinator cannot read the model; its operator finds the cause in its log",
        )
    })?;
    tokio::spawn(async move {
        let mut at = offset;
        loop {
            let mut data = Vec::with_capacity(CHUNK_BYTES);
            let read = (&mut reader).take(CHUNK_BYTES as u64).read_to_end(&mut data).await;
            let message = match read {
                Ok(0) => break,
                Ok(n) => {
                    let chunk = Chunk { offset: at, data: Bytes::from(data) };
                    at += n as u64;
                    Ok(wrap(chunk))
                }
                Err(e) => {
                    Err(Status::from(ApiError::new(Fault::Internal, format!("reading broke off: {e}"))))
                }
            };
            let failed = message.is_err();
            if tx.send(message).await.is_err() || failed {
                break;
            }
        }
    });
    Ok(())
}

/// A channel of the right depth for [`send_blob`].
pub(crate) fn chunk_channel<M>() -> (Sending<M>, mpsc::Receiver<Result<M, Status>>) {
    mpsc::channel(CHUNKS_AHEAD)
}
