//! The values of a version on their way to the disk, block by block.

use super::ModelError;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use undertone_core::digest::{Digest, Digester};
use undertone_core::encoding::frozen::{FROZEN_HEAD, check_head};
use undertone_core::encoding::rebuild::{Rebuild, Sink};
use undertone_core::layout::ModelLayout;

/// The digest of a file.
pub(super) fn digest_of(path: &Path) -> io::Result<Digest> {
    let (mut file, mut digester, mut block) = (File::open(path)?, Digester::new(), vec![0; BLOCK]);
    loop {
        match file.read(&mut block)? {
            0 => return Ok(digester.finish()),
            n => digester.update(&block[..n]),
        }
    }
}

/// The header of a model's file, read from its start.
///
/// # Errors
/// If it is not of a file of this layout.
pub(super) fn header_of(model: &mut File, layout: &ModelLayout) -> Result<Vec<u8>, ModelError> {
    let mut header = vec![0; 8];
    model.read_exact(&mut header)?;
    let len = ModelLayout::header_len(header[..].try_into().expect("eight bytes"))?;
    header.resize(len, 0);
    model.read_exact(&mut header[8..])?;
    layout.check_header(&header, model.metadata()?.len())?;
    Ok(header)
}

/// Bytes of a message, or of values, that are read at once.
pub(super) const BLOCK: usize = 1 << 20;

/// A file of values that is being written, and the one that it starts from: a base, or frozen values.
pub(super) struct Values {
    path: PathBuf,
    out: BufWriter<File>,
    held: Option<BufReader<File>>,
    bytes: Vec<u8>,
}

impl Values {
    pub(super) fn create(dir: &Path, held: Option<&PathBuf>) -> io::Result<Self> {
        // Work that was abandoned may still be at its file.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = dir.join(format!("version-{}.tmp", NEXT.fetch_add(1, Ordering::Relaxed)));
        let held = held.map(File::open).transpose()?.map(|file| BufReader::with_capacity(BLOCK, file));
        let out = BufWriter::with_capacity(BLOCK, File::create(&path)?);
        Ok(Self { path, out, held, bytes: Vec::new() })
    }

    /// Writes the version that a message leads to; gives its name.
    pub(super) fn take_message(
        &mut self,
        mut message: File,
        mut rebuild: Rebuild,
    ) -> Result<Digest, ModelError> {
        let mut block = vec![0; BLOCK];
        loop {
            match message.read(&mut block)? {
                0 => return Ok(rebuild.finish()?),
                n => rebuild.push(&block[..n], self)?,
            }
        }
    }

    /// Writes the values of a model's file; gives their name.
    pub(super) fn take_file(&mut self, mut model: File, layout: &ModelLayout) -> Result<Digest, ModelError> {
        header_of(&mut model, layout)?;
        Ok(self.take_rest(model)?)
    }

    /// Writes values that are frozen; gives their name.
    pub(super) fn take_frozen(&mut self, mut file: File) -> Result<Digest, ModelError> {
        let mut head = [0; FROZEN_HEAD];
        file.read_exact(&mut head)?;
        check_head(&head)?;
        Ok(self.take_rest(file)?)
    }

    fn take_rest(&mut self, mut file: File) -> io::Result<Digest> {
        let (mut digester, mut block) = (Digester::new(), vec![0; BLOCK]);
        loop {
            match file.read(&mut block)? {
                0 => return Ok(digester.finish()),
                n => {
                    digester.update(&block[..n]);
                    self.out.write_all(&block[..n])?;
                }
            }
        }
    }

    /// Makes the file durable under its name.
    pub(super) fn keep(mut self, name: &Path) -> io::Result<()> {
        self.out.flush()?;
        self.out.get_ref().sync_all()?;
        std::fs::rename(&self.path, name)
    }
}

impl Drop for Values {
    /// What did not become a version leaves nothing.
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Sink for Values {
    fn held(&mut self, run: &mut [f32]) -> io::Result<()> {
        let held = self.held.as_mut().ok_or(io::ErrorKind::NotFound)?;
        self.bytes.resize(4 * run.len(), 0);
        held.read_exact(&mut self.bytes)?;
        for (value, bytes) in run.iter_mut().zip(self.bytes.as_chunks().0) {
            *value = f32::from_le_bytes(*bytes);
        }
        Ok(())
    }

    fn version(&mut self, run: &[f32]) -> io::Result<()> {
        self.bytes.clear();
        self.bytes.extend(run.iter().flat_map(|value| value.to_le_bytes()));
        self.out.write_all(&self.bytes)
    }
}

#[cfg(test)]
mod tests;
