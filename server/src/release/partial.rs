//! Partial sums: where several coordinators took a round's updates in, each sums what it has at hand, and the one that releases the
//! round adds these sums to the updates that nobody summed. Sums are of integers: the bits of the release do not depend on who summed
//! what.
//!
//! A file is a line of JSON about what is in it, then the sum's values, 64-bit little-endian. Like an update it is secret.

use super::gather::{self, Part, Summed};
use super::{Trouble, blocks};
use crate::spool::Spooled;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use undertone_core::aggregate::IntegerSum;
use undertone_core::digest::Digest;
use undertone_core::id::AttemptKey;
use undertone_core::rules::rescale::NumberSum;
use undertone_privacy::adaptive_clip::CountSum;
use undertone_round::coordinator::{BlobRef, Update};
use undertone_round::job::Job;
use undertone_store::{BlobError, Blobs, LocalBlob};

/// No header is longer: it names up to 65 536 updates.
const MAX_HEADER: u64 = 8 << 20;

/// What a partial sum is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    /// Whose.
    key: AttemptKey,
    /// The blobs of the updates in it.
    covers: BTreeSet<Digest>,
    /// Their weights.
    weight: u64,
    /// How many of them were within the clip norm, in units of 1/2048.
    within: i64,
    /// What stands beside them: a number too large for JSON, and its weight.
    numbers: (String, u64),
}

/// A partial sum that is at hand.
#[derive(Debug, Clone)]
pub(crate) struct Partial {
    header: Header,
    numbers: NumberSum,
    file: LocalBlob,
    /// Where its values begin.
    values: u64,
}

/// Sums updates into a file.
///
/// # Errors
/// [`Trouble`], as of a release.
pub(crate) async fn make(
    job: &Arc<Job>,
    key: &AttemptKey,
    updates: &[Update],
    blobs: &Arc<dyn Blobs>,
) -> Result<BlobRef, Trouble> {
    let mut spooled = Vec::with_capacity(updates.len());
    for update in updates {
        let what = format!("the spooled update of {}", update.client);
        let found = Spooled::find(key, update.clone(), blobs).await;
        spooled.push(found.map_err(|e| Trouble::blob(&what, &e))?);
    }
    let unwritten = |e: BlobError| Trouble::Now(format!("a partial sum cannot be stored: {e}"));
    let mut writer = blobs.writer().await.map_err(unwritten)?;
    let (pieces, mut made) = tokio::sync::mpsc::channel::<Vec<u8>>(4);
    let (job, key) = (Arc::clone(job), key.clone());
    // Off the async threads: it is work for all cores.
    let summing = tokio::task::spawn_blocking(move || {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let covers = spooled.iter().map(|update| update.update.blob).collect();
        let weight = spooled.iter().map(|update| u64::from(update.update.weight)).sum();
        gather::sum(&job, &spooled, &[], threads, |mut summed: Summed<'_>| {
            let (numbers, of_weight) = summed.numbers.parts();
            let numbers = (numbers.to_string(), of_weight);
            let header = Header { key, covers, weight, within: summed.within.units(), numbers };
            let mut line = serde_json::to_vec(&header).expect("plain data");
            line.push(b'\n');
            // A writer that failed says so itself.
            let _ = pieces.blocking_send(line);
            for block in blocks(job.part().len()) {
                let sum = summed.block(block.len())?;
                let _ =
                    pieces.blocking_send(sum.units().iter().flat_map(|unit| unit.to_le_bytes()).collect());
            }
            summed.finish()
        })
    });
    while let Some(piece) = made.recv().await {
        writer.write(piece.into()).await.map_err(unwritten)?;
    }
    summing.await.unwrap_or_else(|e| Err(Trouble::failed(format!("summing broke: {e}"))))?;
    let (digest, bytes) = writer.commit(None).await.map_err(unwritten)?;
    Ok(BlobRef { digest, bytes })
}

/// Of these partial sums the ones that can be used together, and the updates that are in none of them.
pub(crate) async fn choose(
    job: &Job,
    key: &AttemptKey,
    updates: &[Update],
    sums: &[BlobRef],
    blobs: &Arc<dyn Blobs>,
) -> (Vec<Partial>, Vec<Update>) {
    let (mut chosen, mut left) = (vec![], updates.to_vec());
    for sum in sums {
        match Partial::open(job, key, *sum, blobs).await {
            Ok(partial) => {
                let (inside, others): (Vec<_>, Vec<_>) =
                    left.iter().cloned().partition(|update| partial.header.covers.contains(&update.blob));
                let weight: u64 = inside.iter().map(|update| u64::from(update.weight)).sum();
                // All of it or nothing: an update counts exactly once.
                if inside.len() == partial.header.covers.len() && weight == partial.header.weight {
                    left = others;
                    chosen.push(partial);
                }
            }
            // The updates themselves are there.
            Err(reason) => tracing::warn!(reason, "a partial sum is of no use"),
        }
    }
    (chosen, left)
}

impl Partial {
    async fn open(job: &Job, key: &AttemptKey, sum: BlobRef, blobs: &Arc<dyn Blobs>) -> Result<Self, String> {
        let file = blobs.local(&sum.digest).await.map_err(|e| e.to_string())?;
        let (opened, values) = (file.clone(), 8 * job.part().len() as u64);
        let reading = tokio::task::spawn_blocking(move || {
            let found = opened.verified(|_| {}).map_err(|e| e.to_string())?;
            if found != sum.digest {
                return Err(format!("it is damaged, its digest is {found} and was {}", sum.digest));
            }
            let header = opened.bytes().map_err(|e| e.to_string())?.checked_sub(values);
            let header =
                header.filter(|len| (1..=MAX_HEADER).contains(len)).ok_or("it is of another model")?;
            let text = opened.read_vec(header as usize, 0).map_err(|e| e.to_string())?;
            let read = serde_json::from_slice::<Header>(&text).map_err(|e| e.to_string())?;
            Ok((read, header))
        });
        let (header, values) = reading.await.map_err(|e| e.to_string())??;
        if header.key != *key || header.covers.is_empty() {
            return Err(format!("it is of {}", header.key));
        }
        let sum = header.numbers.0.parse().map_err(|_| "its numbers make no sense".to_owned())?;
        let numbers = NumberSum::of_parts((sum, header.numbers.1));
        Ok(Self { header, numbers, file, values })
    }

    /// What clients said of the updates in it.
    pub(super) fn said(&self) -> (CountSum, &NumberSum) {
        (CountSum::of_units(self.header.within), &self.numbers)
    }

    /// Gives the sum block by block.
    pub(super) fn read(&self, job: &Job, out: &SyncSender<Part>) -> Result<(), Trouble> {
        let failing = |e: std::io::Error| Trouble::Now(format!("a partial sum cannot be read: {e}"));
        let updates = self.header.covers.len() as u32;
        for block in blocks(job.part().len()) {
            let at = self.values + 8 * block.start as u64;
            let bytes = self.file.read_vec(8 * block.len(), at).map_err(failing)?;
            let units = bytes.as_chunks::<8>().0.iter().map(|unit| i64::from_le_bytes(*unit)).collect();
            let sum = IntegerSum::of_units(job.grid(), units, self.header.weight, updates)
                .map_err(|e| Trouble::failed(format!("a partial sum: {e}")))?;
            if out.send(Part::Sum(sum)).is_err() {
                return Ok(());
            }
        }
        let _ = out.send(Part::Whole);
        Ok(())
    }
}
