//! Taking uploads in: spooled durably, validated while they stream by, and only then offered to the round.

mod reading;
mod unfinished;

pub(crate) use reading::{Reading, Spooled};
pub(crate) use unfinished::{Unfinished, abandon, progress};

use crate::pace::Pace;
use std::sync::Arc;
use std::time::Instant;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;
use undertone::limits::MAX_CHUNK_BYTES;
use undertone::v1::{UploadMessage, upload_message};
use undertone::{ApiError, Fault};
use undertone_core::digest::Digest;
use undertone_core::encoding::{DecodeError, Decoder, Units};
use undertone_core::id::{AttemptKey, ClientId};
use undertone_privacy::adaptive_clip::WithinBit;
use undertone_round::coordinator::Update;
use undertone_round::job::Job;
use undertone_store::{BlobError, BlobWriter, Blobs};

/// More than any trailer has.
const MAX_TRAILER_BYTES: usize = 1024;

/// What an upload claims to be.
#[derive(Clone)]
pub(crate) struct Claim {
    /// The attempt.
    pub(crate) key: AttemptKey,
    /// The sender, from its certificate.
    pub(crate) client: ClientId,
    /// Digest of the update as it travels.
    pub(crate) digest: Digest,
    /// Its length.
    pub(crate) bytes: u64,
    /// Its weight.
    pub(crate) weight: u32,
    /// Whether the update was within the clip norm, where the job asks.
    pub(crate) within: Option<bool>,
    /// What stands beside it, where the job rescales updates.
    pub(crate) number: Option<u64>,
}

/// Why an upload was not taken in.
pub(crate) enum Rejected {
    /// It broke off, or cannot be stored now: sending it again may help.
    Transfer(ApiError),
    /// What was sent, or how, is not what was announced.
    Improper(ApiError),
    /// It is whole, and not a valid update of this job.
    Invalid(String),
}

/// Each spooled update ends with whose it is and how much it counts, so that two updates are never one blob. (At the end, so
/// that one pass gives the digest of what travelled and that of the blob.) What the client said of it (the number beside it,
/// or 0; a byte about the clip norm) lies here and not in the job's state, which operators see.
///
/// Before it stands the CRC-32 of the update and of what the client said, so that the release, which reads all updates at once, need
/// not spend a second SHA-256 on a disk's rot.
fn trailer(
    key: &AttemptKey,
    client: &ClientId,
    weight: u32,
    mut crc: crc32fast::Hasher,
    said: Said,
) -> Vec<u8> {
    let text = format!("undertone update v5\n{key}\n{client}\n{weight}\n");
    let mut bytes = (text.len() as u32).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    let said = said.to_bytes();
    crc.update(&said);
    bytes.extend(crc.finalize().to_le_bytes());
    bytes.extend(said);
    bytes
}

/// What a client says of its update.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Said {
    /// The number beside it, where the job rescales updates; never 0.
    pub(crate) number: Option<u64>,
    /// Whether it was within the clip norm, where the job asks.
    pub(crate) within: Option<WithinBit>,
}

impl Said {
    const BYTES: usize = 9;

    fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.number.unwrap_or(0).to_le_bytes());
        bytes[8] = match self.within.map(|bit| bit.to_wire()) {
            None => 0,
            Some(false) => 1,
            Some(true) => 2,
        };
        bytes
    }

    fn of_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let (number, answer) = bytes.split_at(8);
        let number = u64::from_le_bytes(number.try_into().expect("eight bytes"));
        let within = match answer[0] {
            1 => Some(WithinBit::from_wire(false)),
            2 => Some(WithinBit::from_wire(true)),
            _ => None,
        };
        Self { number: Some(number).filter(|number| *number > 0), within }
    }
}

/// An upload whose last byte is here.
pub(crate) struct Arrived {
    writer: Box<dyn BlobWriter>,
    check: StreamCheck,
    /// Where this transfer began.
    begun_at: u64,
    /// Whether it was validated and given its trailer before, by a coordinator that ended before it was durable.
    has_trailer: bool,
}

/// Receives and spools one upload, up to its last byte; its sender waits until `go` tells it where to begin.
pub(crate) async fn receive(
    mut messages: impl Stream<Item = Result<UploadMessage, Status>> + Unpin,
    claim: &Claim,
    job: &Job,
    blobs: &Arc<dyn Blobs>,
    unfinished: &Unfinished,
    pace: &Pace,
    go: impl FnOnce(u64),
) -> Result<Arrived, Rejected> {
    let mut check = StreamCheck::new(job).map_err(Rejected::Invalid)?;
    unfinished.begin(claim, blobs).await.map_err(storage)?;
    let name = claim.name();
    let mut after = Vec::<u8>::new();
    let mut take = |block: &[u8]| {
        let room = usize::try_from(claim.bytes - check.bytes).unwrap_or(usize::MAX);
        let (update, more) = block.split_at(block.len().min(room));
        check.take(update);
        after.extend(&more[..more.len().min(MAX_TRAILER_BYTES.saturating_sub(after.len()))]);
    };
    let mut writer = blobs.resume(&name, &mut take).await.map_err(storage)?;
    if !after.is_empty() && after != claim.trailer(check.crc.clone()) {
        drop(writer);
        return Err(begin_again(blobs, &name, "the coordinator had kept is damaged").await);
    }
    let begun_at = check.bytes;
    go(begun_at);
    // Neither the wait for a place nor the reading of what was kept is the client's slowness.
    let pace = &pace.begin(Instant::now());
    if let Err(e) = take_chunks(&mut messages, &mut check, &mut *writer, claim.bytes, pace).await {
        match e {
            Rejected::Invalid(_) => {
                drop(writer);
                blobs.abandon(&name).await.map_err(storage)?;
            }
            // Whoever goes on finds all that came.
            Rejected::Transfer(_) | Rejected::Improper(_) => drop(writer.settle().await),
        }
        return Err(e);
    }
    Ok(Arrived { writer, check, begun_at, has_trailer: !after.is_empty() })
}

impl Arrived {
    /// Validates it and makes it durable.
    pub(crate) async fn keep(
        self,
        claim: &Claim,
        job: &Job,
        bound: (f64, u64),
        blobs: &Arc<dyn Blobs>,
    ) -> Result<Update, Rejected> {
        let Self { mut writer, check, begun_at, has_trailer } = self;
        let name = claim.name();
        let bytes = check.bytes;
        let summary = check.finish();
        if !has_trailer {
            let found = writer.settle().await.map_err(storage)?;
            if found != claim.digest {
                drop(writer);
                let what = format!("arrived is damaged: digest {found}, announced {}", claim.digest);
                return Err(match begin_again(blobs, &name, &what).await {
                    // What was kept before may be what is damaged: only who sent all of it is to blame.
                    Rejected::Transfer(e) if begun_at == 0 => Rejected::Improper(e),
                    other => other,
                });
            }
        }
        if let Err(reason) = summary.validate(job, bound) {
            drop(writer);
            blobs.abandon(&name).await.map_err(storage)?;
            return Err(Rejected::Invalid(reason));
        }
        if !has_trailer {
            writer.write(claim.trailer(summary.crc.clone()).into()).await.map_err(storage)?;
        }
        // Durable from here on.
        let (blob, _) = writer.commit(None).await.map_err(storage)?;
        Ok(Update { client: claim.client.clone(), blob, bytes, weight: claim.weight, origin: None })
    }
}

/// Takes the chunks of an upload until `expected` bytes are there.
async fn take_chunks(
    messages: &mut (impl Stream<Item = Result<UploadMessage, Status>> + Unpin),
    check: &mut StreamCheck,
    writer: &mut dyn BlobWriter,
    expected: u64,
    pace: &Pace,
) -> Result<(), Rejected> {
    let transfer = |fault, text: String| Rejected::Transfer(ApiError::new(fault, text));
    let improper = |fault, text: String| Rejected::Improper(ApiError::new(fault, text));
    let begun_at = check.bytes;
    loop {
        let next = tokio::time::timeout(pace.idle, messages.next()).await.map_err(|_| {
            improper(Fault::Unavailable, format!("the upload stood still for {} s", pace.idle.as_secs()))
        })?;
        let Some(message) = next else { break };
        let message = message.map_err(|status| Rejected::Transfer(status.into()))?;
        let Some(upload_message::Kind::Chunk(chunk)) = message.kind else {
            return Err(improper(Fault::BadRequest, "after the header only chunks may follow".into()));
        };
        if chunk.data.is_empty() || chunk.data.len() > MAX_CHUNK_BYTES || chunk.offset != check.bytes {
            return Err(improper(
                Fault::BadRequest,
                format!(
                    "chunk at {} of {} bytes, expected one at {}",
                    chunk.offset,
                    chunk.data.len(),
                    check.bytes
                ),
            ));
        }
        if check.bytes + chunk.data.len() as u64 > expected {
            return Err(Rejected::Invalid(format!(
                "the update is longer than it was announced: more than {expected} bytes"
            )));
        }
        // Written while it is looked at.
        writer.write(chunk.data.clone()).await.map_err(storage)?;
        check.take(&chunk.data);
        // What is written is kept: the client may come back and go on.
        pace.check("upload", Instant::now(), check.bytes - begun_at, expected - check.bytes)
            .map_err(|text| improper(Fault::Unavailable, text))?;
    }
    if check.bytes != expected {
        return Err(transfer(
            Fault::Unavailable,
            format!("the upload broke off after {} of {expected} bytes", check.bytes),
        ));
    }
    Ok(())
}

impl Claim {
    fn trailer(&self, crc: crc32fast::Hasher) -> Vec<u8> {
        let said = Said { number: self.number, within: self.within.map(WithinBit::from_wire) };
        trailer(&self.key, &self.client, self.weight, crc, said)
    }
}

async fn begin_again(blobs: &Arc<dyn Blobs>, name: &str, what: &str) -> Rejected {
    if let Err(e) = blobs.abandon(name).await {
        return storage(e);
    }
    Rejected::Transfer(ApiError::new(Fault::Unavailable, format!("the update that {what}: send it again")))
}

fn storage(e: BlobError) -> Rejected {
    tracing::error!(error = %e, "cannot spool an upload");
    Rejected::Transfer(ApiError::new(
        Fault::Unavailable,
        "the coordinator cannot store the update now; its operator finds the cause in its log",
    ))
}

/// Looks at the values of an update as they stream by, wherever chunks are cut.
struct StreamCheck {
    bytes: u64,
    crc: crc32fast::Hasher,
    decoder: Decoder<Units>,
    squared_norm: u128,
    problem: Option<String>,
}

fn square(unit: i32) -> u64 {
    let unit = i64::from(unit);
    (unit * unit) as u64
}

struct Summary {
    crc: crc32fast::Hasher,
    squared_norm: u128,
    problem: Option<String>,
}

impl StreamCheck {
    fn new(job: &Job) -> Result<Self, String> {
        Ok(Self {
            bytes: 0,
            crc: crc32fast::Hasher::new(),
            decoder: decoder(job).map_err(|e| e.to_string())?,
            squared_norm: 0,
            problem: None,
        })
    }

    fn take(&mut self, data: &[u8]) {
        self.bytes += data.len() as u64;
        self.crc.update(data);
        if self.problem.is_some() {
            return;
        }
        let norm = &mut self.squared_norm;
        let taken = self.decoder.push(data, &mut |_, units| {
            // A run's squares fit: 2^60 each, and runs are of some thousand values.
            // So do those of eight in 64 bits.
            let of_eight = |eight: &[i32]| -> u64 { eight.iter().map(|&u| square(u)).sum() };
            *norm += units.chunks(8).map(|eight| u128::from(of_eight(eight))).sum::<u128>();
        });
        // The rest is still received: whoever sends it should get the whole answer.
        self.problem = taken.err().map(|e| e.to_string());
    }

    fn finish(self) -> Summary {
        let problem = self.problem.or_else(|| self.decoder.finish().err().map(|e| e.to_string()));
        Summary { crc: self.crc, squared_norm: self.squared_norm, problem }
    }
}

impl Summary {
    fn validate(&self, job: &Job, (bound, units): (f64, u64)) -> Result<(), String> {
        if let Some(problem) = &self.problem {
            return Err(format!("the update cannot be read: {problem}"));
        }
        let units = u128::from(units);
        if self.squared_norm > units * units {
            let norm = (self.squared_norm as f64).sqrt() / job.grid().units_per_one();
            return Err(format!("the update's norm is {norm:.4}, the job allows at most {bound}"));
        }
        Ok(())
    }
}

/// A decoder of one update of the job.
fn decoder(job: &Job) -> Result<Decoder<Units>, DecodeError> {
    Decoder::new(&job.spec().transport.updates, Units::new(job.grid()), job.part().len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use undertone_core::fixed::squared_norm;
    use undertone_core::id::{Attempt, JobId, Round};

    fn job(encoding: &str) -> Job {
        let text = undertone_harness::SAMPLE_JOB
            .replace("[deadlines]", &format!("[transport]\nupdates = {encoding}\n\n[deadlines]"));
        let text = text.replace("kind = \"logistic\"", "kind = \"mlp\"\nhidden = [2]");
        undertone_round::job::JobSpec::from_toml(&text, "job.toml").unwrap().resolve().unwrap()
    }

    #[test]
    fn what_a_client_said_is_read_as_it_was_written() {
        for number in [None, Some(1), Some(u64::MAX)] {
            for within in [None, Some(false), Some(true)] {
                let said = Said { number, within: within.map(WithinBit::from_wire) };
                let read = Said::of_bytes(said.to_bytes());
                assert_eq!((read.number, read.within.map(|bit| bit.to_wire())), (number, within));
            }
        }
    }

    /// A kill between an update's trailer and the moment from which it is durable.
    #[tokio::test]
    async fn an_update_that_was_whole_need_not_be_sent_again() {
        let job = job("{ kind = \"fixed32\" }");
        let bytes: Vec<u8> = (0..job.layout().len() as i32).flat_map(i32::to_le_bytes).collect();
        let claim = Claim {
            key: AttemptKey { job: JobId::new("t").unwrap(), round: Round(1), attempt: Attempt(1) },
            client: ClientId::new("basel").unwrap(),
            digest: Digest::of(&bytes),
            bytes: bytes.len() as u64,
            weight: 1,
            within: None,
            number: None,
        };
        let bound = job.norm_bound(None);
        let pace = Pace::new(Instant::now(), Duration::from_secs(30), Duration::from_secs(600));
        let whole = undertone::v1::Chunk { offset: 0, data: bytes.clone().into() };
        let message = UploadMessage { kind: Some(upload_message::Kind::Chunk(whole)) };
        let (mut kept, unfinished) = (vec![], Unfinished::default());
        for end in ["durable", "whole trailer", "rotten trailer"] {
            let blobs: Arc<dyn Blobs> = Arc::new(undertone_store::MemoryBlobs::new());
            let messages = tokio_stream::iter([Ok(message.clone())]);
            let arrived = receive(messages, &claim, &job, &blobs, &unfinished, &pace, |at| assert_eq!(at, 0));
            let mut arrived = arrived.await.ok().unwrap();
            if end == "durable" {
                kept.push(arrived.keep(&claim, &job, bound, &blobs).await.ok().unwrap());
                continue;
            }
            let mut trailer = claim.trailer(arrived.check.crc.clone());
            if end == "rotten trailer" {
                *trailer.last_mut().unwrap() ^= 1;
            }
            arrived.writer.write(trailer.into()).await.unwrap();
            arrived.writer.settle().await.unwrap();
            drop(arrived);
            assert_eq!(progress(&claim, &blobs).await.unwrap(), claim.bytes);
            let none = tokio_stream::iter(Vec::<Result<UploadMessage, Status>>::new());
            let mut told = None;
            match receive(none, &claim, &job, &blobs, &unfinished, &pace, |at| told = Some(at)).await {
                Ok(arrived) => {
                    assert_eq!(told, Some(claim.bytes), "nothing is left to send");
                    kept.push(arrived.keep(&claim, &job, bound, &blobs).await.ok().unwrap());
                }
                Err(Rejected::Transfer(e)) => {
                    assert_eq!(told, None, "nobody sends before it is clear what is missing");
                    assert!(end == "rotten trailer" && e.message.contains("send it again"), "{end}: {e}");
                    assert_eq!(progress(&claim, &blobs).await.unwrap(), 0);
                }
                Err(_) => panic!("{end}"),
            }
        }
        assert!(kept.len() == 2 && kept[0] == kept[1], "{kept:?}");
    }

    #[test]
    fn the_check_sees_the_same_wherever_chunks_are_cut() {
        let job = job("{ kind = \"fixed32\" }");
        let mut units = vec![0; job.layout().len()];
        units[..6].copy_from_slice(&[1, -2, 3, 1 << 29, -(1 << 29), 7]);
        let bytes: Vec<u8> = units.iter().flat_map(|u: &i32| u.to_le_bytes()).collect();
        for size in 1..=bytes.len() {
            let mut check = StreamCheck::new(&job).unwrap();
            bytes.chunks(size).for_each(|chunk| check.take(chunk));
            let summary = check.finish();
            assert_eq!(summary.squared_norm, squared_norm(&units));
            assert_eq!(summary.problem, None);
        }
        let mut check = StreamCheck::new(&job).unwrap();
        check.take(&[0; 5]);
        check.take(&[0, 0, 0x80]);
        let problem = check.finish().problem.unwrap();
        assert!(problem.contains("value 1"), "i32::MIN: {problem}");
        let mut check = StreamCheck::new(&job).unwrap();
        check.take(&bytes[..bytes.len() - 1]);
        assert!(check.finish().problem.is_some(), "cut off");
    }
}
