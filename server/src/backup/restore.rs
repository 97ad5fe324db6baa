//! Putting a backup into an empty place, and settling a database that its own tools have set back.

use super::manifest::{BLOBS, CONFIG, OPERATOR, PKI, STATE, verify};
use super::settle::settle;
use super::{BackupError, Begun, Knowledge, Manifest, Settled, is_free};
use crate::clock::unix_ms;
use crate::config::{self, ServerConfig};
use crate::storage::{self, ENTRANCE};
use bytes::Bytes;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;
use undertone_core::digest::Digest;
use undertone_store::{Blobs as _, Durability, FolderBlobs, Lease, SqlStore, Store as _};

/// How long a database is ours while it is settled.
const LEASE: Duration = Duration::from_secs(120);

/// A deployment that is back.
#[derive(Debug, Clone, PartialEq)]
pub struct Restored {
    /// The backup.
    pub manifest: Manifest,
    /// What became of its state.
    pub settled: Settled,
}

/// Restores the backup in `from` to `dir`, which is empty or not there yet.
///
/// The whole backup is checked before anything is written; `server.toml` comes last, so that a folder with one is a whole deployment.
///
/// # Errors
/// [`BackupError`]; nothing of the deployment is there then.
pub async fn restore(from: &Path, dir: &Path, knowledge: &Knowledge) -> Result<Restored, BackupError> {
    let manifest = verify(from)?;
    let config = ServerConfig::read(&from.join(CONFIG), dir)?;
    for folder in [dir, &config.pki, &config.storage.folder] {
        if !is_free(folder)? {
            return Err(BackupError::Occupied(folder.to_owned()));
        }
    }
    let mut begun = Begun::default();
    begun.folder(dir)?;
    begun.folder(&config.storage.folder)?;
    // Whoever starts a coordinator too early finds no state of another day.
    let half = config.storage.folder.join("restoring.sqlite");
    begun.copy(&from.join(STATE), &half, 0o600)?;
    for beside in ["-wal", "-shm"] {
        let mut name = half.clone().into_os_string();
        name.push(beside);
        begun.will_make(Path::new(&name));
    }
    let store = SqlStore::sqlite(&half, Durability::Disk).await?;
    let why = format!("restored from a backup of {} (Unix seconds)", manifest.made_unix_s);
    let settled = settle(&store, knowledge, &why, unix_ms()).await;
    store.close().await;
    let settled = settled?;

    if manifest.files_in(BLOBS).next().is_some() {
        begun.will_make(&config.storage.blobs());
        let blobs = FolderBlobs::open(config.storage.blobs(), Durability::Disk).await?;
        for (_, kept) in manifest.files_in(BLOBS) {
            put(&blobs, &from.join(&kept.path), kept.digest).await?;
        }
    }
    for (inside, folder) in [(PKI, config.pki.clone()), (OPERATOR, dir.join("operator"))] {
        for (name, kept) in manifest.files_in(inside) {
            begun.folder(&folder)?;
            let mode = if name.ends_with(".crt") { 0o644 } else { 0o600 };
            begun.copy(&from.join(&kept.path), &folder.join(name), mode)?;
        }
    }
    let state = config.storage.file();
    let mut log = half.clone().into_os_string();
    log.push("-wal");
    if Path::new(&log).exists() {
        let problem = "its database could not be closed whole: restore it again".into();
        return Err(BackupError::Damaged { path: half.display().to_string(), problem });
    }
    std::fs::rename(&half, &state).map_err(BackupError::at(&state))?;
    begun.will_make(&state);
    begun.copy(&from.join(CONFIG), &dir.join("server.toml"), 0o644)?;
    begun.keep()?;
    Ok(Restored { manifest, settled })
}

/// A model that the backup's list was checked to have; what changed since is refused by its digest.
async fn put(blobs: &FolderBlobs, file: &Path, digest: Digest) -> Result<(), BackupError> {
    let mut read = File::open(file).map_err(BackupError::at(file))?;
    let mut writer = blobs.writer().await?;
    let mut block = vec![0; 1 << 20];
    loop {
        let n = read.read(&mut block).map_err(BackupError::at(file))?;
        if n == 0 {
            break;
        }
        writer.write(Bytes::copy_from_slice(&block[..n])).await?;
    }
    writer.commit(Some(digest)).await?;
    Ok(())
}

/// Settles the state of the deployment in `dir` after its database was set back by other means.
///
/// # Errors
/// [`BackupError`]. Run again, it goes on.
pub async fn in_place(dir: &Path, knowledge: &Knowledge) -> Result<Settled, BackupError> {
    let config = ServerConfig::load(dir)?;
    let folder = &config.storage.folder;
    std::fs::create_dir_all(folder).map_err(BackupError::at(folder))?;
    let lock = folder.join("lock");
    let held = File::create(&lock).map_err(BackupError::at(&lock))?;
    if held.try_lock().is_err() {
        return Err(BackupError::InUse(folder.display().to_string()));
    }
    let durability = match config.storage.durability {
        config::Durability::Disk => Durability::Disk,
        config::Durability::Process => Durability::Process,
    };
    let why = "its database was restored from a backup";
    let Some(url) = &config.storage.database else {
        let file = config.storage.file();
        // Else an empty one would be made of it.
        std::fs::metadata(&file).map_err(BackupError::at(&file))?;
        let store = SqlStore::sqlite(&file, durability).await?;
        store.unsettle(why).await?;
        let settled = settle(&store, knowledge, why, unix_ms()).await;
        store.close().await;
        return settled;
    };
    let store = SqlStore::postgres(url, durability).await?;
    let name = storage::random_name().map_err(BackupError::at(folder))?;
    let holder = format!("{}{name}", storage::RESTORING);
    // No coordinator comes in while this is held, and none must be there.
    let lease = store.take_lease(ENTRANCE, &holder, LEASE).await?;
    if lease.holder != holder {
        return Err(BackupError::InUse(format!("the database (held by {})", lease.holder)));
    }
    let settled = async {
        let there: Vec<String> = store.replicas().await?.into_iter().collect();
        if !there.is_empty() {
            return Err(BackupError::InUse(format!("the database (used by {})", there.join(", "))));
        }
        // From here on one that was cut off and comes back does nothing, whatever leases it believes in, and none begins.
        store.unsettle(why).await?;
        tokio::select! {
            settled = settle(&store, knowledge, why, unix_ms()) => settled,
            lost = keep(&store, &lease) => Err(lost),
        }
    };
    let settled = settled.await;
    store.end_lease(ENTRANCE, &lease).await?;
    store.close().await;
    settled
}

/// Has a lease last; resolves when it is lost.
async fn keep(store: &SqlStore, lease: &Lease) -> BackupError {
    loop {
        tokio::time::sleep(LEASE / 4).await;
        match store.renew_lease(ENTRANCE, lease, LEASE).await {
            Ok(true) => {}
            Ok(false) => return BackupError::InUse("the database (it was taken meanwhile)".into()),
            Err(e) => return e.into(),
        }
    }
}
