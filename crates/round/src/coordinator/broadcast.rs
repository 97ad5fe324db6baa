//! What clients are sent a model as, where it is not simply the model's file.

use super::{BlobRef, ModelRef};
use serde::{Deserialize, Serialize};
use undertone_core::digest::Digest;

/// The version of the newest model that clients train from, made once for all of them. Part of what one release leaves
/// to the next: offers that are repeated, attempts that follow and restarts go on with the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Broadcast {
    /// Its name: the digest of its values, whichever way they come.
    pub version: Digest,
    /// The whole of it; `None`: the model's own file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole: Option<BlobRef>,
    /// The difference from the version before, where that is smaller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta: Option<Delta>,
    /// What whoever has nothing needs beside the whole, where that is of the trained part alone. The same one for all versions
    /// of a job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Frozen>,
}

/// The values that a job does not train.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frozen {
    /// The digest of the values, which clients keep them by.
    pub digest: Digest,
    /// Where they lie.
    pub blob: BlobRef,
}

/// A difference of versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delta {
    /// The name of the version that it starts from.
    pub base: Digest,
    /// Where it lies.
    pub blob: BlobRef,
}

impl Broadcast {
    /// The blobs that were made for it. The model's own file is not among them.
    pub fn blobs(&self) -> impl Iterator<Item = Digest> {
        self.files().map(|blob| blob.digest)
    }

    fn files(&self) -> impl Iterator<Item = BlobRef> {
        let (delta, frozen) = (self.delta.map(|delta| delta.blob), self.frozen.map(|frozen| frozen.blob));
        self.whole.into_iter().chain(delta).chain(frozen)
    }
}

/// What a client may fetch that is offered a model, and what it is sent as.
pub(super) fn sent(model: ModelRef, broadcast: Option<Broadcast>) -> impl Iterator<Item = BlobRef> {
    // Beside a part there is the file, for a client that knows of none.
    let file = broadcast.is_none_or(|broadcast| broadcast.whole.is_none() || broadcast.frozen.is_some());
    file.then_some(model)
        .into_iter()
        .chain(broadcast.into_iter().flat_map(|broadcast| broadcast.files().collect::<Vec<_>>()))
}
