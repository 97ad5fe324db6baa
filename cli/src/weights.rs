//! A file of somebody else's weights on its way to be a job's first model: read in pieces, mapped by name, sent once.

use crate::profile::{Connection, call_failed};
use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use undertone::limits::CHUNK_BYTES;
use undertone::v1::{self, file_message};
use undertone_core::digest::Digester;
use undertone_core::initial::{FileRef, Initial, InitialError, Mapping, Origin, Source};
use undertone_core::layout::{LayoutError, ModelLayout};
use undertone_round::job::JobSpec;

/// A file that holds a model's values under some names, ready to be written in the model's own order.
#[derive(Debug)]
pub(crate) struct Weights {
    path: PathBuf,
    mapping: Mapping,
    /// Of what is sent.
    file: FileRef,
}

/// Why a file is not a model's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WeightsError {
    #[error("cannot be read: {0}")]
    Disk(#[from] io::Error),
    #[error("{0}")]
    Content(#[from] InitialError),
    #[error("it is no safetensors file: {0}")]
    Header(#[from] LayoutError),
    #[error("the model: {0}")]
    Model(LayoutError),
}

impl Weights {
    /// Reads the file that a job names, once, and puts its digest in the name's place; `None` if the job names none. A
    /// relative path starts at `folder`.
    ///
    /// # Errors
    /// Which file it is and what is wrong with it.
    pub(crate) fn of(spec: &mut JobSpec, folder: &Path) -> Result<Option<Self>, (PathBuf, WeightsError)> {
        let Some(Initial::Written(source)) = &spec.initial else { return Ok(None) };
        let path = folder.join(&source.weights);
        let weights = Self::read(spec, source, &path).map_err(|e| (path, e))?;
        spec.initial = Some(Initial::File(weights.file));
        Ok(Some(weights))
    }

    fn read(spec: &JobSpec, source: &Source, path: &Path) -> Result<Self, WeightsError> {
        let layout = spec.model.layout(&spec.data.shape()).map_err(WeightsError::Model)?;
        let mut file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let mut start = vec![0; 8];
        file.read_exact(&mut start)?;
        start.resize(ModelLayout::header_len(start[..].try_into().expect("eight bytes"))?, 0);
        file.read_exact(&mut start[8..])?;
        let mapping = source.map(&layout, &start, bytes)?;
        let (mut digester, mut length) = (Digester::new(), 0);
        write(&mapping, spec, &layout, &file, &mut |block| {
            digester.update(block);
            length += block.len() as u64;
            true
        })?;
        let file = FileRef { digest: digester.finish(), bytes: length };
        Ok(Self { path: path.to_owned(), mapping, file })
    }

    /// Sends what the coordinator does not have yet.
    ///
    /// # Errors
    /// If the file is another one now, or the coordinator cannot take it.
    pub(crate) async fn send(&self, spec: &JobSpec, connection: &mut Connection) -> Result<()> {
        let reference = v1::BlobRef::new(self.file.digest, self.file.bytes);
        let here = connection.resume_file(reference.clone()).await.map_err(call_failed)?.into_inner();
        if here.complete {
            return Ok(());
        }
        let (messages, stream) = mpsc::channel(2);
        let first = v1::FileHeader { file: Some(reference), offset: here.offset };
        messages.try_send(message(file_message::Kind::Header(first))).expect("a new queue has room");
        let layout = spec.model.layout(&spec.data.shape()).context("the model")?;
        let (mapping, spec, path) = (self.mapping.clone(), spec.clone(), self.path.clone());
        let reading = tokio::task::spawn_blocking(move || -> Result<(), WeightsError> {
            let mut chunks = Chunks { skip: here.offset, offset: here.offset, waiting: vec![], messages };
            write(&mapping, &spec, &layout, &File::open(path)?, &mut |block| chunks.push(block))?;
            chunks.flush();
            Ok(())
        });
        let answer = connection.upload_file(ReceiverStream::new(stream)).await;
        reading.await?.with_context(|| format!("cannot send {}", self.path.display()))?;
        let complete = answer
            .map_err(call_failed)
            .with_context(|| format!("cannot hand in {}", self.path.display()))?
            .into_inner()
            .complete;
        ensure!(
            complete,
            "the coordinator did not take all of {}: submit the job again",
            self.path.display()
        );
        Ok(())
    }
}

fn message(kind: file_message::Kind) -> v1::FileMessage {
    v1::FileMessage { kind: Some(kind) }
}

/// Gives a model's file in blocks, as long as `sink` wants more: one tensor at a time is in memory.
fn write(
    mapping: &Mapping,
    spec: &JobSpec,
    layout: &ModelLayout,
    file: &File,
    sink: &mut dyn FnMut(&[u8]) -> bool,
) -> Result<(), WeightsError> {
    let mut go_on = sink(&layout.header(&BTreeMap::new()));
    // What the seed gives is drawn in order, also where it is not wanted.
    let mut seeded = mapping.needs_seed().then(|| spec.model.initial_stream(&spec.data.shape()));
    for (origin, (_, range)) in mapping.origins().iter().zip(layout.ranges()) {
        let drawn: Option<Vec<f32>> = seeded.as_mut().map(|values| values.take(range.len()).collect());
        let values = match (origin, drawn) {
            (Origin::File(piece), _) => {
                let mut bytes = vec![0; (piece.bytes.end - piece.bytes.start) as usize];
                file.read_exact_at(&mut bytes, piece.bytes.start)?;
                piece.values(&bytes)?
            }
            (Origin::Seed, Some(drawn)) => drawn,
            (Origin::Seed, None) => unreachable!("the mapping needs the seed"),
        };
        if !go_on {
            return Ok(());
        }
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        go_on = sink(&bytes);
    }
    Ok(())
}

/// Blocks of any length as chunks, but for the first bytes.
struct Chunks {
    skip: u64,
    offset: u64,
    waiting: Vec<u8>,
    messages: mpsc::Sender<v1::FileMessage>,
}

impl Chunks {
    /// Whether more is wanted.
    fn push(&mut self, block: &[u8]) -> bool {
        let skipped = self.skip.min(block.len() as u64);
        self.skip -= skipped;
        let mut rest = &block[skipped as usize..];
        while !rest.is_empty() {
            let (some, later) = rest.split_at(rest.len().min(CHUNK_BYTES - self.waiting.len()));
            self.waiting.extend_from_slice(some);
            rest = later;
            if self.waiting.len() == CHUNK_BYTES && !self.flush() {
                return false;
            }
        }
        true
    }

    /// Sends what waits. `false`: nobody takes it any more; the call's answer says why.
    fn flush(&mut self) -> bool {
        let data = Bytes::from(std::mem::take(&mut self.waiting));
        if data.is_empty() {
            return true;
        }
        let offset = self.offset;
        self.offset += data.len() as u64;
        self.messages.blocking_send(message(file_message::Kind::Chunk(v1::Chunk { offset, data }))).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_become_chunks_from_any_place_on() {
        let whole: Vec<u8> = (0..3 * CHUNK_BYTES + 77).map(|i| (i * 7 % 251) as u8).collect();
        for (skip, block) in [(0, 1000), (5, CHUNK_BYTES * 2 + 3), (CHUNK_BYTES, 100_000), (whole.len(), 9)] {
            let (messages, mut sent) = mpsc::channel(10);
            let mut chunks = Chunks { skip: skip as u64, offset: skip as u64, waiting: vec![], messages };
            assert!(whole.chunks(block).all(|block| chunks.push(block)) && chunks.flush());
            drop(chunks);
            let mut found = whole[..skip].to_vec();
            while let Some(v1::FileMessage { kind: Some(file_message::Kind::Chunk(chunk)) }) =
                sent.blocking_recv()
            {
                assert_eq!(chunk.offset as usize, found.len());
                assert!((1..=CHUNK_BYTES).contains(&chunk.data.len()));
                found.extend_from_slice(&chunk.data);
            }
            assert_eq!(found, whole);
        }
    }
}
