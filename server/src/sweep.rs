//! Blobs that nothing refers to: deleted as they are let go, and swept at a start where a crash left them.

use std::collections::HashSet;
use undertone_core::digest::Digest;
use undertone_store::{Blobs, Store};

/// An upload that nobody went on with for so long is forgotten.
const FORGET_AFTER_S: u64 = 86_400;

/// Deletes every blob but the released models and those that open jobs `need`. Only while nothing else writes: one
/// coordinator holds a folder, and this runs before it takes calls.
pub(crate) async fn sweep(
    store: &dyn Store,
    blobs: &dyn Blobs,
    need: impl IntoIterator<Item = Digest>,
) -> Result<usize, String> {
    let mut kept: HashSet<Digest> = need.into_iter().collect();
    kept.extend(store.released_models().await.map_err(|e| e.to_string())?);
    let mut swept = 0;
    for (name, idle_s) in blobs.unfinished().await.map_err(|e| e.to_string())? {
        // Whoever comes back sooner goes on.
        if idle_s > FORGET_AFTER_S {
            match blobs.abandon(&name).await {
                Ok(()) => swept += 1,
                Err(e) => tracing::warn!(error = %e, "cannot delete an unfinished upload"),
            }
        }
    }
    for digest in blobs.list().await.map_err(|e| e.to_string())? {
        if !kept.contains(&digest) {
            match blobs.delete(&digest).await {
                Ok(()) => swept += 1,
                Err(e) => tracing::warn!(error = %e, "cannot delete a blob that nothing refers to"),
            }
        }
    }
    Ok(swept)
}

/// Deletes blobs that nothing refers to any more; `what` they are is for the log. One that cannot be deleted now is swept at
/// the next start.
pub(crate) async fn let_go(blobs: &dyn Blobs, gone: impl IntoIterator<Item = Digest>, what: &str) {
    for blob in gone {
        if let Err(e) = blobs.delete(&blob).await {
            tracing::warn!(error = %e, what, "cannot delete a blob that is no longer needed; the next start will");
        }
    }
}
