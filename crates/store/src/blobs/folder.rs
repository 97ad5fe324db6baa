//! Blobs as files of a folder: `ab/cdef…` for the digest `abcdef…`, `tmp/` for what is being written, and `unfinished/`
//! for what is being written and may be gone on with later.
//!
//! A file appears under its name by a rename, after its bytes are on the disk; its name is on the disk before
//! anybody hears of it. Every file in `tmp/` is locked by its writer, and the lock ends with the process:
//! opening the folder removes what dead writers left and spares what living ones, here or elsewhere, write.

use super::verify::Verified;
use super::{BlobError, BlobWriter, Blobs, LocalBlob, check_expected, check_name};
use crate::durability::Durability;
use async_trait::async_trait;
use bytes::Bytes;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncRead, AsyncSeekExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use undertone_core::digest::{Digest, Digester};

/// [`Blobs`] in a folder of a local disk.
#[derive(Debug, Clone)]
pub struct FolderBlobs {
    root: PathBuf,
    durability: Durability,
    /// Folders, by the digests' first byte, whose names are on the disk for sure.
    named: Arc<[AtomicBool; 256]>,
    /// For what all writers have accepted and not yet written, in KiB.
    room: Arc<Semaphore>,
}

/// Tells the files of this process in `tmp/` apart.
static NEXT_FILE: AtomicU64 = AtomicU64::new(0);

/// A file being written.
#[derive(Debug)]
pub(super) struct FolderWriter {
    blobs: FolderBlobs,
    tmp: PathBuf,
    file: Place,
    queue: Arc<Mutex<Queue>>,
    bytes: u64,
    /// No write was given up half-way.
    whole: bool,
    /// The file has its name; `tmp` may be another's by now.
    kept: bool,
    /// Whoever comes later may go on.
    resumable: bool,
}

/// What all writers of a folder together have in memory, in KiB: however many there are, and however slow the disk is.
const ROOM_KIB: usize = 4 << 10;

/// What is on its way to a file. It goes there as soon as what came before has gone: nothing waits for more to come, so that what
/// is taken of the room is given back.
#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Accepted>,
    /// Somebody writes, and will look here again when it is done.
    writing: bool,
}

#[derive(Debug)]
struct Accepted {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

/// Where the next bytes go.
enum Place {
    Here(Open),
    /// The bytes before them are being written.
    Behind(JoinHandle<(Open, io::Result<()>)>),
    /// Nowhere: a write failed.
    Lost,
}

struct Open {
    file: File,
    digester: Digester,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Here(_) => "settled",
            Self::Behind(_) => "writing",
            Self::Lost => "lost",
        })
    }
}

impl FolderBlobs {
    /// Opens the folder at `root`, making it (for this user only) if need be, and removes unfinished files.
    ///
    /// # Errors
    /// [`BlobError`] if the folder cannot be made, read or written.
    pub async fn open(root: impl Into<PathBuf>, durability: Durability) -> Result<Self, BlobError> {
        let root = root.into();
        let root = std::path::absolute(&root).map_err(|e| BlobError::at(&root, e))?;
        let named = Arc::new([const { AtomicBool::new(false) }; 256]);
        let room = Arc::new(Semaphore::new(ROOM_KIB));
        let blobs = Self { root, durability, named, room };
        let opened = blobs.clone();
        blocking(&blobs.root, move || opened.prepare()).await?;
        Ok(blobs)
    }

    fn prepare(&self) -> Result<(), BlobError> {
        let tmp = self.root.join("tmp");
        // Whose names are new in the folder above; a blob in a folder without a name would be lost.
        let new: Vec<&Path> = tmp.ancestors().take_while(|folder| !folder.exists()).collect();
        make_folder(&tmp).map_err(|e| BlobError::at(&tmp, e))?;
        for above in new.into_iter().filter_map(Path::parent) {
            self.sync(above, || sync_folder(above))?;
        }
        let entries = fs::read_dir(&tmp).map_err(|e| BlobError::at(&tmp, e))?;
        for entry in entries {
            let path = entry.map_err(|e| BlobError::at(&tmp, e))?.path();
            match remove_leftover(&path) {
                Ok(true) => tracing::info!(path = %path.display(), "removed a blob that was never finished"),
                Ok(false) => {}
                Err(e) => return Err(BlobError::at(&path, e)),
            }
        }
        Ok(())
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.to_string();
        let (folder, file) = hex.split_at(2);
        self.root.join(folder).join(file)
    }

    /// A new locked file in `tmp/`.
    fn begin(&self) -> Result<(PathBuf, File), BlobError> {
        loop {
            let number = NEXT_FILE.fetch_add(1, Ordering::Relaxed);
            let path = self.root.join("tmp").join(format!("{}-{number}", std::process::id()));
            let file = match create(&path) {
                // An unfinished file of an earlier process of our number, from after the folder was opened.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
                other => other.map_err(|e| BlobError::at(&path, e))?,
            };
            match file.try_lock() {
                Ok(()) => return Ok((path, file)),
                // Another process opens the folder just now and takes the file for a leftover.
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(e)) => return Err(BlobError::at(&path, e)),
            }
        }
    }

    fn unfinished_path(&self, name: &str) -> Result<PathBuf, BlobError> {
        check_name(name)?;
        Ok(self.root.join("unfinished").join(name))
    }

    /// Opens an unfinished file at its beginning, locked.
    fn reopen(&self, name: &str) -> Result<(PathBuf, File), BlobError> {
        let path = self.unfinished_path(name)?;
        let at = |e| BlobError::at(&path, e);
        make_folder(&self.root.join("unfinished")).map_err(at)?;
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(&path).map_err(at)?;
        match file.try_lock() {
            Ok(()) => Ok((path, file)),
            Err(TryLockError::WouldBlock) => Err(BlobError::InUse { name: name.into() }),
            Err(TryLockError::Error(e)) => Err(at(e)),
        }
    }

    fn unfinished_names(&self) -> Result<Vec<(String, u64)>, BlobError> {
        let folder = self.root.join("unfinished");
        let at = |e| BlobError::at(&folder, e);
        let entries = match fs::read_dir(&folder) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(vec![]),
            other => other.map_err(at)?,
        };
        let mut names = vec![];
        for entry in entries {
            let entry = entry.map_err(at)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            // One that is finished just now is gone.
            let Ok(meta) = entry.metadata() else { continue };
            let age = meta.modified().ok().and_then(|at| at.elapsed().ok()).unwrap_or_default();
            if check_name(&name).is_ok() {
                names.push((name, age.as_secs()));
            }
        }
        Ok(names)
    }

    /// Gives a finished file its name. The file is locked until after that.
    fn keep(&self, tmp: &Path, file: File, digest: &Digest) -> Result<(), BlobError> {
        let path = self.path(digest);
        let folder = path.parent().unwrap_or(&self.root);
        self.sync(tmp, || file.sync_all())?;
        let named = &self.named[usize::from(digest.as_bytes()[0])];
        if !named.load(Ordering::Relaxed) {
            make_folder(folder).map_err(|e| BlobError::at(folder, e))?;
            // Also if it was there: whoever made it may not have come to this.
            self.sync(&self.root, || sync_folder(&self.root))?;
            named.store(true, Ordering::Relaxed);
        }
        // If the blob is there already, this puts the same bytes in its place, and mends it if it was damaged.
        fs::rename(tmp, &path).map_err(|e| BlobError::at(&path, e))?;
        self.sync(folder, || sync_folder(folder))
    }

    /// Every `ab/cdef…` that is a digest; what else lies in the folder is not ours.
    fn names(&self) -> Result<Vec<Digest>, BlobError> {
        let mut names = Vec::new();
        for folder in fs::read_dir(&self.root).map_err(|e| BlobError::at(&self.root, e))? {
            let folder = folder.map_err(|e| BlobError::at(&self.root, e))?;
            let Ok(front) = folder.file_name().into_string() else { continue };
            if front.len() != 2 || !folder.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let path = folder.path();
            for file in fs::read_dir(&path).map_err(|e| BlobError::at(&path, e))? {
                let file = file.map_err(|e| BlobError::at(&path, e))?;
                let Ok(back) = file.file_name().into_string() else { continue };
                names.extend(format!("{front}{back}").parse::<Digest>().ok());
            }
        }
        Ok(names)
    }

    /// As [`Blobs::writer`].
    pub(super) async fn new_writer(&self) -> Result<FolderWriter, BlobError> {
        let blobs = self.clone();
        let (tmp, file) = blocking(&self.root, move || blobs.begin()).await?;
        Ok(FolderWriter::at(self.clone(), tmp, Open { file, digester: Digester::new() }, 0, false))
    }

    /// As [`Blobs::resume`].
    pub(super) async fn resumed_writer(
        &self,
        name: &str,
        sink: &mut (dyn for<'a> FnMut(&'a [u8]) + Send),
    ) -> Result<FolderWriter, BlobError> {
        let (blobs, wanted) = (self.clone(), name.to_owned());
        let (tmp, file) = blocking(&self.root, move || blobs.reopen(&wanted)).await?;
        let mut open = Open { file, digester: Digester::new() };
        let (mut bytes, mut block) = (0, vec![]);
        loop {
            let path = tmp.clone();
            let read = blocking(&tmp, move || {
                block.resize(1 << 20, 0);
                let n = open.file.read(&mut block).map_err(|e| BlobError::at(&path, e))?;
                block.truncate(n);
                open.digester.update(&block);
                Ok((open, block))
            });
            (open, block) = read.await?;
            if block.is_empty() {
                break;
            }
            sink(&block);
            bytes += block.len() as u64;
        }
        Ok(FolderWriter::at(self.clone(), tmp, open, bytes, true))
    }

    fn sync(&self, path: &Path, sync: impl FnOnce() -> io::Result<()>) -> Result<(), BlobError> {
        match self.durability {
            Durability::Disk => sync().map_err(|e| BlobError::at(path, e)),
            Durability::Process => Ok(()),
        }
    }
}

#[async_trait]
impl Blobs for FolderBlobs {
    async fn writer(&self) -> Result<Box<dyn BlobWriter>, BlobError> {
        Ok(Box::new(self.new_writer().await?))
    }

    async fn resume(
        &self,
        name: &str,
        sink: &mut (dyn for<'a> FnMut(&'a [u8]) + Send),
    ) -> Result<Box<dyn BlobWriter>, BlobError> {
        Ok(Box::new(self.resumed_writer(name, sink).await?))
    }

    async fn unfinished(&self) -> Result<Vec<(String, u64)>, BlobError> {
        let blobs = self.clone();
        blocking(&self.root, move || blobs.unfinished_names()).await
    }

    async fn written(&self, name: &str) -> Result<u64, BlobError> {
        let path = self.unfinished_path(name)?;
        match tokio::fs::metadata(&path).await {
            Ok(meta) => Ok(meta.len()),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(0),
            Err(e) => Err(BlobError::at(&path, e)),
        }
    }

    async fn abandon(&self, name: &str) -> Result<(), BlobError> {
        let path = self.unfinished_path(name)?;
        match tokio::fs::remove_file(&path).await {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(BlobError::at(&path, e)),
            _ => Ok(()),
        }
    }

    async fn open(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> Result<Box<dyn AsyncRead + Send + Unpin>, BlobError> {
        let path = self.path(digest);
        let mut file = tokio::fs::File::open(&path).await.map_err(|e| absent(digest, &path, e))?;
        let bytes = file.metadata().await.map_err(|e| BlobError::at(&path, e))?.len();
        if offset > bytes {
            return Err(BlobError::PastEnd { digest: *digest, bytes, offset });
        }
        if offset == 0 {
            return Ok(Box::new(Verified::new(file, *digest)));
        }
        file.seek(SeekFrom::Start(offset)).await.map_err(|e| BlobError::at(&path, e))?;
        Ok(Box::new(file))
    }

    async fn local(&self, digest: &Digest) -> Result<LocalBlob, BlobError> {
        let path = self.path(digest);
        let file = tokio::fs::File::open(&path).await.map_err(|e| absent(digest, &path, e))?;
        Ok(LocalBlob::File(file.into_std().await.into()))
    }

    async fn len(&self, digest: &Digest) -> Result<u64, BlobError> {
        let path = self.path(digest);
        Ok(tokio::fs::metadata(&path).await.map_err(|e| absent(digest, &path, e))?.len())
    }

    async fn delete(&self, digest: &Digest) -> Result<(), BlobError> {
        let path = self.path(digest);
        match tokio::fs::remove_file(&path).await {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(BlobError::at(&path, e)),
            // Not synced: a blob that a power cut brings back costs space, no more.
            _ => Ok(()),
        }
    }

    async fn list(&self) -> Result<Vec<Digest>, BlobError> {
        let blobs = self.clone();
        blocking(&self.root, move || blobs.names()).await
    }
}

impl FolderWriter {
    fn at(blobs: FolderBlobs, tmp: PathBuf, open: Open, bytes: u64, resumable: bool) -> Self {
        let (file, queue) = (Place::Here(open), Arc::default());
        Self { blobs, tmp, file, queue, bytes, whole: true, kept: false, resumable }
    }

    /// All bytes so far, to be read, with their digest and their number.
    pub(super) async fn so_far(&mut self) -> Result<(LocalBlob, Digest, u64), BlobError> {
        let digest = self.settle().await?;
        let file = tokio::fs::File::open(&self.tmp).await.map_err(|e| BlobError::at(&self.tmp, e))?;
        Ok((LocalBlob::File(file.into_std().await.into()), digest, self.bytes))
    }

    /// Waits until nothing is on its way to the file.
    async fn settled(&mut self) -> Result<(), BlobError> {
        if let Place::Behind(writing) = &mut self.file {
            // Given up here, the handle stays: whoever asks next waits for the same write.
            let (open, written) = writing.await.map_err(|e| BlobError::at(&self.tmp, io::Error::other(e)))?;
            self.file = match &written {
                Ok(()) => Place::Here(open),
                Err(_) => Place::Lost,
            };
            written.map_err(|e| BlobError::at(&self.tmp, e))?;
        }
        match &self.file {
            Place::Here(_) => Ok(()),
            _ => Err(BlobError::Spoilt),
        }
    }

    /// Begins to write what waits.
    async fn begin_writing(&mut self) -> Result<(), BlobError> {
        self.settled().await?;
        let Place::Here(mut open) = std::mem::replace(&mut self.file, Place::Lost) else {
            return Err(BlobError::Spoilt);
        };
        let queue = self.queue.clone();
        self.file = Place::Behind(tokio::task::spawn_blocking(move || {
            let written = drain(&queue, &mut open);
            (open, written)
        }));
        Ok(())
    }
}

/// Writes what waits, until nothing does.
fn drain(queue: &Mutex<Queue>, open: &mut Open) -> io::Result<()> {
    let mut written = Ok(());
    loop {
        let waiting = {
            let mut queue = queue.lock().expect("no panic while locked");
            if queue.waiting.is_empty() || written.is_err() {
                queue.writing = false;
                queue.waiting.clear();
                return written;
            }
            std::mem::take(&mut queue.waiting)
        };
        for Accepted { bytes, _room } in waiting {
            written = written.and_then(|()| open.file.write_all(&bytes));
            open.digester.update(&bytes);
        }
    }
}

#[async_trait]
impl BlobWriter for FolderWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<(), BlobError> {
        if !std::mem::replace(&mut self.whole, false) {
            return Err(BlobError::Spoilt);
        }
        self.bytes += bytes.len() as u64;
        let kib = bytes.len().div_ceil(1 << 10).min(ROOM_KIB) as u32;
        let room = self.blobs.room.clone().acquire_many_owned(kib).await.expect("it is never closed");
        let begin = {
            let mut queue = self.queue.lock().expect("no panic while locked");
            queue.waiting.push(Accepted { bytes, _room: room });
            !std::mem::replace(&mut queue.writing, true)
        };
        if begin {
            self.begin_writing().await?;
        }
        self.whole = true;
        Ok(())
    }

    async fn settle(&mut self) -> Result<Digest, BlobError> {
        self.settled().await?;
        match &self.file {
            Place::Here(open) if self.whole => Ok(open.digester.clone().finish()),
            _ => Err(BlobError::Spoilt),
        }
    }

    async fn commit(mut self: Box<Self>, expected: Option<Digest>) -> Result<(Digest, u64), BlobError> {
        let digest = self.settle().await?;
        if let Err(e) = check_expected(expected, digest) {
            // Nobody goes on with what is wrong.
            self.resumable = false;
            return Err(e);
        }
        let Place::Here(Open { file, .. }) = std::mem::replace(&mut self.file, Place::Lost) else {
            return Err(BlobError::Spoilt);
        };
        let (blobs, tmp) = (self.blobs.clone(), self.tmp.clone());
        blocking(&self.tmp, move || blobs.keep(&tmp, file, &digest)).await?;
        self.kept = true;
        Ok((digest, self.bytes))
    }
}

/// What was not given its name leaves nothing.
impl Drop for FolderWriter {
    fn drop(&mut self) {
        if self.kept || self.resumable {
            return;
        }
        match fs::remove_file(&self.tmp) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(path = %self.tmp.display(), %error, "an unfinished blob stays until the next start");
            }
            _ => {}
        }
    }
}

/// A missing file is a missing blob.
fn absent(digest: &Digest, path: &Path, error: io::Error) -> BlobError {
    match error.kind() {
        ErrorKind::NotFound => BlobError::NotFound { digest: *digest },
        _ => BlobError::at(path, error),
    }
}

/// Runs what waits for the disk beside the async tasks.
async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
) -> Result<T, BlobError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(BlobError::at(path, io::Error::other(e))))
}

fn make_folder(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Removes a file in `tmp/` unless a living writer holds it.
fn remove_leftover(path: &Path) -> io::Result<bool> {
    let gone = |e: io::Error| if e.kind() == ErrorKind::NotFound { Ok(false) } else { Err(e) };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) => return gone(e),
    };
    match file.try_lock() {
        Ok(()) => fs::remove_file(path).map(|()| true).or_else(gone),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

/// Makes the names in a folder durable.
fn sync_folder(path: &Path) -> io::Result<()> {
    // Elsewhere than on Unix a folder cannot be opened as a file, and renames need no help.
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests;
