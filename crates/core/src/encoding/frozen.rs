//! The values of a model that a job does not train: they reach a client once, in f32, and stay as they are.
//!
//! They are named by their digest, as versions are, so that a client which has them from another job does not fetch them.

use super::broadcast::{HEAD, update};
use super::codec::RUN;
use super::rebuild::RebuildError;
use crate::digest::{Digest, Digester};
use crate::part::{Part, Segment};
use std::fmt;

/// First bytes of the file, as those of a version; whose it is follows.
const FROZEN: &[u8; 8] = b"UTFROZE1";

/// Bytes before the values.
pub const FROZEN_HEAD: usize = HEAD;

/// The size of the file of what is frozen beside `part`; `None` if nothing is.
pub fn frozen_len(part: &Part) -> Option<u64> {
    (!part.is_whole()).then(|| (FROZEN_HEAD + 4 * part.frozen_len()) as u64)
}

/// Holds the bytes before the values against what they must be.
///
/// # Errors
/// [`RebuildError::Malformed`].
pub fn check_head(head: &[u8; FROZEN_HEAD]) -> Result<(), RebuildError> {
    if head.starts_with(FROZEN) { Ok(()) } else { Err(RebuildError::Malformed("it does not begin as one")) }
}

/// Takes what is frozen out of a model that comes in order, cut anywhere.
pub struct FrozenMaker {
    segments: std::vec::IntoIter<Segment>,
    segment: Option<Segment>,
    bytes: Vec<u8>,
    digest: Digester,
}

impl FrozenMaker {
    /// Begins the file of what is frozen beside `part`, with a digest that names the job; its head is appended to `out`.
    pub fn new(part: &Part, owner: Digest, out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(FROZEN);
        out.extend_from_slice(owner.as_bytes());
        let mut segments = part.segments().into_iter();
        Self { segment: segments.next(), segments, bytes: Vec::new(), digest: Digester::new() }
    }

    /// Takes the next values of the model and appends the bytes of those that are frozen.
    ///
    /// # Panics
    /// If there are more than the model has.
    pub fn push(&mut self, mut model: &[f32], out: &mut Vec<u8>) {
        while !model.is_empty() {
            let segment = self.segment.as_mut().expect("the model has no more values");
            let (now, later) = model.split_at(model.len().min(segment.range.len()));
            if !segment.is_trained {
                for run in now.chunks(RUN) {
                    update(&mut self.digest, run, &mut self.bytes);
                    out.extend_from_slice(&self.bytes);
                }
            }
            segment.range.start += now.len();
            if segment.range.is_empty() {
                self.segment = self.segments.next();
            }
            model = later;
        }
    }

    /// Ends the file and gives the name of its values.
    ///
    /// # Panics
    /// If there were fewer values than the model has.
    pub fn finish(self) -> Digest {
        assert!(self.segment.is_none(), "the model has more values");
        self.digest.finish()
    }
}

impl fmt::Debug for FrozenMaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FrozenMaker")
    }
}
