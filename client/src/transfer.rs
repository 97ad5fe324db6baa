//! Models in, updates out: in pieces, resumable, given up only when nothing moves.

use crate::backoff;
use crate::connect::participation;
use crate::models::{Kept, ModelError, Models, Partial, PartialError};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use undertone::limits::{CHUNK_BYTES, MAX_CHUNK_BYTES};
use undertone::v1::{
    self, AttemptRef, BlobRef, DownloadRequest, UploadHeader, UploadMessage, upload_message,
};
use undertone::{ApiError, Fault};
use undertone_core::id::AttemptKey;
use undertone_round::participant::{Failure, ModelRef, Sealed};

/// The connection of the session, while there is one.
#[derive(Debug, Clone)]
pub(crate) struct Line(watch::Receiver<Option<Channel>>);

/// Of a smaller update it costs less to send it again than to ask how much of it arrived.
const WORTH_ASKING: u64 = 4 * CHUNK_BYTES as u64;
/// Tries without a single new byte before a download is given up.
const FRUITLESS_TRIES: u32 = 5;
/// How long an upload may stand still. Long, for it may wait for its place in the coordinator's pool; the coordinator has its own,
/// tighter limit once it takes the upload, and a line that is dead is found by its pings.
const UPLOAD_IDLE: Duration = Duration::from_secs(3600);

impl Line {
    pub(crate) fn new(channel: watch::Receiver<Option<Channel>>) -> Self {
        Self(channel)
    }

    /// Waits for a connection.
    async fn channel(&mut self) -> Channel {
        match self.0.wait_for(Option::is_some).await.map(|c| c.clone()) {
            Ok(Some(channel)) => channel,
            // The client is shutting down; whoever waits here is about to be dropped.
            _ => std::future::pending().await,
        }
    }
}

/// Why a model did not arrive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("cannot keep the model on this disk: {0}")]
    Disk(#[from] std::io::Error),
    #[error(transparent)]
    Partial(#[from] PartialError),
    #[error("the model has digest {found}, {wanted} was offered")]
    WrongDigest { found: String, wanted: String },
    #[error("what arrived does not lead to the model that was offered: {0}")]
    Arrived(ModelError),
    #[error("the coordinator sent a piece of {0} bytes, at most {MAX_CHUNK_BYTES}")]
    LongChunk(usize),
    #[error("the model did not arrive: {0}")]
    Call(ApiError),
}

impl FetchError {
    /// What the coordinator is told.
    pub(crate) fn failure(&self) -> Failure {
        match self {
            // Paths and states of this disk are nobody else's business.
            Self::Disk(_) | Self::Partial(PartialError::Disk { .. }) | Self::Arrived(ModelError::Disk(_)) => {
                Failure::Final("the client cannot store the model: see the client's log".into())
            }
            other => Failure::Final(other.to_string()),
        }
    }
}

/// Brings a file here; goes on where an earlier transfer ended.
pub(crate) async fn fetch(
    line: &mut Line,
    models: &Models,
    model: ModelRef,
    kept: Kept,
    idle: Duration,
) -> Result<(), FetchError> {
    if models.holds(model, kept) {
        return Ok(());
    }
    let (mut fruitless, mut wrong) = (0, false);
    loop {
        let channel = line.channel().await;
        let mut partial = blocking({
            let models = models.clone();
            move || models.resume(model)
        })
        .await?;
        let before = partial.offset();
        match download(channel, &mut partial, model, idle).await {
            Ok(()) => {
                let models = models.clone();
                match blocking(move || models.finish(partial, kept)).await? {
                    Ok(()) => return Ok(()),
                    // Perhaps the first part was damaged on this disk: once more from the start.
                    Err(_) if before > 0 && !wrong => wrong = true,
                    Err(found) => {
                        let (found, wanted) = (found.to_string(), model.digest.to_string());
                        return Err(FetchError::WrongDigest { found, wanted });
                    }
                }
            }
            Err(FetchError::Call(e)) if matches!(e.fault, Fault::Unavailable | Fault::Internal) => {
                fruitless = if partial.offset() > before { 0 } else { fruitless + 1 };
                if fruitless >= FRUITLESS_TRIES {
                    return Err(FetchError::Call(e));
                }
                tracing::debug!(error = %e, offset = partial.offset(), "the model's transfer broke; going on soon");
                sleep(backoff::wait(fruitless, getrandom::u32().unwrap_or_default())).await;
            }
            Err(e) => return Err(e),
        }
    }
}

async fn download(
    channel: Channel,
    partial: &mut Partial,
    model: ModelRef,
    idle: Duration,
) -> Result<(), FetchError> {
    let call_error = |status: tonic::Status| FetchError::Call(status.into());
    let stalled = || {
        FetchError::Call(ApiError::new(Fault::Unavailable, format!("the transfer stood still for {idle:?}")))
    };
    if partial.is_complete() {
        return Ok(());
    }
    let request =
        DownloadRequest { digest: model.digest.as_bytes().to_vec().into(), offset: partial.offset() };
    let mut stub = participation(channel);
    let mut pieces = timeout(idle, stub.download_model(request))
        .await
        .map_err(|_| stalled())?
        .map_err(call_error)?
        .into_inner();
    while let Some(piece) =
        timeout(idle, pieces.message()).await.map_err(|_| stalled())?.map_err(call_error)?
    {
        if piece.data.len() > MAX_CHUNK_BYTES {
            return Err(FetchError::LongChunk(piece.data.len()));
        }
        // Pieces are small and the page cache takes them: not worth a thread each.
        partial.append(piece.offset, &piece.data)?;
    }
    if partial.is_complete() {
        Ok(())
    } else {
        let e = format!("the stream ended at byte {} of {}", partial.offset(), model.bytes);
        Err(FetchError::Call(ApiError::new(Fault::Unavailable, e)))
    }
}

/// Sends a stored update and waits for the receipt.
pub(crate) async fn upload(
    line: &mut Line,
    key: &AttemptKey,
    sealed: &Sealed,
    path: &Path,
    tries: u32,
) -> Result<(), Failure> {
    if tries > 0 {
        sleep(backoff::wait(tries, getrandom::u32().unwrap_or_default())).await;
    }
    let channel = line.channel().await;
    let unreadable = |e: std::io::Error| {
        tracing::error!(path = %path.display(), error = %e, "cannot read the outbox");
        Failure::Final("the client cannot read its outbox: see the client's log".into())
    };
    let mut file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    let mut stub = participation(channel.clone());
    let mut header = header(key, sealed);
    if sealed.bytes > WORTH_ASKING {
        let progress = progress(channel, header.clone()).await?;
        if progress.counted_already {
            tracing::info!("the update counts already: its receipt was lost");
            return Ok(());
        }
        // What it cannot have is begun anew.
        header.offset = Some(progress.offset).filter(|at| *at <= sealed.bytes).unwrap_or(0);
        file.seek(std::io::SeekFrom::Start(header.offset)).await.map_err(unreadable)?;
    }
    let (messages, stream) = mpsc::channel(2);
    let (moved, mut progress) = watch::channel(());
    let feed = feed(file, header, messages, moved);
    let call = stub.upload_update(ReceiverStream::new(stream));
    let (feed, call) = (std::pin::pin!(feed), std::pin::pin!(call));
    let receipt = drive(feed, call, &mut progress).await?;
    let same = receipt.update.as_ref().is_some_and(|u| u.parsed_digest() == Ok(sealed.update));
    if !same {
        return Err(Failure::Final("the coordinator's receipt is for another update".into()));
    }
    if receipt.counted_already {
        tracing::info!("the update counts already: its receipt was lost");
    }
    Ok(())
}

/// Asks whether an update without a receipt counts; does not send it. [`Failure::Closed`]: it does not, and never will.
pub(crate) async fn counted(
    line: &mut Line,
    key: &AttemptKey,
    sealed: &Sealed,
    tries: u32,
) -> Result<(), Failure> {
    if tries > 0 {
        sleep(backoff::wait(tries, getrandom::u32().unwrap_or_default())).await;
    }
    match progress(line.channel().await, header(key, sealed)).await? {
        progress if progress.counted_already => Ok(()),
        _ => Err(Failure::Closed("the coordinator does not have it, and asks for a newer one".into())),
    }
}

fn header(key: &AttemptKey, sealed: &Sealed) -> UploadHeader {
    UploadHeader {
        attempt: Some(AttemptRef::from(key)),
        update: Some(BlobRef::new(sealed.update, sealed.bytes)),
        weight: sealed.weight,
        within_clip_norm: sealed.within,
        number: sealed.number,
        offset: 0,
    }
}

/// How much of an update the coordinator has.
async fn progress(channel: Channel, header: UploadHeader) -> Result<v1::UploadProgress, Failure> {
    let mut stub = participation(channel);
    let asked = timeout(UPLOAD_IDLE, stub.resume_upload(header)).await;
    let answer = asked.map_err(|_| Failure::Transient("the coordinator does not answer".into()))?;
    Ok(answer.map_err(|status| refusal(status.into()))?.into_inner())
}

/// Runs the call beside its feeder until the receipt, or until nothing has moved for [`UPLOAD_IDLE`].
async fn drive(
    mut feed: std::pin::Pin<&mut impl Future<Output = std::io::Result<()>>>,
    mut call: std::pin::Pin<
        &mut impl Future<Output = Result<tonic::Response<v1::UploadReceipt>, tonic::Status>>,
    >,
    progress: &mut watch::Receiver<()>,
) -> Result<v1::UploadReceipt, Failure> {
    let (mut fed, mut watched) = (false, true);
    let mut deadline = Instant::now() + UPLOAD_IDLE;
    loop {
        tokio::select! {
            answer = timeout_at(deadline, &mut call) => {
                return match answer {
                    Ok(Ok(receipt)) => Ok(receipt.into_inner()),
                    Ok(Err(status)) => Err(refusal(status.into())),
                    Err(_) => Err(Failure::Transient(format!("the upload stood still for {UPLOAD_IDLE:?}"))),
                };
            }
            read = &mut feed, if !fed => {
                read.map_err(|e| {
                    tracing::error!(error = %e, "cannot read the outbox");
                    Failure::Final("the client cannot read its outbox: see the client's log".into())
                })?;
                fed = true;
                deadline = Instant::now() + UPLOAD_IDLE;
            }
            changed = progress.changed(), if watched => {
                watched = changed.is_ok();
                deadline = Instant::now() + UPLOAD_IDLE;
            }
        }
    }
}

async fn feed(
    mut file: tokio::fs::File,
    header: UploadHeader,
    messages: mpsc::Sender<UploadMessage>,
    moved: watch::Sender<()>,
) -> std::io::Result<()> {
    let send = async |kind| messages.send(UploadMessage { kind: Some(kind) }).await.is_ok();
    let mut offset = header.offset;
    if !send(upload_message::Kind::Header(header)).await {
        return Ok(());
    }
    loop {
        let mut data = Vec::with_capacity(CHUNK_BYTES);
        (&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut data).await?;
        let length = data.len() as u64;
        // An error in sending means that the call has ended: its answer says why.
        if length == 0 || !send(upload_message::Kind::Chunk(v1::Chunk { offset, data: data.into() })).await {
            return Ok(());
        }
        offset += length;
        moved.send_replace(());
    }
}

/// Whose turn it is after a refused upload.
fn refusal(e: ApiError) -> Failure {
    match e.fault {
        Fault::Unavailable | Fault::Internal | Fault::TooMuch => Failure::Transient(e.message),
        Fault::NotNow | Fault::NotFound => Failure::Closed(e.message),
        Fault::BadRequest | Fault::AlreadyExists | Fault::Unauthenticated | Fault::NotAllowed => {
            Failure::Final(format!("the coordinator refused the update: {}", e.message))
        }
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_whose_turn_it_is() {
        let of = |fault| refusal(ApiError::new(fault, "x"));
        assert!(matches!(of(Fault::Unavailable), Failure::Transient(_)));
        assert!(matches!(of(Fault::TooMuch), Failure::Transient(_)));
        assert!(matches!(of(Fault::NotNow), Failure::Closed(_)));
        assert!(matches!(of(Fault::BadRequest), Failure::Final(_)));
    }

    #[tokio::test]
    async fn an_update_is_fed_in_order_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..CHUNK_BYTES * 2 + 5).map(|i| i as u8).collect();
        std::fs::write(dir.path().join("u"), &bytes).unwrap();
        let file = tokio::fs::File::open(dir.path().join("u")).await.unwrap();
        let (tx, mut rx) = mpsc::channel(2);
        let feeder = tokio::spawn(feed(file, UploadHeader::default(), tx, watch::channel(()).0));
        let first = rx.recv().await.unwrap();
        assert!(matches!(first.kind, Some(upload_message::Kind::Header(_))));
        let mut got = Vec::new();
        while let Some(UploadMessage { kind: Some(upload_message::Kind::Chunk(c)) }) = rx.recv().await {
            assert_eq!(c.offset, got.len() as u64);
            assert!(c.data.len() <= CHUNK_BYTES);
            got.extend_from_slice(&c.data);
        }
        assert_eq!(got, bytes);
        feeder.await.unwrap().unwrap();
    }
}
