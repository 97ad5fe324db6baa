//! The model of an offer, by the shortest way: it is here already, a difference leads to it, or the whole is fetched.
//!
//! Which way it came makes no difference: the values have the digest that was offered, or they are not used.

use crate::models::{Arrived, Kept, ModelError, Models};
use crate::transfer::{FetchError, Line, blocking, fetch as fetch_file};
use std::sync::Arc;
use undertone_core::id::JobId;
use undertone_core::initial::FileRef;
use undertone_round::job::Job;
use undertone_round::participant::{ModelRef, OfferedModel};

/// Brings the model here, and keeps it for the job; and its TorchScript file, where `with_module` asks for it.
pub(crate) async fn fetch(
    line: &mut Line,
    models: &Models,
    model: OfferedModel,
    (id, job): (&JobId, &Arc<Job>),
    with_module: bool,
) -> Result<(), FetchError> {
    let (own, name) = (models.clone(), id.clone());
    let module = job.module_file().filter(|_| with_module);
    blocking(move || own.expect(&name, model, module.map(|file| file.digest))).await?;
    if let Some(FileRef { digest, bytes }) = module {
        let file = ModelRef { digest, bytes };
        if !models.holds(file, Kept::Module) {
            fetch_file(line, models, file, Kept::Module, job.spec().deadlines.transfer_idle.0).await?;
            tracing::info!(file = digest.short(), bytes, "the job's TorchScript file is here");
        }
    }
    fetch_offered(line, models, model, job).await?;
    let (own, name) = (models.clone(), id.clone());
    Ok(blocking(move || own.arrived(&name, model.digest())).await?)
}

async fn fetch_offered(
    line: &mut Line,
    models: &Models,
    model: OfferedModel,
    job: &Arc<Job>,
) -> Result<(), FetchError> {
    let idle = job.spec().deadlines.transfer_idle.0;
    let Some(version) = model.version else {
        return fetch_file(line, models, model.whole, Kept::Model, idle).await;
    };
    if models.holds_version(version, job.layout()) {
        tracing::info!(version = version.short(), bytes = 0, "this version of the model is here already");
        return Ok(());
    }
    if let Some(delta) = model.delta.filter(|delta| models.holds_version(delta.base, job.layout())) {
        match bring(line, models, model, delta.file, Arrived::Delta, job).await {
            Ok(()) => return Ok(()),
            Err(e) => {
                tracing::warn!(error = %e, "the difference does not lead to the model: the whole is fetched");
            }
        }
    }
    match whole(line, models, model, job).await {
        // What an earlier run of the client left may have been damaged on this disk: once more.
        Err(FetchError::Arrived(e)) if !matches!(e, ModelError::Disk(_)) => {
            tracing::warn!(error = %e, "the whole does not lead to the model: it is fetched again");
            whole(line, models, model, job).await
        }
        other => other,
    }
}

/// Fetches the whole, and what it needs beside it, if that is not here from an earlier round or another job.
async fn whole(
    line: &mut Line,
    models: &Models,
    model: OfferedModel,
    job: &Arc<Job>,
) -> Result<(), FetchError> {
    if let Some(frozen) = model.frozen
        && !models.holds_frozen(frozen.digest, job.part())?
    {
        fetch_file(line, models, frozen.file, Kept::Message, job.spec().deadlines.transfer_idle.0).await?;
        let own = models.clone();
        let kept = blocking(move || match own.keep_frozen(frozen) {
            Err(ModelError::Disk(e)) => Err(e),
            other => Ok(other),
        });
        match kept.await {
            // Abandoned work on an earlier attempt kept it, and took the file away.
            Err(e) if !models.holds_frozen(frozen.digest, job.part())? => return Err(e.into()),
            Ok(Err(e)) => return Err(FetchError::Arrived(e)),
            Err(_) | Ok(Ok(())) => {}
        }
        let (values, bytes) = (frozen.digest.short(), frozen.file.bytes);
        tracing::info!(values, bytes, "the tensors that are not trained are here");
    }
    bring(line, models, model, model.whole, Arrived::Whole, job).await
}

/// Fetches a file and makes the version of it.
async fn bring(
    line: &mut Line,
    models: &Models,
    model: OfferedModel,
    file: ModelRef,
    arrived: Arrived,
    job: &Arc<Job>,
) -> Result<(), FetchError> {
    fetch_file(line, models, file, Kept::Message, job.spec().deadlines.transfer_idle.0).await?;
    let (own, of_job) = (models.clone(), Arc::clone(job));
    let made = blocking(move || match own.rebuild(model, arrived, &of_job) {
        Err(ModelError::Disk(e)) => Err(e),
        other => Ok(other),
    });
    match made.await {
        // Abandoned work on an earlier attempt made it, and took the file away.
        Err(e) if !models.holds_version(model.digest(), job.layout()) => return Err(e.into()),
        Ok(Err(e)) => return Err(FetchError::Arrived(e)),
        Err(_) | Ok(Ok(())) => {}
    }
    tracing::info!(
        version = model.digest().short(),
        bytes = file.bytes,
        as_difference = arrived == Arrived::Delta,
        "the model is here"
    );
    Ok(())
}
