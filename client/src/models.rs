//! Fetched models by digest: only verified files have their final name, and only the newest few stay.

use crate::folder::{ClientFolder, create_private_dir, remove_if_there, sync_parent};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::time::SystemTime;
use undertone_core::digest::{Digest, Digester};
use undertone_core::layout::{LayoutError, ModelLayout};
use undertone_round::participant::ModelRef;

/// Models kept. A round's model is wanted again only by another attempt at that round.
const KEPT: usize = 3;

/// The cache of models.
#[derive(Debug, Clone)]
pub(crate) struct Models {
    dir: PathBuf,
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
}

impl Models {
    pub(crate) fn new(folder: &ClientFolder) -> Self {
        Self { dir: folder.models() }
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.dir.join(format!("{digest}.safetensors"))
    }

    /// Whether the model is here.
    pub(crate) fn holds(&self, model: ModelRef) -> bool {
        std::fs::metadata(self.path(model.digest)).is_ok_and(|m| m.len() == model.bytes)
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
    pub(crate) fn finish(&self, partial: Partial) -> io::Result<Result<(), Digest>> {
        let found = partial.digester.finish();
        if found != partial.model.digest || partial.offset != partial.model.bytes {
            remove_if_there(&partial.path)?;
            return Ok(Err(found));
        }
        partial.file.sync_all()?;
        let path = self.path(found);
        std::fs::rename(&partial.path, &path)?;
        sync_parent(&path)?;
        self.evict(found)?;
        Ok(Ok(()))
    }

    /// The model's values over `layout`. Verified again: a disk may have rotted.
    pub(crate) fn read(&self, digest: Digest, layout: &ModelLayout) -> Result<Vec<f32>, ModelError> {
        let path = self.path(digest);
        let bytes = std::fs::read(&path)?;
        let found = Digest::of(&bytes);
        if found != digest {
            remove_if_there(&path)?;
            return Err(ModelError::Altered(found));
        }
        Ok(layout.from_safetensors(&bytes)?)
    }

    fn evict(&self, newest: Digest) -> io::Result<()> {
        let keep = self.path(newest);
        let mut others: Vec<(SystemTime, PathBuf)> = std::fs::read_dir(&self.dir)?
            .filter_map(|e| Some((e.as_ref().ok()?.metadata().ok()?.modified().ok()?, e.ok()?.path())))
            .filter(|(_, path)| *path != keep)
            .collect();
        others.sort();
        let surplus = others.len().saturating_sub(KEPT - 1);
        others.drain(..surplus).try_for_each(|(_, path)| remove_if_there(&path))
    }
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
        assert_eq!(models.finish(partial).unwrap(), Ok(()));
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
        assert!(!models.holds(model(bytes)));
        fetch(&models, bytes);
        assert!(models.holds(model(bytes)));

        let other = b"another one, damaged on its way";
        let mut partial = models.resume(model(other)).unwrap();
        partial.append(0, &[7; 31]).unwrap();
        assert_eq!(models.finish(partial).unwrap(), Err(Digest::of(&[7; 31])));
        assert_eq!(models.resume(model(other)).unwrap().offset(), 0);
    }

    #[test]
    fn a_rotten_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let models = Models::new(&ClientFolder::new(dir.path()));
        let layout = undertone_core::model::ModelSpec::Logistic {}.layout(2, 1).unwrap();
        let mut bytes = layout.to_safetensors(&[1.0, 2.0, 3.0], Default::default());
        let digest = Digest::of(&bytes);
        fetch(&models, &bytes);
        assert_eq!(models.read(digest, &layout).unwrap(), [1.0, 2.0, 3.0]);
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(models.path(digest), &bytes).unwrap();
        assert!(matches!(models.read(digest, &layout), Err(ModelError::Altered(_))));
        assert!(matches!(models.read(digest, &layout), Err(ModelError::Disk(_))));
    }

    #[test]
    fn the_cache_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let models = Models::new(&ClientFolder::new(dir.path()));
        for i in 0..8u8 {
            fetch(&models, &[i; 10]);
            assert!(models.holds(model(&[i; 10])));
        }
        assert_eq!(std::fs::read_dir(dir.path().join("models")).unwrap().count(), KEPT);
    }
}
