//! The file, before SQLite opens it.

use crate::error::StoreError;
use std::path::Path;

/// Sees to it that there is a file and that only this user can use it. SQLite gives the files that it puts
/// beside it the same permissions.
pub(super) fn prepare(path: &Path, at: &str) -> Result<(), StoreError> {
    make_or_guard(path).map_err(|e| {
        let (at, detail) = (at.to_owned(), e.to_string());
        match e.kind() {
            std::io::ErrorKind::StorageFull => StoreError::Full { at },
            std::io::ErrorKind::ReadOnlyFilesystem => StoreError::NotWritable { at, detail },
            _ => StoreError::NotOpened { at, detail },
        }
    })
}

fn make_or_guard(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Ok(file) => {
            file.sync_all()?;
            // The name must be as durable as the file. (Folders cannot be synced everywhere.)
            #[cfg(unix)]
            std::fs::File::open(
                path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")),
            )?
            .sync_all()?;
            Ok(())
        }
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt;
                let mode = std::fs::metadata(path)?.permissions().mode();
                if mode & 0o077 != 0 {
                    tracing::warn!(path = %path.display(), "others could use the database; now they cannot");
                    std::fs::set_permissions(path, PermissionsExt::from_mode(mode & 0o700))?;
                }
            }
            Ok(())
        }
        Err(e) => Err(e),
    }
}
