//! What a model is sent as: whole, and as the difference from what clients hold.
//!
//! The coordinator keeps the model itself, the *master*, with all its bits, and its optimiser moves that. What clients
//! train from is a *version* of it:
//!
//! | deltas | the version is | whole it travels as | the difference |
//! |---|---|---|---|
//! | none, exact | the master as `models` has it | `models` | from version to version, without loss |
//! | lossy | the version before, plus what the difference decodes to | f32 | master minus version before, encoded |
//!
//! Of a model of which a job trains a [`Part`], both messages hold that part alone, each stretch of it encoded by itself;
//! what is frozen keeps the master's bits, is sent once ([`super::frozen`]), and is of the version's values like any other.
//! Such a model travels as messages even where nothing is encoded: in f32.
//!
//! A version is named by the digest of its values ([`values_digest`]), so it is the same whichever way it came, and a
//! wrong one is noticed. It is a function of the master, the version before and the job alone: coins of stochastic
//! rounding come from public digests, for they hide nothing and must fall the same way when a release is made again after
//! a crash. Each version is made once for all clients, in one pass over runs of values.

use super::bit_difference::{self, Steps};
use super::codec::{Codec, Codes, RUN};
use super::delta::DeltaEncoding;
use super::domain::{Domain as _, Values};
use super::rounding::{Rounder, Rounding, codec_of, unencodable};
use super::{EncodeError, EncodedLen, Encoding};
use crate::digest::{Digest, Digester};
use crate::fixed::Grid;
use crate::part::{Part, Segment};
use std::fmt;

/// First bytes of a whole version and of a difference; the digit is the format's version. Behind them is whose it is,
/// so that two jobs never share a file that one of them deletes.
pub(super) const WHOLE: &[u8; 8] = b"UTMODEL1";
pub(super) const DELTA: &[u8; 8] = b"UTDELTA1";

/// Bytes before the values.
pub(super) const HEAD: usize = 8 + 32;

/// How models travel down, as a job has it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Downlink {
    /// How a whole model is encoded; `None`: as the file that it is, in f32.
    pub models: Option<Encoding>,
    /// How the difference from the version before is encoded; `None`: there is none.
    pub deltas: Option<DeltaEncoding>,
}

impl Downlink {
    /// Whether models of which this part is trained travel as the files that they are, and in no other way.
    pub fn is_plain(&self, part: &Part) -> bool {
        self.asks_nothing() && part.is_whole()
    }

    /// Whether a job that has it says nothing of how models travel.
    pub fn asks_nothing(&self) -> bool {
        self.models.is_none() && self.deltas.is_none()
    }

    /// Checks that the two go together.
    ///
    /// # Errors
    /// A sentence that says what does not, and what to take instead.
    pub fn validate(&self) -> Result<(), String> {
        if let Some(models) = &self.models {
            models.validate()?;
            models.carries_models()?;
        }
        let Some(deltas) = &self.deltas else { return Ok(()) };
        deltas.validate()?;
        match (self.models, deltas) {
            (Some(models @ (Encoding::Fixed { .. } | Encoding::Block { .. })), _) => Err(format!(
                "deltas do not go with models in {models}: their steps change with every version, so that no value stays \
                 where it was; take models = {{ kind = \"bf16\" }} with deltas = true, or leave models out"
            )),
            (Some(Encoding::Bf16), DeltaEncoding::Lossy { .. }) => Err(
                "lossy deltas do not go with models in bf16: what they lead to is not bf16; take deltas = true, which is \
                 smaller there and loses nothing"
                    .into(),
            ),
            _ => Ok(()),
        }
    }

    /// How a whole version of such a part is encoded; `None`: it is the model's own file.
    pub fn whole(&self, part: &Part) -> Option<Encoding> {
        match self.deltas {
            Some(DeltaEncoding::Lossy { .. }) => Some(Encoding::F32),
            _ => self.models.or((!part.is_whole()).then_some(Encoding::F32)),
        }
    }

    /// The size of a whole version; `None`: that of the model's own file.
    pub fn whole_len(&self, part: &Part) -> Option<EncodedLen> {
        self.whole(part).map(|encoding| message_len(part, |values| encoding.encoded_len(values)))
    }

    /// The size of a difference, if there is one.
    pub fn delta_len(&self, part: &Part) -> Option<EncodedLen> {
        self.deltas.map(|encoding| message_len(part, |values| encoding.encoded_len(values)))
    }

    pub(super) fn steps(&self) -> Steps {
        if self.models == Some(Encoding::Bf16) { Steps::Bf16 } else { Steps::F32 }
    }
}

/// The size of a message: its head, and each stretch of the part by itself.
fn message_len(part: &Part, stretch: impl Fn(usize) -> EncodedLen) -> EncodedLen {
    let head = EncodedLen::Exact(HEAD as u64);
    part.ranges().iter().fold(head, |sum, range| sum.plus(stretch(range.len())))
}

/// The digest of a model's values (SHA-256 over their little-endian bytes), which versions are named by.
pub fn values_digest(values: &[f32]) -> Digest {
    let (mut digester, mut bytes) = (Digester::new(), Vec::new());
    values.chunks(RUN).for_each(|run| update(&mut digester, run, &mut bytes));
    digester.finish()
}

pub(super) fn update(digester: &mut Digester, run: &[f32], bytes: &mut Vec<u8>) {
    bytes.clear();
    bytes.extend(run.iter().flat_map(|value| value.to_le_bytes()));
    digester.update(bytes);
}

/// The bytes of a version, as they are made; the caller takes them out as it likes.
#[derive(Debug, Default)]
pub struct Pieces {
    /// Of the whole; none where that is the model's own file.
    pub whole: Vec<u8>,
    /// Of the difference; none without a base.
    pub delta: Vec<u8>,
}

/// Makes one version. Holds one run of values.
pub struct Broadcaster {
    down: Downlink,
    whole: Option<(Encoding, Codec)>,
    lossy: Option<(Encoding, Codec)>,
    domain: Values,
    has_base: bool,
    len: usize,
    segments: std::vec::IntoIter<Segment>,
    /// The rest of the stretch that the next value is of.
    segment: Option<Segment>,
    rounder: Rounder,
    codes: Codes,
    /// Values of a run, which never goes beyond a stretch; then what they become.
    version: Vec<f32>,
    /// The base's values of that run.
    held: Vec<f32>,
    bytes: Vec<u8>,
    digest: Digester,
}

impl Broadcaster {
    /// Begins the version of a master of which `part` is trained, with a digest that names the job, and one that coins are
    /// drawn from. With a base there is a difference from it. The heads of the messages are appended to `out`.
    ///
    /// # Errors
    /// If the encodings do not go together.
    pub fn new(
        down: Downlink,
        grid: Grid,
        part: &Part,
        owner: Digest,
        coins: Digest,
        has_base: bool,
        out: &mut Pieces,
    ) -> Result<Self, EncodeError> {
        down.validate().map_err(EncodeError::Invalid)?;
        let has_base = has_base && down.deltas.is_some();
        let whole = down.whole(part).map(|e| Ok((e, codec_of(&e)?))).transpose()?;
        let lossy = match down.deltas {
            Some(DeltaEncoding::Lossy { encoding }) if has_base => Some((encoding, codec_of(&encoding)?)),
            _ => None,
        };
        if whole.is_some() {
            out.whole.extend_from_slice(WHOLE);
            out.whole.extend_from_slice(owner.as_bytes());
        }
        if has_base {
            out.delta.extend_from_slice(DELTA);
            out.delta.extend_from_slice(owner.as_bytes());
        }
        let mut segments = part.segments().into_iter();
        Ok(Self {
            down,
            whole,
            lossy,
            domain: Values::new(grid),
            has_base,
            len: part.whole_len(),
            segment: segments.next(),
            segments,
            rounder: Rounder::new(&Rounding::of(coins)),
            codes: Codes::new(),
            version: Vec::new(),
            held: Vec::new(),
            bytes: Vec::new(),
            digest: Digester::new(),
        })
    }

    /// Takes the next values of the master, cut anywhere, and the base's at the same places if there is one, and appends the
    /// bytes of what is whole.
    ///
    /// # Errors
    /// [`EncodeError`] with the position; what was made is then of no use.
    ///
    /// # Panics
    /// If the base is missing or of another length.
    pub fn push(
        &mut self,
        mut master: &[f32],
        mut base: &[f32],
        out: &mut Pieces,
    ) -> Result<(), EncodeError> {
        assert!(!self.has_base || base.len() == master.len(), "a base has a value for each of the master's");
        let found = self.done() + master.len();
        if found > self.len {
            return Err(EncodeError::WrongLength { found, wanted: self.len });
        }
        while !master.is_empty()
            && let Some(mut segment) = self.segment.take()
        {
            let room = if segment.is_trained { RUN - self.version.len() } else { RUN };
            let taken = master.len().min(segment.range.len()).min(room);
            let (now, later) = master.split_at(taken);
            let start = segment.range.start;
            segment.range.start += taken;
            if segment.is_trained {
                self.version.extend_from_slice(now);
                if self.has_base {
                    self.held.extend_from_slice(&base[..taken]);
                    base = &base[taken..];
                }
                if segment.range.is_empty() || self.version.len() == RUN {
                    self.run(segment.range.start - self.version.len(), out)?;
                }
            } else {
                self.check(now, start)?;
                update(&mut self.digest, now, &mut self.bytes);
                base = base.get(taken..).unwrap_or_default();
            }
            master = later;
            self.segment = if segment.range.is_empty() { self.segments.next() } else { Some(segment) };
        }
        Ok(())
    }

    /// Ends the version and gives its name.
    ///
    /// # Errors
    /// [`EncodeError`] if there were fewer values than announced.
    pub fn finish(self) -> Result<Digest, EncodeError> {
        if self.segment.is_some() {
            return Err(EncodeError::WrongLength { found: self.done(), wanted: self.len });
        }
        Ok(self.digest.finish())
    }

    /// Values that were taken.
    fn done(&self) -> usize {
        self.segment.as_ref().map_or(self.len, |segment| segment.range.start)
    }

    fn check(&self, values: &[f32], start: usize) -> Result<(), EncodeError> {
        match values.iter().position(|value| !self.domain.valid(*value)) {
            Some(at) => Err(EncodeError::NotFinite { index: start + at, value: values[at].into() }),
            None => Ok(()),
        }
    }

    /// Makes the run that begins at `start` of the model.
    fn run(&mut self, start: usize, out: &mut Pieces) -> Result<(), EncodeError> {
        let (mut version, mut held) = (std::mem::take(&mut self.version), std::mem::take(&mut self.held));
        if let Some(lossy) = self.lossy {
            // Towards the master from what clients have.
            version.iter_mut().zip(&held).for_each(|(value, have)| *value -= have);
            self.coded(lossy, start, &mut version, &mut out.delta)?;
            version.iter_mut().zip(&held).for_each(|(moved, have)| *moved += have);
        }
        if let Some(whole) = self.whole {
            // Of values that came through a difference f32 loses nothing.
            self.coded(whole, start, &mut version, &mut out.whole)?;
        } else {
            self.check(&version, start)?;
        }
        if self.has_base && self.lossy.is_none() {
            bit_difference::encode_run(self.down.steps(), &held, &version, &mut out.delta);
        }
        update(&mut self.digest, &version, &mut self.bytes);
        version.clear();
        held.clear();
        (self.version, self.held) = (version, held);
        Ok(())
    }

    /// Appends a run's bytes, and makes the values what they decode to.
    fn coded(
        &mut self,
        (encoding, codec): (Encoding, Codec),
        start: usize,
        values: &mut [f32],
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        let at = out.len();
        codec
            .encode_run(self.domain, &mut self.rounder, &mut self.codes, values, out)
            .map_err(|e| unencodable(self.domain, &encoding, values, start, e))?;
        codec
            .decode_run(self.domain, &mut self.codes, &out[at..], values)
            .expect("what was encoded can be decoded");
        Ok(())
    }
}

impl fmt::Debug for Broadcaster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Broadcaster({} of {} values)", self.done(), self.len)
    }
}
