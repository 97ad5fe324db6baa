//! From what travelled back to the version of a model that it stands for.
//!
//! Nothing is believed before the end: the digest that [`Rebuild::finish`] gives is held against the one that was offered.

use super::bit_difference::{BitDifference, Steps};
use super::broadcast::{DELTA, Downlink, HEAD, WHOLE, update};
use super::delta::DeltaEncoding;
use super::domain::Values;
use super::{DecodeError, Decoder};
use crate::digest::{Digest, Digester};
use crate::fixed::Grid;
use std::fmt;
use std::io;

/// Why bytes do not lead to a version.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// They are none of this job's.
    #[error("it is no version of a model: {0}")]
    Malformed(&'static str),
    /// They are no message of the job's encoding.
    #[error("it is no version of a model: {0}")]
    Decode(#[from] DecodeError),
    /// The base cannot be read, or the values cannot be written.
    #[error(transparent)]
    Disk(#[from] io::Error),
}

/// Where the values of the base come from, run by run, and where those of the version go.
pub trait Sink {
    /// Fills `run` with the next values of the base.
    ///
    /// # Errors
    /// If they cannot be read.
    fn base(&mut self, run: &mut [f32]) -> io::Result<()>;

    /// Takes the next values of the version; not to be believed before its digest is known.
    ///
    /// # Errors
    /// If they cannot be kept.
    fn version(&mut self, run: &[f32]) -> io::Result<()>;
}

/// Reads a whole version or a difference that arrives in pieces, cut anywhere. Holds one run of values.
pub struct Rebuild {
    kind: Kind,
    magic: &'static [u8; 8],
    head: Vec<u8>,
    digest: Digester,
    run: Vec<f32>,
    bytes: Vec<u8>,
}

enum Kind {
    Whole(Box<Decoder<Values>>),
    Lossy(Box<Decoder<Values>>),
    Exact(BitDifference, Steps),
}

impl Rebuild {
    /// A whole version of `len` values.
    ///
    /// # Errors
    /// If the job's models are no messages but files, or the encoding's numbers are no good.
    pub fn whole(down: Downlink, grid: Grid, len: usize) -> Result<Self, RebuildError> {
        let encoding = down.whole().ok_or(RebuildError::Malformed("this job's models are files"))?;
        Ok(Self::new(WHOLE, Kind::Whole(Box::new(Decoder::new(&encoding, Values::new(grid), len)?))))
    }

    /// The difference from a base, both of `len` values.
    ///
    /// # Errors
    /// If the job has no differences, or the encoding's numbers are no good.
    pub fn delta(down: Downlink, grid: Grid, len: usize) -> Result<Self, RebuildError> {
        let kind = match down.deltas {
            None => return Err(RebuildError::Malformed("this job has no differences")),
            Some(DeltaEncoding::Exact) => Kind::Exact(BitDifference::new(len), down.steps()),
            Some(DeltaEncoding::Lossy { encoding }) => {
                Kind::Lossy(Box::new(Decoder::new(&encoding, Values::new(grid), len)?))
            }
        };
        Ok(Self::new(DELTA, kind))
    }

    fn new(magic: &'static [u8; 8], kind: Kind) -> Self {
        let (head, run, bytes) = (Vec::new(), Vec::new(), Vec::new());
        Self { kind, magic, head, digest: Digester::new(), run, bytes }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`RebuildError`]; what was made is then of no use.
    pub fn push(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<(), RebuildError> {
        let (head, bytes) = bytes.split_at(bytes.len().min(HEAD - self.head.len()));
        self.head.extend_from_slice(head);
        if !self.magic.starts_with(&self.head[..self.head.len().min(8)]) {
            return Err(RebuildError::Malformed("it does not begin as one"));
        }
        let Self { kind, digest, run, bytes: buffer, .. } = self;
        let mut disk = Ok(());
        let mut end = |values: &[f32], sink: &mut dyn Sink| {
            update(digest, values, buffer);
            if disk.is_ok() {
                disk = sink.version(values);
            }
        };
        let mut base = Ok(());
        match kind {
            Kind::Whole(decoder) => decoder.push(bytes, &mut |_, values| end(values, sink))?,
            Kind::Lossy(decoder) => decoder.push(bytes, &mut |_, moves| {
                read_base(sink, run, moves.len(), &mut base);
                run.iter_mut().zip(moves).for_each(|(value, by)| *value += by);
                end(run, sink);
            })?,
            Kind::Exact(difference, steps) => difference
                .push(bytes, &mut |moves| {
                    read_base(sink, run, moves.len(), &mut base);
                    run.iter_mut().zip(moves).for_each(|(value, by)| *value = steps.moved(*value, *by));
                    end(run, sink);
                })
                .map_err(RebuildError::Malformed)?,
        }
        base?;
        Ok(disk?)
    }

    /// Ends the message and gives the name of the version that it led to.
    ///
    /// # Errors
    /// [`RebuildError`] if it is not whole.
    pub fn finish(self) -> Result<Digest, RebuildError> {
        match self.kind {
            _ if self.head.len() < HEAD => return Err(RebuildError::Malformed("it ends early")),
            Kind::Whole(decoder) | Kind::Lossy(decoder) => decoder.finish()?,
            Kind::Exact(difference, _) if !difference.is_whole() => {
                return Err(RebuildError::Malformed("it ends early"));
            }
            Kind::Exact(..) => {}
        }
        Ok(self.digest.finish())
    }
}

fn read_base(sink: &mut impl Sink, run: &mut Vec<f32>, len: usize, failed: &mut io::Result<()>) {
    run.resize(len, 0.0);
    if failed.is_ok() {
        *failed = sink.base(run);
    }
}

impl fmt::Debug for Rebuild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rebuild")
    }
}
