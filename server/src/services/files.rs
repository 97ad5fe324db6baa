//! Files that a job refers to by digest, handed in before it.

use super::operator::OPERATOR_IDLE;
use std::sync::Arc;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;
use undertone::limits::MAX_CHUNK_BYTES;
use undertone::v1::{self, file_message};
use undertone::{ApiError, Fault, required};
use undertone_core::initial::FileRef;
use undertone_core::torchscript::MAX_MODULE_BYTES;
use undertone_store::{BlobError, Blobs};

/// Largest file: that of a TorchScript module, which holds more than the largest model as safetensors.
const MAX_FILE_BYTES: u64 = MAX_MODULE_BYTES;

/// The file that a message speaks of.
pub(super) fn parsed(reference: Option<&v1::BlobRef>) -> Result<FileRef, ApiError> {
    let reference = required(reference, "file")?;
    let file = FileRef { digest: reference.parsed_digest()?, bytes: reference.bytes };
    if file.bytes > MAX_FILE_BYTES {
        let text = format!("a file of {} bytes, at most {MAX_FILE_BYTES}", file.bytes);
        return Err(ApiError::new(Fault::TooMuch, text));
    }
    Ok(file)
}

/// How much of a file is here.
pub(super) async fn progress(file: FileRef, blobs: &Arc<dyn Blobs>) -> Result<v1::FileProgress, ApiError> {
    match blobs.len(&file.digest).await {
        Ok(bytes) if bytes == file.bytes => Ok(v1::FileProgress { offset: bytes, complete: true }),
        Ok(bytes) => {
            let text = format!("{} has {bytes} bytes, not {}", file.digest.short(), file.bytes);
            Err(ApiError::new(Fault::BadRequest, text))
        }
        Err(BlobError::NotFound { .. }) => {
            let written = blobs.written(&name(file)).await.map_err(storage)?;
            Ok(v1::FileProgress { offset: written.min(file.bytes), complete: false })
        }
        Err(e) => Err(storage(e)),
    }
}

/// Takes a file in. What came of one that breaks off is kept: [`progress`] says where to go on.
pub(super) async fn take(
    mut messages: impl Stream<Item = Result<v1::FileMessage, Status>> + Unpin,
    blobs: &Arc<dyn Blobs>,
) -> Result<v1::FileProgress, ApiError> {
    let bad = |text: String| ApiError::new(Fault::BadRequest, text);
    let Some(file_message::Kind::Header(header)) = next(&mut messages).await? else {
        return Err(bad("the first message of a file is its header".into()));
    };
    let file = parsed(header.file.as_ref())?;
    let here = progress(file, blobs).await?;
    if here.complete {
        return Ok(here);
    }
    let name = name(file);
    if header.offset == 0 && here.offset > 0 {
        blobs.abandon(&name).await.map_err(storage)?;
    } else if header.offset != here.offset {
        let text = format!("the file begins at {}, and goes on at {}", header.offset, here.offset);
        return Err(ApiError::new(Fault::Unavailable, text));
    }
    let mut at = header.offset;
    let mut writer = blobs.resume(&name, &mut |_| {}).await.map_err(storage)?;
    while let Some(kind) = next(&mut messages).await? {
        let file_message::Kind::Chunk(v1::Chunk { offset, data }) = kind else {
            return Err(bad("after the header only chunks may follow".into()));
        };
        let end = at + data.len() as u64;
        if data.is_empty() || data.len() > MAX_CHUNK_BYTES || offset != at || end > file.bytes {
            let text =
                format!("a chunk at {offset} of {} bytes, {at} of {} comes next", data.len(), file.bytes);
            return Err(bad(text));
        }
        writer.write(data).await.map_err(storage)?;
        at = end;
    }
    writer.settle().await.map_err(storage)?;
    if at != file.bytes {
        let text = format!(
            "the file broke off after {at} of {} bytes: hand it in again, it goes on there",
            file.bytes
        );
        return Err(ApiError::new(Fault::Unavailable, text));
    }
    match writer.commit(Some(file.digest)).await {
        Ok(_) => Ok(v1::FileProgress { offset: at, complete: true }),
        Err(e @ BlobError::Mismatch { .. }) => {
            blobs.abandon(&name).await.map_err(storage)?;
            Err(bad(e.to_string()))
        }
        Err(e) => Err(storage(e)),
    }
}

/// What the next message holds; `None`: there is none.
async fn next(
    messages: &mut (impl Stream<Item = Result<v1::FileMessage, Status>> + Unpin),
) -> Result<Option<file_message::Kind>, ApiError> {
    let message = tokio::time::timeout(OPERATOR_IDLE, messages.next()).await.map_err(|_| {
        ApiError::new(Fault::Unavailable, format!("the file stood still for {} s", OPERATOR_IDLE.as_secs()))
    })?;
    match message {
        None => Ok(None),
        Some(message) => Ok(Some(required(message.map_err(ApiError::from)?.kind, "kind")?)),
    }
}

/// The name of an unfinished file.
fn name(file: FileRef) -> String {
    format!("file-{}", file.digest)
}

fn storage(e: BlobError) -> ApiError {
    if let BlobError::InUse { .. } = e {
        return ApiError::new(Fault::Unavailable, "somebody else is handing this file in: try again");
    }
    tracing::error!(error = %e, "cannot keep a file that is handed in");
    ApiError::new(
        Fault::Unavailable,
        "the coordinator cannot store the file now; its operator finds the cause in its log",
    )
}
