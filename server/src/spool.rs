//! Taking uploads in: spooled durably, validated while they stream by, and only then offered to the round.

use crate::release::Unreadable;
use bytes::Buf as _;
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;
use undertone::limits::MAX_CHUNK_BYTES;
use undertone::v1::{UploadMessage, upload_message};
use undertone::{ApiError, Fault};
use undertone_core::digest::{Digest, Digester};
use undertone_core::fixed::MAX_FIXED;
use undertone_core::id::{AttemptKey, ClientId};
use undertone_privacy::adaptive_clip::WithinBit;
use undertone_round::coordinator::Update;
use undertone_round::job::Job;
use undertone_store::{BlobError, Blobs, LocalBlob};

/// What an upload claims to be.
pub(crate) struct Claim {
    /// The attempt.
    pub(crate) key: AttemptKey,
    /// The sender, from its certificate.
    pub(crate) client: ClientId,
    /// Digest of the update.
    pub(crate) digest: Digest,
    /// Its weight.
    pub(crate) weight: u32,
    /// Whether the update was within the clip norm, where the job asks.
    pub(crate) within: Option<bool>,
}

/// Why an upload was not taken in.
pub(crate) enum Rejected {
    /// It broke off or was damaged on the way: sending it again may help.
    Transfer(ApiError),
    /// It is whole, and not a valid update of this job.
    Invalid(String),
}

/// Each spooled update starts with whose it is and how much it counts, so that two updates are never one blob. The
/// answer about the clip norm, a byte, lies here and not in the job's state, which operators see.
fn header(key: &AttemptKey, client: &ClientId, weight: u32, within: Option<bool>) -> Vec<u8> {
    let text = format!("undertone update v2\n{key}\n{client}\n{weight}\n");
    let mut bytes = (text.len() as u32).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.push(match within {
        None => 0,
        Some(false) => 1,
        Some(true) => 2,
    });
    bytes
}

/// Receives, spools and validates one upload.
pub(crate) async fn receive(
    mut messages: impl Stream<Item = Result<UploadMessage, Status>> + Unpin,
    claim: &Claim,
    job: &Job,
    bound: (f64, u64),
    blobs: &Arc<dyn Blobs>,
    idle: Duration,
) -> Result<Update, Rejected> {
    let transfer = |fault, text: String| Rejected::Transfer(ApiError::new(fault, text));
    let mut writer = blobs.writer().await.map_err(storage)?;
    writer.write(&header(&claim.key, &claim.client, claim.weight, claim.within)).await.map_err(storage)?;
    let mut check = StreamCheck::new();
    let expected = job.update_bytes();
    loop {
        let next = tokio::time::timeout(idle, messages.next()).await.map_err(|_| {
            transfer(Fault::Unavailable, format!("the upload stood still for {} s", idle.as_secs()))
        })?;
        let Some(message) = next else { break };
        let message = message.map_err(|status| Rejected::Transfer(status.into()))?;
        let Some(upload_message::Kind::Chunk(chunk)) = message.kind else {
            return Err(transfer(Fault::BadRequest, "after the header only chunks may follow".into()));
        };
        if chunk.data.is_empty() || chunk.data.len() > MAX_CHUNK_BYTES || chunk.offset != check.bytes {
            return Err(transfer(
                Fault::BadRequest,
                format!(
                    "chunk at {} of {} bytes, expected one at {}",
                    chunk.offset,
                    chunk.data.len(),
                    check.bytes
                ),
            ));
        }
        check.take(chunk.data.clone());
        if check.bytes > expected {
            return Err(Rejected::Invalid(format!(
                "the update is longer than the model: more than {expected} bytes"
            )));
        }
        writer.write(&chunk.data).await.map_err(storage)?;
    }
    if check.bytes != expected {
        return Err(transfer(
            Fault::Unavailable,
            format!("the upload broke off after {} of {expected} bytes", check.bytes),
        ));
    }
    let bytes = check.bytes;
    let summary = check.finish();
    if summary.digest != claim.digest {
        return Err(transfer(
            Fault::Unavailable,
            format!("the update arrived damaged: digest {}, announced {}", summary.digest, claim.digest),
        ));
    }
    summary.validate(job, bound).map_err(Rejected::Invalid)?;
    // Durable from here on.
    let (blob, _) = writer.commit(None).await.map_err(storage)?;
    Ok(Update { client: claim.client.clone(), blob, bytes, weight: claim.weight })
}

fn storage(e: BlobError) -> Rejected {
    tracing::error!(error = %e, "cannot spool an upload");
    Rejected::Transfer(ApiError::new(
        Fault::Unavailable,
        "the coordinator cannot store the update now; its operator finds the cause in its log",
    ))
}

/// A spooled update that can be read back, in blocks and by several threads.
pub(crate) struct Spooled {
    pub(crate) update: Update,
    blob: LocalBlob,
    /// Bytes before the first value.
    head: u64,
}

impl Spooled {
    /// Finds it.
    pub(crate) async fn find(
        key: &AttemptKey,
        update: Update,
        blobs: &Arc<dyn Blobs>,
    ) -> Result<Self, BlobError> {
        let blob = blobs.local(&update.blob).await?;
        let head = header(key, &update.client, update.weight, None).len() as u64;
        Ok(Self { update, blob, head })
    }

    /// Gives all values as little-endian bytes to `sink`, in order, in blocks of whole values; then, if they are what was
    /// received, the client's answer about the clip norm where there is one.
    pub(crate) fn check(&self, mut sink: impl FnMut(&[u8])) -> Result<Option<WithinBit>, Unreadable> {
        let what = || format!("the spooled update of {}", self.update.client);
        let failed = |e: std::io::Error| Unreadable::Now(format!("{} cannot be read: {e}", what()));
        let (mut skip, mut answer, mut partial) = (self.head as usize, 0, Vec::with_capacity(4));
        let found = self.blob.verified(|mut block| {
            let now = skip.min(block.len());
            if now > 0 {
                answer = block[now - 1];
                (skip, block) = (skip - now, &block[now..]);
            }
            // Blocks are cut anywhere.
            while !partial.is_empty() && !block.is_empty() {
                partial.push(block[0]);
                block = &block[1..];
                if partial.len() == 4 {
                    sink(&partial);
                    partial.clear();
                }
            }
            let whole = block.len() / 4 * 4;
            sink(&block[..whole]);
            partial.extend_from_slice(&block[whole..]);
        });
        let found = found.map_err(failed)?;
        if found != self.update.blob {
            return Err(Unreadable::ForGood(format!(
                "{} cannot be read: it is damaged, its digest is {found} and was {}",
                what(),
                self.update.blob
            )));
        }
        Ok(match answer {
            1 => Some(WithinBit::from_wire(false)),
            2 => Some(WithinBit::from_wire(true)),
            _ => None,
        })
    }

    /// Values from `from` on.
    pub(crate) fn read_at(&self, from: usize, out: &mut [i32]) -> std::io::Result<()> {
        const BLOCK: usize = 4096;
        let mut bytes = [0; 4 * BLOCK];
        let mut at = self.head + 4 * from as u64;
        for piece in out.chunks_mut(BLOCK) {
            let bytes = &mut bytes[..4 * piece.len()];
            self.blob.read_at(bytes, at)?;
            piece.iter_mut().zip(bytes.chunks_exact(4)).for_each(|(value, b)| *value = unit(b));
            at += bytes.len() as u64;
        }
        Ok(())
    }
}

/// A value of four bytes.
pub(crate) fn unit(bytes: &[u8]) -> i32 {
    i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Looks at the integers of an update as they stream by, wherever chunks are cut.
struct StreamCheck {
    bytes: u64,
    digester: Digester,
    partial: Vec<u8>,
    squared_norm: u128,
    out_of_range: Option<u64>,
}

struct Summary {
    digest: Digest,
    squared_norm: u128,
    out_of_range: Option<u64>,
}

impl StreamCheck {
    fn new() -> Self {
        Self {
            bytes: 0,
            digester: Digester::new(),
            partial: Vec::with_capacity(4),
            squared_norm: 0,
            out_of_range: None,
        }
    }

    fn take(&mut self, mut data: bytes::Bytes) {
        self.digester.update(&data);
        let mut index = self.bytes / 4;
        self.bytes += data.len() as u64;
        while !self.partial.is_empty() && data.has_remaining() {
            self.partial.push(data.get_u8());
            if let Ok(whole) = <[u8; 4]>::try_from(self.partial.as_slice()) {
                self.partial.clear();
                self.unit(index, i32::from_le_bytes(whole));
                index += 1;
            }
        }
        let whole = data.len() / 4 * 4;
        for b in data[..whole].chunks_exact(4) {
            self.unit(index, i32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            index += 1;
        }
        self.partial.extend_from_slice(&data[whole..]);
    }

    fn unit(&mut self, index: u64, unit: i32) {
        if unit.unsigned_abs() > MAX_FIXED as u32 {
            self.out_of_range.get_or_insert(index);
        }
        let unit = i64::from(unit);
        self.squared_norm += u128::from((unit * unit).unsigned_abs());
    }

    fn finish(self) -> Summary {
        Summary {
            digest: self.digester.finish(),
            squared_norm: self.squared_norm,
            out_of_range: self.out_of_range,
        }
    }
}

impl Summary {
    fn validate(&self, job: &Job, (bound, units): (f64, u64)) -> Result<(), String> {
        if let Some(index) = self.out_of_range {
            return Err(format!("value {index} of the update is beyond the range of the wire format"));
        }
        let units = u128::from(units);
        if self.squared_norm > units * units {
            let norm = (self.squared_norm as f64).sqrt() / job.grid().units_per_one();
            return Err(format!("the update's norm is {norm:.4}, the job allows at most {bound}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use undertone_core::fixed::squared_norm;

    #[test]
    fn the_check_sees_the_same_wherever_chunks_are_cut() {
        let units = [1, -2, 3, 1 << 29, -(1 << 29), 7];
        let bytes: Vec<u8> = units.iter().flat_map(|u: &i32| u.to_le_bytes()).collect();
        for size in 1..=bytes.len() {
            let mut check = StreamCheck::new();
            for chunk in bytes.chunks(size) {
                check.take(bytes::Bytes::copy_from_slice(chunk));
            }
            assert!(check.partial.is_empty());
            let summary = check.finish();
            assert_eq!(summary.squared_norm, squared_norm(&units));
            assert_eq!(summary.digest, Digest::of(&bytes));
            assert_eq!(summary.out_of_range, None);
        }
        let mut check = StreamCheck::new();
        check.take(bytes::Bytes::copy_from_slice(&[0; 5]));
        check.take(bytes::Bytes::copy_from_slice(&[0, 0, 0x80]));
        assert_eq!(check.finish().out_of_range, Some(1), "i32::MIN");
    }
}
