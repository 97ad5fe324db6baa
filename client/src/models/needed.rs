//! What each job may still need of the cache: how many files stay, and how large they are together, follows from the jobs.
//!
//! A job needs the version that it trained from last, for another attempt may ask for it, and the next difference starts
//! there; and while a newer one is on its way, the files that lead there. Nothing older: no coordinator sends a difference
//! from it. So a job has one model in the cache, and two and a message while it fetches; and the values that it does not train,
//! where those are sent by themselves.

use crate::folder::remove_if_there;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use undertone_core::digest::Digest;
use undertone_core::id::JobId;

/// Jobs whose models stay. A client is not told that a job is over: those that asked last are the active ones.
pub(super) const MOST_JOBS: usize = 8;
/// What stays of jobs other than the one that asked last, in bytes. One that is pushed out fetches its next model whole.
pub(super) const OTHERS_BYTES: u64 = 8 << 30;
/// Where that is written down, so that a restart does not forget it.
pub(super) const FILE: &str = "needed.json";
const MAX_BYTES: u64 = 64 << 10;

/// What the jobs need, the one that asked last first.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Needed(Vec<OfJob>);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OfJob {
    job: JobId,
    /// What it trained from, or measured, last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<Digest>,
    /// The values that it does not train: the same for all its versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    frozen: Option<Digest>,
    /// The TorchScript file that its model is: the same in all its rounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    module: Option<Digest>,
    /// What is on its way: the version, and files that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    coming: Vec<Digest>,
}

impl OfJob {
    fn names(&self) -> impl Iterator<Item = &Digest> {
        self.version.iter().chain(&self.frozen).chain(&self.module).chain(&self.coming)
    }
}

impl Needed {
    /// What was written down. If that cannot be read, nothing is needed: models are fetched again.
    pub(super) fn load(dir: &Path) -> Self {
        let path = dir.join(FILE);
        if std::fs::metadata(&path).is_ok_and(|meta| meta.len() > MAX_BYTES) {
            return Self::default();
        }
        std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    fn save(&self, dir: &Path) -> io::Result<()> {
        // Not synced: what a crash of the machine loses here costs a transfer.
        let tmp = dir.join(format!("{FILE}.tmp"));
        std::fs::write(&tmp, serde_json::to_vec(self).expect("plain data"))?;
        std::fs::rename(tmp, dir.join(FILE))
    }

    /// A job is offered a model: these are the names of what may be fetched for it.
    pub(super) fn expect(
        &mut self,
        job: &JobId,
        coming: Vec<Digest>,
        (frozen, module): (Option<Digest>, Option<Digest>),
        dir: &Path,
    ) -> io::Result<()> {
        let version = self.take(job).and_then(|of_job| of_job.version);
        self.change(OfJob { job: job.clone(), version, frozen, module, coming }, dir)
    }

    /// It is here: the one before is not needed any more.
    pub(super) fn arrived(&mut self, job: &JobId, version: Digest, dir: &Path) -> io::Result<()> {
        let (frozen, module) = self.take(job).map_or((None, None), |of_job| (of_job.frozen, of_job.module));
        self.change(OfJob { job: job.clone(), version: Some(version), frozen, module, coming: vec![] }, dir)
    }

    fn take(&mut self, job: &JobId) -> Option<OfJob> {
        let place = self.0.iter().position(|of_job| of_job.job == *job)?;
        Some(self.0.remove(place))
    }

    fn change(&mut self, newest: OfJob, dir: &Path) -> io::Result<()> {
        self.0.insert(0, newest);
        self.sweep(dir, OTHERS_BYTES)?;
        self.save(dir)
    }

    /// Forgets the jobs that asked longest ago where there are too many, or their files too large; removes what no job needs.
    pub(super) fn sweep(&mut self, dir: &Path, others_bytes: u64) -> io::Result<()> {
        let files = files(dir)?;
        let size = |digest: &Digest| -> u64 {
            files.get(digest).map_or(0, |files| files.iter().map(|(_, bytes)| *bytes).sum())
        };
        self.0.truncate(MOST_JOBS);
        let (mut at, mut others) = (0, 0u64);
        self.0.retain(|of_job| {
            if at > 0 {
                let bytes: u64 = of_job.names().map(&size).sum();
                others = others.saturating_add(bytes);
            }
            at += 1;
            others <= others_bytes
        });
        for (digest, paths) in &files {
            if !self.0.iter().any(|of_job| of_job.names().any(|name| name == digest)) {
                paths.iter().try_for_each(|(path, _)| remove_if_there(path))?;
            }
        }
        Ok(())
    }
}

/// The files of the cache by the digest that they are named after. What is being written has another name.
fn files(dir: &Path) -> io::Result<BTreeMap<Digest, Vec<(PathBuf, u64)>>> {
    let mut files = BTreeMap::<_, Vec<_>>::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        let Some(Ok(digest)) = path.file_stem().and_then(|stem| stem.to_str()).map(str::parse::<Digest>)
        else {
            continue;
        };
        // It may have been removed meanwhile.
        let bytes = entry.metadata().map_or(0, |meta| meta.len());
        files.entry(digest).or_default().push((path, bytes));
    }
    Ok(files)
}
