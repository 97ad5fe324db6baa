//! The values that clients hold, read in order and held against their name at the end.

use super::super::model::ModelReader;
use super::{Before, Impossible, Trouble, Unmade};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use undertone_core::digest::Digest;
use undertone_core::encoding::frozen::FROZEN_HEAD;
use undertone_core::encoding::rebuild::{Rebuild, RebuildError, Sink};
use undertone_round::job::Job;
use undertone_store::{BlobError, Blobs, LocalBlob};

/// Bytes of a message that are read at once.
const MESSAGE_BLOCK: u64 = 256 << 10;
/// Runs of values that wait to be taken: behind a few bytes of a message a whole frozen model may lie.
const AHEAD: usize = 8;

/// The files that a version lies in.
pub(super) struct Files {
    /// The whole of it, or the model's own file.
    whole: LocalBlob,
    /// What the whole needs beside it, where that is of a part.
    frozen: Option<LocalBlob>,
}

/// Finds the files of what clients hold.
pub(super) async fn find(before: Before, blobs: &Arc<dyn Blobs>) -> Result<Files, Unmade> {
    let whole = before.broadcast.whole.unwrap_or(before.model).digest;
    let whole = blobs.local(&whole).await.map_err(lost)?;
    let frozen = match before.broadcast.frozen {
        Some(frozen) => Some(blobs.local(&frozen.blob.digest).await.map_err(lost)?),
        None => None,
    };
    Ok(Files { whole, frozen })
}

fn lost(e: BlobError) -> Unmade {
    unusable(Trouble::blob("the version before", &e))
}

/// What cannot be read for good is no base.
fn unusable(trouble: Trouble) -> Unmade {
    match trouble {
        Trouble::Failed(Impossible { reason, .. }) => Unmade::Base(reason),
        now @ Trouble::Now(_) => Unmade::Trouble(now),
    }
}

pub(super) struct Base {
    version: Digest,
    source: Source,
}

enum Source {
    /// The model's own file.
    File(ModelReader),
    /// A whole version, decoded on a thread of its own.
    Message(Decoded),
}

impl Base {
    pub(super) fn open(job: &Job, before: Before, files: Files) -> Result<Self, Unmade> {
        let source = match before.broadcast.whole {
            None => {
                let file = ModelReader::open(files.whole, before.model, job.layout());
                Source::File(file.map_err(unusable)?)
            }
            Some(_) => {
                let rebuild = Rebuild::whole(job.spec().transport.down(), job.grid(), job.part());
                Source::Message(Decoded::begin(rebuild.map_err(|e| Unmade::Base(e.to_string()))?, files)?)
            }
        };
        Ok(Self { version: before.broadcast.version, source })
    }

    /// Fills `out` with the next values.
    pub(super) fn next(&mut self, out: &mut [f32]) -> Result<(), Unmade> {
        match &mut self.source {
            Source::File(file) => file.values(out).map_err(unusable),
            Source::Message(decoded) => decoded.next(out),
        }
    }

    /// Whether what was given is what clients hold.
    pub(super) fn finish(self) -> Result<(), Unmade> {
        match self.source {
            Source::File(file) => file.finish().map_err(unusable),
            Source::Message(decoded) => match decoded.finish()? {
                found if found == self.version => Ok(()),
                found => Err(Unmade::Base(format!(
                    "the version before is damaged: it has become {found}, not {}",
                    self.version
                ))),
            },
        }
    }
}

/// The values that a message leads to, some runs ahead of whoever takes them.
struct Decoded {
    said: Receiver<Said>,
    /// Values that arrived and are not taken yet.
    ready: Vec<f32>,
}

/// What the thread says that decodes.
enum Said {
    Run(Vec<f32>),
    /// There are no more: the name of all of them, or why.
    End(Result<Digest, Unmade>),
}

impl Decoded {
    fn begin(rebuild: Rebuild, files: Files) -> Result<Self, Unmade> {
        let (out, said) = sync_channel(AHEAD);
        // It ends by itself when nobody listens any more.
        let thread = std::thread::Builder::new().name("version before".into()).spawn(move || {
            let end = read(rebuild, &files, &out);
            let _ = out.send(Said::End(end));
        });
        match thread {
            Ok(_) => Ok(Self { said, ready: Vec::new() }),
            Err(e) => {
                let text = format!("no thread can be begun to read the version before: {e}");
                Err(Unmade::Trouble(Trouble::Now(text)))
            }
        }
    }

    fn next(&mut self, out: &mut [f32]) -> Result<(), Unmade> {
        while self.ready.len() < out.len() {
            match self.hear()? {
                Said::Run(run) => self.ready.extend(run),
                Said::End(end) => return end.and(Err(Unmade::Base("the version before ends early".into()))),
            }
        }
        out.copy_from_slice(&self.ready[..out.len()]);
        self.ready.drain(..out.len());
        Ok(())
    }

    fn finish(self) -> Result<Digest, Unmade> {
        match self.hear()? {
            Said::End(end) => end,
            Said::Run(_) => Err(Unmade::Base("the version before has more values than the model".into())),
        }
    }

    fn hear(&self) -> Result<Said, Unmade> {
        let broke = |_| Unmade::Trouble(Trouble::failed("reading the version before broke".into()));
        self.said.recv().map_err(broke)
    }
}

/// Decodes the message to its end.
fn read(mut rebuild: Rebuild, files: &Files, out: &SyncSender<Said>) -> Result<Digest, Unmade> {
    let malformed = |e: RebuildError| match e {
        RebuildError::Disk(e) => lost(e.into()),
        other => Unmade::Base(other.to_string()),
    };
    let bytes = files.whole.bytes().map_err(|e| lost(e.into()))?;
    let mut values = Reading { frozen: files.frozen.as_ref(), at: FROZEN_HEAD as u64, bytes: vec![], out };
    for start in (0..bytes).step_by(MESSAGE_BLOCK as usize) {
        let mut block = vec![0; MESSAGE_BLOCK.min(bytes - start) as usize];
        files.whole.read_at(&mut block, start).map_err(|e| lost(e.into()))?;
        rebuild.push(&block, &mut values).map_err(malformed)?;
    }
    rebuild.finish().map_err(malformed)
}

/// The values on their way.
struct Reading<'a> {
    frozen: Option<&'a LocalBlob>,
    /// Where the next of the frozen ones lies.
    at: u64,
    bytes: Vec<u8>,
    out: &'a SyncSender<Said>,
}

impl Sink for Reading<'_> {
    fn held(&mut self, run: &mut [f32]) -> io::Result<()> {
        let frozen = self.frozen.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.bytes.resize(4 * run.len(), 0);
        frozen.read_at(&mut self.bytes, self.at)?;
        self.at += self.bytes.len() as u64;
        for (value, bytes) in run.iter_mut().zip(self.bytes.as_chunks().0) {
            *value = f32::from_le_bytes(*bytes);
        }
        Ok(())
    }

    fn version(&mut self, run: &[f32]) -> io::Result<()> {
        self.out.send(Said::Run(run.to_vec())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
