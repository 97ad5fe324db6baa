//! Blobs that nothing refers to: deleted as they are let go, and swept at a start where a crash left them.

use crate::fleet::{HEARD_IN, LEASE};
use std::collections::HashSet;
use std::time::Duration;
use undertone_core::digest::Digest;
use undertone_round::coordinator::JobState;
use undertone_round::job::Job;
use undertone_store::{Blobs, BucketBlobs, SqlStore, Store};

/// How long an object of a bucket lies there before it is looked at: a release, or a job that is being submitted, takes less.
pub(crate) const OLD: Duration = Duration::from_secs(86_400);
/// The lease of whoever sweeps a bucket.
const SWEEPING: &str = "sweep";

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
    let mut swept = forget_unfinished(blobs).await;
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

/// Forgets uploads that nobody went on with for long. Says how many.
pub(crate) async fn forget_unfinished(blobs: &dyn Blobs) -> usize {
    let unfinished = blobs.unfinished().await.unwrap_or_else(|e| {
        tracing::warn!(error = %e, "cannot list unfinished uploads");
        vec![]
    });
    let mut forgotten = 0;
    // Whoever comes back sooner goes on.
    for (name, _) in unfinished.into_iter().filter(|(_, idle_s)| *idle_s > FORGET_AFTER_S) {
        match blobs.abandon(&name).await {
            Ok(()) => forgotten += 1,
            Err(e) => tracing::warn!(error = %e, "cannot delete an unfinished upload"),
        }
    }
    forgotten
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

/// Deletes the objects of a bucket that no job needs, of those that have lain there for long: what is on its way to be named by a job is
/// younger. One coordinator at a time; the others go on meanwhile.
///
/// # Errors
/// If the store or the bucket cannot be read.
pub(crate) async fn bucket(
    store: &SqlStore,
    bucket: &BucketBlobs,
    me: &str,
    old: Duration,
) -> Result<u64, String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let lease = store.take_lease(SWEEPING, me, LEASE).await.map_err(|e| text(&e))?;
    if lease.holder != me {
        return Ok(0);
    }
    let swept = async {
        let listed = bucket.list_older(old).await.map_err(|e| text(&e))?;
        // After the list: whatever was named since is younger.
        let mut kept: HashSet<Digest> =
            store.released_models().await.map_err(|e| text(&e))?.into_iter().collect();
        for record in store.open_jobs().await.map_err(|e| text(&e))? {
            // One that cannot be read may need anything.
            let state: JobState = serde_json::from_str(&record.state).map_err(|e| text(&e))?;
            kept.extend(state.blobs());
            let document = record.document;
            let job = tokio::task::spawn_blocking(move || Job::from_document(document.as_bytes()));
            let job = job.await.map_err(|e| text(&e))?.map_err(|e| text(&e))?;
            kept.extend(job.module_file().map(|file| file.digest));
        }
        let mut swept = 0;
        for digest in listed.into_iter().filter(|digest| !kept.contains(digest)) {
            let delete = tokio::time::timeout(HEARD_IN, bucket.delete_older(&digest, old));
            match store.guarded(SWEEPING, &lease, delete).await.map_err(|e| text(&e))? {
                Ok(Ok(deleted)) => swept += u64::from(deleted),
                Ok(Err(e)) => return Err(e.to_string()),
                Err(_) => return Err("the bucket does not answer".into()),
            }
        }
        Ok(swept)
    };
    let swept = swept.await;
    store.end_lease(SWEEPING, &lease).await.map_err(|e| text(&e))?;
    let swept = swept?;
    if swept > 0 {
        tracing::info!(swept, "deleted objects of the bucket that nothing refers to");
    }
    Ok(swept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use undertone_core::id::JobId;
    use undertone_round::coordinator::ModelRef;
    use undertone_round::job::JobSpec;
    use undertone_store::{BucketConfig, BucketKey, Durability, JobRecord};
    use undertone_test_servers::{PostgresServer, S3Server};

    #[tokio::test(flavor = "multi_thread")]
    async fn only_what_is_old_and_named_by_nobody_is_swept() {
        let (postgres, s3) = (PostgresServer::start(), S3Server::start().await);
        let (made, folder) = (s3.bucket("swept"), tempfile::tempdir().unwrap());
        let config = BucketConfig {
            url: made.url,
            endpoint: Some(made.endpoint),
            region: Some(made.region),
            key: Some(BucketKey { id: made.key_id, secret: made.secret }),
        };
        let blobs = BucketBlobs::open(&config, "d", true, folder.path(), 1 << 20).await.unwrap();
        let store = SqlStore::postgres(&postgres.new_database(), Durability::Disk).await.unwrap();
        let (needed, bytes) = blobs.put("the model of an open job".into()).await.unwrap();
        let (garbage, _) = blobs.put("what nobody names".into()).await.unwrap();
        let spec = JobSpec::from_toml(undertone_harness::SAMPLE_JOB, "job.toml").unwrap();
        let state = JobState::new(ModelRef { digest: needed, bytes }, 0);
        let job = JobRecord {
            id: JobId::new("a").unwrap(),
            document: String::from_utf8(spec.to_document()).unwrap(),
            document_digest: Digest::of(b"a"),
            version: JobRecord::FIRST_VERSION,
            status: "waiting".into(),
            ended: false,
            state: serde_json::to_string(&state).unwrap(),
            created_unix_s: 1,
        };
        store.insert_job(job.clone(), vec![]).await.unwrap();
        // Nothing is old; another one is at it; a job cannot be read.
        assert_eq!(bucket(&store, &blobs, "me", OLD).await, Ok(0));
        let other = store.take_lease(SWEEPING, "other", LEASE).await.unwrap();
        assert_eq!(bucket(&store, &blobs, "me", Duration::ZERO).await, Ok(0));
        store.end_lease(SWEEPING, &other).await.unwrap();
        let odd = JobRecord { id: JobId::new("b").unwrap(), state: "{}".into(), ..job };
        store.insert_job(odd.clone(), vec![]).await.unwrap();
        assert!(bucket(&store, &blobs, "me", Duration::ZERO).await.is_err());
        assert_eq!(blobs.list().await.unwrap().len(), 2);
        let end = undertone_store::Transition {
            ended: true,
            ..undertone_store::Transition::new(odd.id, 1, "cancelled", "{}")
        };
        store.commit(end).await.unwrap();
        assert_eq!(bucket(&store, &blobs, "me", Duration::ZERO).await, Ok(1));
        assert_eq!(blobs.list().await.unwrap(), [needed]);
        assert!(!blobs.list().await.unwrap().contains(&garbage));
    }
}
