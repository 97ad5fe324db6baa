//! What can go wrong with blobs.

use std::io::ErrorKind;
use std::path::Path;
use undertone_core::digest::Digest;

/// A blob could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// There is none.
    #[error("there is no blob {digest}")]
    NotFound {
        /// Its digest.
        digest: Digest,
    },
    /// What was written is not what was announced. Nothing was kept.
    #[error("the bytes have digest {found}, announced was {expected}: send them again")]
    Mismatch {
        /// The digest announced.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// What lies there is not what was put there.
    #[error("blob {digest} is damaged (its bytes have digest {found}): check the disk, restore the file")]
    Damaged {
        /// Its digest.
        digest: Digest,
        /// The digest of what lies there.
        found: Digest,
    },
    /// Larger than the caller takes.
    #[error("blob {digest} has {bytes} bytes, more than {max_bytes}")]
    TooLarge {
        /// Its digest.
        digest: Digest,
        /// Its length.
        bytes: u64,
        /// The most that the caller takes.
        max_bytes: u64,
    },
    /// A read that begins after the end.
    #[error("blob {digest} has {bytes} bytes, none at offset {offset}: read it from the start")]
    PastEnd {
        /// Its digest.
        digest: Digest,
        /// Its length.
        bytes: u64,
        /// Where to begin.
        offset: u64,
    },
    /// An unfinished blob that somebody else is writing.
    #[error("the unfinished blob {name} is being written by another: try again when it has ended")]
    InUse {
        /// Its name.
        name: String,
    },
    /// A write before this one failed or was given up half-way.
    #[error("an earlier write to this blob was not finished: write it again from the start")]
    Spoilt,
    /// No space.
    #[error("the disk of {at} is full; the blob was not kept: free space, then go on")]
    Full {
        /// The file.
        at: String,
    },
    /// No right to do it.
    #[error("{at} cannot be used ({detail}): let this user read and write it, on a disk mounted writable")]
    NotPermitted {
        /// The file.
        at: String,
        /// What the system said.
        detail: String,
    },
    /// A place of a bucket that is somebody else's.
    #[error("{at} holds the blobs of {whose}: name another bucket or prefix")]
    Foreign {
        /// Its address.
        at: String,
        /// Whose they are.
        whose: String,
    },
    /// A store elsewhere that does not do what it is asked.
    #[error(
        "{at} cannot be used now ({detail}): check the network, the endpoint, the bucket and what opens it"
    )]
    Away {
        /// Its address.
        at: String,
        /// What it, or the network, said.
        detail: String,
    },
    /// Anything else.
    #[error("{at} failed ({source}): check its disk, then try again")]
    Failed {
        /// The file.
        at: String,
        /// The cause.
        source: std::io::Error,
    },
}

impl BlobError {
    /// Whether trying again later may help: the place fails, not the blob.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Full { .. }
                | Self::Away { .. }
                | Self::NotPermitted { .. }
                | Self::Failed { .. }
                | Self::Spoilt
                | Self::InUse { .. }
        )
    }

    /// What an error of the file system means.
    pub(crate) fn at(path: &Path, error: std::io::Error) -> Self {
        Self::named(path.display().to_string(), error)
    }

    fn named(at: String, error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::Full { at },
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                Self::NotPermitted { at, detail: error.to_string() }
            }
            _ => Self::Failed { at, source: error },
        }
    }
}

/// For errors met while reading from [`Blobs::open`](crate::Blobs::open): gives back what the reader meant.
impl From<std::io::Error> for BlobError {
    fn from(error: std::io::Error) -> Self {
        error.downcast::<Self>().unwrap_or_else(|error| Self::named("a blob".into(), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_and_a_forbidden_one_are_told_apart() {
        let of =
            |code| BlobError::at(Path::new("/data/x"), std::io::Error::from_raw_os_error(code)).to_string();
        let (enospc, edquot, eacces, erofs) = (28, 122, 13, 30);
        for full in [enospc, edquot] {
            assert_eq!(
                of(full),
                "the disk of /data/x is full; the blob was not kept: free space, then go on"
            );
        }
        for denied in [eacces, erofs] {
            assert!(of(denied).contains("let this user read and write it"), "{}", of(denied));
        }
    }
}
