//! The update that every client sends: made once, in the job's encoding, and held in one piece of memory however long it
//! is. Only top-k, which looks at all values before it sends the first, is made whole, by the benchmark for all clients.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::iter;
use std::path::{Path, PathBuf};
use undertone::limits::CHUNK_BYTES;
use undertone::v1::{self, upload_message};
use undertone_core::digest::{Digest, Digester};
use undertone_core::encoding::residual::Residual;
use undertone_core::encoding::rounding::Rounding;
use undertone_core::encoding::{Encoder, Encoding, Units};
use undertone_core::fixed::Grid;
use undertone_round::job::Job;

/// The largest value, in units of the grid: small enough that the longest update keeps within the job's norm.
const LARGEST: u32 = 512;
/// Values after which every dense encoding begins anew: all blocks divide it.
const RUN: usize = 4096;

/// How to make the update.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Recipe {
    encoding: Encoding,
    grid: Grid,
    values: usize,
    /// The whole update, where it is not made of pieces that are alike.
    ready: Option<PathBuf>,
}

impl Recipe {
    /// For the updates of a job. One that must be made whole is written into `folder`.
    ///
    /// # Errors
    /// If it cannot be made or written.
    pub(super) fn new(job: &Job, folder: &Path) -> Result<Self> {
        let (encoding, grid, values) = (job.spec().transport.updates, job.grid(), job.layout().len());
        let mut recipe = Self { encoding, grid, values, ready: None };
        if encoding.needs_all_coordinates() {
            let units: Vec<i32> = pattern().take(values).collect();
            let update = Residual::new(grid, values).encode(&encoding, &units, None)?;
            let path = folder.join("update");
            std::fs::write(&path, update).with_context(|| format!("cannot write {}", path.display()))?;
            recipe.ready = Some(path);
        }
        Ok(recipe)
    }

    fn encoded(&self, values: usize) -> Result<Bytes> {
        let units: Vec<i32> = pattern().take(values).collect();
        let (domain, rounding) = (Units::new(self.grid), Rounding::toward_zero());
        let mut bytes = Vec::with_capacity(self.encoding.encoded_len(values).max() as usize);
        let mut encoder = Encoder::new(&self.encoding, domain, values, &rounding)?;
        encoder.push(&units, &mut bytes)?;
        encoder.finish(&mut bytes)?;
        Ok(bytes.into())
    }
}

/// Values of an update. None matters, but that they are not all the same: Marsaglia's xorshift32.
fn pattern() -> impl Iterator<Item = i32> {
    let mut state = 1u32;
    iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state % (2 * LARGEST + 1)) as i32 - LARGEST as i32
    })
}

/// An update: chunks that are all alike, and a rest.
#[derive(Debug, Clone)]
pub(super) struct Update {
    chunk: Bytes,
    chunks: u64,
    rest: Bytes,
    bytes: u64,
    digest: Digest,
}

impl Update {
    /// Makes it.
    ///
    /// # Errors
    /// If what was made ready cannot be read.
    pub(super) fn new(recipe: &Recipe) -> Result<Self> {
        let (chunk, chunks, rest) = match &recipe.ready {
            Some(path) => {
                let whole = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
                (Bytes::new(), 0, whole.into())
            }
            None => {
                let run_bytes = recipe.encoding.encoded_len(RUN).max() as usize;
                let values = RUN * (CHUNK_BYTES / run_bytes);
                let chunk = if recipe.values < values { Bytes::new() } else { recipe.encoded(values)? };
                (chunk, (recipe.values / values) as u64, recipe.encoded(recipe.values % values)?)
            }
        };
        let bytes = chunks * chunk.len() as u64 + rest.len() as u64;
        let mut update = Self { chunk, chunks, rest, bytes, digest: Digest::of(b"") };
        let mut digester = Digester::new();
        for (_, data) in update.pieces() {
            digester.update(&data);
        }
        update.digest = digester.finish();
        Ok(update)
    }

    /// Pieces with their offsets.
    fn pieces(&self) -> impl Iterator<Item = (u64, Bytes)> + Send + 'static {
        let (chunk, rest, length) = (self.chunk.clone(), self.rest.clone(), self.chunk.len() as u64);
        let alike = (0..self.chunks).map(move |i| (i * length, chunk.clone()));
        let begin = self.chunks * length;
        let others = (0..rest.len()).step_by(CHUNK_BYTES).map(move |at| {
            let end = rest.len().min(at + CHUNK_BYTES);
            (begin + at as u64, rest.slice(at..end))
        });
        alike.chain(others)
    }

    /// What its upload begins with.
    pub(super) fn header(&self, attempt: v1::AttemptRef) -> v1::UploadMessage {
        let header = v1::UploadHeader {
            attempt: Some(attempt),
            update: Some(v1::BlobRef::new(self.digest, self.bytes)),
            weight: 1,
            within_clip_norm: None,
            number: None,
        };
        v1::UploadMessage { kind: Some(upload_message::Kind::Header(header)) }
    }

    /// What follows once it may.
    pub(super) fn chunks(&self) -> impl Iterator<Item = v1::UploadMessage> + Send + 'static {
        let kinds =
            self.pieces().map(|(offset, data)| upload_message::Kind::Chunk(v1::Chunk { offset, data }));
        kinds.map(|kind| v1::UploadMessage { kind: Some(kind) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::encoding;
    use super::super::job::{Asked, job};
    use super::*;
    use undertone_core::encoding::Decoder;
    use undertone_round::job::Transport;

    /// What arrives is an update of the job, whatever the encoding, and wherever chunks end. (Rounded towards zero, as here,
    /// few values are left where a value has two bits.)
    #[test]
    fn what_is_sent_is_what_was_announced() {
        let folder = tempfile::tempdir().unwrap();
        for name in
            ["fixed32", "f32", "bf16", "fixed:2", "fixed:8", "fixed:24", "block:4:16", "block", "top-k:0.3"]
        {
            for params in [1000, 300_000, 800_000] {
                let updates = encoding::parse(name).unwrap();
                let transport = Transport { updates, ..Transport::default() };
                let job = job(params, 1, Asked::All(2), transport).unwrap();
                let recipe = Recipe::new(&job, folder.path()).unwrap();
                let update = Update::new(&recipe).unwrap();
                let header = [update.header(v1::AttemptRef::default())];
                let messages = header.into_iter().chain(update.chunks()).map(|m| m.kind.unwrap());
                let (mut sent, mut announced) = (vec![], None);
                for message in messages {
                    match message {
                        upload_message::Kind::Header(header) => announced = header.update,
                        upload_message::Kind::Chunk(chunk) => {
                            assert_eq!(chunk.offset, sent.len() as u64);
                            assert!(!chunk.data.is_empty() && chunk.data.len() <= CHUNK_BYTES);
                            sent.extend_from_slice(&chunk.data);
                        }
                    }
                }
                let announced = announced.unwrap();
                assert_eq!(announced.parsed_digest().unwrap(), Digest::of(&sent), "{name}");
                assert_eq!(announced.bytes, sent.len() as u64);
                assert!(job.encoded_len().admits(announced.bytes), "{name}: {}", announced.bytes);
                let values = job.layout().len();
                let mut decoder = Decoder::new(&recipe.encoding, Units::new(job.grid()), values).unwrap();
                let (mut largest, mut some) = (0, 0);
                decoder
                    .push(&sent, &mut |_, run| {
                        some += run.iter().filter(|u| **u != 0).count();
                        largest = run.iter().map(|u| u.unsigned_abs()).fold(largest, u32::max);
                    })
                    .unwrap();
                decoder.finish().unwrap();
                assert!(largest > 400 && largest <= 512 && some > 0, "{name}: {largest}, {some} of {values}");
            }
        }
    }
}
