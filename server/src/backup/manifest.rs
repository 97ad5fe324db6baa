//! The list of what a backup holds, which is written last: a folder without it is no backup.

use super::BackupError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::path::{Component, Path};
use undertone_core::digest::{Digest, Digester};

/// What the list is called.
pub(super) const FILE: &str = "backup.json";
/// The copy of the state.
pub(super) const STATE: &str = "state.sqlite";
/// The configuration.
pub(super) const CONFIG: &str = "server.toml";
/// Keys and certificates of the deployment.
pub(super) const PKI: &str = "pki";
/// The operator's profile.
pub(super) const OPERATOR: &str = "operator";
/// Released models.
pub(super) const BLOBS: &str = "blobs";
/// The newest layout that this program knows.
pub(super) const FORMAT: u32 = 1;
/// A list longer than that is none.
const MAX_BYTES: u64 = 256 << 20;

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The layout of the backup.
    pub format: u32,
    /// The program that made it.
    pub software: String,
    /// The deployment's name.
    pub deployment: String,
    /// When, in seconds of Unix time.
    pub made_unix_s: u64,
    /// Lines of the privacy ledger.
    pub ledger_lines: u64,
    /// The digest of the last one.
    pub ledger_head: Digest,
    /// All files.
    pub files: Vec<Kept>,
    /// Released models that were gone or damaged already when it was made.
    pub without: Vec<Digest>,
}

/// A file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// Where, from the backup's folder.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// The digest of its bytes.
    pub digest: Digest,
}

/// The list with its own digest.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    manifest: Manifest,
    digest: Digest,
}

impl Manifest {
    fn digest(&self) -> Digest {
        Digest::of(&serde_json::to_vec(self).expect("plain data"))
    }

    /// As it is written.
    pub(super) fn seal(&self) -> Vec<u8> {
        let sealed = Sealed { manifest: self.clone(), digest: self.digest() };
        serde_json::to_vec_pretty(&sealed).expect("plain data")
    }

    /// The files of one of its folders, by their names in it.
    pub(super) fn files_in<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = (&'a str, &'a Kept)> {
        self.files.iter().filter_map(move |kept| {
            let name = kept.path.strip_prefix(folder)?.strip_prefix('/')?;
            Some((name, kept))
        })
    }

    fn check(&self) -> Result<(), String> {
        let mut paths = BTreeSet::<&str>::new();
        for Kept { path, .. } in &self.files {
            let parts: Vec<_> = Path::new(path).components().collect();
            let plain = parts.iter().all(|part| matches!(part, Component::Normal(_)));
            let known = match path.split_once('/') {
                None => [STATE, CONFIG].contains(&path.as_str()),
                Some((BLOBS, name)) => name.matches('/').count() == 1,
                Some((folder, name)) => [PKI, OPERATOR].contains(&folder) && !name.contains('/'),
            };
            if !plain || !known || !paths.insert(path.as_str()) {
                return Err(format!("{FILE} names {path:?}, which no backup holds"));
            }
        }
        match [STATE, CONFIG].into_iter().find(|needed| !paths.contains(*needed)) {
            Some(missing) => Err(format!("{FILE} does not name {missing}")),
            None => Ok(()),
        }
    }
}

/// Reads every byte of a backup and compares it with its list.
///
/// # Errors
/// [`BackupError::Damaged`] with the first file that is not as it was written.
pub fn verify(backup: &Path) -> Result<Manifest, BackupError> {
    let file = backup.join(FILE);
    let damaged =
        |path: &Path, problem: String| BackupError::Damaged { path: path.display().to_string(), problem };
    let mut text = vec![];
    File::open(&file).and_then(|f| f.take(MAX_BYTES).read_to_end(&mut text)).map_err(|e| {
        damaged(backup, format!("its list {FILE} cannot be read ({e}); was it cut off while it was made?"))
    })?;
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    #[derive(Deserialize)]
    struct Any {
        manifest: Format,
    }
    if let Ok(Any { manifest: Format { format } }) = serde_json::from_slice(&text)
        && format > FORMAT
    {
        let path = backup.display().to_string();
        return Err(BackupError::Newer { path, format, known: FORMAT });
    }
    let Sealed { manifest, digest } =
        serde_json::from_slice(&text).map_err(|e| damaged(&file, format!("it makes no sense: {e}")))?;
    if manifest.digest() != digest {
        return Err(damaged(&file, "it was changed after it was written".into()));
    }
    manifest.check().map_err(|problem| damaged(&file, problem))?;
    for Kept { path, bytes, digest } in &manifest.files {
        let path = backup.join(path);
        let (found_bytes, found) = digest_of(&path).map_err(|e| damaged(&path, e.to_string()))?;
        if found_bytes != *bytes {
            return Err(damaged(
                &path,
                format!("it has {found_bytes} bytes, and had {bytes} when it was written"),
            ));
        }
        if found != *digest {
            return Err(damaged(&path, "its bytes are not those that were written".into()));
        }
    }
    Ok(manifest)
}

/// The length and the digest of a file.
pub(super) fn digest_of(path: &Path) -> std::io::Result<(u64, Digest)> {
    let mut file = File::open(path)?;
    let (mut digester, mut bytes, mut block) = (Digester::new(), 0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut block)? {
            0 => return Ok((bytes, digester.finish())),
            n => {
                digester.update(&block[..n]);
                bytes += n as u64;
            }
        }
    }
}
