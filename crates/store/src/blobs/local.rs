//! A blob on this machine.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use undertone_core::digest::{Digest, Digester};

/// Bytes that can be read at any place, by several threads at once.
#[derive(Debug, Clone)]
pub enum LocalBlob {
    /// In a file.
    File(Arc<File>),
    /// In memory.
    Bytes(Arc<[u8]>),
}

/// Bytes read at once.
const BLOCK: usize = 1 << 20;

impl LocalBlob {
    /// Its length in bytes.
    ///
    /// # Errors
    /// If the disk does not say.
    pub fn bytes(&self) -> io::Result<u64> {
        match self {
            Self::File(file) => Ok(file.metadata()?.len()),
            Self::Bytes(bytes) => Ok(bytes.len() as u64),
        }
    }

    /// Fills `out` with the bytes from `offset` on.
    ///
    /// # Errors
    /// If the disk fails, or there are not as many: [`io::ErrorKind::UnexpectedEof`].
    pub fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(out, offset),
            Self::Bytes(bytes) => {
                let end = offset.checked_add(out.len() as u64).filter(|end| *end <= bytes.len() as u64);
                let Some(end) = end else { return Err(io::ErrorKind::UnexpectedEof.into()) };
                out.copy_from_slice(&bytes[offset as usize..end as usize]);
                Ok(())
            }
        }
    }

    /// `len` bytes from `offset` on, in a vector of their own.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub fn read_vec(&self, len: usize, offset: u64) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(len);
        match self {
            Self::File(file) => {
                while out.len() < len {
                    let at = offset + out.len() as u64;
                    // Into bytes that nobody has set to zero.
                    match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut out), at) {
                        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                        Err(rustix::io::Errno::INTR) => {}
                        read => drop(read?),
                    }
                }
                out.truncate(len);
            }
            Self::Bytes(_) => {
                out.resize(len, 0);
                self.read_at(&mut out, offset)?;
            }
        }
        Ok(out)
    }

    /// Gives every byte to `sink`, in order and in blocks, and then the digest that they have: what was given is not to be
    /// believed before it is the right one.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn verified(&self, mut sink: impl FnMut(&[u8])) -> io::Result<Digest> {
        let bytes = self.bytes()?;
        let mut digester = Digester::new();
        let mut block = vec![0; BLOCK.min(usize::try_from(bytes).unwrap_or(BLOCK))];
        let mut at = 0;
        while at < bytes {
            let now = block.len().min(usize::try_from(bytes - at).unwrap_or(BLOCK));
            self.read_at(&mut block[..now], at)?;
            digester.update(&block[..now]);
            sink(&block[..now]);
            at += now as u64;
        }
        Ok(digester.finish())
    }
}
