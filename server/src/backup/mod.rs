//! Backups: what survives a machine that does not, and how a deployment comes back from one without forgetting what it has spent.
//!
//! [`make`] copies what the promises rest on while the coordinator runs. It leaves out what only a running job needs: the updates of
//! clients and the state of correlated noise are secrets, and a job is not resumed from an older copy of itself, for it would draw
//! noise a second time over the same people. [`restore`] puts a backup into an empty place; `settle` then has the ledger take the
//! maximum of all that is known (`newer`), counts what may have been spent besides, and ends the jobs that were under way.

mod make;
mod manifest;
mod newer;
mod restore;
mod settle;
#[cfg(test)]
pub(crate) mod tests;

pub use make::{Made, make};
pub use manifest::{Manifest, verify};
pub use restore::{Restored, in_place, restore};
pub use settle::{Counted, Knowledge, Settled};

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use undertone_core::config::ConfigError;
use undertone_core::digest::{Digest, Digester};
use undertone_core::id::JobId;
use undertone_privacy::ledger::chain::Line;
use undertone_store::{BlobError, Store, StoreError};

/// Lines of the ledger read at once.
const PAGE: u32 = 1024;

/// Why a backup was not made or not restored. Nothing is left of what was begun.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// `server.toml`.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The state is not a file.
    #[error(
        "the state of this deployment is a PostgreSQL database, which has better backups than this command could make: use pg_dump or \
         continuous archiving, keep server.toml and the pki folder too, and run `undertone-server restore --in-place` when it was set \
         back (docs/OPERATIONS.md)"
    )]
    Database,
    /// Something is there.
    #[error("{0} holds something already: name a folder that is empty or not there yet")]
    Occupied(PathBuf),
    /// Not a backup.
    #[error("{path} is no whole backup: {problem}; take another one")]
    Damaged {
        /// The backup, or the file in it.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// Made by a later program.
    #[error(
        "{path} is a backup of format {format}, and this program knows formats up to {known}: restore it with the newer program"
    )]
    Newer {
        /// The backup.
        path: String,
        /// Its format.
        format: u32,
        /// The newest that is known.
        known: u32,
    },
    /// The state.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A step was not made.
    #[error("the restored state was not settled: {0}")]
    Step(#[from] undertone_store::CommitError),
    /// Models.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// A ledger that is none.
    #[error("{from}: {problem}")]
    Ledger {
        /// Where it is from.
        from: String,
        /// What is wrong.
        problem: String,
    },
    /// Two ledgers that are not one.
    #[error(
        "{from} is not a later copy of the ledger in the backup: they part at line {line}, so that one of them is of another deployment \
         or was written after an earlier restore"
    )]
    Parted {
        /// The other one.
        from: String,
        /// The first line that differs.
        line: u64,
    },
    /// A database in use.
    #[error("{0}: a coordinator works on it: stop all coordinators of this deployment first")]
    InUse(String),
    /// A job that this program does not understand.
    #[error(
        "job {job} cannot be read ({problem}), so that what it may have spent cannot be told: restore with the version that ran it"
    )]
    Unreadable {
        /// Which.
        job: JobId,
        /// Why.
        problem: String,
    },
    /// A job that only a newer ledger knows.
    #[error(
        "job {0} was submitted after the backup: name its file too (--job FILE), so that what it may have spent since can be counted"
    )]
    UnknownJob(JobId),
    /// The machine gave no randomness.
    #[error("the operating system gave no randomness: {0}")]
    Randomness(#[from] getrandom::Error),
}

impl BackupError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::File { path, source }
    }
}

/// All lines of a store's ledger; whether they are a chain is another question.
async fn lines(store: &dyn Store) -> Result<Vec<Line>, BackupError> {
    let mut lines = vec![];
    loop {
        let rows = store.ledger(lines.len() as u64, PAGE).await?;
        let whole = rows.len() == PAGE as usize;
        for row in rows {
            lines.push(parse_line(&row.document).map_err(|problem| BackupError::Ledger {
                from: "the privacy ledger".into(),
                problem: format!("line {} makes no sense: {problem}", row.seq),
            })?);
        }
        if !whole {
            return Ok(lines);
        }
    }
}

fn parse_line(document: &str) -> Result<Line, String> {
    serde_json::from_str(document).map_err(|e| e.to_string())
}

/// Whether nothing is in the place of a folder.
fn is_free(folder: &Path) -> Result<bool, BackupError> {
    match fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.all(|entry| entry.is_ok_and(|e| e.file_name() == "lost+found"))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(e) => Err(BackupError::at(folder)(e)),
    }
}

/// What was made so far. Unless it is kept, all of it is taken away again.
#[derive(Debug, Default)]
struct Begun(Vec<PathBuf>);

impl Begun {
    /// A folder for this user only, if it is not there; with those above it.
    fn folder(&mut self, path: &Path) -> Result<(), BackupError> {
        let mut new: Vec<&Path> =
            path.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.exists()).collect();
        new.reverse();
        for folder in new {
            DirBuilder::new().mode(0o700).create(folder).map_err(BackupError::at(folder))?;
            self.0.push(folder.to_owned());
        }
        Ok(())
    }

    /// A file that another program makes.
    fn will_make(&mut self, path: &Path) {
        self.0.push(path.to_owned());
    }

    /// A durable copy with this mode; its length and digest.
    fn copy(&mut self, from: &Path, to: &Path, mode: u32) -> Result<(u64, Digest), BackupError> {
        let mut read = File::open(from).map_err(BackupError::at(from))?;
        let mut options = OpenOptions::new();
        let mut write =
            options.write(true).create_new(true).mode(mode).open(to).map_err(BackupError::at(to))?;
        self.0.push(to.to_owned());
        let (mut digester, mut bytes, mut block) = (Digester::new(), 0, vec![0; 1 << 20]);
        loop {
            let n = read.read(&mut block).map_err(BackupError::at(from))?;
            if n == 0 {
                break;
            }
            digester.update(&block[..n]);
            bytes += n as u64;
            write.write_all(&block[..n]).map_err(BackupError::at(to))?;
        }
        write.sync_all().map_err(BackupError::at(to))?;
        Ok((bytes, digester.finish()))
    }

    /// A durable file with this content, for this user only.
    fn write(&mut self, path: &Path, content: &[u8]) -> Result<(), BackupError> {
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create_new(true).mode(0o600).open(path).map_err(BackupError::at(path))?;
        self.0.push(path.to_owned());
        file.write_all(content).and_then(|()| file.sync_all()).map_err(BackupError::at(path))
    }

    /// It stays, durably.
    fn keep(mut self) -> Result<(), BackupError> {
        let made = std::mem::take(&mut self.0);
        for folder in
            made.iter().filter_map(|path| if path.is_dir() { Some(path.as_path()) } else { path.parent() })
        {
            File::open(folder).and_then(|f| f.sync_all()).map_err(BackupError::at(folder))?;
        }
        Ok(())
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            // What cannot be taken away is in the way of the next try, which says so.
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }
}
