//! Making a backup, also while the coordinator runs.

use super::manifest::{BLOBS, CONFIG, FILE, FORMAT, Kept, Manifest, OPERATOR, PKI, STATE, digest_of};
use super::{BackupError, Begun, is_free, lines};
use crate::clock::unix_s;
use crate::config::ServerConfig;
use std::io;
use std::path::{Path, PathBuf};
use tokio::io::AsyncWriteExt as _;
use undertone_core::digest::Digest;
use undertone_core::id::JobId;
use undertone_privacy::ledger::chain::Chain;
use undertone_privacy::ledger::population::Budgets;
use undertone_store::{Blobs as _, Durability, FolderBlobs, SqlStore, Store as _};

/// A backup that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// What is in it.
    pub manifest: Manifest,
    /// Jobs that were under way: they will not go on from it.
    pub open_jobs: Vec<JobId>,
    /// Where the models are, if they are in a bucket and not in the backup.
    pub bucket: Option<String>,
}

/// Copies the state of the deployment in `dir`, its released models and its keys to the folder `to`, which is empty or not there yet.
///
/// # Errors
/// [`BackupError`]. A model that cannot be read is none: [`Manifest::without`] names it.
pub async fn make(dir: &Path, to: &Path) -> Result<Made, BackupError> {
    let config = ServerConfig::load(dir)?;
    if config.storage.database.is_some() {
        return Err(BackupError::Database);
    }
    if !is_free(to)? {
        return Err(BackupError::Occupied(to.to_owned()));
    }
    let mut begun = Begun::default();
    begun.folder(to)?;

    let state = to.join(STATE);
    begun.will_make(&state);
    SqlStore::copy_sqlite(&config.storage.file(), &state).await?;
    // From here on all is about the copy: it names models that nobody deletes, and the coordinator may go on.
    let store = SqlStore::sqlite(&state, Durability::Disk).await?;
    let lines = lines(&store).await?;
    let chain = Chain::from_lines(Budgets::default(), lines)
        .map_err(|e| BackupError::Ledger { from: "the privacy ledger".into(), problem: e.to_string() })?;
    let open_jobs = store.open_jobs().await?.into_iter().map(|job| job.id).collect();
    let mut models = store.released_models().await?;
    store.close().await;
    models.sort();

    let mut files = vec![];
    let (bytes, digest) = digest_of(&state).map_err(BackupError::at(&state))?;
    files.push(Kept { path: STATE.into(), bytes, digest });
    let mut without = vec![];
    let bucket = config.storage.bucket.as_ref().map(|bucket| bucket.url.clone());
    if bucket.is_none() && !models.is_empty() {
        let blobs = FolderBlobs::open(config.storage.blobs(), Durability::Disk).await?;
        begun.folder(&to.join(BLOBS))?;
        for model in models {
            match copy_blob(&blobs, &model, to, &mut begun).await? {
                Some(kept) => files.push(kept),
                None => without.push(model),
            }
        }
    }
    let mut copy = |from: &Path, path: String| -> Result<(), BackupError> {
        let (bytes, digest) = begun.copy(from, &to.join(&path), 0o600)?;
        files.push(Kept { path, bytes, digest });
        Ok(())
    };
    copy(&dir.join("server.toml"), CONFIG.into())?;
    for (folder, inside) in [(config.pki.clone(), PKI), (dir.join("operator"), OPERATOR)] {
        let names = names_in(&folder)?;
        if !names.is_empty() {
            make_folder(&to.join(inside))?;
        }
        for name in names {
            copy(&folder.join(&name), format!("{inside}/{name}"))?;
        }
    }

    let manifest = Manifest {
        format: FORMAT,
        software: format!("undertone-server {}", env!("CARGO_PKG_VERSION")),
        deployment: config.name,
        made_unix_s: unix_s(),
        ledger_lines: chain.len(),
        ledger_head: chain.head(),
        files,
        without,
    };
    begun.write(&to.join(FILE), &manifest.seal())?;
    begun.keep()?;
    Ok(Made { manifest, open_jobs, bucket })
}

/// Inside of the backup's folder, which is taken away as a whole.
fn make_folder(path: &Path) -> Result<(), BackupError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().mode(0o700).create(path).map_err(BackupError::at(path))
}

/// The plain files of a folder; none if there is no such folder.
fn names_in(folder: &Path) -> Result<Vec<String>, BackupError> {
    let entries = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        other => other.map_err(BackupError::at(folder))?,
    };
    let mut names = vec![];
    for entry in entries {
        let entry = entry.map_err(BackupError::at(folder))?;
        // Through links, as mounted secrets are.
        if entry.path().is_file()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// A model as a file of the backup; none if it is gone or damaged.
async fn copy_blob(
    blobs: &FolderBlobs,
    digest: &Digest,
    to: &Path,
    begun: &mut Begun,
) -> Result<Option<Kept>, BackupError> {
    // As they lie in a deployment: a single one can be put back.
    let hex = digest.to_string();
    let (front, back) = hex.split_at(2);
    let folder = to.join(BLOBS).join(front);
    if !folder.exists() {
        make_folder(&folder)?;
    }
    let path = format!("{BLOBS}/{front}/{back}");
    let file: PathBuf = to.join(&path);
    // It ends in an error instead of an end if it is not what its name says.
    let mut read = match blobs.open(digest, 0).await {
        Ok(read) => read,
        Err(error) => {
            tracing::warn!(%error, model = %digest, "a released model cannot be read: the backup is without it");
            return Ok(None);
        }
    };
    begun.write(&file, &[])?;
    let mut write =
        tokio::fs::OpenOptions::new().write(true).open(&file).await.map_err(BackupError::at(&file))?;
    let copied = tokio::io::copy(&mut read, &mut write).await;
    match copied {
        Ok(bytes) => {
            let kept = async {
                write.flush().await?;
                write.sync_all().await
            };
            kept.await.map_err(BackupError::at(&file))?;
            Ok(Some(Kept { path, bytes, digest: *digest }))
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            tracing::warn!(%error, "a released model is damaged: the backup is without it");
            std::fs::remove_file(&file).map_err(BackupError::at(&file))?;
            Ok(None)
        }
        Err(error) => Err(BackupError::at(&file)(error)),
    }
}
