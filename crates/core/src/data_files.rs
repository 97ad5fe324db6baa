//! Which files a client's data is in.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// The files of one data set: a CSV file, or an IDX file of pictures and one of their labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFiles {
    /// The CSV file, or the pictures.
    pub path: PathBuf,
    /// The pictures' labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<PathBuf>,
}

impl DataFiles {
    /// Pictures and their labels.
    pub fn pictures(path: impl Into<PathBuf>, labels: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), labels: Some(labels.into()) }
    }

    /// The same with each path made of `change`.
    #[must_use]
    pub fn map(self, change: impl Fn(PathBuf) -> PathBuf) -> Self {
        Self { path: change(self.path), labels: self.labels.map(change) }
    }

    /// The paths.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(self.path.as_path()).chain(self.labels.as_deref())
    }
}

/// A CSV file.
impl<P: Into<PathBuf>> From<P> for DataFiles {
    fn from(path: P) -> Self {
        Self { path: path.into(), labels: None }
    }
}

impl fmt::Display for DataFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        match &self.labels {
            Some(labels) => write!(f, " with the labels {}", labels.display()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_or_two() {
        let csv = DataFiles::from("a.csv");
        assert_eq!(serde_json::to_string(&csv).unwrap(), r#"{"path":"a.csv"}"#);
        let idx = DataFiles::pictures("a.gz", "b.gz").map(|p| Path::new("/d").join(p));
        assert_eq!(idx.to_string(), "/d/a.gz with the labels /d/b.gz");
        assert_eq!(idx.paths().count(), 2);
    }
}
