//! Reading spooled updates back: once from end to end in blocks of the model, or anywhere where a rule asks for it.

use super::{Said, trailer};
use crate::release::Trouble;
use std::fmt::Display;
use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Arc;
use undertone_core::encoding::{DecodeError, Decoder, Encoding, Units};
use undertone_core::id::AttemptKey;
use undertone_round::coordinator::Update;
use undertone_round::job::Job;
use undertone_store::{BlobError, Blobs, LocalBlob};

/// Bytes at the end of a spooled update that are not known before it was received: its checksum and what the client said of it.
const OWN: usize = 4 + Said::BYTES;

/// Bytes of an update without places that are read at once.
const PIECE: u64 = 2 << 10;

/// A spooled update that can be read back, in blocks and by several threads.
#[derive(Clone)]
pub(crate) struct Spooled {
    pub(crate) update: Update,
    blob: LocalBlob,
    /// The bytes after the last value, but for the last ones, [`OWN`]: checksum and what the client said.
    tail: Vec<u8>,
}

impl Spooled {
    /// Finds it.
    pub(crate) async fn find(
        key: &AttemptKey,
        update: Update,
        blobs: &Arc<dyn Blobs>,
    ) -> Result<Self, BlobError> {
        let blob = blobs.local(&update.blob).await?;
        let (asked_in, sent) = (update.asked_in(key), update.sent_weight());
        let tail = trailer(&asked_in, &update.client, sent, crc32fast::Hasher::new(), Said::default());
        Ok(Self { update, blob, tail })
    }

    /// The update as values on the grid, where it travelled in another encoding: a file that a rule can read anywhere. The
    /// caller deletes it.
    pub(crate) async fn plain(&self, job: &Arc<Job>, blobs: &Arc<dyn Blobs>) -> Result<Self, Trouble> {
        const RUN: usize = 1 << 16;
        let storage = |e: BlobError| Trouble::blob("the decoded update", &e);
        let mut writer = blobs.writer().await.map_err(storage)?;
        let (runs, mut decoded) = tokio::sync::mpsc::channel::<Vec<u8>>(4);
        let (source, job) = (self.clone(), Arc::clone(job));
        let reading = tokio::task::spawn_blocking(move || {
            let len = job.part().len();
            let mut reading = Reading::new(&source, &job)?;
            let (mut units, mut bytes) = (vec![0; RUN], vec![]);
            for start in (0..len).step_by(RUN) {
                let range = start..len.min(start + RUN);
                let units = &mut units[..range.len()];
                reading.block(range, units, &mut bytes)?;
                // A writer that failed says so itself.
                let _ = runs.blocking_send(units.iter().flat_map(|u| u.to_le_bytes()).collect());
            }
            reading.finish()
        });
        while let Some(bytes) = decoded.recv().await {
            writer.write(bytes.into()).await.map_err(storage)?;
        }
        reading.await.unwrap_or_else(|e| Err(Trouble::failed(format!("decoding broke: {e}"))))?;
        let (blob, bytes) = writer.commit(None).await.map_err(storage)?;
        let update = Update { blob, bytes, ..self.update.clone() };
        Ok(Self { update, blob: blobs.local(&blob).await.map_err(storage)?, tail: vec![] })
    }

    /// Reads it through: whether it is what was received, or what was decoded.
    pub(crate) fn verify(&self) -> Result<(), Trouble> {
        match self.blob.verified(|_| {}) {
            Ok(found) if found == self.update.blob => Ok(()),
            Ok(found) => Err(self
                .unreadable(&format!("it is damaged, its digest is {found} and was {}", self.update.blob))),
            Err(e) => Err(self.failing(&e)),
        }
    }

    /// Values from `from` on, of an update that lies as [`Encoding::Fixed32`].
    pub(crate) fn read_at(&self, from: usize, out: &mut [i32]) -> std::io::Result<()> {
        const BLOCK: usize = 4096;
        let mut bytes = [0; 4 * BLOCK];
        let mut at = 4 * from as u64;
        for piece in out.chunks_mut(BLOCK) {
            let bytes = &mut bytes[..4 * piece.len()];
            self.blob.read_at(bytes, at)?;
            piece
                .iter_mut()
                .zip(bytes.as_chunks::<4>().0)
                .for_each(|(value, b)| *value = i32::from_le_bytes(*b));
            at += bytes.len() as u64;
        }
        Ok(())
    }

    fn unreadable(&self, e: &dyn Display) -> Trouble {
        Trouble::failed(format!("the spooled update of {} cannot be read: {e}", self.update.client))
    }

    fn failing(&self, e: &std::io::Error) -> Trouble {
        match e.kind() {
            ErrorKind::UnexpectedEof => self.unreadable(&"it is damaged, its end is missing"),
            _ => Trouble::Now(format!("the spooled update of {} cannot be read: {e}", self.update.client)),
        }
    }
}

/// A spooled update on its way through a release, block by block and in order. What it gives is not to be believed before
/// [`Reading::finish`] has held all of it against its checksum.
pub(crate) struct Reading<'a> {
    of: &'a Spooled,
    encoding: Encoding,
    domain: Units,
    values: usize,
    crc: crc32fast::Hasher,
    /// Bytes read.
    at: u64,
    ahead: Option<Ahead>,
    /// What follows the last value.
    tail: Vec<u8>,
}

/// Where a message has no places: what was decoded beyond the block.
struct Ahead {
    decoder: Decoder<Units>,
    values: Vec<(usize, i32)>,
}

impl<'a> Reading<'a> {
    /// Begins with what follows the last value.
    pub(crate) fn new(of: &'a Spooled, job: &Job) -> Result<Self, Trouble> {
        let end = of.blob.bytes().map_err(|e| of.failing(&e))?;
        let wanted = of.update.bytes + of.tail.len() as u64;
        if end != wanted {
            return Err(of.unreadable(&format!("it is damaged, it has {end} bytes and not {wanted}")));
        }
        let mut tail = vec![0; of.tail.len()];
        of.blob.read_at(&mut tail, of.update.bytes).map_err(|e| of.failing(&e))?;
        let whose = tail.len() - OWN;
        if tail[..whose] != of.tail[..whose] {
            return Err(of.unreadable(&"it is of another version, or somebody else's"));
        }
        let (encoding, values) = (job.spec().transport.updates, job.part().len());
        let domain = Units::new(job.grid());
        let ahead = if encoding.part(0..0, values).is_none() {
            let decoder = Decoder::new(&encoding, domain, values).map_err(|e| of.unreadable(&e))?;
            Some(Ahead { decoder, values: vec![] })
        } else {
            None
        };
        let crc = crc32fast::Hasher::new();
        Ok(Self { of, encoding, domain, values, crc, at: 0, ahead, tail })
    }

    pub(crate) fn of(&self) -> &'a Spooled {
        self.of
    }

    /// What the client said of its update.
    pub(crate) fn said(&self) -> Said {
        self.tail.last_chunk().map_or(Said::default(), |bytes| Said::of_bytes(*bytes))
    }

    /// The values of the next block, which begins at a multiple of 4096. `bytes` is room that all readings of a thread share:
    /// what a reading holds from block to block must not grow with the model.
    pub(crate) fn block(
        &mut self,
        range: Range<usize>,
        out: &mut [i32],
        bytes: &mut Vec<u8>,
    ) -> Result<(), Trouble> {
        debug_assert_eq!(range.len(), out.len());
        let Some(part) = self.encoding.part(range.clone(), self.values) else {
            return self.sparse(range, out, bytes);
        };
        debug_assert_eq!(part.start, self.at);
        self.read(part.end - part.start, bytes)?;
        let copied = |start: usize, run: &[i32]| out[start..start + run.len()].copy_from_slice(run);
        self.decode(range, bytes, copied)
    }

    fn decode(
        &self,
        range: Range<usize>,
        bytes: &[u8],
        mut sink: impl FnMut(usize, &[i32]),
    ) -> Result<(), Trouble> {
        let mut decode = || -> Result<(), DecodeError> {
            let mut decoder = Decoder::new(&self.encoding, self.domain, range.len())?;
            decoder.push(bytes, &mut sink)?;
            decoder.finish()
        };
        let about = |e| format!("among its values from {} on: {e}", range.start);
        decode().map_err(|e| self.of.unreadable(&about(e)))
    }

    /// Reads on until a value beyond the block, or the end, has come.
    fn sparse(&mut self, range: Range<usize>, out: &mut [i32], bytes: &mut Vec<u8>) -> Result<(), Trouble> {
        out.fill(0);
        let mut ahead = self.ahead.take().expect("an update without places");
        loop {
            let here = ahead.values.partition_point(|(at, _)| *at < range.end);
            for (at, value) in ahead.values.drain(..here) {
                out[at - range.start] = value;
            }
            let left = self.of.update.bytes - self.at;
            if !ahead.values.is_empty() || left == 0 {
                break;
            }
            self.read(left.min(PIECE), bytes)?;
            let values = &mut ahead.values;
            let mut sink = |start: usize, run: &[i32]| {
                values.extend(run.iter().enumerate().map(|(i, &value)| (start + i, value)));
            };
            ahead.decoder.push(bytes, &mut sink).map_err(|e| self.of.unreadable(&e))?;
        }
        self.ahead = Some(ahead);
        Ok(())
    }

    fn read(&mut self, len: u64, bytes: &mut Vec<u8>) -> Result<(), Trouble> {
        bytes.resize(len as usize, 0);
        self.of.blob.read_at(bytes, self.at).map_err(|e| self.of.failing(&e))?;
        self.crc.update(bytes);
        self.at += len;
        Ok(())
    }

    /// Whether all that was given is what was received.
    pub(crate) fn finish(mut self) -> Result<(), Trouble> {
        if let Some(ahead) = self.ahead.take() {
            ahead.decoder.finish().map_err(|e| self.of.unreadable(&e))?;
        }
        let own = &self.tail[self.tail.len() - OWN..];
        self.crc.update(&own[4..]);
        let (found, wanted) = (self.crc.finalize(), own.first_chunk().map(|crc| u32::from_le_bytes(*crc)));
        if Some(found) != wanted {
            return Err(self.of.unreadable(&"it is damaged, its checksum is not that of its bytes"));
        }
        Ok(())
    }
}
