//! Whether a bucket does what blobs need, found out with an object that nobody refers to.

use super::{BucketBlobs, BucketConfig, OWNER, connect};
use crate::blobs::BlobError;
use object_store::{ObjectStoreExt as _, PutPayload};
use std::time::{Duration, Instant};
use tokio_stream::StreamExt as _;

/// How long a bucket is tried: somebody waits for the answer.
const TRIES: Duration = Duration::from_secs(10);
/// What the object holds.
const CONTENT: &[u8] = b"undertone looks whether this bucket works; delete it";

/// What was found out about a bucket that works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketProbe {
    /// Whose the place in the bucket is; none: nobody's yet.
    pub owner: Option<String>,
    /// How long it took to put, get, find and delete a small object.
    pub took: Duration,
}

impl BucketBlobs {
    /// Puts an object beside the blobs of a bucket, gets it, finds it in the list and deletes it. `name` tells it from those of others
    /// who do the same.
    ///
    /// # Errors
    /// [`BlobError::Away`] with the call that failed.
    pub async fn probe(config: &BucketConfig, name: &str) -> Result<BucketProbe, BlobError> {
        let (bucket, prefix) = connect(config, TRIES)?;
        let failed = |what: &str, why: &dyn std::fmt::Display| BlobError::Away {
            at: config.url.clone(),
            detail: format!("{what}: {why}"),
        };
        let owner = match bucket.get(&prefix.clone().join(OWNER)).await {
            Ok(found) => {
                let found = found.bytes().await.map_err(|e| failed("get", &e))?;
                Some(String::from_utf8_lossy(&found).into_owned())
            }
            Err(object_store::Error::NotFound { .. }) => None,
            Err(e) => return Err(failed("get", &e)),
        };
        let begun = Instant::now();
        let folder = prefix.join("probes");
        let key = folder.clone().join(name);
        bucket.put(&key, PutPayload::from_static(CONTENT)).await.map_err(|e| failed("put", &e))?;
        let tried = async {
            let found = bucket.get(&key).await.map_err(|e| failed("get", &e))?;
            let found = found.bytes().await.map_err(|e| failed("get", &e))?;
            if found != CONTENT {
                return Err(failed("get", &"it gave other bytes than were put"));
            }
            let mut listed = bucket.list(Some(&folder));
            loop {
                match listed.next().await {
                    Some(Ok(found)) if found.location == key => return Ok(()),
                    Some(Ok(_)) => {}
                    Some(Err(e)) => return Err(failed("list", &e)),
                    None => return Err(failed("list", &"what was put is not listed")),
                }
            }
        }
        .await;
        // Also what did not work leaves nothing behind.
        let deleted = bucket.delete(&key).await.map_err(|e| failed("delete", &e));
        tried.and(deleted)?;
        Ok(BucketProbe { owner, took: begun.elapsed() })
    }
}
