//! The values of a version on their way to the disk, block by block.

use super::ModelError;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use undertone_core::digest::{Digest, Digester};
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

/// Bytes of a message, or of values, that are read at once.
const BLOCK: usize = 1 << 20;

/// A file of values that is being written, and the one that it starts from.
pub(super) struct Values {
    path: PathBuf,
    out: BufWriter<File>,
    base: Option<BufReader<File>>,
    bytes: Vec<u8>,
}

impl Values {
    pub(super) fn create(dir: &Path, base: Option<&PathBuf>) -> io::Result<Self> {
        // Work that was abandoned may still be at its file.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = dir.join(format!("version-{}.tmp", NEXT.fetch_add(1, Ordering::Relaxed)));
        let base = base.map(File::open).transpose()?.map(|file| BufReader::with_capacity(BLOCK, file));
        let out = BufWriter::with_capacity(BLOCK, File::create(&path)?);
        Ok(Self { path, out, base, bytes: Vec::new() })
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
        let mut header = vec![0; 8];
        model.read_exact(&mut header)?;
        let len = ModelLayout::header_len(header[..].try_into().expect("eight bytes"))?;
        header.resize(len, 0);
        model.read_exact(&mut header[8..])?;
        layout.check_header(&header, model.metadata()?.len())?;
        let (mut digester, mut block) = (Digester::new(), vec![0; BLOCK]);
        loop {
            match model.read(&mut block)? {
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
    fn base(&mut self, run: &mut [f32]) -> io::Result<()> {
        let base = self.base.as_mut().ok_or(io::ErrorKind::NotFound)?;
        self.bytes.resize(4 * run.len(), 0);
        base.read_exact(&mut self.bytes)?;
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
mod tests {
    use crate::folder::ClientFolder;
    use crate::models::{Arrived, Kept, ModelError, Models};
    use std::collections::BTreeMap;
    use undertone_core::digest::Digest;
    use undertone_core::encoding::broadcast::{Broadcaster, Pieces, values_digest};
    use undertone_round::job::{Job, JobSpec};
    use undertone_round::participant::{ModelRef, OfferedDelta, OfferedModel};

    fn job(transport: &str) -> Job {
        let text = undertone_harness::SAMPLE_JOB
            .replace("kind = \"logistic\"", "kind = \"mlp\"\nhidden = [3000]")
            .replace("[deadlines]", &format!("[transport]\n{transport}\n\n[deadlines]"));
        JobSpec::from_toml(&text, "job.toml").unwrap().resolve().unwrap()
    }

    fn file(bytes: &[u8]) -> ModelRef {
        ModelRef { digest: Digest::of(bytes), bytes: bytes.len() as u64 }
    }

    fn arrive(models: &Models, bytes: &[u8]) {
        let mut partial = models.resume(file(bytes)).unwrap();
        partial.append(0, bytes).unwrap();
        assert_eq!(models.finish(partial, Kept::Message).unwrap(), Ok(()));
    }

    /// An offer of `values`, with its whole and the difference from `base`.
    fn offer(job: &Job, values: &[f32], base: &[f32]) -> (OfferedModel, Vec<u8>, Vec<u8>) {
        let (down, mut out, own) = (job.spec().transport.down(), Pieces::default(), Digest::of(b"job"));
        let mut made = Broadcaster::new(down, job.grid(), values.len(), own, own, true, &mut out).unwrap();
        made.push(values, base, &mut out).unwrap();
        let version = Some(made.finish().unwrap());
        let whole = match down.whole() {
            Some(_) => out.whole,
            None => job.layout().to_safetensors(values, BTreeMap::new()),
        };
        let delta = Some(OfferedDelta { base: values_digest(base), file: file(&out.delta) });
        (OfferedModel { whole: file(&whole), version, delta }, whole, out.delta)
    }

    #[test]
    fn either_way_leads_to_the_version_and_a_damaged_base_is_noticed() {
        for transport in ["deltas = true", "deltas = { kind = \"block\", bits = 8 }"] {
            let dir = tempfile::tempdir().unwrap();
            let (job, models) = (job(transport), Models::new(&ClientFolder::new(dir.path())));
            let layout = job.layout();
            let (old, new) =
                (job.initial_values(), job.initial_values().iter().map(|v| v * 1.01).collect::<Vec<_>>());
            let (first, whole, _) = offer(&job, &old, &old);
            assert_eq!(first.version, Some(values_digest(&old)));
            arrive(&models, &whole);
            models.rebuild(first, Arrived::Whole, &job).unwrap();
            assert_eq!(models.read_offered(first, layout).unwrap(), old);
            let (second, whole, delta) = offer(&job, &new, &old);
            arrive(&models, &delta);
            models.rebuild(second, Arrived::Delta, &job).unwrap();
            let by_delta = models.read_offered(second, layout).unwrap();
            assert!(
                models.holds_version(second.digest(), layout) && models.holds_version(first.digest(), layout)
            );

            let path = models.version_path(first.digest());
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[100] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            arrive(&models, &delta);
            let e = models.rebuild(second, Arrived::Delta, &job).unwrap_err();
            assert!(matches!(e, ModelError::OtherVersion { .. }), "{transport}: {e}");
            assert!(!models.holds_version(first.digest(), layout), "an altered base is removed");
            arrive(&models, &whole);
            models.rebuild(second, Arrived::Whole, &job).unwrap();
            assert_eq!(models.read_offered(second, layout).unwrap(), by_delta, "{transport}");
            let left = std::fs::read_dir(dir.path().join("models")).unwrap().count();
            assert_eq!(left, 1, "{transport}: nothing but the version is left");
        }
    }
}
