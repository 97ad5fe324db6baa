//! What people and programs read: tables, numbers, times, colours, JSON.

use serde::Serialize;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where a command writes and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Screen {
    /// JSON for programs instead of text for people.
    pub(crate) json: bool,
    /// Whether standard output takes colours.
    pub(crate) paint: Paint,
}

impl Screen {
    /// Standard output as it is.
    pub(crate) fn new(json: bool) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
            && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
        Self { json, paint: Paint { on: wanted && !json && std::io::stdout().is_terminal() } }
    }

    /// A line for people, on standard output.
    ///
    /// # Errors
    /// If standard output is closed or full.
    pub(crate) fn line(&self, text: &str) -> anyhow::Result<()> {
        Ok(writeln!(std::io::stdout().lock(), "{text}")?)
    }

    /// A line of a longer story: on standard output, or on standard error where that is for programs.
    ///
    /// # Errors
    /// If the output is closed or full.
    pub(crate) fn progress(&self, text: &str) -> anyhow::Result<()> {
        if self.json { Ok(writeln!(std::io::stderr().lock(), "{text}")?) } else { self.line(text) }
    }

    /// A value for programs: one line of JSON on standard output.
    ///
    /// # Errors
    /// If standard output is closed or full.
    pub(crate) fn json(&self, value: &impl Serialize) -> anyhow::Result<()> {
        self.line(&serde_json::to_string(value)?)
    }

    /// A table for people; `none` stands for it when it has no rows.
    ///
    /// # Errors
    /// If standard output is closed or full.
    pub(crate) fn table(&self, table: &Table, none: &str) -> anyhow::Result<()> {
        if table.rows.is_empty() {
            return self.line(none);
        }
        Ok(write!(std::io::stdout().lock(), "{}", table.render(self.paint))?)
    }
}

/// Colours, where they are wanted.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Paint {
    on: bool,
}

impl Paint {
    /// Headings and what matters most.
    pub(crate) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    /// What may be skipped.
    pub(crate) fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    /// What went wrong.
    pub(crate) fn red(self, text: &str) -> String {
        self.with("31", text)
    }

    /// What went well.
    pub(crate) fn green(self, text: &str) -> String {
        self.with("32", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A table of text with a heading.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

/// Which side of a column is straight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

impl Table {
    /// A table without rows.
    pub(crate) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row of as many cells as there are columns.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.columns.len());
        self.rows.push(cells.into_iter().map(|c| printable(&c)).collect());
    }

    /// The table with a line break after each row and no trailing blanks.
    pub(crate) fn render(&self, paint: Paint) -> String {
        let heading: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let lines = || std::iter::once(&heading).chain(&self.rows);
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|i| lines().map(|r| r[i].chars().count()).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for (i, row) in lines().enumerate() {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .zip(&self.columns)
                .map(|((cell, &width), (_, align))| match align {
                    Align::Left => format!("{cell:<width$}"),
                    Align::Right => format!("{cell:>width$}"),
                })
                .collect();
            let line = cells.join("  ");
            let line = line.trim_end();
            text += &if i == 0 { paint.dim(line) } else { line.to_owned() };
            text.push('\n');
        }
        text
    }
}

/// Text from elsewhere as one harmless line: a participant must not write to the operator's terminal.
pub(crate) fn printable(text: &str) -> String {
    let odd = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    let mut shown = String::with_capacity(text.len());
    for c in text.trim().chars() {
        match c {
            '\n' | '\r' | '\t' => shown.push(' '),
            c if odd(c) => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    shown
}

/// A number that somebody wrote down (δ, a budget): as it is.
pub(crate) fn given(x: f64) -> String {
    if x != 0.0 && x.abs() < 1e-4 { format!("{x:e}") } else { format!("{x}") }
}

/// A number that was computed (ε, a noise multiplier): three significant digits.
pub(crate) fn figure(x: f64) -> String {
    if !x.is_finite() || x.abs() < 1e-3 || x.abs() >= 1000.0 {
        return given(x);
    }
    let decimals = (2 - x.abs().log10().floor() as i32).max(0) as usize;
    format!("{x:.decimals$}")
}

/// A time as people in logs write it; to the second, UTC.
pub(crate) fn moment(unix_s: u64) -> String {
    // Past the year 9999 humantime has no words.
    const LAST: u64 = 253_402_300_799;
    let time = UNIX_EPOCH + Duration::from_secs(unix_s.min(LAST));
    humantime::format_rfc3339_seconds(time).to_string().replace('T', " ")
}

/// How far a moment lies back or ahead, in its two largest units.
pub(crate) fn distance(unix_s: u64, now_unix_s: u64) -> String {
    let seconds = unix_s.abs_diff(now_unix_s);
    let text = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    let short = text.split(' ').take(2).collect::<Vec<_>>().join(" ");
    match unix_s.cmp(&now_unix_s) {
        std::cmp::Ordering::Less => format!("{short} ago"),
        std::cmp::Ordering::Equal => "now".to_owned(),
        std::cmp::Ordering::Greater => format!("in {short}"),
    }
}

/// The present in seconds since 1970.
pub(crate) fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A number of bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    let mut scaled = bytes as f64;
    let mut unit = 0;
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} bytes") } else { format!("{scaled:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_straight() {
        let mut table = Table::new(&[("NAME", Align::Left), ("LOSS", Align::Right), ("NOTE", Align::Left)]);
        table.row(["cleveland".into(), "0.5".into(), String::new()]);
        table.row(["va".into(), "0.4512".into(), "é\nx".into()]);
        assert_eq!(
            table.render(Paint { on: false }),
            "NAME         LOSS  NOTE\ncleveland     0.5\nva         0.4512  é x\n"
        );
        assert!(table.render(Paint { on: true }).starts_with("\x1b[2mNAME"));
    }

    #[test]
    fn strangers_cannot_write_to_the_terminal() {
        assert_eq!(printable("no\x1b[2Jthing\nmore\u{202e}"), "no\\u{1b}[2Jthing more\\u{202e}");
    }

    #[test]
    fn figures_are_short() {
        for (x, text) in [
            (5.0, "5.00"),
            (4.1234, "4.12"),
            (0.98765, "0.988"),
            (12.345, "12.3"),
            (1e-3, "0.00100"),
            (0.0, "0"),
            (123.9, "124"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(figure(x), text, "{x}");
        }
        assert_eq!([5.0, 0.25, 1e-3, 1e-5, 0.0].map(given), ["5", "0.25", "0.001", "1e-5", "0"]);
    }

    #[test]
    fn times_and_sizes_read_well() {
        assert_eq!(moment(0), "1970-01-01 00:00:00Z");
        assert_eq!(moment(u64::MAX), "9999-12-31 23:59:59Z");
        assert_eq!(distance(100, 190), "1m 30s ago");
        assert_eq!(distance(3700, 100), "in 1h");
        assert_eq!(distance(5, 5), "now");
        assert_eq!(size(512), "512 bytes");
        assert_eq!(size(1536), "1.5 KiB");
    }
}
