//! A file that a job refers to by digest, on its way to the coordinator before the job: in chunks, sent once, gone on with where
//! it broke off.

use crate::profile::{Connection, call_failed};
use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use std::path::Path;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use undertone::limits::CHUNK_BYTES;
use undertone::v1::{self, file_message};
use undertone_core::initial::FileRef;

/// Sends what the coordinator does not have yet. `write` gives all of the file, block by block, as long as it is told that
/// more is wanted; `path` is for messages.
///
/// # Errors
/// If the file is another one now, or the coordinator cannot take it.
pub(crate) async fn hand_in<E>(
    file: FileRef,
    path: &Path,
    connection: &mut Connection,
    write: impl FnOnce(&mut dyn FnMut(&[u8]) -> bool) -> Result<(), E> + Send + 'static,
) -> Result<()>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let reference = v1::BlobRef::new(file.digest, file.bytes);
    let here = connection.resume_file(reference.clone()).await.map_err(call_failed)?.into_inner();
    if here.complete {
        return Ok(());
    }
    let (messages, stream) = mpsc::channel(2);
    let first = v1::FileHeader { file: Some(reference), offset: here.offset };
    messages.try_send(message(file_message::Kind::Header(first))).expect("a new queue has room");
    let reading = tokio::task::spawn_blocking(move || -> Result<(), E> {
        let mut chunks = Chunks { skip: here.offset, offset: here.offset, waiting: vec![], messages };
        write(&mut |block| chunks.push(block))?;
        chunks.flush();
        Ok(())
    });
    let answer = connection.upload_file(ReceiverStream::new(stream)).await;
    reading.await?.with_context(|| format!("cannot send {}", path.display()))?;
    let complete = answer
        .map_err(call_failed)
        .with_context(|| format!("cannot hand in {}", path.display()))?
        .into_inner()
        .complete;
    ensure!(complete, "the coordinator did not take all of {}: submit the job again", path.display());
    Ok(())
}

fn message(kind: file_message::Kind) -> v1::FileMessage {
    v1::FileMessage { kind: Some(kind) }
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
