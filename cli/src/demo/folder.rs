//! The folder that a demo or a benchmark works in.

use crate::failure::bad_input;
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Where it works.
#[derive(Debug)]
pub(crate) enum Folder {
    /// The user's own.
    Named(PathBuf),
    /// Removed at the end.
    Temporary(TempDir),
}

impl Folder {
    /// The user's folder (made if it is not there, refused if it holds anything), or a temporary one of `what`.
    ///
    /// # Errors
    /// If it cannot be used.
    pub(crate) fn new(named: Option<&Path>, what: &str) -> Result<Self> {
        let Some(dir) = named else {
            let dir = tempfile::Builder::new().prefix(&format!("undertone-{what}-")).tempdir();
            return Ok(Self::Temporary(dir.context("cannot make a temporary folder")?));
        };
        let cannot = || format!("cannot use {}", dir.display());
        std::fs::create_dir_all(dir).with_context(cannot)?;
        let dir = dir.canonicalize().with_context(cannot)?;
        if std::fs::read_dir(&dir).with_context(cannot)?.next().is_some() {
            return Err(bad_input(format!("{} is not empty: name a new folder", dir.display())));
        }
        Ok(Self::Named(dir))
    }

    /// Its absolute path.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Named(path) => path,
            Self::Temporary(dir) => dir.path(),
        }
    }

    /// Where the trained model goes: into the named folder, or beside the user.
    pub(crate) fn model(&self) -> PathBuf {
        match self {
            Self::Named(path) => path.join("model.safetensors"),
            Self::Temporary(_) => {
                let here = std::env::current_dir().unwrap_or_default();
                here.join("model.safetensors")
            }
        }
    }

    /// Leaves it for good.
    pub(crate) fn keep(self) -> PathBuf {
        match self {
            Self::Named(path) => path,
            Self::Temporary(dir) => dir.keep(),
        }
    }

    /// After a failure of `what`: the folder stays, for its logs.
    pub(crate) fn with_logs(self, what: &str, error: anyhow::Error) -> anyhow::Error {
        let path = self.keep();
        error.context(format!("the {what} did not work (its files and logs are in {})", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_things_in_it_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let named = folder.path().join("new/deep");
        assert!(Folder::new(Some(&named), "demo").unwrap().path().is_absolute());
        assert!(Folder::new(Some(folder.path()), "demo").unwrap_err().to_string().contains("not empty"));
    }

    #[test]
    fn a_temporary_folder_goes_unless_something_went_wrong() {
        let temporary = Folder::new(None, "demo").unwrap();
        let path = temporary.path().to_owned();
        drop(temporary);
        assert!(!path.exists());
        let failed = Folder::new(None, "demo").unwrap();
        let path = failed.path().to_owned();
        let said = format!("{:#}", failed.with_logs("demo", anyhow::anyhow!("no luck")));
        assert!(path.exists() && said.contains(path.to_str().unwrap()) && said.contains("no luck"), "{said}");
        std::fs::remove_dir(path).unwrap();
    }
}
