//! Blobs of a fleet: objects of a bucket that speaks the protocol of S3, with a folder of this machine in front.
//!
//! A blob is written to the folder, as on one machine; before anybody hears of it, it is in the bucket. What is read is fetched
//! once, compared with its digest, and read from the folder from then on, as far as the folder has room. What is unfinished is
//! in the folder alone: whoever goes on with it goes on at the same machine, or begins again.

mod probe;

use super::folder::FolderWriter;
use super::near::Near;
use super::{BlobError, BlobWriter, Blobs, FolderBlobs, LocalBlob, check_expected};
use crate::durability::Durability;
use async_trait::async_trait;
use bytes::Bytes;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path as Key;
use object_store::{
    ClientOptions, MultipartUpload, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload, RetryConfig,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::AsyncRead;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;
use undertone_core::digest::Digest;

pub use probe::BucketProbe;

/// What goes in one request. Larger blobs go in parts of this size: S3 takes none below 5 MiB, and no more than 10 000.
const PART: usize = 8 << 20;
/// Parts of one blob on their way at once, and of all of them: what is in memory does not grow with the number of uploads.
const PARTS_IN_FLIGHT: usize = 3;
const PARTS_IN_MEMORY: usize = 8;
/// How long one request may take, and how long it is tried again while the store is unwell.
const REQUEST: Duration = Duration::from_secs(60);
const TRIES: Duration = Duration::from_secs(180);
/// Says whose blobs these are.
const OWNER: &str = "undertone-deployment";

/// Where a bucket is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketConfig {
    /// `s3://bucket/prefix`; the prefix may be left out.
    pub url: String,
    /// Where the store is reached, such as `https://minio.example:9000`; left out, it is that of the region at AWS.
    pub endpoint: Option<String>,
    /// The region; left out, `AWS_REGION` says it.
    pub region: Option<String>,
    /// Left out, it is taken from where every program takes it: `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, a web identity, or
    /// the machine's own role.
    pub key: Option<BucketKey>,
}

/// What opens a bucket.
#[derive(Clone, PartialEq, Eq)]
pub struct BucketKey {
    /// Its name.
    pub id: String,
    /// Not to be told.
    pub secret: String,
}

impl std::fmt::Debug for BucketKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BucketKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// [`Blobs`] in a bucket.
#[derive(Debug, Clone)]
pub struct BucketBlobs {
    bucket: Arc<dyn ObjectStore>,
    prefix: Key,
    /// The URL, for errors.
    at: Arc<str>,
    near: Near,
    parts: Arc<Semaphore>,
}

#[derive(Debug)]
struct BucketWriter {
    blobs: BucketBlobs,
    near: Box<FolderWriter>,
}

/// The store of a bucket, and the place in it. Nothing is asked yet.
fn connect(config: &BucketConfig, tries: Duration) -> Result<(Arc<dyn ObjectStore>, Key), BlobError> {
    // The provider of the whole program; it may have been named already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let refused = |why: String| BlobError::Away { at: config.url.clone(), detail: why };
    let (bucket, prefix) = config
        .url
        .strip_prefix("s3://")
        .map(|rest| rest.split_once('/').unwrap_or((rest, "")))
        .filter(|(bucket, _)| !bucket.is_empty())
        .ok_or_else(|| refused("its address is not of the form s3://bucket/prefix".into()))?;
    let prefix = Key::parse(prefix.trim_end_matches('/')).map_err(|e| refused(e.to_string()))?;
    let plain = config.endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let options = ClientOptions::new().with_timeout(REQUEST).with_allow_http(plain);
    let retry = RetryConfig { retry_timeout: tries, ..RetryConfig::default() };
    let key = config.key.as_ref();
    let given = [
        (AmazonS3ConfigKey::Endpoint, config.endpoint.as_ref()),
        (AmazonS3ConfigKey::Region, config.region.as_ref()),
        (AmazonS3ConfigKey::AccessKeyId, key.map(|key| &key.id)),
        (AmazonS3ConfigKey::SecretAccessKey, key.map(|key| &key.secret)),
    ];
    let builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
    let builder = given.into_iter().fold(builder, |builder, (what, value)| match value {
        Some(value) => builder.with_config(what, value),
        None => builder,
    });
    let builder = builder.with_client_options(options).with_retry(retry);
    let bucket = builder.build().map_err(|e| refused(e.to_string()))?;
    Ok((Arc::new(bucket), prefix))
}

impl BucketBlobs {
    /// Opens a bucket, which must exist, and the folder in front of it, which keeps up to `near_bytes` of what is in the bucket.
    /// Whoever opens a place of a bucket first owns it, if `first` says that it may be the first time.
    ///
    /// # Errors
    /// [`BlobError::Foreign`] if the place is another `owner`'s, or holds blobs of nobody; [`BlobError`] if the bucket cannot be
    /// read and written, or the folder cannot be used.
    pub async fn open(
        config: &BucketConfig,
        owner: &str,
        first: bool,
        folder: &Path,
        near_bytes: u64,
    ) -> Result<Self, BlobError> {
        let (bucket, prefix) = connect(config, TRIES)?;
        // What the folder keeps is in the bucket too: it need not survive a power cut.
        let folder = FolderBlobs::open(folder, Durability::Process).await?;
        let near = Near::open(folder, near_bytes).await?;
        let parts = Arc::new(Semaphore::new(PARTS_IN_MEMORY));
        let blobs = Self { bucket, prefix, at: config.url.as_str().into(), near, parts };
        // A bucket that is not there, or not for us, is told now and not in the first round.
        blobs.claim(owner, first).await?;
        Ok(blobs)
    }

    /// Sees to it that the place is this owner's: coordinators delete what they do not know.
    async fn claim(&self, owner: &str, first: bool) -> Result<(), BlobError> {
        let key = self.prefix.clone().join(OWNER);
        let foreign = |whose: &str| BlobError::Foreign { at: self.at.to_string(), whose: whose.into() };
        for _ in 0..2 {
            match self.bucket.get(&key).await {
                Ok(found) => {
                    let found = found.bytes().await.map_err(|e| self.fault(e))?;
                    return if found == owner.as_bytes() {
                        Ok(())
                    } else {
                        Err(foreign("another deployment"))
                    };
                }
                Err(object_store::Error::NotFound { .. }) => {}
                Err(e) => return Err(self.fault(e)),
            }
            if !first {
                let detail = format!("it has no {key}, though this deployment was here before");
                return Err(BlobError::Away { at: self.at.to_string(), detail });
            }
            if !self.list().await?.is_empty() {
                return Err(foreign("nobody who says so"));
            }
            let payload = PutPayload::from(owner.to_owned().into_bytes());
            match self.bucket.put_opts(&key, payload, PutMode::Create.into()).await {
                Ok(_) => return Ok(()),
                // Another one was faster: whose it is now is to be seen.
                Err(object_store::Error::AlreadyExists { .. }) => {}
                Err(e) => return Err(self.fault(e)),
            }
        }
        Err(foreign("somebody who comes and goes"))
    }

    /// The blobs that have lain in the bucket for at least so long, by its clock and ours. One that is written again is new.
    ///
    /// # Errors
    /// [`BlobError`] if the bucket cannot be read.
    pub async fn list_older(&self, age: Duration) -> Result<Vec<Digest>, BlobError> {
        let mut listed = self.bucket.list(Some(&self.prefix));
        let mut digests = vec![];
        while let Some(object) = listed.next().await {
            let object = object.map_err(|e| self.fault(e))?;
            if is_older(object.last_modified.timestamp_millis(), age) {
                digests.extend(self.digest(&object.location));
            }
        }
        Ok(digests)
    }

    /// Deletes a blob if it is still that old. Says whether it was.
    ///
    /// # Errors
    /// [`BlobError`] if the bucket cannot be read or written.
    pub async fn delete_older(&self, digest: &Digest, age: Duration) -> Result<bool, BlobError> {
        match self.bucket.head(&self.key(digest)).await {
            Ok(object) if is_older(object.last_modified.timestamp_millis(), age) => {
                self.delete(digest).await.map(|()| true)
            }
            Ok(_) | Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(self.fault(e)),
        }
    }

    /// Whether a blob is in the folder at hand, and need not be fetched.
    pub fn is_near(&self, digest: &Digest) -> bool {
        self.near.has(digest)
    }

    /// The blob of a key, if it is one.
    fn digest(&self, location: &Key) -> Option<Digest> {
        // What else lies there is not ours.
        let parts: Vec<_> = location.prefix_match(&self.prefix)?.collect();
        let [front, back] = &parts[..] else { return None };
        format!("{}{}", front.as_ref(), back.as_ref()).parse().ok()
    }

    fn key(&self, digest: &Digest) -> Key {
        let hex = digest.to_string();
        let (front, back) = hex.split_at(2);
        self.prefix.clone().join(front).join(back)
    }

    /// What an error of the store means.
    fn fault(&self, error: object_store::Error) -> BlobError {
        self.away(&error)
    }

    fn away(&self, why: &dyn std::fmt::Display) -> BlobError {
        BlobError::Away { at: self.at.to_string(), detail: why.to_string() }
    }

    fn fault_of(&self, digest: &Digest, error: object_store::Error) -> BlobError {
        match error {
            object_store::Error::NotFound { .. } => BlobError::NotFound { digest: *digest },
            other => self.fault(other),
        }
    }

    /// Sends bytes of this machine to the bucket.
    async fn send(&self, local: &LocalBlob, digest: &Digest, bytes: u64) -> Result<(), BlobError> {
        let key = self.key(digest);
        if bytes <= PART as u64 {
            let _room = self.room().await;
            let all = read(local, 0, bytes as usize).await?;
            return self.bucket.put(&key, PutPayload::from(all)).await.map(drop).map_err(|e| self.fault(e));
        }
        let mut upload = self.bucket.put_multipart(&key).await.map_err(|e| self.fault(e))?;
        let sent = self.send_parts(local, bytes, &mut *upload).await;
        if sent.is_err() {
            // What was sent costs space until then; if this fails too, a rule of the bucket has to see to it.
            let _ = upload.abort().await;
        }
        sent
    }

    async fn send_parts(
        &self,
        local: &LocalBlob,
        bytes: u64,
        upload: &mut dyn MultipartUpload,
    ) -> Result<(), BlobError> {
        let mut under_way = JoinSet::new();
        for offset in (0..bytes).step_by(PART) {
            if under_way.len() == PARTS_IN_FLIGHT {
                self.next_sent(&mut under_way).await?;
            }
            let room = self.room().await;
            let part = read(local, offset, PART.min((bytes - offset) as usize)).await?;
            let part = upload.put_part(PutPayload::from(part));
            under_way.spawn(async move {
                let _room = room;
                part.await
            });
        }
        while !under_way.is_empty() {
            self.next_sent(&mut under_way).await?;
        }
        upload.complete().await.map(drop).map_err(|e| self.fault(e))
    }

    /// For one part in memory.
    async fn room(&self) -> OwnedSemaphorePermit {
        self.parts.clone().acquire_owned().await.expect("it is never closed")
    }

    async fn next_sent(&self, under_way: &mut JoinSet<object_store::Result<()>>) -> Result<(), BlobError> {
        match under_way.join_next().await {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(e))) => Err(self.fault(e)),
            Some(Err(e)) => Err(self.away(&e)),
        }
    }

    /// Sees to it that the blob is in the folder; it may have to make room for another one at any time. One fetches, the others
    /// wait for it.
    async fn bring(&self, digest: &Digest) -> Result<(), BlobError> {
        let _turn = self.near.turn(digest).await;
        match self.near.folder().len(digest).await {
            Ok(_) => Ok(()),
            Err(_) => self.fetch(digest).await,
        }
    }

    /// In parts, as it was sent: each is asked for again by itself if the line breaks, and none waits long for a slow one.
    async fn fetch(&self, digest: &Digest) -> Result<(), BlobError> {
        let key = self.key(digest);
        let bytes = self.bucket.head(&key).await.map_err(|e| self.fault_of(digest, e))?.size;
        let mut writer = self.near.folder().writer().await?;
        let mut offsets = (0..bytes).step_by(PART);
        let (mut under_way, mut arrived, mut next) = (JoinSet::new(), BTreeMap::new(), 0);
        while next < bytes {
            while under_way.len() + arrived.len() < PARTS_IN_FLIGHT
                && let Some(offset) = offsets.next()
            {
                let (blobs, key) = (self.clone(), key.clone());
                let end = bytes.min(offset + PART as u64);
                under_way.spawn(async move {
                    let _room = blobs.room().await;
                    (offset, blobs.bucket.get_range(&key, offset..end).await)
                });
            }
            if let Some(part) = arrived.remove(&next) {
                next += PART as u64;
                writer.write(part).await?;
                continue;
            }
            match under_way.join_next().await {
                Some(Ok((offset, part))) => {
                    arrived.insert(offset, part.map_err(|e| self.fault_of(digest, e))?);
                }
                Some(Err(e)) => return Err(self.away(&e)),
                None => return Err(self.away(&"a part did not come")),
            }
        }
        match writer.commit(Some(*digest)).await {
            Ok((_, bytes)) => self.near.came(digest, bytes).await,
            // What lies there is not what was put there.
            Err(BlobError::Mismatch { expected, found }) => {
                Err(BlobError::Damaged { digest: expected, found })
            }
            Err(e) => Err(e),
        }
    }
}

/// Whether a moment, in milliseconds of Unix time, is at least so long ago.
fn is_older(unix_ms: i64, age: Duration) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u128::try_from(unix_ms).is_ok_and(|then| then + age.as_millis() <= now.as_millis())
}

/// Some bytes of a blob in the folder.
async fn read(local: &LocalBlob, offset: u64, len: usize) -> Result<Bytes, BlobError> {
    let local = local.clone();
    let read = tokio::task::spawn_blocking(move || local.read_vec(len, offset)).await;
    Ok(read.map_err(std::io::Error::other)??.into())
}

#[async_trait]
impl Blobs for BucketBlobs {
    async fn writer(&self) -> Result<Box<dyn BlobWriter>, BlobError> {
        let near = Box::new(self.near.folder().new_writer().await?);
        Ok(Box::new(BucketWriter { blobs: self.clone(), near }))
    }

    async fn resume(
        &self,
        name: &str,
        sink: &mut (dyn for<'a> FnMut(&'a [u8]) + Send),
    ) -> Result<Box<dyn BlobWriter>, BlobError> {
        let near = Box::new(self.near.folder().resumed_writer(name, sink).await?);
        Ok(Box::new(BucketWriter { blobs: self.clone(), near }))
    }

    async fn unfinished(&self) -> Result<Vec<(String, u64)>, BlobError> {
        self.near.folder().unfinished().await
    }

    async fn written(&self, name: &str) -> Result<u64, BlobError> {
        self.near.folder().written(name).await
    }

    async fn abandon(&self, name: &str) -> Result<(), BlobError> {
        self.near.folder().abandon(name).await
    }

    async fn open(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> Result<Box<dyn AsyncRead + Send + Unpin>, BlobError> {
        loop {
            match self.near.folder().open(digest, offset).await {
                Err(BlobError::NotFound { .. }) => self.bring(digest).await?,
                done => {
                    self.near.used(digest);
                    return done;
                }
            }
        }
    }

    async fn local(&self, digest: &Digest) -> Result<LocalBlob, BlobError> {
        loop {
            match self.near.folder().local(digest).await {
                Err(BlobError::NotFound { .. }) => self.bring(digest).await?,
                done => {
                    self.near.used(digest);
                    return done;
                }
            }
        }
    }

    /// As the bucket says: what lies in the folder may be gone from it.
    async fn len(&self, digest: &Digest) -> Result<u64, BlobError> {
        Ok(self.bucket.head(&self.key(digest)).await.map_err(|e| self.fault_of(digest, e))?.size)
    }

    async fn delete(&self, digest: &Digest) -> Result<(), BlobError> {
        // Nobody fetches it meanwhile.
        let _turn = self.near.turn(digest).await;
        match self.bucket.delete(&self.key(digest)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => self.near.gone(digest).await,
            Err(e) => Err(self.fault(e)),
        }
    }

    async fn list(&self) -> Result<Vec<Digest>, BlobError> {
        let mut listed = self.bucket.list(Some(&self.prefix));
        let mut digests = vec![];
        while let Some(object) = listed.next().await {
            digests.extend(self.digest(&object.map_err(|e| self.fault(e))?.location));
        }
        Ok(digests)
    }
}

#[async_trait]
impl BlobWriter for BucketWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<(), BlobError> {
        self.near.write(bytes).await
    }

    async fn settle(&mut self) -> Result<Digest, BlobError> {
        self.near.settle().await
    }

    async fn commit(self: Box<Self>, expected: Option<Digest>) -> Result<(Digest, u64), BlobError> {
        let Self { blobs, mut near } = *self;
        let (local, digest, bytes) = near.so_far().await?;
        // What could not be sent stays unfinished: whoever goes on sends nothing twice.
        if check_expected(expected, digest).is_ok() {
            blobs.send(&local, &digest, bytes).await?;
        }
        near.commit(expected).await?;
        blobs.near.came(&digest, bytes).await?;
        Ok((digest, bytes))
    }
}

#[cfg(test)]
mod tests;
