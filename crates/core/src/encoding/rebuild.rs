//! From what travelled back to the version of a model that it stands for.
//!
//! A message holds what is trained; what is frozen comes from what the reader holds.
//!
//! Nothing is believed before the end: the digest that [`Rebuild::finish`] gives is held against the one that was offered.

use super::bit_difference::{BitDifference, Steps};
use super::broadcast::{DELTA, Downlink, HEAD, WHOLE, update};
use super::codec::RUN;
use super::delta::DeltaEncoding;
use super::domain::Values;
use super::{DecodeError, Decoder, EncodedLen, Encoding};
use crate::digest::{Digest, Digester};
use crate::fixed::Grid;
use crate::part::{Part, Segment};
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

/// Where the values come from that the reader holds, run by run, and where those of the version go.
pub trait Sink {
    /// Fills `run` with the next values that are held: those of the base, for a difference; those that are frozen, for a
    /// whole.
    ///
    /// # Errors
    /// If they cannot be read.
    fn held(&mut self, run: &mut [f32]) -> io::Result<()>;

    /// Takes the next values of the version; not to be believed before its digest is known.
    ///
    /// # Errors
    /// If they cannot be kept.
    fn version(&mut self, run: &[f32]) -> io::Result<()>;
}

/// Reads a whole version or a difference that arrives in pieces, cut anywhere. Holds one run of values.
pub struct Rebuild {
    way: Way,
    grid: Grid,
    magic: &'static [u8; 8],
    head: Vec<u8>,
    segments: std::vec::IntoIter<Segment>,
    stretch: Option<Stretch>,
    digest: Digester,
    run: Vec<f32>,
    bytes: Vec<u8>,
}

/// What the message says of each value that is trained.
#[derive(Clone, Copy)]
enum Way {
    Whole(Encoding),
    Lossy(Encoding),
    Exact(Steps),
}

/// The stretch of trained values that the next bytes are of.
enum Stretch {
    /// Where it begins in the model, and how many of its bytes are missing.
    Coded {
        start: usize,
        decoder: Box<Decoder<Values>>,
        missing: u64,
    },
    Exact(BitDifference, Steps),
}

impl Rebuild {
    /// A whole version of a model of which `part` is trained.
    ///
    /// # Errors
    /// If the job's models are no messages but files, or the encoding's numbers are no good.
    pub fn whole(down: Downlink, grid: Grid, part: &Part) -> Result<Self, RebuildError> {
        let encoding = down.whole(part).ok_or(RebuildError::Malformed("this job's models are files"))?;
        Self::new(WHOLE, Way::Whole(encoding), grid, part)
    }

    /// The difference from a base, both of a model of which `part` is trained.
    ///
    /// # Errors
    /// If the job has no differences, or the encoding's numbers are no good.
    pub fn delta(down: Downlink, grid: Grid, part: &Part) -> Result<Self, RebuildError> {
        let way = match down.deltas {
            None => return Err(RebuildError::Malformed("this job has no differences")),
            Some(DeltaEncoding::Exact) => Way::Exact(down.steps()),
            Some(DeltaEncoding::Lossy { encoding }) => Way::Lossy(encoding),
        };
        Self::new(DELTA, way, grid, part)
    }

    fn new(magic: &'static [u8; 8], way: Way, grid: Grid, part: &Part) -> Result<Self, RebuildError> {
        if let Way::Whole(encoding) | Way::Lossy(encoding) = way {
            encoding.validate().map_err(DecodeError::Invalid)?;
        }
        Ok(Self {
            way,
            grid,
            magic,
            head: Vec::new(),
            segments: part.segments().into_iter(),
            stretch: None,
            digest: Digester::new(),
            run: Vec::new(),
            bytes: Vec::new(),
        })
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`RebuildError`]; what was made is then of no use.
    pub fn push(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<(), RebuildError> {
        let (head, mut bytes) = bytes.split_at(bytes.len().min(HEAD - self.head.len()));
        self.head.extend_from_slice(head);
        if !self.magic.starts_with(&self.head[..self.head.len().min(8)]) {
            return Err(RebuildError::Malformed("it does not begin as one"));
        }
        if self.head.len() < HEAD {
            return Ok(());
        }
        loop {
            if self.stretch.is_none() {
                self.stretch = self.next(sink)?;
            }
            let Some(mut stretch) = self.stretch.take() else { break };
            let is_whole = self.feed(&mut stretch, &mut bytes, sink)?;
            if !is_whole {
                self.stretch = Some(stretch);
                break;
            }
        }
        if bytes.is_empty() {
            Ok(())
        } else {
            Err(RebuildError::Malformed("it goes on after its last value"))
        }
    }

    /// Ends the message and gives the name of the version that it led to.
    ///
    /// # Errors
    /// [`RebuildError`] if it is not whole.
    pub fn finish(self) -> Result<Digest, RebuildError> {
        match self.stretch {
            // What is frozen behind the last stretch is passed on with it.
            None if self.head.len() == HEAD && self.segments.len() == 0 => return Ok(self.digest.finish()),
            Some(Stretch::Coded { decoder, .. }) => decoder.finish()?,
            Some(Stretch::Exact(..)) | None => {}
        }
        Err(RebuildError::Malformed("it ends early"))
    }

    /// Passes on what is frozen before the next stretch, and begins that.
    fn next(&mut self, sink: &mut impl Sink) -> Result<Option<Stretch>, RebuildError> {
        for Segment { range, is_trained } in self.segments.by_ref() {
            if !is_trained {
                for start in range.clone().step_by(RUN) {
                    self.run.resize(RUN.min(range.end - start), 0.0);
                    sink.held(&mut self.run)?;
                    update(&mut self.digest, &self.run, &mut self.bytes);
                    sink.version(&self.run)?;
                }
                continue;
            }
            return Ok(Some(match self.way {
                Way::Exact(steps) => Stretch::Exact(BitDifference::new(range.len()), steps),
                Way::Whole(encoding) | Way::Lossy(encoding) => {
                    let EncodedLen::Exact(missing) = encoding.encoded_len(range.len()) else {
                        return Err(RebuildError::Malformed("its encoding has no places"));
                    };
                    let decoder = Decoder::new(&encoding, Values::new(self.grid), range.len())?;
                    Stretch::Coded { start: range.start, decoder: Box::new(decoder), missing }
                }
            }));
        }
        Ok(None)
    }

    /// Takes the bytes that are the stretch's; whether it is whole then.
    fn feed(
        &mut self,
        stretch: &mut Stretch,
        bytes: &mut &[u8],
        sink: &mut impl Sink,
    ) -> Result<bool, RebuildError> {
        let Self { way, digest, run, bytes: buffer, .. } = self;
        let mut disk = Ok(());
        let mut end = |values: &[f32], sink: &mut dyn Sink| {
            update(digest, values, buffer);
            if disk.is_ok() {
                disk = sink.version(values);
            }
        };
        let mut held = Ok(());
        let is_whole = match stretch {
            Stretch::Coded { start, decoder, missing } => {
                let (now, later) =
                    bytes.split_at(bytes.len().min(usize::try_from(*missing).unwrap_or(usize::MAX)));
                let decoded = decoder.push(now, &mut |_, values| {
                    if let Way::Whole(_) = way {
                        return end(values, sink);
                    }
                    read_held(sink, run, values.len(), &mut held);
                    run.iter_mut().zip(values).for_each(|(value, by)| *value += by);
                    end(run, sink);
                });
                decoded.map_err(|e| e.moved(*start))?;
                *bytes = later;
                *missing -= now.len() as u64;
                *missing == 0
            }
            Stretch::Exact(difference, steps) => {
                *bytes = difference
                    .push(bytes, &mut |moves| {
                        read_held(sink, run, moves.len(), &mut held);
                        run.iter_mut().zip(moves).for_each(|(value, by)| *value = steps.moved(*value, *by));
                        end(run, sink);
                    })
                    .map_err(RebuildError::Malformed)?;
                difference.is_whole()
            }
        };
        held?;
        disk?;
        Ok(is_whole)
    }
}

fn read_held(sink: &mut impl Sink, run: &mut Vec<f32>, len: usize, failed: &mut io::Result<()>) {
    run.resize(len, 0.0);
    if failed.is_ok() {
        *failed = sink.held(run);
    }
}

impl fmt::Debug for Rebuild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rebuild")
    }
}
