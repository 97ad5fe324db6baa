//! A TorchScript file on its way to be a job's model: looked into here first, sent once.

use crate::hand_in::hand_in;
use crate::profile::Connection;
use anyhow::Result;
use std::fs::File;
use std::io::{self, BufReader, Read as _, Seek as _};
use std::path::{Path, PathBuf};
use undertone_core::digest::Digester;
use undertone_core::initial::FileRef;
use undertone_core::model::ModelSpec;
use undertone_core::torchscript::{Archive, Exported, MAX_MODULE_BYTES, ModuleError, TorchScript};
use undertone_round::job::JobSpec;

/// A TorchScript file that a job can be trained with, as far as can be said without running it.
#[derive(Debug)]
pub(crate) struct Module {
    path: PathBuf,
    file: FileRef,
}

/// Why a file is no job's model.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModuleFileError {
    #[error("cannot be read: {0}")]
    Disk(#[from] io::Error),
    #[error("{0}")]
    Content(#[from] ModuleError),
    #[error("it has {0} bytes, at most {MAX_MODULE_BYTES}")]
    TooLong(u64),
}

impl Module {
    /// Reads the file that a job names, and puts its digest and its tensors in the name's place; `None` if the job names none.
    /// A relative path starts at `folder`.
    ///
    /// # Errors
    /// Which file it is and what is wrong with it.
    pub(crate) fn of(spec: &mut JobSpec, folder: &Path) -> Result<Option<Self>, (PathBuf, ModuleFileError)> {
        let ModelSpec::Torchscript(TorchScript::Written(name)) = &spec.model else { return Ok(None) };
        let path = folder.join(name);
        let exported = read(&path).map_err(|e| (path.clone(), e))?;
        let file = exported.file;
        spec.model = ModelSpec::Torchscript(TorchScript::Exported(exported));
        Ok(Some(Self { path, file }))
    }

    /// Sends the file, where the coordinator does not have it yet.
    ///
    /// # Errors
    /// If the file is another one now, or the coordinator cannot take it.
    pub(crate) async fn send(&self, connection: &mut Connection) -> Result<()> {
        let path = self.path.clone();
        hand_in(self.file, &self.path, connection, move |sink| blocks(&mut File::open(path)?, sink)).await
    }
}

fn read(path: &Path) -> Result<Exported, ModuleFileError> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    if bytes > MAX_MODULE_BYTES {
        return Err(ModuleFileError::TooLong(bytes));
    }
    let (mut digester, mut length) = (Digester::new(), 0);
    blocks(&mut file, &mut |block| {
        digester.update(block);
        length += block.len() as u64;
        true
    })?;
    file.rewind()?;
    let archive = Archive::read(BufReader::new(file))?;
    let file = FileRef { digest: digester.finish(), bytes: length };
    Ok(Exported { file, tensors: archive.tensors().to_vec() })
}

/// Gives a file in blocks, as long as `sink` wants more.
fn blocks(file: &mut File, sink: &mut dyn FnMut(&[u8]) -> bool) -> io::Result<()> {
    let mut block = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut block)?;
        if read == 0 || !sink(&block[..read]) {
            return Ok(());
        }
    }
}
