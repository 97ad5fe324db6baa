//! From bytes to records, one at a time and within limits.
//!
//! The file is never in memory as a whole, a record has a largest size (so an unclosed quote cannot swallow the
//! file), and any bytes at all give records or an error, never a panic.

use std::io::{BufRead, BufReader, Cursor, Read};

/// Longest record (usually: line), in bytes.
pub const MAX_RECORD_BYTES: usize = 1 << 20;
/// Most fields in a record.
pub const MAX_FIELDS: usize = 1 << 16;

/// Why bytes could not be read as CSV.
#[derive(Debug, thiserror::Error)]
pub enum CsvError {
    /// The disk, or the operating system, refused.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// UTF-16, which spreadsheets call "Unicode text".
    #[error("the text is UTF-16: save the file as CSV in UTF-8")]
    Utf16,
    /// A record never ends.
    #[error(
        "line {line}: more than {MAX_RECORD_BYTES} bytes without an end: look for a quote (\") that is never closed"
    )]
    RecordTooLong {
        /// Where the record starts.
        line: u64,
    },
    /// A record has too many fields.
    #[error("line {line}: more than {MAX_FIELDS} fields: is this really a CSV file?")]
    TooManyFields {
        /// Where the record starts.
        line: u64,
    },
}

/// One record. Fields are unquoted; the raw text is told by its place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record<'a> {
    /// The line on which it starts, as an editor counts: the first is 1, blank lines count.
    pub(crate) line: u64,
    /// Where the raw text starts, in bytes from the start of the input.
    pub(crate) start: usize,
    /// Where the raw text ends, without the line end.
    pub(crate) end: usize,
    text: &'a [u8],
    ends: &'a [usize],
}

impl<'a> Record<'a> {
    /// Number of fields.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Field number `i`.
    ///
    /// # Panics
    /// If there is no such field.
    pub(crate) fn field(&self, i: usize) -> &'a [u8] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.text[start..self.ends[i]]
    }

    /// All fields as trimmed text; bytes that are not UTF-8 become replacement characters.
    pub(crate) fn lossy(&self) -> Vec<String> {
        (0..self.len()).map(|i| String::from_utf8_lossy(self.field(i)).trim().to_owned()).collect()
    }
}

/// Reads records. A byte order mark and blank lines are skipped; LF, CRLF and CR end a line.
pub(crate) struct CsvSource<R> {
    input: BufReader<std::io::Chain<Cursor<Vec<u8>>, R>>,
    parser: csv_core::Reader,
    text: Vec<u8>,
    ends: Vec<usize>,
    line: u64,
    offset: usize,
}

impl<R: Read> CsvSource<R> {
    /// Starts reading.
    ///
    /// # Errors
    /// [`CsvError::Io`], [`CsvError::Utf16`].
    pub(crate) fn new(mut input: R) -> Result<Self, CsvError> {
        let mut head = Vec::new();
        input.by_ref().take(3).read_to_end(&mut head)?;
        if head.starts_with(&[0xff, 0xfe]) || head.starts_with(&[0xfe, 0xff]) {
            return Err(CsvError::Utf16);
        }
        let mut offset = 0;
        if head == [0xef, 0xbb, 0xbf] {
            head.clear();
            offset = 3;
        }
        Ok(Self {
            input: BufReader::with_capacity(64 << 10, Cursor::new(head).chain(input)),
            parser: csv_core::Reader::new(),
            text: vec![0; MAX_RECORD_BYTES],
            ends: vec![0; MAX_FIELDS],
            line: 1,
            offset,
        })
    }

    /// The next record, or `None` at the end.
    ///
    /// # Errors
    /// [`CsvError`]; reading on after one makes no sense.
    pub(crate) fn next(&mut self) -> Result<Option<Record<'_>>, CsvError> {
        self.skip_line_ends()?;
        let (line, start) = (self.line, self.offset);
        let (mut bytes, mut fields) = (0, 0);
        loop {
            let chunk = fill(&mut self.input)?;
            let at_end = chunk.is_empty();
            let (result, read, wrote, ended) =
                self.parser.read_record(chunk, &mut self.text[bytes..], &mut self.ends[fields..]);
            self.line += line_feeds(&chunk[..read]);
            self.input.consume(read);
            self.offset += read;
            bytes += wrote;
            fields += ended;
            match result {
                csv_core::ReadRecordResult::InputEmpty => {}
                csv_core::ReadRecordResult::OutputFull => return Err(CsvError::RecordTooLong { line }),
                csv_core::ReadRecordResult::OutputEndsFull => return Err(CsvError::TooManyFields { line }),
                csv_core::ReadRecordResult::Record => {
                    // The byte that ended the record was read too, unless the end of the input did.
                    let end = if at_end { self.offset } else { self.offset - 1 };
                    return Ok(Some(Record {
                        line,
                        start,
                        end,
                        text: &self.text[..bytes],
                        ends: &self.ends[..fields],
                    }));
                }
                csv_core::ReadRecordResult::End => return Ok(None),
            }
        }
    }

    /// Passes the rest of the last line end and blank lines, so that a record's line is where its text starts.
    fn skip_line_ends(&mut self) -> Result<(), CsvError> {
        loop {
            let chunk = fill(&mut self.input)?;
            let n = chunk.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
            if n == 0 {
                return Ok(());
            }
            self.line += line_feeds(&chunk[..n]);
            self.input.consume(n);
            self.offset += n;
        }
    }
}

/// `fill_buf`, again when a signal interrupts it.
fn fill<R: BufRead>(input: &mut R) -> Result<&[u8], std::io::Error> {
    loop {
        match input.fill_buf() {
            Ok(_) => break,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    // The buffer is full now (or the input at its end), so this reads nothing.
    input.fill_buf()
}

fn line_feeds(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&b| b == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(bytes: &[u8]) -> Result<Vec<(u64, String, Vec<String>)>, CsvError> {
        let mut source = CsvSource::new(bytes)?;
        let mut records = Vec::new();
        while let Some(r) = source.next()? {
            let raw = String::from_utf8_lossy(&bytes[r.start..r.end]).into_owned();
            records.push((r.line, raw, r.lossy()));
        }
        Ok(records)
    }

    #[test]
    fn lines_are_counted_as_an_editor_counts_them() {
        for end in ["\n", "\r\n"] {
            let text = ["\u{feff}a,b", "", "1,\"x", "y\"", "", "2,\"say \"\"no\"\"\""].join(end);
            let records = all(text.as_bytes()).unwrap();
            let lines: Vec<u64> = records.iter().map(|r| r.0).collect();
            assert_eq!(lines, [1, 3, 6], "{end:?}");
            assert_eq!(records[0].2, ["a", "b"]);
            assert_eq!(records[1].1, format!("1,\"x{end}y\""));
            assert_eq!(records[2].1, "2,\"say \"\"no\"\"\"");
            assert_eq!(records[2].2, ["2", "say \"no\""]);
        }
    }

    #[test]
    fn an_empty_input_has_no_records() {
        for text in ["", "\n\n", "\u{feff}", "\u{feff}\r\n"] {
            assert!(all(text.as_bytes()).unwrap().is_empty(), "{text:?}");
        }
    }

    #[test]
    fn an_unclosed_quote_does_not_swallow_the_file() {
        let text = format!("a,b\n1,\"{}", "2\n".repeat(MAX_RECORD_BYTES));
        let e = all(text.as_bytes()).unwrap_err();
        assert!(matches!(e, CsvError::RecordTooLong { line: 2 }), "{e}");
        let e = all(&vec![b','; MAX_FIELDS + 1]).unwrap_err();
        assert!(matches!(e, CsvError::TooManyFields { line: 1 }), "{e}");
    }

    #[test]
    fn utf16_is_named() {
        assert!(matches!(all(b"\xff\xfea\0"), Err(CsvError::Utf16)));
    }

    proptest! {
        #[test]
        fn any_bytes_give_records_or_an_error(bytes in proptest::collection::vec(
            prop_oneof![3 => any::<u8>(), 1 => Just(b','), 1 => Just(b'\n'), 1 => Just(b'\r'), 1 => Just(b'"')],
            0..400,
        )) {
            if let Ok(records) = all(&bytes) {
                prop_assert!(records.windows(2).all(|w| w[0].0 <= w[1].0));
            }
        }

        /// What the csv crate reads as fields, we read as the same fields.
        #[test]
        fn fields_are_those_of_the_csv_crate(text in "[a-c,\"\n\r ]{0,60}") {
            let theirs: Vec<Vec<String>> = csv::ReaderBuilder::new()
                .has_headers(false).flexible(true).trim(csv::Trim::All)
                .from_reader(text.as_bytes())
                .records()
                .map(|r| r.unwrap().iter().map(str::to_owned).collect())
                .collect();
            let ours: Vec<Vec<String>> = all(text.as_bytes()).unwrap().into_iter().map(|r| r.2).collect();
            prop_assert_eq!(ours, theirs);
        }
    }
}
