//! Rebuilding the split of a shipped example with another seed.
//!
//! An example ships one file for each group (a hospital, a bank) and one file with the rows held out of all of
//! them, which has one more column: the group. Together they are the whole data: the pool of a group is its rows
//! and its held-out rows sorted by id, and each pool is split anew by [`split`]. With the seed that the example
//! was shipped with, the shipped files come out again, byte for byte.

use crate::csv_source::{CsvError, CsvSource};
use crate::split::split;
use std::cmp::Ordering;

/// The files of a new split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resplit {
    /// (group, CSV to train on), in the order in which the groups were given.
    pub train: Vec<(String, String)>,
    /// The held-out rows of all groups, sorted by id, with the group column.
    pub held_out: String,
}

/// Why files could not be split anew.
#[derive(Debug, thiserror::Error)]
pub enum ResplitError {
    /// A file is not readable as CSV.
    #[error("{file}: {source}")]
    Csv {
        /// The group, or "held-out rows".
        file: String,
        /// Why.
        source: CsvError,
    },
    /// A file lacks a column.
    #[error("{file}: the header has no column \"{column}\"")]
    NoColumn {
        /// The group, or "held-out rows".
        file: String,
        /// The column.
        column: String,
    },
    /// A row's length is not the header's.
    #[error("{file}: line {line} does not have as many fields as the header")]
    Ragged {
        /// The group, or "held-out rows".
        file: String,
        /// The line.
        line: u64,
    },
    /// The columns of two files do not fit together.
    #[error("{file}: the columns differ from those of the held-out rows without \"{column}\"")]
    OtherColumns {
        /// The group.
        file: String,
        /// The group column.
        column: String,
    },
    /// A held-out row belongs to no group.
    #[error("the held-out rows name a group \"{0}\" that no file was given for")]
    UnknownGroup(String),
    /// An id stands twice in a pool, so that sorting by it decides nothing.
    #[error("{file}: two rows have the id \"{id}\"")]
    DuplicateId {
        /// The group.
        file: String,
        /// The id.
        id: String,
    },
}

/// Splits each group's pool anew; see the module's text for the rule.
///
/// `groups` are (name, CSV) without the column `group_column`; `held_out` has it, and its values are the names.
/// Ids compare as numbers if both are whole numbers, else as text.
///
/// # Errors
/// [`ResplitError`].
///
/// # Panics
/// If `held_out_fraction` is not within 0 to 1.
pub fn resplit(
    groups: &[(&str, &str)],
    held_out: &str,
    group_column: &str,
    id_column: &str,
    held_out_fraction: f64,
    seed: u64,
) -> Result<Resplit, ResplitError> {
    const HELD_OUT: &str = "held-out rows";
    let full = Sheet::read(HELD_OUT, held_out)?;
    let group_at = full.column(HELD_OUT, group_column)?;
    let mut header = full.header.clone();
    header.remove(group_at);

    let mut pools = Vec::with_capacity(groups.len());
    for (name, text) in groups {
        let sheet = Sheet::read(name, text)?;
        if sheet.header != header {
            return Err(ResplitError::OtherColumns { file: (*name).into(), column: group_column.into() });
        }
        pools.push(sheet);
    }
    for mut row in full.rows {
        let group = row.remove(group_at);
        match groups.iter().position(|(name, _)| *name == group) {
            Some(i) => pools[i].rows.push(row),
            None => return Err(ResplitError::UnknownGroup(group)),
        }
    }

    let mut train = Vec::with_capacity(groups.len());
    let mut held_rows: Vec<(String, Vec<String>)> = Vec::new();
    for ((name, _), mut pool) in groups.iter().zip(pools) {
        let id_at = pool.column(name, id_column)?;
        pool.rows.sort_by(|a, b| compare_ids(&a[id_at], &b[id_at]));
        if let Some(two) = pool.rows.windows(2).find(|w| compare_ids(&w[0][id_at], &w[1][id_at]).is_eq()) {
            return Err(ResplitError::DuplicateId { file: (*name).into(), id: two[0][id_at].clone() });
        }
        let parts = split(pool.rows.len(), held_out_fraction, seed);
        let rows = parts.train.iter().map(|&i| &pool.rows[i]);
        train.push(((*name).into(), write(&header, rows)));
        for &i in &parts.held_out {
            let mut row = pool.rows[i].clone();
            let id = row[id_at].clone();
            row.insert(group_at, (*name).into());
            held_rows.push((id, row));
        }
    }
    // Sorted by id, then by group, so that the order of the groups does not matter.
    held_rows.sort_by(|a, b| compare_ids(&a.0, &b.0).then_with(|| a.1[group_at].cmp(&b.1[group_at])));
    Ok(Resplit { train, held_out: write(&full.header, held_rows.iter().map(|(_, row)| row)) })
}

/// A CSV file as fields.
struct Sheet {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Sheet {
    fn read(file: &str, text: &str) -> Result<Self, ResplitError> {
        let csv = |source| ResplitError::Csv { file: file.into(), source };
        let mut source = CsvSource::new(text.as_bytes()).map_err(csv)?;
        let mut rows: Vec<Vec<String>> = Vec::new();
        while let Some(record) = source.next().map_err(csv)? {
            if rows.first().is_some_and(|header| header.len() != record.len()) {
                return Err(ResplitError::Ragged { file: file.into(), line: record.line });
            }
            rows.push(record.lossy());
        }
        let header = if rows.is_empty() { Vec::new() } else { rows.remove(0) };
        Ok(Self { header, rows })
    }

    fn column(&self, file: &str, column: &str) -> Result<usize, ResplitError> {
        self.header
            .iter()
            .position(|c| c == column)
            .ok_or_else(|| ResplitError::NoColumn { file: file.into(), column: column.into() })
    }
}

fn compare_ids(a: &str, b: &str) -> Ordering {
    match (a.parse::<u64>(), b.parse::<u64>()) {
        (Ok(a), Ok(b)) => a.cmp(&b),
        // Numbers before texts, so that the order is total.
        (Ok(_), Err(_)) => Ordering::Less,
        (Err(_), Ok(_)) => Ordering::Greater,
        (Err(_), Err(_)) => a.cmp(b),
    }
}

fn write<'a>(header: &[String], rows: impl Iterator<Item = &'a Vec<String>>) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(header).expect("writing to memory does not fail");
    for row in rows {
        writer.write_record(row).expect("rows are as long as the header");
    }
    String::from_utf8(writer.into_inner().expect("writing to memory does not fail"))
        .expect("fields are text, so the file is")
}

#[cfg(test)]
#[path = "resplit_tests.rs"]
mod tests;
