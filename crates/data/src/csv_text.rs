//! A small CSV file in memory whose rows are dealt out as they are written.

use crate::csv_source::{CsvError, CsvSource};

/// A header and rows, each the very text of the file (without its line end).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsvText<'a> {
    /// The header line.
    pub header: &'a str,
    /// The rows; a row holds line ends if a quoted value does.
    pub rows: Vec<&'a str>,
}

impl<'a> CsvText<'a> {
    /// Finds header and rows in `text`. A byte order mark and blank lines are left out; an empty text has an
    /// empty header.
    ///
    /// # Errors
    /// [`CsvError`] past a limit.
    pub fn parse(text: &'a str) -> Result<Self, CsvError> {
        let mut source = CsvSource::new(text.as_bytes())?;
        let mut records = Vec::new();
        while let Some(record) = source.next()? {
            // Records end at ASCII bytes, so these are character boundaries.
            records.push(&text[record.start..record.end]);
        }
        let mut records = records.into_iter();
        Ok(Self { header: records.next().unwrap_or_default(), rows: records.collect() })
    }

    /// A file of its own with the header and these rows, in this order.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn select(&self, rows: &[usize]) -> String {
        let mut text = String::new();
        for line in std::iter::once(self.header).chain(rows.iter().map(|&i| self.rows[i])) {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}
