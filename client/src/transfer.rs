//! Models in, updates out: in pieces, resumable, given up only when nothing moves.

use crate::backoff;
use crate::connect::participation;
use crate::models::{Kept, ModelError, Models, Partial, PartialError};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;
use undertone::limits::{CHUNK_BYTES, MAX_CHUNK_BYTES};
use undertone::v1::{
    self, AttemptRef, BlobRef, DownloadRequest, UploadHeader, UploadMessage, upload_message, upload_reply,
};
use undertone::{ApiError, Fault};
use undertone_core::id::AttemptKey;
use undertone_round::participant::{Failure, ModelRef, Sealed};

/// The connection of the session, while there is one.
#[derive(Debug, Clone)]
pub(crate) struct Line(watch::Receiver<Option<Channel>>);

/// Tries without a single new byte before a download is given up.
const FRUITLESS_TRIES: u32 = 5;
/// How long to wait for a word of the coordinator: for a place in its pool, or for the receipt of a large update on a slow disk. Long,
/// for a line that is dead is found by its pings, and asking again is all that could be done.
const PATIENCE: Duration = Duration::from_secs(3600);

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

/// Sends a stored update as soon as the coordinator has a place for it, and waits for the receipt.
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
    let mut stub = participation(line.channel().await);
    let (messages, stream) = mpsc::channel(2);
    let header = upload_message::Kind::Header(header(key, sealed));
    // There is room in a new queue, and who takes from it lies below.
    let _ = messages.try_send(UploadMessage { kind: Some(header) });
    let replies = patient(stub.upload_update(ReceiverStream::new(stream))).await?;
    let mut replies = replies.map_err(|status| refusal(status.into()))?.into_inner();
    let receipt = match patient(next(&mut replies)).await?? {
        upload_reply::Kind::Receipt(receipt) => receipt,
        upload_reply::Kind::Go(v1::Go { offset, idle_ms }) => {
            // Whoever is sent back to where nothing is has nothing to send; the coordinator says what it thinks of that.
            let mut file = open(path, offset.min(sealed.bytes)).await.map_err(unreadable)?;
            let sent = feed(&mut file, offset, messages, Duration::from_millis(idle_ms));
            let (sent, receipt) = (std::pin::pin!(sent), std::pin::pin!(next(&mut replies)));
            match together(sent, receipt, PATIENCE).await? {
                upload_reply::Kind::Receipt(receipt) => receipt,
                upload_reply::Kind::Go(_) => {
                    return Err(Failure::Final("the coordinator asks for the update twice".into()));
                }
            }
        }
    };
    let same = receipt.update.as_ref().is_some_and(|u| u.parsed_digest() == Ok(sealed.update));
    if !same {
        return Err(Failure::Final("the coordinator's receipt is for another update".into()));
    }
    if receipt.counted_already {
        tracing::info!("the update counts already: its receipt was lost");
    }
    Ok(())
}

fn unreadable(e: std::io::Error) -> Failure {
    tracing::error!(error = %e, "cannot read the outbox");
    Failure::Final("the client cannot read its outbox: see the client's log".into())
}

async fn open(path: &Path, offset: u64) -> std::io::Result<tokio::fs::File> {
    let mut file = tokio::fs::File::open(path).await?;
    file.seek(std::io::SeekFrom::Start(offset)).await?;
    Ok(file)
}

/// Waits for the coordinator, within reason.
async fn patient<T>(answer: impl Future<Output = T>) -> Result<T, Failure> {
    within(PATIENCE, answer).await
}

async fn within<T>(patience: Duration, answer: impl Future<Output = T>) -> Result<T, Failure> {
    let silent = |_| Failure::Transient(format!("the coordinator said nothing for {patience:?}"));
    timeout(patience, answer).await.map_err(silent)
}

async fn next(replies: &mut Streaming<v1::UploadReply>) -> Result<upload_reply::Kind, Failure> {
    let reply = replies.message().await.map_err(|status| refusal(status.into()))?;
    let unclear = || Failure::Transient("the coordinator ended the upload without a receipt".into());
    reply.and_then(|reply| reply.kind).ok_or_else(unclear)
}

/// Sends until all is sent or the coordinator says more, which is the last that counts. Its silence counts from when all is sent: a
/// large update takes as long as it takes.
async fn together<T>(
    mut sent: std::pin::Pin<&mut impl Future<Output = Result<(), Failure>>>,
    mut answer: std::pin::Pin<&mut impl Future<Output = Result<T, Failure>>>,
    patience: Duration,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        answer = &mut answer => return answer,
        sent = &mut sent => sent?,
    }
    within(patience, answer).await?
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
    let mut stub = participation(line.channel().await);
    match patient(stub.resume_upload(header(key, sealed))).await? {
        Err(status) => Err(refusal(status.into())),
        Ok(progress) if progress.get_ref().counted_already => Ok(()),
        Ok(_) => Err(Failure::Closed("the coordinator does not have it, and asks for a newer one".into())),
    }
}

fn header(key: &AttemptKey, sealed: &Sealed) -> UploadHeader {
    UploadHeader {
        attempt: Some(AttemptRef::from(key)),
        update: Some(BlobRef::new(sealed.update, sealed.bytes)),
        weight: sealed.weight,
        within_clip_norm: sealed.within,
        number: sealed.number,
    }
}

/// Sends what a file holds from here on. Fails if a chunk is not taken for `idle`.
async fn feed(
    file: &mut tokio::fs::File,
    mut offset: u64,
    messages: mpsc::Sender<UploadMessage>,
    idle: Duration,
) -> Result<(), Failure> {
    loop {
        let mut data = Vec::with_capacity(CHUNK_BYTES);
        (&mut *file).take(CHUNK_BYTES as u64).read_to_end(&mut data).await.map_err(unreadable)?;
        let length = data.len() as u64;
        if length == 0 {
            return Ok(());
        }
        let chunk = upload_message::Kind::Chunk(v1::Chunk { offset, data: data.into() });
        match timeout(idle, messages.send(UploadMessage { kind: Some(chunk) })).await {
            Ok(Ok(())) => offset += length,
            // The call has ended: its answer says why.
            Ok(Err(_)) => return Ok(()),
            Err(_) => return Err(Failure::Transient(format!("the upload stood still for {idle:?}"))),
        }
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
    async fn an_update_is_fed_in_order_and_whole_from_where_it_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("u");
        let bytes: Vec<u8> = (0..CHUNK_BYTES * 2 + 5).map(|i| i as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        for from in [0, 1, CHUNK_BYTES, bytes.len()] {
            let mut file = open(&path, from as u64).await.unwrap();
            let (tx, mut rx) = mpsc::channel(2);
            let feeder =
                tokio::spawn(async move { feed(&mut file, from as u64, tx, Duration::MAX).await.is_ok() });
            let mut got = bytes[..from].to_vec();
            while let Some(UploadMessage { kind: Some(upload_message::Kind::Chunk(c)) }) = rx.recv().await {
                assert_eq!(c.offset, got.len() as u64);
                assert!(c.data.len() <= CHUNK_BYTES);
                got.extend_from_slice(&c.data);
            }
            assert!(got == bytes, "{from}");
            assert!(feeder.await.unwrap());
        }
    }

    #[tokio::test]
    async fn the_wait_for_a_receipt_begins_when_all_is_sent() {
        let patience = Duration::from_millis(200);
        let after = async |times: u32| {
            sleep(patience * times).await;
            Ok::<_, Failure>(())
        };
        // Sent for three times as long as a receipt may take, which comes soon after; and one that does not.
        let sent = std::pin::pin!(after(3));
        let receipt = std::pin::pin!(async { after(3).await.map(|()| "receipt") });
        assert_eq!(together(sent, receipt, patience).await.ok(), Some("receipt"));
        let (sent, never) = (std::pin::pin!(after(0)), std::pin::pin!(after(9)));
        match together(sent, never, patience).await {
            Err(Failure::Transient(reason)) => assert!(reason.contains("said nothing for 200ms"), "{reason}"),
            other => panic!("{other:?}"),
        }
        // A refusal comes while it is sent, and ends that.
        let (sent, refused) = (std::pin::pin!(after(9)), async { Err::<(), _>(Failure::Closed("x".into())) });
        let answer = together(sent, std::pin::pin!(refused), patience).await;
        assert!(matches!(answer, Err(Failure::Closed(_))), "{answer:?}");
    }

    #[tokio::test]
    async fn an_upload_that_nobody_takes_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("u");
        std::fs::write(&path, vec![1; 5 * CHUNK_BYTES]).unwrap();
        let mut file = open(&path, 0).await.unwrap();
        let (tx, _rx) = mpsc::channel(2);
        match feed(&mut file, 0, tx, Duration::from_millis(50)).await {
            Err(Failure::Transient(reason)) => assert!(reason.contains("stood still for 50ms"), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
}
