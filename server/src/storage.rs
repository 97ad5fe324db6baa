//! Opening state and blobs as `server.toml` says; and who may work on them.

use crate::config::{Durability, Storage};
use crate::fleet::{ALONE, Fleet, HEARD_IN, LEASE, RENEWAL};
use async_trait::async_trait;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncRead;
use undertone_core::digest::Digest;
use undertone_store::{
    BlobError, BlobWriter, Blobs, BucketBlobs, FolderBlobs, Lease, LocalBlob, SqlStore, Store, StoreError,
};

/// The lease of whoever becomes one of the coordinators, or must have none beside it.
pub(crate) const ENTRANCE: &str = "entrance";
/// How whoever settles a restored database is called at the beginning.
pub(crate) const RESTORING: &str = "restore-";
/// How often a coordinator looks whether it may come in: others do so for a moment.
const ENTERING: Duration = Duration::from_millis(100);

/// State and blobs.
pub(crate) struct Opened {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) blobs: Arc<dyn Blobs>,
    /// Where several coordinators may share the state.
    pub(crate) fleet: Option<Arc<Fleet>>,
    /// The folder is ours alone for as long as this is held.
    pub(crate) lock: File,
}

/// Opens what the configuration names. With a shared database and a bucket, this coordinator is one of them from here on. With a shared
/// database and a folder for the blobs it waits until no other one works on them.
pub(crate) async fn open(storage: &Storage) -> Result<Opened, String> {
    let folder = &storage.folder;
    let at = |e: &dyn std::fmt::Display| format!("{}: {e}", folder.display());
    std::fs::create_dir_all(folder).map_err(|e| at(&e))?;
    // Two daemons on one folder would take up each other's uploads.
    let lock = File::create(folder.join("lock")).map_err(|e| at(&e))?;
    lock.try_lock().map_err(|_| at(&"another coordinator runs on this folder"))?;
    let durability = match storage.durability {
        Durability::Disk => undertone_store::Durability::Disk,
        Durability::Process => undertone_store::Durability::Process,
    };
    let store = match &storage.database {
        None => SqlStore::sqlite(&storage.file(), durability).await.map_err(|e| at(&e))?,
        Some(url) => SqlStore::postgres(url, durability).await.map_err(|e| e.to_string())?,
    };
    let store = Arc::new(store);
    if let Some(why) = store.unsettled().await.map_err(|e| e.to_string())? {
        return Err(format!(
            "{why}, and what was spent since is not counted yet: finish `undertone-server restore --in-place` (docs/OPERATIONS.md)"
        ));
    }
    // A database and its blobs belong together: with another place, every model would be missing.
    let place = place_of_blobs(storage).map_err(|e| at(&e))?;
    let told = store.told("blobs").await.map_err(|e| e.to_string())?;
    if let Some(kept) = told.as_ref().filter(|kept| **kept != place) {
        return Err(format!(
            "this database's models and updates are in {kept}, and not in {place}: start it there, or name in [storage] what it was \
             made with (several coordinators need a bucket)"
        ));
    }
    // What does not work is found out now, not when it is needed.
    let mut bucket = None;
    let blobs: Arc<dyn Blobs> = match &storage.bucket {
        None => Arc::new(FolderBlobs::open(storage.blobs(), durability).await.map_err(|e| at(&e))?),
        Some(named) => {
            let name = random_name().map_err(|e| at(&e))?;
            let deployment = store.once("deployment", &name).await.map_err(|e| e.to_string())?;
            let (near, near_bytes) = (storage.near(), u64::from(named.near_gib) << 30);
            let blobs =
                BucketBlobs::open(&named.config(), &deployment, told.is_none(), &near, near_bytes).await;
            bucket.insert(Arc::new(blobs.map_err(|e| e.to_string())?)).clone()
        }
    };
    // Told only once it works: a mistake in the first try is not for ever.
    store.once("blobs", &place).await.map_err(|e| e.to_string())?;
    let fleet = match &storage.database {
        None => None,
        Some(_) => {
            // A name that lasts would be copied with its folder.
            let me = random_name().map_err(|e| at(&e))?;
            let alone = if bucket.is_none() { Some(until_alone(&store, &me).await) } else { None };
            enter(&store, &me).await.map_err(|e| e.to_string())?;
            Some(Fleet::new(store.clone(), me, alone, bucket))
        }
    };
    Ok(Opened { store, blobs, fleet, lock })
}

/// Becomes one of the coordinators; not while a restored database is being settled, for which none may be there.
pub(crate) async fn enter(store: &SqlStore, me: &str) -> Result<(), StoreError> {
    let mut told = false;
    let entrance = loop {
        let lease = store.take_lease(ENTRANCE, me, LEASE).await?;
        if lease.holder == me {
            break lease;
        }
        if lease.holder.starts_with(RESTORING) && !std::mem::replace(&mut told, true) {
            tracing::info!(other = lease.holder, "waiting: the database is being settled after a restore");
        }
        tokio::time::sleep(ENTERING).await;
    };
    if let Some(at) = store.unsettled().await? {
        store.end_lease(ENTRANCE, &entrance).await?;
        return Err(StoreError::NotOpened { at, detail: "it is not settled".into() });
    }
    store.take_lease(&SqlStore::replica_lease(me), me, LEASE).await?;
    store.end_lease(ENTRANCE, &entrance).await
}

/// Waits until no other coordinator works on the database.
async fn until_alone(store: &SqlStore, me: &str) -> Lease {
    let mut told = false;
    loop {
        match store.take_lease(ALONE, me, LEASE).await {
            Ok(lease) if lease.holder == me => return lease,
            Ok(lease) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(
                        other = lease.holder,
                        "standing by: another coordinator works on this database, and its blobs are in a folder (with a bucket, \
                         both would work)"
                    );
                }
            }
            // It was there when this coordinator started, and will be again.
            Err(error) => {
                tracing::warn!(%error, "cannot ask whether another coordinator works; asking again")
            }
        }
        tokio::time::sleep(RENEWAL).await;
    }
}

/// In words, for the database to remember. A folder has a name, which tells those of several machines apart.
pub(crate) fn place_of_blobs(storage: &Storage) -> std::io::Result<String> {
    Ok(match (&storage.bucket, &storage.database) {
        (Some(bucket), _) => {
            let endpoint = bucket.endpoint.as_ref().map(|endpoint| format!(" at {endpoint}"));
            format!("the bucket {}{}", bucket.url.trim_end_matches('/'), endpoint.unwrap_or_default())
        }
        (None, Some(_)) => format!("the folder of {}", name_of_folder(&storage.folder)?),
        (None, None) => "the folder beside it".to_owned(),
    })
}

/// What a folder is called that has the blobs of a database elsewhere.
fn name_of_folder(folder: &Path) -> std::io::Result<String> {
    let file = folder.join("name");
    match std::fs::read_to_string(&file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        found => return found.map(|name| name.trim().to_owned()),
    }
    let name = random_name()?;
    // Whole or not at all, also after a power cut.
    let half = folder.join("name.half");
    std::fs::write(&half, &name)?;
    File::open(&half)?.sync_all()?;
    std::fs::rename(&half, &file)?;
    File::open(folder)?.sync_all()?;
    Ok(name)
}

/// A name that nobody else has, with this machine's in it.
pub(crate) fn random_name() -> std::io::Result<String> {
    let mut random = [0u8; 8];
    getrandom::fill(&mut random)?;
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Ok(format!("{host}-{:016x}", u64::from_le_bytes(random)))
}

/// Blobs that are deleted only while a lease is ours: the next driver of the job may have come to need them.
#[derive(Debug)]
pub(crate) struct GuardedBlobs {
    blobs: Arc<dyn Blobs>,
    store: Arc<SqlStore>,
    name: String,
    lease: Lease,
}

impl GuardedBlobs {
    pub(crate) fn new(blobs: Arc<dyn Blobs>, store: Arc<SqlStore>, name: String, lease: Lease) -> Self {
        Self { blobs, store, name, lease }
    }
}

#[async_trait]
impl Blobs for GuardedBlobs {
    async fn writer(&self) -> Result<Box<dyn BlobWriter>, BlobError> {
        self.blobs.writer().await
    }

    async fn resume(
        &self,
        name: &str,
        sink: &mut (dyn for<'a> FnMut(&'a [u8]) + Send),
    ) -> Result<Box<dyn BlobWriter>, BlobError> {
        self.blobs.resume(name, sink).await
    }

    async fn unfinished(&self) -> Result<Vec<(String, u64)>, BlobError> {
        self.blobs.unfinished().await
    }

    async fn written(&self, name: &str) -> Result<u64, BlobError> {
        self.blobs.written(name).await
    }

    async fn abandon(&self, name: &str) -> Result<(), BlobError> {
        self.blobs.abandon(name).await
    }

    async fn open(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> Result<Box<dyn AsyncRead + Send + Unpin>, BlobError> {
        self.blobs.open(digest, offset).await
    }

    async fn local(&self, digest: &Digest) -> Result<LocalBlob, BlobError> {
        self.blobs.local(digest).await
    }

    async fn len(&self, digest: &Digest) -> Result<u64, BlobError> {
        self.blobs.len(digest).await
    }

    async fn delete(&self, digest: &Digest) -> Result<(), BlobError> {
        let away = |detail: String| BlobError::Away { at: format!("blob {}", digest.short()), detail };
        // Not for long: whoever takes the lease waits for it.
        let delete = tokio::time::timeout(HEARD_IN, self.blobs.delete(digest));
        let deleted = self.store.guarded(&self.name, &self.lease, delete).await;
        let deleted = deleted.map_err(|e| away(e.to_string()))?;
        deleted.unwrap_or_else(|_| Err(away(format!("it was not deleted within {} s", HEARD_IN.as_secs()))))
    }

    async fn list(&self) -> Result<Vec<Digest>, BlobError> {
        self.blobs.list().await
    }
}
