//! Where a rule reads updates from: rows that may lie on a disk.

use crate::fixed::{FixedVector, MAX_FIXED};
use crate::limits::MAX_WEIGHT;

/// The updates of a round, one a row, as integers on the job's grid. They are read piece by piece and more than
/// once, by several threads; what is read must not change in between.
///
/// A rule takes nothing from the order of the rows: shuffled rows give the same bits.
pub trait Rows: Sync {
    /// Updates.
    fn rows(&self) -> usize;

    /// Values in each update.
    fn values(&self) -> usize;

    /// How much an update counts in the rules that weigh: 1 to [`MAX_WEIGHT`].
    fn weight(&self, row: usize) -> u32;

    /// Reads values `from .. from + out.len()` of a row.
    ///
    /// # Errors
    /// [`RowsError`] if they cannot be had.
    fn read(&self, row: usize, from: usize, out: &mut [i32]) -> Result<(), RowsError>;
}

/// An update that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("update {row} cannot be read: {reason}")]
pub struct RowsError {
    /// The row.
    pub row: usize,
    /// Why, as the disk says it.
    pub reason: String,
}

/// Updates in memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemoryRows {
    values: usize,
    rows: Vec<(Vec<i32>, u32)>,
}

/// An update that does not go with the others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnlikeRow {
    /// Of another length.
    #[error("update {row} has {found} values, the first has {wanted}")]
    Length {
        /// The row.
        row: usize,
        /// Its values.
        found: usize,
        /// The values of the first.
        wanted: usize,
    },
    /// Zero, or beyond the bound.
    #[error("update {row} has the weight {weight}, which must be 1 to {MAX_WEIGHT}")]
    Weight {
        /// The row.
        row: usize,
        /// Its weight.
        weight: u32,
    },
    /// A value beyond ±[`MAX_FIXED`].
    #[error("value {index} of update {row} is beyond the range of the wire format")]
    OutOfRange {
        /// The row.
        row: usize,
        /// Position in the flat vector.
        index: usize,
    },
}

impl MemoryRows {
    /// Updates with their weights.
    ///
    /// # Errors
    /// [`UnlikeRow`].
    pub fn new(rows: Vec<(Vec<i32>, u32)>) -> Result<Self, UnlikeRow> {
        let wanted = rows.first().map_or(0, |(units, _)| units.len());
        for (row, (units, weight)) in rows.iter().enumerate() {
            if units.len() != wanted {
                return Err(UnlikeRow::Length { row, found: units.len(), wanted });
            }
            if !(1..=MAX_WEIGHT).contains(weight) {
                return Err(UnlikeRow::Weight { row, weight: *weight });
            }
            if let Some(index) = units.iter().position(|u| u.unsigned_abs() > MAX_FIXED as u32) {
                return Err(UnlikeRow::OutOfRange { row, index });
            }
        }
        Ok(Self { values: wanted, rows })
    }

    /// Updates that count the same.
    ///
    /// # Errors
    /// [`UnlikeRow`] for updates of different lengths.
    pub fn of(updates: &[FixedVector]) -> Result<Self, UnlikeRow> {
        Self::new(updates.iter().map(|u| (u.units().to_vec(), 1)).collect())
    }
}

impl Rows for MemoryRows {
    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn values(&self) -> usize {
        self.values
    }

    fn weight(&self, row: usize) -> u32 {
        self.rows[row].1
    }

    fn read(&self, row: usize, from: usize, out: &mut [i32]) -> Result<(), RowsError> {
        out.copy_from_slice(&self.rows[row].0[from..from + out.len()]);
        Ok(())
    }
}

/// Some of the rows, as rows.
pub(crate) struct Chosen<'a> {
    /// All rows.
    pub(crate) all: &'a dyn Rows,
    /// Those that take part.
    pub(crate) which: &'a [usize],
}

impl Rows for Chosen<'_> {
    fn rows(&self) -> usize {
        self.which.len()
    }

    fn values(&self) -> usize {
        self.all.values()
    }

    fn weight(&self, row: usize) -> u32 {
        self.all.weight(self.which[row])
    }

    fn read(&self, row: usize, from: usize, out: &mut [i32]) -> Result<(), RowsError> {
        self.all.read(self.which[row], from, out)
    }
}
