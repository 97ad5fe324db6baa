//! What a new model is sent as, made once for all clients: read in blocks, encoded, written in blocks.
//!
//! It is durable before any step of the job names it. Made again after a crash it is the same bytes, for it depends on
//! the model, the version before and the job alone ([`undertone_core::encoding::broadcast`]). Memory is a few blocks of
//! values, whatever the model's size.

mod base;
mod frozen;

use super::model::ModelReader;
use super::{BLOCK, Impossible, Trouble, blocks};
use crate::sweep::let_go;
use base::Base;
use std::sync::Arc;
use tokio::sync::mpsc;
use undertone_core::digest::{Digest, Digester};
use undertone_core::encoding::EncodeError;
use undertone_core::encoding::broadcast::{Broadcaster, Pieces};
use undertone_core::id::JobId;
use undertone_round::coordinator::{BlobRef, Broadcast, Delta, ModelRef};
use undertone_round::job::Job;
use undertone_store::{BlobError, BlobWriter, Blobs};

/// Encoded blocks that wait for the disk.
const AHEAD: usize = 2;

/// The version that clients hold, and the model that it is of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Before {
    pub(crate) model: ModelRef,
    pub(crate) broadcast: Broadcast,
}

/// Why there is no version of a model.
enum Unmade {
    /// What clients hold cannot be gone on from.
    Base(String),
    /// Anything else.
    Trouble(Trouble),
}

impl From<BlobError> for Unmade {
    fn from(e: BlobError) -> Self {
        Self::Trouble(Trouble::Now(format!("what clients are sent cannot be stored: {e}")))
    }
}

/// Makes what a new job's model is sent as.
///
/// # Errors
/// A sentence that says why there is none.
pub(crate) async fn initial(
    job: &Arc<Job>,
    id: &JobId,
    model: ModelRef,
    blobs: &Arc<dyn Blobs>,
) -> Result<Option<Broadcast>, String> {
    make(job, id, model, None, blobs).await.map_err(|e| match e {
        Trouble::Now(reason) | Trouble::Failed(Impossible { reason, .. }) => reason,
    })
}

/// Makes what a model is sent as; `None`: its own file, and nothing else.
///
/// # Errors
/// [`Trouble`].
pub(crate) async fn make(
    job: &Arc<Job>,
    id: &JobId,
    model: ModelRef,
    before: Option<Before>,
    blobs: &Arc<dyn Blobs>,
) -> Result<Option<Broadcast>, Trouble> {
    let down = job.spec().transport.down();
    if down.is_plain(job.part()) {
        return Ok(None);
    }
    let coins = coins(job, before);
    let had = before.and_then(|before| before.broadcast.frozen);
    let frozen = frozen::find_or_make(job, id, model, had, blobs).await?;
    let before = before.filter(|_| down.deltas.is_some());
    let made = match once(job, id, model, coins, before, blobs).await {
        // Everybody fetches the whole of this one: it begins a new line of differences.
        Err(Unmade::Base(reason)) => {
            tracing::warn!(reason, "no difference from the version before is offered");
            once(job, id, model, coins, None, blobs).await
        }
        made => made,
    };
    let made = made.map(|made| Broadcast { frozen, ..made });
    let made = made.map_err(|e| match e {
        Unmade::Trouble(trouble) => trouble,
        Unmade::Base(reason) => impossible(job, &reason),
    })?;
    tracing::info!(
        version = made.version.short(),
        whole = made.whole.unwrap_or(model).bytes,
        delta = made.delta.map(|delta| delta.blob.bytes),
        "what clients are sent is durable"
    );
    Ok(Some(made))
}

fn impossible(job: &Job, reason: &dyn std::fmt::Display) -> Trouble {
    let reason = format!("the new model cannot be sent as [transport] says: {reason}");
    // Correlated noise pays for one draw a round.
    Trouble::Failed(Impossible { reason, is_final: job.contract().is_correlated() })
}

/// What coins are drawn from: others in each round, the same ones when a round is made again, and when a study is repeated
/// (so not from the job's id, which has a random part).
fn coins(job: &Job, before: Option<Before>) -> Digest {
    let mut digest = Digester::new();
    digest.field(b"undertone broadcast coins v1");
    digest.field(job.digest().as_bytes());
    before.iter().for_each(|before| digest.field(before.broadcast.version.as_bytes()));
    digest.finish()
}

async fn once(
    job: &Arc<Job>,
    id: &JobId,
    model: ModelRef,
    coins: Digest,
    before: Option<Before>,
    blobs: &Arc<dyn Blobs>,
) -> Result<Broadcast, Unmade> {
    let down = job.spec().transport.down();
    let master = blobs.local(&model.digest).await;
    let master = master.map_err(|e| Unmade::Trouble(Trouble::blob("the new model", &e)))?;
    let base = match before {
        Some(before) => Some((before, base::find(before, blobs).await?)),
        None => None,
    };
    let mut whole = match down.whole(job.part()) {
        Some(_) => Some(blobs.writer().await?),
        None => None,
    };
    let mut delta = match base {
        Some(_) => Some(blobs.writer().await?),
        None => None,
    };
    let (pieces, mut made) = mpsc::channel::<Pieces>(AHEAD);
    let (of_job, owner) = (Arc::clone(job), owner(id));
    let work = tokio::task::spawn_blocking(move || {
        let master = ModelReader::open(master, model, of_job.layout()).map_err(Unmade::Trouble)?;
        let base = base.map(|(before, files)| Base::open(&of_job, before, files)).transpose()?;
        encode(&of_job, owner, coins, master, base, &pieces)
    });
    while let Some(Pieces { whole: of_whole, delta: of_delta }) = made.recv().await {
        write(&mut whole, of_whole).await?;
        write(&mut delta, of_delta).await?;
    }
    let work = work.await;
    let broke = |e: tokio::task::JoinError| Trouble::failed(format!("encoding the model broke: {e}"));
    let version = work.unwrap_or_else(|e| Err(Unmade::Trouble(broke(e))))?;
    let whole = commit(whole).await?;
    let delta = commit(delta).await?.zip(before);
    let delta = delta.map(|(blob, before)| Delta { base: before.broadcast.version, blob });
    let small = delta.filter(|delta| delta.blob.bytes < whole.unwrap_or(model).bytes);
    if let (Some(delta), None) = (delta, small) {
        let_go(&**blobs, [delta.blob.digest], "a difference that is larger than the whole").await;
    }
    Ok(Broadcast { version, whole, delta: small, frozen: None })
}

/// Whose a file is.
fn owner(id: &JobId) -> Digest {
    Digest::of(id.as_str().as_bytes())
}

async fn write(writer: &mut Option<Box<dyn BlobWriter>>, bytes: Vec<u8>) -> Result<(), BlobError> {
    match writer {
        Some(writer) if !bytes.is_empty() => writer.write(bytes.into()).await,
        _ => Ok(()),
    }
}

async fn commit(writer: Option<Box<dyn BlobWriter>>) -> Result<Option<BlobRef>, BlobError> {
    match writer {
        Some(writer) => super::model::commit(writer).await.map(Some),
        None => Ok(None),
    }
}

/// Encodes the model block by block; gives the version's name.
fn encode(
    job: &Job,
    owner: Digest,
    coins: Digest,
    mut master: ModelReader,
    mut base: Option<Base>,
    pieces: &mpsc::Sender<Pieces>,
) -> Result<Digest, Unmade> {
    let has_base = base.is_some();
    // A difference may be too large to say where the model itself is not.
    let unencodable = |e: EncodeError| {
        if has_base { Unmade::Base(e.to_string()) } else { Unmade::Trouble(impossible(job, &e)) }
    };
    let (down, len) = (job.spec().transport.down(), job.layout().len());
    let mut out = Pieces::default();
    let mut maker = Broadcaster::new(down, job.grid(), job.part(), owner, coins, has_base, &mut out)
        .map_err(unencodable)?;
    let (mut values, mut held) = (vec![0.0; BLOCK.min(len)], vec![0.0; BLOCK.min(len)]);
    for block in blocks(len) {
        let values = &mut values[..block.len()];
        master.values(values).map_err(Unmade::Trouble)?;
        let held = match &mut base {
            Some(base) => {
                let held = &mut held[..block.len()];
                base.next(held)?;
                &*held
            }
            None => &[],
        };
        maker.push(values, held, &mut out).map_err(unencodable)?;
        // Who writes them says itself what went wrong there.
        if pieces.blocking_send(std::mem::take(&mut out)).is_err() {
            return Err(Unmade::Trouble(Trouble::Now("writing what clients are sent broke off".into())));
        }
    }
    // The heads alone, of a model without values.
    let _ = pieces.blocking_send(out);
    master.finish().map_err(Unmade::Trouble)?;
    base.map_or(Ok(()), Base::finish)?;
    maker.finish().map_err(unencodable)
}

#[cfg(test)]
mod tests;
