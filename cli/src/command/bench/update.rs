//! The update that every client sends: as long as the model, computed once, and held in one piece of memory however long.

use std::iter;
use tokio_stream::Stream;
use undertone::limits::CHUNK_BYTES;
use undertone::v1::{self, upload_message};
use undertone_core::digest::{Digest, Digester};

/// The largest value, in units of the grid: small enough that the longest update keeps within the job's norm.
const LARGEST: u32 = 512;

/// An update whose chunks are all alike.
#[derive(Debug, Clone)]
pub(super) struct Update {
    chunk: bytes::Bytes,
    bytes: u64,
    digest: Digest,
}

impl Update {
    /// An update of so many bytes.
    pub(super) fn new(bytes: u64) -> Self {
        let mut state = 1u32;
        let chunk: Vec<u8> = iter::repeat_with(|| {
            // Marsaglia's xorshift32: no value matters, but that they are not all the same.
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state % (2 * LARGEST + 1)) as i32 - LARGEST as i32
        })
        .take(CHUNK_BYTES / 4)
        .flat_map(i32::to_le_bytes)
        .collect();
        let mut update = Self { chunk: chunk.into(), bytes, digest: Digest::of(b"") };
        let mut digester = Digester::new();
        for (_, data) in update.chunks() {
            digester.update(&data);
        }
        update.digest = digester.finish();
        update
    }

    /// Pieces with their offsets.
    fn chunks(&self) -> impl Iterator<Item = (u64, bytes::Bytes)> + Send + 'static {
        let (chunk, bytes) = (self.chunk.clone(), self.bytes);
        (0..bytes).step_by(CHUNK_BYTES).map(move |offset| {
            let length = (bytes - offset).min(CHUNK_BYTES as u64);
            (offset, chunk.slice(..length as usize))
        })
    }

    /// The messages of its upload.
    pub(super) fn messages(
        &self,
        attempt: v1::AttemptRef,
    ) -> impl Stream<Item = v1::UploadMessage> + Send + 'static {
        let header = v1::UploadHeader {
            attempt: Some(attempt),
            update: Some(v1::BlobRef::new(self.digest, self.bytes)),
            weight: 1,
            within_clip_norm: None,
            number: None,
            offset: 0,
        };
        let chunks =
            self.chunks().map(|(offset, data)| upload_message::Kind::Chunk(v1::Chunk { offset, data }));
        let kinds = iter::once(upload_message::Kind::Header(header)).chain(chunks);
        tokio_stream::iter(kinds.map(|kind| v1::UploadMessage { kind: Some(kind) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt as _;

    #[tokio::test]
    async fn what_is_sent_is_what_was_announced() {
        let bytes = 2 * CHUNK_BYTES as u64 + 12;
        let update = Update::new(bytes);
        let messages: Vec<_> =
            update.messages(v1::AttemptRef::default()).map(|m| m.kind.unwrap()).collect().await;
        let (mut sent, mut announced) = (vec![], None);
        for message in messages {
            match message {
                upload_message::Kind::Header(header) => announced = header.update,
                upload_message::Kind::Chunk(chunk) => {
                    assert_eq!(chunk.offset, sent.len() as u64);
                    sent.extend_from_slice(&chunk.data);
                }
            }
        }
        assert_eq!(announced.unwrap().parsed_digest().unwrap(), Digest::of(&sent));
        assert_eq!(sent.len() as u64, bytes);
        let units = sent.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()));
        let (least, most) = (units.clone().min().unwrap(), units.max().unwrap());
        assert!(least < -400 && most > 400 && least >= -512 && most <= 512, "{least} {most}");
    }
}
