//! The client's folder: where what lies, and how it is written so that a crash at any moment leaves either the old
//! or the new.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// The folder of one client.
///
/// ```text
/// client.toml          what the data owner sets
/// identity/            ca.crt, client.crt, client.key (the key is made here and never leaves)
/// outbox/              for each job: its account, and the update that is on its way
/// models/              models by digest, the newest few
/// checkpoints/         for each job: what killed training goes on from
/// work/                the files of the training program that is running, if the owner has one of their own
/// decisions.jsonl      each offer, the decision and the numbers that it was based on
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFolder {
    dir: PathBuf,
    work: &'static str,
}

impl ClientFolder {
    /// The folder at `dir`, which need not exist yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), work: "work" }
    }

    /// The folder itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `client.toml`.
    pub fn config(&self) -> PathBuf {
        self.dir.join("client.toml")
    }

    /// The folder of certificate and key.
    pub fn identity(&self) -> PathBuf {
        self.dir.join("identity")
    }

    /// The folder of updates on their way.
    pub fn outbox(&self) -> PathBuf {
        self.dir.join("outbox")
    }

    /// The folder of fetched models.
    pub fn models(&self) -> PathBuf {
        self.dir.join("models")
    }

    /// The folder of checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.dir.join("checkpoints")
    }

    /// The folder of the owner's training program, while it runs.
    pub fn work(&self) -> PathBuf {
        self.dir.join(self.work)
    }

    /// The same folder for a look at the data beside a client that may be running: with another [`work`](Self::work).
    pub fn for_check(&self) -> Self {
        Self { work: "work.check", ..self.clone() }
    }

    /// The log of decisions.
    pub fn decisions(&self) -> PathBuf {
        self.dir.join("decisions.jsonl")
    }
}

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Whoever may enter the folder.
    Folder,
    /// The owner alone (keys).
    Owner,
}

/// Writes a whole file: under another name, synced, then renamed, then the folder synced.
pub(crate) fn write_durably(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let tmp = path.with_file_name(name);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    restrict(&mut options, access);
    let mut file = options.open(&tmp)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&tmp, path)?;
    sync_parent(path)
}

#[cfg(unix)]
fn restrict(options: &mut OpenOptions, access: Access) {
    use std::os::unix::fs::OpenOptionsExt as _;
    if access == Access::Owner {
        options.mode(0o600);
    }
}

#[cfg(not(unix))]
fn restrict(_: &mut OpenOptions, _: Access) {}

/// Makes a renamed or removed name durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    // Only on Unix is a folder a file that can be synced.
    if cfg!(unix)
        && let Some(parent) = path.parent()
    {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Appends one line and syncs it.
pub(crate) fn append_line(path: &Path, line: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let mut whole = Vec::with_capacity(line.len() + 1);
    whole.extend_from_slice(line);
    whole.push(b'\n');
    file.write_all(&whole)?;
    file.sync_data()
}

/// Removes a file; one that is not there is fine.
pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Makes a folder with its parents, for the owner alone.
pub(crate) fn create_private_dir(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt as _;
        builder.mode(0o700);
    }
    builder.create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_a_key_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client.key");
        write_durably(&path, b"old and long", Access::Owner).unwrap();
        write_durably(&path, b"new", Access::Owner).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn lines_are_added_behind_those_that_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        append_line(&path, b"one").unwrap();
        append_line(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\n");
        remove_if_there(&path).unwrap();
        remove_if_there(&path).unwrap();
        assert!(!path.exists());
    }
}
