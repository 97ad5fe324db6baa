//! What is known of the privacy ledger from after a backup: the last database itself, or copies of the ledger that somebody kept.

use super::{BackupError, lines, parse_line};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use undertone_privacy::ledger::chain::{Chain, Line};
use undertone_privacy::ledger::population::Budgets;
use undertone_store::{Durability, SqlStore, Store as _};

/// A ledger from elsewhere, whose lines follow from each other.
pub(super) struct Newer {
    from: String,
    lines: Vec<Line>,
}

impl Newer {
    /// The lines that `undertone ledger export` wrote, or a query of the table, one JSON document a line.
    pub(super) fn exported(file: &Path) -> Result<Self, BackupError> {
        let from = file.display().to_string();
        let open = fs::File::open(file).map_err(BackupError::at(file))?;
        let mut lines = vec![];
        for (number, line) in (1..).zip(BufReader::new(open).lines()) {
            let line = line.map_err(BackupError::at(file))?;
            lines.push(parse_line(&line).map_err(|problem| BackupError::Ledger {
                from: from.clone(),
                problem: format!("line {number} is no line of a privacy ledger ({problem})"),
            })?);
        }
        Self::checked(from, lines)
    }

    /// The ledger of a database that no coordinator uses any more. It is read from a copy: what may be the last witness is not touched.
    pub(super) async fn of_database(file: &Path) -> Result<Self, BackupError> {
        let from = file.display().to_string();
        let lock = file.with_file_name("lock");
        if let Ok(lock) = fs::File::open(&lock)
            && lock.try_lock().is_err()
        {
            return Err(BackupError::InUse(from));
        }
        let scratch = Scratch::new()?;
        let copy = scratch.0.join("old.sqlite");
        fs::copy(file, &copy).map_err(BackupError::at(file))?;
        // Where the last transactions are, if it was not closed.
        let mut log = file.as_os_str().to_owned();
        log.push("-wal");
        let log = Path::new(&log);
        if log.exists() {
            fs::copy(log, scratch.0.join("old.sqlite-wal")).map_err(BackupError::at(log))?;
        }
        let store = SqlStore::sqlite(&copy, Durability::Process).await?;
        let read = lines(&store).await;
        store.close().await;
        Self::checked(from, read?)
    }

    fn checked(from: String, lines: Vec<Line>) -> Result<Self, BackupError> {
        match Chain::from_lines(Budgets::default(), lines.iter().cloned()) {
            Ok(_) => Ok(Self { from, lines }),
            Err(e) => Err(BackupError::Ledger { from, problem: e.to_string() }),
        }
    }

    /// Whether it has all that is in these lines.
    pub(super) fn is_up_to_date(&self, known: &[Line]) -> bool {
        self.lines.len() >= known.len()
    }

    /// Adds to `known` what this ledger has more.
    ///
    /// # Errors
    /// [`BackupError::Parted`] if one is no continuation of the other.
    pub(super) fn add_to(&self, known: &mut Vec<Line>) -> Result<(), BackupError> {
        let common = known.len().min(self.lines.len());
        let differs = |n: &usize| known[*n].digest != self.lines[*n].digest;
        if let Some(n) = (0..common).find(differs) {
            return Err(BackupError::Parted { from: self.from.clone(), line: n as u64 + 1 });
        }
        known.extend(self.lines.iter().skip(common).cloned());
        Ok(())
    }
}

/// A folder for a moment.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new() -> Result<Self, BackupError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let mut random = [0u8; 8];
        getrandom::fill(&mut random)?;
        let path =
            std::env::temp_dir().join(format!("undertone-restore-{:016x}", u64::from_le_bytes(random)));
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(BackupError::at(&path))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
