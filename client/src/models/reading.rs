//! A model's values from this disk, block by block: never the file beside the values.

use super::ModelError;
use super::rebuild::{BLOCK, digest_of, header_of};
use crate::folder::remove_if_there;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use undertone_core::digest::{Digest, Digester};
use undertone_core::layout::ModelLayout;

/// What stands before the values in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    /// Nothing.
    None,
    /// That of a safetensors file.
    Safetensors,
}

/// The values of a file that should have this digest: a disk may have rotted since it was written. One that has another is removed.
///
/// # Errors
/// [`ModelError::Altered`] if the digest is another; else as the file cannot be read, or is of another layout.
pub(super) fn read(
    path: &Path,
    wanted: Digest,
    layout: &ModelLayout,
    head: Head,
) -> Result<Vec<f32>, ModelError> {
    let (found, problem) = match take(path, layout, head) {
        Ok((found, values)) if found == wanted => return Ok(values),
        Ok((found, _)) => (found, None),
        // A file that was altered may look like anything.
        Err(e) => (digest_of(path)?, Some(e)),
    };
    match problem {
        Some(e) if found == wanted => Err(e),
        _ => {
            remove_if_there(path)?;
            Err(ModelError::Altered(found))
        }
    }
}

fn take(path: &Path, layout: &ModelLayout, head: Head) -> Result<(Digest, Vec<f32>), ModelError> {
    let (mut file, mut digester) = (File::open(path)?, Digester::new());
    if head == Head::Safetensors {
        digester.update(&header_of(&mut file, layout)?);
    }
    let mut values = Vec::new();
    values.try_reserve_exact(layout.len()).map_err(|_| ModelError::Memory(layout.len()))?;
    let mut block = vec![0; BLOCK];
    while values.len() < layout.len() {
        let block = &mut block[..BLOCK.min(4 * (layout.len() - values.len()))];
        file.read_exact(block)?;
        digester.update(block);
        values.extend(block.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)));
    }
    match file.read(&mut [0])? {
        0 => Ok((digester.finish(), values)),
        _ => Err(ModelError::Disk(io::Error::new(io::ErrorKind::InvalidData, "it is longer than the model"))),
    }
}
