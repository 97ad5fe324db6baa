//! Models read and written as a stream: what a release moves, what it makes, and what a job begins with.

use super::{BLOCK, Impossible, Trouble};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use undertone_core::digest::Digester;
use undertone_core::initial::FileRef;
use undertone_core::layout::ModelLayout;
use undertone_round::coordinator::ModelRef;
use undertone_round::job::Job;
use undertone_store::{BlobError, BlobWriter, Blobs, LocalBlob};

/// A model on its way through a release, in order. What it gives is not to be believed before [`ModelReader::finish`].
pub(super) struct ModelReader {
    blob: LocalBlob,
    model: ModelRef,
    digester: Digester,
    at: u64,
    bytes: Vec<u8>,
}

impl ModelReader {
    /// Reads the header.
    pub(super) fn open(blob: LocalBlob, model: ModelRef, layout: &ModelLayout) -> Result<Self, Trouble> {
        let mut reader = Self { blob, model, digester: Digester::new(), at: 0, bytes: vec![] };
        let layout_error = |e: &dyn std::fmt::Display| damaged(&e.to_string());
        let mut header = reader.read(8)?.to_vec();
        let first = header[..].try_into().expect("eight bytes");
        let len = ModelLayout::header_len(first).map_err(|e| layout_error(&e))?;
        header.extend(reader.read(len - 8)?);
        layout.check_header(&header, model.bytes).map_err(|e| layout_error(&e))?;
        Ok(reader)
    }

    /// The next values.
    pub(super) fn values(&mut self, out: &mut [f32]) -> Result<(), Trouble> {
        let bytes = self.read(4 * out.len())?;
        out.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(value, b)| *value = f32::from_le_bytes(*b));
        Ok(())
    }

    /// Whether all that was given is the model.
    pub(super) fn finish(self) -> Result<(), Trouble> {
        let found = self.digester.finish();
        if found != self.model.digest {
            let wanted = self.model.digest;
            return Err(damaged(&format!("its digest is {found} and was {wanted}")));
        }
        Ok(())
    }

    fn read(&mut self, bytes: usize) -> Result<&[u8], Trouble> {
        self.bytes.resize(bytes, 0);
        self.blob.read_at(&mut self.bytes, self.at).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => damaged("its end is missing"),
            _ => Trouble::Now(format!("the current model cannot be read: {e}")),
        })?;
        self.digester.update(&self.bytes);
        self.at += bytes as u64;
        Ok(&self.bytes)
    }
}

/// A model's file on its way: made on a thread that may wait, digested and written beside it.
pub(super) struct ModelWriter {
    pieces: mpsc::Sender<Bytes>,
    writing: JoinHandle<Result<Box<dyn BlobWriter>, BlobError>>,
}

/// The file cannot be written on; [`ModelWriter::written`] says why.
pub(super) struct Stopped;

/// Pieces that wait to be written.
const AHEAD: usize = 2;

impl ModelWriter {
    /// Begins a file.
    pub(super) async fn begin(blobs: &Arc<dyn Blobs>) -> Result<Self, BlobError> {
        let mut writer = blobs.writer().await?;
        let (pieces, mut made) = mpsc::channel(AHEAD);
        let writing = tokio::spawn(async move {
            while let Some(bytes) = made.recv().await {
                writer.write(bytes).await?;
            }
            Ok(writer)
        });
        Ok(Self { pieces, writing })
    }

    /// What stands before the values. For a thread that may wait.
    pub(super) fn header(
        &mut self,
        layout: &ModelLayout,
        metadata: &BTreeMap<String, String>,
    ) -> Result<(), Stopped> {
        self.pieces.blocking_send(layout.header(metadata).into()).map_err(|_| Stopped)
    }

    /// The next values. For a thread that may wait.
    pub(super) fn values(&mut self, values: &[f32]) -> Result<(), Stopped> {
        let bytes: Vec<u8> = values.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.pieces.blocking_send(bytes.into()).map_err(|_| Stopped)
    }

    /// Waits until all is written; it is not durable yet.
    pub(super) async fn written(self) -> Result<Box<dyn BlobWriter>, BlobError> {
        drop(self.pieces);
        self.writing.await.unwrap_or_else(|e| Err(BlobError::from(io::Error::other(e))))
    }
}

/// Makes a model durable.
pub(super) async fn commit(written: Box<dyn BlobWriter>) -> Result<ModelRef, BlobError> {
    let (digest, bytes) = written.commit(None).await?;
    Ok(ModelRef { digest, bytes })
}

/// Why a job has no first model.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FirstModelError {
    /// The file that the job names is not here, or no model of the job's.
    #[error("[initial] {0}")]
    Given(String),
    /// The TorchScript file that the job names is not here.
    #[error("[model] {0}")]
    Module(String),
    #[error(transparent)]
    Storage(#[from] BlobError),
}

/// The way out.
const NOT_HERE: &str = "is not here: hand the job in with `undertone job submit`, which sends it first";

/// What a job begins with: the file that it names, or what its model's seed gives.
pub(crate) async fn first_model(job: &Arc<Job>, blobs: &Arc<dyn Blobs>) -> Result<ModelRef, FirstModelError> {
    if let Some(file) = job.module_file() {
        match blobs.len(&file.digest).await {
            Ok(bytes) if bytes == file.bytes => {}
            Ok(bytes) => {
                let text = format!("the file {} has {bytes} bytes, not {}", file.digest.short(), file.bytes);
                return Err(FirstModelError::Module(text));
            }
            Err(BlobError::NotFound { .. }) => {
                return Err(FirstModelError::Module(format!("the file {} {NOT_HERE}", file.digest.short())));
            }
            Err(e) => return Err(e.into()),
        }
    }
    let Some(FileRef { digest, bytes }) = job.initial_file() else {
        return Ok(initial_model(job, blobs).await?);
    };
    let given = |text: String| FirstModelError::Given(text);
    let blob = match blobs.local(&digest).await {
        Err(BlobError::NotFound { .. }) => {
            return Err(given(format!("the file {} {NOT_HERE}", digest.short())));
        }
        blob => blob?,
    };
    let (job, model) = (Arc::clone(job), ModelRef { digest, bytes });
    // All of it is read once: what nobody could train from is refused before anybody is asked to.
    let read = tokio::task::spawn_blocking(move || -> Result<(), String> {
        let told = |trouble| match trouble {
            Trouble::Failed(Impossible { reason, .. }) | Trouble::Now(reason) => reason,
        };
        let mut reader = ModelReader::open(blob, model, job.layout()).map_err(told)?;
        let (mut at, len) = (0, job.layout().len());
        let mut values = vec![0f32; BLOCK.min(len)];
        while at < len {
            let some = values.len().min(len - at);
            reader.values(&mut values[..some]).map_err(told)?;
            if let Some(i) = values[..some].iter().position(|value| !value.is_finite()) {
                return Err(format!("value {} of the file is {}", at + i, values[i]));
            }
            at += some;
        }
        reader.finish().map_err(told)
    });
    read.await.map_err(|e| BlobError::from(io::Error::other(e)))?.map_err(given)?;
    Ok(model)
}

/// Writes what a job's seed gives.
pub(super) async fn initial_model(job: &Arc<Job>, blobs: &Arc<dyn Blobs>) -> Result<ModelRef, BlobError> {
    let (job, mut file) = (Arc::clone(job), ModelWriter::begin(blobs).await?);
    // Drawing values is work for a core, not for an async thread.
    let written = tokio::task::spawn_blocking(move || {
        let mut values = job.initial_stream();
        let mut all = || -> Result<(), Stopped> {
            file.header(job.layout(), &BTreeMap::new())?;
            loop {
                let block: Vec<f32> = values.by_ref().take(BLOCK).collect();
                if block.is_empty() {
                    return Ok(());
                }
                file.values(&block)?;
            }
        };
        // Why it stopped is told below.
        let _ = all();
        file
    });
    let file = written.await.map_err(|e| BlobError::from(io::Error::other(e)))?;
    commit(file.written().await?).await
}

/// What is wrong with the current model's file, or that it is gone.
pub(super) fn damaged(how: &str) -> Trouble {
    // No other attempt could do better, and each would be paid for: the job waits for a person.
    Trouble::Now(format!(
        "the current model is damaged or cannot be read ({how}): check the disk, restore the file from a copy, or cancel the job"
    ))
}
