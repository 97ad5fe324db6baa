//! What a job does not train, as a file of its own: made once, sent to each client once.

use super::super::model::{ModelReader, commit};
use super::super::{BLOCK, blocks};
use super::{AHEAD, Trouble, owner};
use std::sync::Arc;
use tokio::sync::mpsc;
use undertone_core::encoding::frozen::FrozenMaker;
use undertone_core::id::JobId;
use undertone_round::coordinator::{Frozen, ModelRef};
use undertone_round::job::Job;
use undertone_store::{BlobError, Blobs};

/// The file that there is, or a new one if it is gone; `None`: all of the model is trained. Whenever it is made, and of
/// whichever model of the job, it is the same bytes.
pub(super) async fn find_or_make(
    job: &Arc<Job>,
    id: &JobId,
    model: ModelRef,
    had: Option<Frozen>,
    blobs: &Arc<dyn Blobs>,
) -> Result<Option<Frozen>, Trouble> {
    if job.part().is_whole() {
        return Ok(None);
    }
    if let Some(frozen) = had {
        match blobs.local(&frozen.blob.digest).await {
            Ok(_) => return Ok(Some(frozen)),
            Err(e) if e.may_pass() => return Err(Trouble::blob("what is not trained", &e)),
            Err(e) => tracing::warn!(error = %e, "the tensors that are not trained are written again"),
        }
    }
    make(job, id, model, blobs).await.map(Some)
}

async fn make(
    job: &Arc<Job>,
    id: &JobId,
    model: ModelRef,
    blobs: &Arc<dyn Blobs>,
) -> Result<Frozen, Trouble> {
    let unwritten = |e: BlobError| Trouble::Now(format!("what is not trained cannot be stored: {e}"));
    let file = blobs.local(&model.digest).await.map_err(|e| Trouble::blob("the new model", &e))?;
    let mut writer = blobs.writer().await.map_err(unwritten)?;
    let (pieces, mut made) = mpsc::channel::<Vec<u8>>(AHEAD);
    let (of_job, owner) = (Arc::clone(job), owner(id));
    let work = tokio::task::spawn_blocking(move || {
        let (part, len) = (of_job.part(), of_job.layout().len());
        let mut model = ModelReader::open(file, model, of_job.layout())?;
        let mut out = Vec::new();
        let mut maker = FrozenMaker::new(part, owner, &mut out);
        let mut values = vec![0.0; BLOCK.min(len)];
        for block in blocks(len) {
            let values = &mut values[..block.len()];
            model.values(values)?;
            maker.push(values, &mut out);
            // Who writes them says itself what went wrong there.
            if !out.is_empty() && pieces.blocking_send(std::mem::take(&mut out)).is_err() {
                return Err(Trouble::Now("writing what is not trained broke off".into()));
            }
        }
        model.finish()?;
        Ok(maker.finish())
    });
    while let Some(bytes) = made.recv().await {
        writer.write(bytes.into()).await.map_err(unwritten)?;
    }
    let broke = |e| Trouble::failed(format!("writing what is not trained broke: {e}"));
    let digest = work.await.map_err(broke)??;
    let blob = commit(writer).await.map_err(unwritten)?;
    tracing::info!(bytes = blob.bytes, "what is not trained is durable");
    Ok(Frozen { digest, blob })
}
