//! Fetched models by digest: only verified files have their final name, and only what a job may still need stays.
//!
//! ```text
//! DIGEST.safetensors   a model's file
//! DIGEST.values        the version of a model that a job trains from: little-endian f32, and their digest
//! DIGEST.frozen        the values of a model that a job does not train, by their digest as well
//! DIGEST.pt          the TorchScript file that a job's model is
//! DIGEST.message       a whole version, a difference or frozen values as they travelled, until those are made of it
//! DIGEST.part          what arrived of a file so far
//! needed.json          which of them each job needs
//! ```

use crate::folder::{ClientFolder, create_private_dir, remove_if_there, sync_parent};
use crate::models::needed::Needed;
use crate::models::reading::Head;
use crate::models::rebuild::Values;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use undertone_core::digest::{Digest, Digester};
use undertone_core::encoding::rebuild::{Rebuild, RebuildError};
use undertone_core::id::JobId;
use undertone_core::layout::{LayoutError, ModelLayout};
use undertone_core::part::Part;
use undertone_round::job::Job;
use undertone_round::participant::{ModelRef, OfferedFrozen, OfferedModel};

mod needed;
mod reading;
mod rebuild;

/// The cache of models.
#[derive(Debug, Clone)]
pub(crate) struct Models {
    dir: PathBuf,
    needed: Arc<Mutex<Needed>>,
}

/// What becomes of a fetched file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// It is the model.
    Model,
    /// A version, or frozen values, are made of it.
    Message,
    /// It is the model's TorchScript file.
    Module,
}

/// What a version is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrived {
    Whole,
    Delta,
}

/// Why a model in the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModelError {
    #[error("cannot read the fetched model: {0}")]
    Disk(#[from] io::Error),
    #[error("the fetched model was altered on this disk (its digest is now {0}): it was removed")]
    Altered(Digest),
    #[error("the model file does not hold the job's model: {0}")]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Message(RebuildError),
    #[error("there is no memory for the model's {0} values")]
    Memory(usize),
    #[error("it leads to version {found}, {wanted} was offered")]
    OtherVersion { found: Digest, wanted: Digest },
    #[error("the values that are not trained have digest {found}, {wanted} was offered")]
    OtherFrozen { found: Digest, wanted: Digest },
}

impl From<RebuildError> for ModelError {
    fn from(e: RebuildError) -> Self {
        match e {
            RebuildError::Disk(e) => Self::Disk(e),
            other => Self::Message(other),
        }
    }
}

impl Models {
    /// Opens the cache; removes what an earlier run of the client left half-made, and what no job needs any more.
    pub(crate) fn new(folder: &ClientFolder) -> Self {
        let dir = folder.models();
        let mut needed = Needed::load(&dir);
        if dir.exists()
            && let Err(e) = remove_half_made(&dir).and_then(|()| needed.sweep(&dir, needed::OTHERS_BYTES))
        {
            tracing::warn!(error = %e, "old models cannot be removed");
        }
        Self { dir, needed: Arc::new(Mutex::new(needed)) }
    }

    /// A job is offered this model: what it needs to get there stays, and what it started from before; and its TorchScript
    /// file.
    pub(crate) fn expect(&self, job: &JobId, model: OfferedModel, module: Option<Digest>) -> io::Result<()> {
        create_private_dir(&self.dir)?;
        let files =
            [model.delta.map(|delta| delta.file.digest), model.frozen.map(|frozen| frozen.file.digest)];
        let coming = [Some(model.whole.digest), model.version].into_iter().chain(files).flatten().collect();
        let frozen = model.frozen.map(|frozen| frozen.digest);
        self.needed.lock().expect("no panic while locked").expect(job, coming, (frozen, module), &self.dir)
    }

    /// It is here, under this name. What the job started from before goes.
    pub(crate) fn arrived(&self, job: &JobId, model: Digest) -> io::Result<()> {
        self.needed.lock().expect("no panic while locked").arrived(job, model, &self.dir)
    }

    fn path(&self, digest: Digest, kept: Kept) -> PathBuf {
        let extension = match kept {
            Kept::Model => "safetensors",
            Kept::Message => "message",
            Kept::Module => "pt",
        };
        self.dir.join(format!("{digest}.{extension}"))
    }

    /// Where a TorchScript file lies once it is here.
    pub(crate) fn module_path(&self, module: Digest) -> PathBuf {
        self.path(module, Kept::Module)
    }

    fn version_path(&self, version: Digest) -> PathBuf {
        self.dir.join(format!("{version}.values"))
    }

    /// Whether the file is here.
    pub(crate) fn holds(&self, file: ModelRef, kept: Kept) -> bool {
        std::fs::metadata(self.path(file.digest, kept)).is_ok_and(|m| m.len() == file.bytes)
    }

    /// Whether the version is here.
    pub(crate) fn holds_version(&self, version: Digest, layout: &ModelLayout) -> bool {
        std::fs::metadata(self.version_path(version)).is_ok_and(|m| m.len() == 4 * layout.len() as u64)
    }

    fn frozen_path(&self, frozen: Digest) -> PathBuf {
        self.dir.join(format!("{frozen}.frozen"))
    }

    /// Whether the frozen values are here.
    pub(crate) fn holds_frozen(&self, frozen: Digest, part: &Part) -> io::Result<bool> {
        match std::fs::metadata(self.frozen_path(frozen)) {
            Ok(meta) => Ok(meta.len() == 4 * part.frozen_len() as u64),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Keeps frozen values that were fetched.
    pub(crate) fn keep_frozen(&self, frozen: OfferedFrozen) -> Result<(), ModelError> {
        let message = self.path(frozen.file.digest, Kept::Message);
        let made = || {
            let mut values = Values::create(&self.dir, None)?;
            Ok::<_, ModelError>((values.take_frozen(File::open(&message)?)?, values))
        };
        let made = made();
        // Whatever became of it, it is of no more use.
        remove_if_there(&message)?;
        let (found, values) = made?;
        if found != frozen.digest {
            return Err(ModelError::OtherFrozen { found, wanted: frozen.digest });
        }
        let path = self.frozen_path(found);
        values.keep(&path)?;
        Ok(sync_parent(&path)?)
    }

    /// Opens the model's partial file to go on where it ended.
    pub(crate) fn resume(&self, model: ModelRef) -> io::Result<Partial> {
        create_private_dir(&self.dir)?;
        let path = self.dir.join(format!("{}.part", model.digest));
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(&path)?;
        let (mut digester, mut offset) = (Digester::new(), 0);
        let mut buffer = vec![0; 1 << 20];
        loop {
            let n = file.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            digester.update(&buffer[..n]);
            offset += n as u64;
        }
        let mut partial = Partial { model, path, file, digester, offset };
        if offset > model.bytes {
            partial.restart()?;
        }
        Ok(partial)
    }

    /// Gives a complete partial file its final name if its digest is right. A wrong one is removed.
    pub(crate) fn finish(&self, partial: Partial, kept: Kept) -> io::Result<Result<(), Digest>> {
        let found = partial.digester.finish();
        if found != partial.model.digest || partial.offset != partial.model.bytes {
            remove_if_there(&partial.path)?;
            return Ok(Err(found));
        }
        partial.file.sync_all()?;
        let path = self.path(found, kept);
        std::fs::rename(&partial.path, &path)?;
        sync_parent(&path)?;
        Ok(Ok(()))
    }

    /// The model's values over `layout`. Verified again: a disk may have rotted.
    pub(crate) fn read(&self, digest: Digest, layout: &ModelLayout) -> Result<Vec<f32>, ModelError> {
        reading::read(&self.path(digest, Kept::Model), digest, layout, Head::Safetensors)
    }

    /// The values that an offer's job trains from.
    pub(crate) fn read_offered(
        &self,
        model: OfferedModel,
        layout: &ModelLayout,
    ) -> Result<Vec<f32>, ModelError> {
        match model.version {
            None => self.read(model.whole.digest, layout),
            Some(version) => reading::read(&self.version_path(version), version, layout, Head::None),
        }
    }

    /// Makes the offered version of what was fetched for it, block by block. What does not lead there is removed, and so are a
    /// base and frozen values that were altered.
    pub(crate) fn rebuild(&self, model: OfferedModel, arrived: Arrived, job: &Job) -> Result<(), ModelError> {
        let Some(wanted) = model.version else { return Ok(()) };
        let delta = model.delta.filter(|_| arrived == Arrived::Delta);
        let message = self.path(delta.map_or(model.whole, |delta| delta.file).digest, Kept::Message);
        let base = delta.map(|delta| (self.version_path(delta.base), delta.base));
        let frozen = model.frozen.map(|frozen| (self.frozen_path(frozen.digest), frozen.digest));
        let held = base.or(frozen);
        let made = self.made_of(&message, held.as_ref().map(|(path, _)| path), arrived, job);
        // Whatever became of it, it is of no more use.
        remove_if_there(&message)?;
        let (found, values) = made?;
        if found == wanted {
            let path = self.version_path(wanted);
            values.keep(&path)?;
            return Ok(sync_parent(&path)?);
        }
        if let Some((path, name)) = held
            && rebuild::digest_of(&path)? != name
        {
            remove_if_there(&path)?;
        }
        Err(ModelError::OtherVersion { found, wanted })
    }

    fn made_of(
        &self,
        message: &Path,
        held: Option<&PathBuf>,
        arrived: Arrived,
        job: &Job,
    ) -> Result<(Digest, Values), ModelError> {
        let (down, part) = (job.spec().transport.down(), job.part());
        let file = File::open(message)?;
        let mut values = Values::create(&self.dir, held)?;
        let rebuild = match arrived {
            Arrived::Whole if down.whole(part).is_none() => {
                return Ok((values.take_file(file, job.layout())?, values));
            }
            Arrived::Whole => Rebuild::whole(down, job.grid(), part)?,
            Arrived::Delta => Rebuild::delta(down, job.grid(), part)?,
        };
        Ok((values.take_message(file, rebuild)?, values))
    }
}

/// Only while nothing writes there.
fn remove_half_made(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "tmp") {
            remove_if_there(&path)?;
        }
    }
    Ok(())
}

/// A model on its way.
#[derive(Debug)]
pub(crate) struct Partial {
    model: ModelRef,
    path: PathBuf,
    file: File,
    digester: Digester,
    offset: u64,
}

/// More bytes than were announced, or not the ones that come next.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PartialError {
    #[error("cannot write the model to {path}: {source}")]
    Disk { path: PathBuf, source: io::Error },
    #[error("the coordinator sent bytes {got} to {end} of the model where {wanted} of {total} comes next")]
    Gap { got: u64, end: u64, wanted: u64, total: u64 },
}

impl Partial {
    /// Bytes that are here.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.offset == self.model.bytes
    }

    /// Adds the piece that begins at `offset`.
    pub(crate) fn append(&mut self, offset: u64, data: &[u8]) -> Result<(), PartialError> {
        let end = offset.saturating_add(data.len() as u64);
        if offset != self.offset || end > self.model.bytes {
            return Err(PartialError::Gap { got: offset, end, wanted: self.offset, total: self.model.bytes });
        }
        self.file.write_all(data).map_err(|source| PartialError::Disk { path: self.path.clone(), source })?;
        self.digester.update(data);
        self.offset = end;
        Ok(())
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.digester = Digester::new();
        self.offset = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(bytes: &[u8]) -> ModelRef {
        ModelRef { digest: Digest::of(bytes), bytes: bytes.len() as u64 }
    }

    fn fetch(models: &Models, bytes: &[u8]) {
        let mut partial = models.resume(model(bytes)).unwrap();
        let offset = partial.offset();
        partial.append(offset, &bytes[offset as usize..]).unwrap();
        assert_eq!(models.finish(partial, Kept::Model).unwrap(), Ok(()));
    }

    #[test]
    fn a_broken_transfer_goes_on_and_a_wrong_one_starts_over() {
        let dir = tempfile::tempdir().unwrap();
        let models = Models::new(&ClientFolder::new(dir.path()));
        let bytes = b"a model of some length";
        let mut partial = models.resume(model(bytes)).unwrap();
        partial.append(0, &bytes[..9]).unwrap();
        assert!(matches!(partial.append(5, &bytes[5..9]), Err(PartialError::Gap { wanted: 9, .. })));
        assert!(matches!(partial.append(9, &[0; 100]), Err(PartialError::Gap { .. })));
        drop(partial);
        assert_eq!(models.resume(model(bytes)).unwrap().offset(), 9);
        assert!(!models.holds(model(bytes), Kept::Model));
        fetch(&models, bytes);
        assert!(models.holds(model(bytes), Kept::Model));

        let other = b"another one, damaged on its way";
        let mut partial = models.resume(model(other)).unwrap();
        partial.append(0, &[7; 31]).unwrap();
        assert_eq!(models.finish(partial, Kept::Model).unwrap(), Err(Digest::of(&[7; 31])));
        assert_eq!(models.resume(model(other)).unwrap().offset(), 0);
    }

    #[test]
    fn a_rotten_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let models = Models::new(&ClientFolder::new(dir.path()));
        let layout = undertone_core::model::ModelSpec::Logistic {}
            .layout(&undertone_core::shape::Shape::table(2, 2))
            .unwrap();
        let bytes = layout.to_safetensors(&[1.0, 2.0, 3.0], Default::default());
        let digest = Digest::of(&bytes);
        fetch(&models, &bytes);
        assert_eq!(models.read(digest, &layout).unwrap(), [1.0, 2.0, 3.0]);
        let path = models.path(digest, Kept::Model);
        // The values, the header, its length; shorter; longer.
        let altered = |at: usize| [&bytes[..at], &[bytes[at] ^ 1], &bytes[at + 1..]].concat();
        for rotten in [
            altered(bytes.len() - 1),
            altered(20),
            altered(0),
            bytes[..bytes.len() - 1].to_vec(),
            [&bytes[..], &[0]].concat(),
            vec![],
        ] {
            std::fs::write(&path, &rotten).unwrap();
            match models.read(digest, &layout) {
                Err(ModelError::Altered(found)) => assert_eq!(found, Digest::of(&rotten)),
                other => panic!("{other:?}"),
            }
            assert!(matches!(models.read(digest, &layout), Err(ModelError::Disk(_))), "it is removed");
        }
        // Whole, and of another model.
        std::fs::write(&path, &bytes).unwrap();
        let other = undertone_core::model::ModelSpec::Logistic {}
            .layout(&undertone_core::shape::Shape::table(3, 2))
            .unwrap();
        assert!(matches!(models.read(digest, &other), Err(ModelError::Layout(_))));
        assert!(path.exists());
    }

    fn job(n: usize) -> JobId {
        JobId::new(format!("job-{n}")).unwrap()
    }

    /// The models of a cache, and their bytes.
    fn cached(dir: &Path) -> (usize, u64) {
        let files = std::fs::read_dir(dir.join("models")).unwrap().map(|entry| entry.unwrap());
        let models = files.filter(|entry| entry.file_name() != needed::FILE);
        models.fold((0, 0), |(n, bytes), entry| (n + 1, bytes + entry.metadata().unwrap().len()))
    }

    /// A round of a job: what is offered arrives, under its own name.
    fn round(models: &Models, n: usize, bytes: &[u8]) {
        let offered = OfferedModel { whole: model(bytes), version: None, delta: None, frozen: None };
        models.expect(&job(n), offered, None).unwrap();
        fetch(models, bytes);
        models.arrived(&job(n), model(bytes).digest).unwrap();
    }

    #[test]
    fn each_active_job_keeps_what_it_starts_from_and_nothing_older() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Models::new(&ClientFolder::new(dir.path()));
        let of = |job: usize, round: usize| vec![(100 * job + round) as u8; 1000 + job];
        let mut models = open();
        for r in 1..=3 {
            for j in 0..5 {
                // What the difference starts from stays until the version is made, through a restart as well.
                let base = model(&of(j, r - 1));
                let offered =
                    OfferedModel { whole: model(&of(j, r)), version: None, delta: None, frozen: None };
                models.expect(&job(j), offered, None).unwrap();
                assert!(r == 1 || models.holds(base, Kept::Model));
                if j == 2 {
                    models = open();
                    assert!(r == 1 || models.holds(base, Kept::Model));
                }
                round(&models, j, &of(j, r));
                assert!(!models.holds(base, Kept::Model), "round {r} of job {j}");
            }
            assert_eq!(cached(dir.path()), (5, 5 * 1000 + 10), "one model of each job");
        }
        // Two jobs that start from the same bytes have one copy of them, for as long as either needs it.
        round(&models, 7, &of(0, 3));
        round(&models, 0, &of(0, 4));
        assert!(models.holds(model(&of(0, 3)), Kept::Model));
        assert_eq!(cached(dir.path()).0, 6);
        round(&models, 7, &of(0, 5));
        assert!(!models.holds(model(&of(0, 3)), Kept::Model));
    }

    #[test]
    fn jobs_that_asked_longest_ago_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let models = Models::new(&ClientFolder::new(dir.path()));
        for j in 0..20 {
            round(&models, j, &[j as u8; 100]);
            assert_eq!(cached(dir.path()).0, (j + 1).min(needed::MOST_JOBS));
        }
        assert!(
            models.holds(model(&[12; 100]), Kept::Model) && !models.holds(model(&[11; 100]), Kept::Model)
        );
        // By bytes: the job that asked last always has its model, however large.
        let sweep = |bytes| models.needed.lock().unwrap().sweep(&models.dir, bytes).unwrap();
        sweep(250);
        assert_eq!(cached(dir.path()), (3, 300), "the one in hand, and two others");
        sweep(0);
        assert_eq!(cached(dir.path()), (1, 100));
        assert!(models.holds(model(&[19; 100]), Kept::Model));
    }

    #[test]
    fn what_nobody_needs_is_gone_after_a_start() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Models::new(&ClientFolder::new(dir.path()));
        let models = open();
        round(&models, 1, b"needed");
        // Of an abandoned attempt, of a crash, and of a version that kept no account.
        for name in [
            format!("{}.part", Digest::of(b"x")),
            format!("{}.values", Digest::of(b"y")),
            "version-0.tmp".into(),
        ] {
            std::fs::write(dir.path().join("models").join(name), b"left").unwrap();
        }
        assert!(open().holds(model(b"needed"), Kept::Model));
        assert_eq!(cached(dir.path()), (1, 6));
        // An account that cannot be read costs a transfer.
        std::fs::write(dir.path().join("models").join(needed::FILE), b"{").unwrap();
        let models = open();
        assert_eq!(cached(dir.path()), (0, 0));
        round(&models, 1, b"needed");
        // Half of a transfer waits for the attempt that it is for.
        let offered = OfferedModel { whole: model(b"on its way"), version: None, delta: None, frozen: None };
        models.expect(&job(1), offered, None).unwrap();
        models.resume(offered.whole).unwrap().append(0, b"on").unwrap();
        assert_eq!(open().resume(offered.whole).unwrap().offset(), 2);
        assert_eq!(cached(dir.path()).0, 2);
    }
}
