//! Checkpoints of local training: what a killed trainer, or a client that was killed with it, goes on from.
//!
//! The trainer writes and reads them ([`CheckpointPlace`]); the client says where, and removes them when a round has no more
//! use for them. They are as private as the data.

use crate::folder::{ClientFolder, create_private_dir, remove_if_there};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use undertone_core::id::{AttemptKey, JobId};
use undertone_core::trainer::CheckpointPlace;

/// One that nobody came back for is removed at a start: no round takes that long.
const KEPT: Duration = Duration::from_secs(30 * 86_400);
const EXTENSION: &str = "checkpoint";

/// The checkpoints of one client: one for each job.
#[derive(Debug, Clone)]
pub(crate) struct Checkpoints {
    dir: PathBuf,
    every: Duration,
}

impl Checkpoints {
    /// Written no more often than `every`.
    pub(crate) fn new(folder: &ClientFolder, every: Duration) -> Self {
        Self { dir: folder.checkpoints(), every }
    }

    /// Where the training of this attempt keeps its state.
    pub(crate) fn place(&self, key: &AttemptKey) -> io::Result<CheckpointPlace> {
        create_private_dir(&self.dir)?;
        Ok(CheckpointPlace {
            path: self.path(&key.job),
            attempt: key.to_string(),
            every_s: u32::try_from(self.every.as_secs()).unwrap_or(u32::MAX),
        })
    }

    /// Whether there is something to go on from.
    pub(crate) fn has(&self, job: &JobId) -> bool {
        self.path(job).is_file()
    }

    /// Removes what is there of a job. That it could not be is logged: it would be overwritten by the next round.
    pub(crate) fn remove(&self, job: &JobId) {
        if let Err(e) = remove_if_there(&self.path(job)) {
            tracing::warn!(error = %e, "the checkpoint of training that is over could not be removed");
        }
    }

    /// Removes what is left of writes that broke, and what is too old at `now` to be of use.
    pub(crate) fn sweep(&self, now: SystemTime) -> io::Result<()> {
        let entries = match std::fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            let kept = entry.path().extension().is_some_and(|e| e == EXTENSION);
            let age = now.duration_since(entry.metadata()?.modified()?).unwrap_or_default();
            if !kept || age > KEPT {
                remove_if_there(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Job names hold no path separators.
    fn path(&self, job: &JobId) -> PathBuf {
        self.dir.join(format!("{job}.{EXTENSION}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use undertone_core::id::{Attempt, Round};

    #[test]
    fn a_start_keeps_what_may_be_gone_on_from_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(&ClientFolder::new(dir.path()), Duration::from_secs(5));
        checkpoints.sweep(SystemTime::now()).unwrap();
        let key =
            AttemptKey { job: JobId::new("heart-abc123").unwrap(), round: Round(2), attempt: Attempt(3) };
        let place = checkpoints.place(&key).unwrap();
        assert_eq!((place.every_s, place.attempt.as_str()), (5, "heart-abc123 round 2 attempt 3"));
        assert!(!checkpoints.has(&key.job));
        std::fs::write(&place.path, b"state").unwrap();
        std::fs::write(place.path.with_extension("checkpoint.tmp"), b"half").unwrap();
        checkpoints.sweep(SystemTime::now()).unwrap();
        assert!(checkpoints.has(&key.job));
        assert_eq!(std::fs::read_dir(place.path.parent().unwrap()).unwrap().count(), 1);
        checkpoints.sweep(SystemTime::now() + 2 * KEPT).unwrap();
        assert!(!checkpoints.has(&key.job));
        checkpoints.remove(&key.job);
    }
}
