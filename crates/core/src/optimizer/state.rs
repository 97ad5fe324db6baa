//! What a server optimiser keeps from round to round, and how it is stored.
//!
//! ```text
//! 0   magic "UTOS"          4   format 1       5   kind       6   two zero bytes
//! 8   rounds, u64           16  values, u64    (little-endian, as all that follows)
//! 24  momentum, f32 each    then second moment, f32 each, as many of the two as the kind keeps
//! end SHA-256 of all that is before
//! ```

use super::ServerOptimizer;
use crate::digest::Digester;
use std::io;

const MAGIC: [u8; 4] = *b"UTOS";
const FORMAT: u8 = 1;
const HEADER: usize = 24;
/// Bytes that are converted at a time.
const PIECE: usize = 1 << 16;

/// The moments of a server optimiser. They are f32, like the model whose length they have; sums of them are not made.
#[derive(Debug, Clone, PartialEq)]
pub struct OptimizerState {
    kind: Kind,
    len: usize,
    pub(super) rounds: u64,
    /// Momentum; empty if none is kept.
    pub(super) first: Vec<f32>,
    /// Second moment; empty if none is kept.
    pub(super) second: Vec<f32>,
}

/// Which optimiser a state is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Sgd = 0,
    Momentum = 1,
    Adam = 2,
    Yogi = 3,
    Adagrad = 4,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Sgd, Self::Momentum, Self::Adam, Self::Yogi, Self::Adagrad];

    fn of(optimizer: &ServerOptimizer) -> Self {
        match optimizer {
            ServerOptimizer::Sgd { .. } => Self::Sgd,
            ServerOptimizer::Momentum { .. } => Self::Momentum,
            ServerOptimizer::Adam { .. } => Self::Adam,
            ServerOptimizer::Yogi { .. } => Self::Yogi,
            ServerOptimizer::Adagrad { .. } => Self::Adagrad,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Sgd => "sgd",
            Self::Momentum => "momentum",
            Self::Adam => "adam",
            Self::Yogi => "yogi",
            Self::Adagrad => "adagrad",
        }
    }

    /// Values of momentum and of second moment that are kept for each of the model's.
    fn moments(self) -> (usize, usize) {
        match self {
            Self::Sgd => (0, 0),
            Self::Momentum => (1, 0),
            Self::Adam | Self::Yogi | Self::Adagrad => (1, 1),
        }
    }
}

/// Why a state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Of another optimiser.
    #[error("the optimiser's state is of {found}, the job's optimiser is {wanted}")]
    Kind {
        /// What the state is of.
        found: &'static str,
        /// What the job uses.
        wanted: &'static str,
    },
    /// Of another model.
    #[error("the optimiser's state has {found} values, the model has {wanted}")]
    Length {
        /// Values of the state.
        found: u64,
        /// Values of the model.
        wanted: u64,
    },
    /// Written by a later version.
    #[error("the optimiser's state has format {0}, this version reads {FORMAT}: update the server")]
    Format(u8),
    /// Not a state, cut off, or with other bytes than were written.
    #[error("the optimiser's state is damaged: {0}")]
    Damaged(&'static str),
    /// It cannot be read.
    #[error("the optimiser's state cannot be read: {0}")]
    Io(#[from] io::Error),
}

impl OptimizerState {
    pub(super) fn zero(optimizer: &ServerOptimizer, len: usize) -> Self {
        let kind = Kind::of(optimizer);
        let (first, second) = kind.moments();
        let least = match *optimizer {
            ServerOptimizer::Adam { tau, .. }
            | ServerOptimizer::Yogi { tau, .. }
            | ServerOptimizer::Adagrad { tau, .. } => (tau * tau) as f32,
            ServerOptimizer::Sgd { .. } | ServerOptimizer::Momentum { .. } => 0.0,
        };
        Self { kind, len, rounds: 0, first: vec![0.0; first * len], second: vec![least; second * len] }
    }

    pub(super) fn check(&self, optimizer: &ServerOptimizer, len: usize) -> Result<(), StateError> {
        let wanted = Kind::of(optimizer);
        if self.kind != wanted {
            return Err(StateError::Kind { found: self.kind.name(), wanted: wanted.name() });
        }
        if self.len != len {
            return Err(StateError::Length { found: self.len as u64, wanted: len as u64 });
        }
        Ok(())
    }

    /// Rounds that went into it.
    pub fn rounds(&self) -> u64 {
        self.rounds
    }

    /// Bytes that [`write_to`](Self::write_to) writes: 4 for each moment of each value, and 56.
    pub fn stored_bytes(&self) -> usize {
        HEADER + 4 * (self.first.len() + self.second.len()) + 32
    }

    /// Writes it, in pieces of 64 KiB.
    ///
    /// # Errors
    /// Of the writer.
    pub fn write_to(&self, mut out: impl io::Write) -> io::Result<()> {
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&MAGIC);
        header[4] = FORMAT;
        header[5] = self.kind as u8;
        header[8..16].copy_from_slice(&self.rounds.to_le_bytes());
        header[16..].copy_from_slice(&(self.len as u64).to_le_bytes());
        let mut digest = Digester::new();
        digest.update(&header);
        out.write_all(&header)?;
        let mut bytes = Vec::with_capacity(PIECE);
        for values in self.first.chunks(PIECE / 4).chain(self.second.chunks(PIECE / 4)) {
            bytes.clear();
            bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            digest.update(&bytes);
            out.write_all(&bytes)?;
        }
        out.write_all(digest.finish().as_bytes())
    }

    /// The bytes of [`write_to`](Self::write_to).
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.stored_bytes());
        self.write_to(&mut bytes).expect("a vector takes everything");
        bytes
    }

    /// Reads the state of `optimizer` for a model of `len` values. The header is believed before anything is allocated
    /// only as far as it says what is wanted; nothing may follow the digest.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn read_from(
        optimizer: &ServerOptimizer,
        len: usize,
        mut input: impl io::Read,
    ) -> Result<Self, StateError> {
        let mut header = [0; HEADER];
        fill(&mut input, &mut header)?;
        if header[..4] != MAGIC {
            return Err(StateError::Damaged("it does not begin with UTOS"));
        }
        if header[4] != FORMAT {
            return Err(StateError::Format(header[4]));
        }
        let kind = Kind::ALL.into_iter().find(|kind| *kind as u8 == header[5]);
        let kind = kind.ok_or(StateError::Damaged("it is of no optimiser there is"))?;
        let wanted = Kind::of(optimizer);
        if kind != wanted {
            return Err(StateError::Kind { found: kind.name(), wanted: wanted.name() });
        }
        let number = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"));
        if number(16) != len as u64 {
            return Err(StateError::Length { found: number(16), wanted: len as u64 });
        }
        let mut digest = Digester::new();
        digest.update(&header);
        let mut state = Self { rounds: number(8), ..Self::zero(optimizer, len) };
        let mut bytes = vec![0; PIECE];
        for values in state.first.chunks_mut(PIECE / 4).chain(state.second.chunks_mut(PIECE / 4)) {
            let bytes = &mut bytes[..4 * values.len()];
            fill(&mut input, bytes)?;
            digest.update(bytes);
            for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
        let mut stored = [0; 32];
        fill(&mut input, &mut stored)?;
        if digest.finish().as_bytes() != &stored {
            return Err(StateError::Damaged("its digest is not that of its bytes"));
        }
        if input.read(&mut [0])? != 0 {
            return Err(StateError::Damaged("bytes follow its end"));
        }
        Ok(state)
    }

    /// [`read_from`](Self::read_from) bytes in memory.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn from_bytes(optimizer: &ServerOptimizer, len: usize, bytes: &[u8]) -> Result<Self, StateError> {
        Self::read_from(optimizer, len, bytes)
    }
}

fn fill(input: &mut impl io::Read, bytes: &mut [u8]) -> Result<(), StateError> {
    input.read_exact(bytes).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => StateError::Damaged("it is cut off"),
        _ => StateError::Io(e),
    })
}
