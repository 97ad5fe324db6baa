//! A CSV file against the job's data contract.
//!
//! Columns are found by the names in the header; columns that the contract does not name are never looked at.
//! Every problem is a sentence with the line, the column and the value, for the person who can mend the file.

use crate::csv_source::{CsvError, CsvSource, Record};
use crate::value::{ValueList, nearest, number, shown};
use std::io::Read;
use std::path::Path;
use undertone_core::schema::{Column, ColumnKind, DataContract, Outside};
use undertone_core::trainer::{DataReport, TrainerError};

/// Most rows of one file.
pub const MAX_ROWS: u64 = 10_000_000;
/// Most features of one file: rows times inputs (1 GiB of f32).
pub const MAX_VALUES: u64 = 1 << 28;
/// Problems that are told in full; the rest is counted.
pub const MAX_PROBLEMS: usize = 20;

/// One value of one contract column.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Cell {
    /// It is missing, and may be.
    Missing,
    /// A number within the column's range.
    Number(f64),
    /// The place in the column's list of values.
    Category(u32),
}

/// Checks the file at `path` row by row and gives each good row (cells in the contract's order, class) to `take`.
pub(crate) fn scan(
    path: &Path,
    contract: &DataContract,
    take: impl FnMut(&[Cell], u32),
) -> Result<DataReport, TrainerError> {
    let unreadable = |e: CsvError| TrainerError::Data(format!("cannot read {}: {e}", path.display()));
    let file = std::fs::File::open(path).map_err(|e| unreadable(e.into()))?;
    scan_reader(file, contract, take).map_err(unreadable)
}

/// [`scan`] for any source of bytes.
pub(crate) fn scan_reader(
    input: impl Read,
    contract: &DataContract,
    mut take: impl FnMut(&[Cell], u32),
) -> Result<DataReport, CsvError> {
    let mut source = CsvSource::new(input)?;
    let mut problems = Problems::default();
    let mut report = DataReport {
        rows: 0,
        class_rows: vec![0; contract.label().classes.len()],
        missing: Vec::new(),
        problems: Vec::new(),
    };
    let Some(header) = source.next()? else {
        report
            .problems
            .push("the file is empty: it needs a header line with the names of the columns".into());
        return Ok(report);
    };
    let width = header.len();
    let Some(mut rules) = Rules::find(&header, contract, &mut problems) else {
        report.problems = problems.sentences();
        return Ok(report);
    };
    let most_rows = MAX_ROWS.min(MAX_VALUES / contract.inputs() as u64);
    let mut cells = Vec::with_capacity(rules.columns.len());
    let mut seen = 0;
    while let Some(record) = source.next()? {
        seen += 1;
        if seen > most_rows {
            problems.add(|| format!("more than {most_rows} rows: split the file"));
            break;
        }
        if record.len() != width {
            problems.add(|| {
                format!(
                    "line {}: {} fields where the header has {width}: put quotes around values that hold a comma",
                    record.line,
                    record.len()
                )
            });
        } else if let Some(class) = rules.read(&record, &mut cells, &mut problems) {
            report.rows += 1;
            report.class_rows[class as usize] += 1;
            take(&cells, class);
        }
    }
    if seen < contract.min_rows() {
        problems.add(|| format!("too few rows: {seen}, the job asks for at least {}", contract.min_rows()));
    }
    report.missing = rules.missing_counts();
    report.problems = problems.sentences();
    Ok(report)
}

/// The contract's columns, found in a header.
struct Rules<'a> {
    columns: Vec<ColumnRule<'a>>,
    label: LabelRule<'a>,
}

struct ColumnRule<'a> {
    column: &'a Column,
    field: usize,
    missing: ValueList,
    categories: ValueList,
    missing_seen: u64,
}

struct LabelRule<'a> {
    contract: &'a DataContract,
    field: usize,
    classes: ValueList,
    missing: ValueList,
}

impl<'a> Rules<'a> {
    fn find(header: &Record<'_>, contract: &'a DataContract, problems: &mut Problems) -> Option<Self> {
        let names = header.lossy();
        let mut field = |wanted: &str| match names.iter().filter(|n| *n == wanted.trim()).count() {
            0 => {
                problems.add(|| no_such_column(wanted, &names, contract));
                None
            }
            1 => names.iter().position(|n| n == wanted.trim()),
            n => {
                problems.add(|| {
                    format!("the header names column {} {n} times: rename all but one", shown(wanted))
                });
                None
            }
        };
        let fields: Vec<Option<usize>> = contract.columns().iter().map(|c| field(&c.name)).collect();
        let label = field(&contract.label().column);
        let columns = contract.columns().iter().zip(fields).map(|(column, field)| {
            Some(ColumnRule {
                column,
                field: field?,
                missing: missing_values(contract.missing().iter().chain(&column.missing)),
                categories: match &column.kind {
                    ColumnKind::Number { .. } => ValueList::default(),
                    ColumnKind::Category { values } => {
                        ValueList::new(values.iter().zip(0..).map(|(v, i)| (v.as_str(), i)))
                    }
                },
                missing_seen: 0,
            })
        });
        let classes = contract.label().classes.iter().zip(0..);
        Some(Self {
            columns: columns.collect::<Option<_>>()?,
            label: LabelRule {
                contract,
                field: label?,
                classes: ValueList::new(
                    classes.flat_map(|(c, i)| c.values.iter().map(move |v| (v.as_str(), i))),
                ),
                missing: missing_values(contract.missing()),
            },
        })
    }

    /// Fills `cells` and gives the class; `None` if the row has problems.
    fn read(&mut self, record: &Record<'_>, cells: &mut Vec<Cell>, problems: &mut Problems) -> Option<u32> {
        cells.clear();
        for rule in &mut self.columns {
            match text(record.field(rule.field)).and_then(|t| rule.read(t)) {
                Ok(cell) => cells.push(cell),
                Err(problem) => problems.add(|| place(record, &rule.column.name, &problem)),
            }
        }
        match text(record.field(self.label.field)).and_then(|t| self.label.read(t)) {
            Ok(class) => (cells.len() == self.columns.len()).then_some(class),
            Err(problem) => {
                problems.add(|| place(record, &self.label.contract.label().column, &problem));
                None
            }
        }
    }

    fn missing_counts(&self) -> Vec<(String, u64)> {
        let optional = self.columns.iter().filter(|r| r.column.optional);
        optional.map(|r| (r.column.name.clone(), r.missing_seen)).collect()
    }
}

impl ColumnRule<'_> {
    fn read(&mut self, text: &str) -> Result<Cell, String> {
        if self.missing.find(text).is_some() {
            if !self.column.optional {
                return Err(
                    "the value is missing and the job does not allow that: fill it in or remove the row"
                        .into(),
                );
            }
            return Ok(self.count_missing());
        }
        match &self.column.kind {
            ColumnKind::Number { range: [low, high], outside } => {
                let n = number(text).ok_or_else(|| not_a_number(text))?;
                if (*low..=*high).contains(&n) {
                    return Ok(Cell::Number(n));
                }
                match outside {
                    Outside::Refuse => {
                        Err(format!("{n} is outside {low} to {high}: correct it or remove the row"))
                    }
                    Outside::Clamp => Ok(Cell::Number(n.clamp(*low, *high))),
                    Outside::Missing => Ok(self.count_missing()),
                }
            }
            ColumnKind::Category { values } => match self.categories.find(text) {
                Some(i) => Ok(Cell::Category(i)),
                None => Err(format!(
                    "{} is none of {}",
                    shown(text),
                    listed(text, values.iter().map(String::as_str))
                )),
            },
        }
    }

    fn count_missing(&mut self) -> Cell {
        self.missing_seen += 1;
        Cell::Missing
    }
}

impl LabelRule<'_> {
    fn read(&self, text: &str) -> Result<u32, String> {
        // Before missing values: a class may be written as, say, "none".
        if let Some(class) = self.classes.find(text) {
            return Ok(class);
        }
        if self.missing.find(text).is_some() {
            return Err("the label is missing: fill it in or remove the row".into());
        }
        let values = self.contract.label().classes.iter().flat_map(|c| &c.values);
        Err(format!("label {} is none of {}", shown(text), listed(text, values.map(String::as_str))))
    }
}

fn missing_values<'a>(values: impl IntoIterator<Item = &'a String>) -> ValueList {
    ValueList::new(values.into_iter().map(|v| (v.as_str(), 0)))
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes)
        .map(str::trim)
        .map_err(|_| "the value is not UTF-8 text: save the file as CSV in UTF-8".into())
}

fn place(record: &Record<'_>, column: &str, problem: &str) -> String {
    format!("line {}, column {}: {problem}", record.line, shown(column))
}

fn not_a_number(text: &str) -> String {
    if text.is_empty() {
        return "the value is empty and the job does not list \"\" as missing: fill it in or remove the row"
            .into();
    }
    let hint = match number(&text.replace(',', ".")) {
        Some(n) => format!("write {n} with a point"),
        None => "correct it or remove the row".into(),
    };
    format!("{} is not a number: {hint}", shown(text))
}

/// The known values, or the one that was most likely meant.
fn listed<'a>(text: &str, values: impl Iterator<Item = &'a str> + Clone) -> String {
    const MOST: usize = 8;
    let mut list = values.clone().take(MOST).map(shown).collect::<Vec<_>>().join(", ");
    if values.clone().nth(MOST).is_some() {
        list.push_str(", …");
    }
    match nearest(text, values) {
        Some(near) => format!("{list}: did you mean {}?", shown(near)),
        None => format!("{list}: correct it or remove the row"),
    }
}

fn no_such_column(wanted: &str, names: &[String], contract: &DataContract) -> String {
    let problem = format!("the header has no column {}", shown(wanted));
    if let [only] = names
        && let Some(mark) = [';', '\t', '|'].into_iter().find(|m| only.contains(*m))
    {
        return format!("{problem}: values seem to be separated by {mark:?}, save the file with commas");
    }
    // A column that the contract names itself was not meant for another.
    let label = &contract.label().column;
    let taken = |n: &str| n == label || contract.columns().iter().any(|c| c.name == n);
    match nearest(wanted, names.iter().map(String::as_str).filter(|n| !taken(n))) {
        Some(near) => format!("{problem}: is it {}? Rename it in the header", shown(near)),
        None => format!("{problem}: add it, or ask for a job that does without"),
    }
}

/// Collects problems: the first ones in full, the rest as a number.
#[derive(Default)]
struct Problems {
    told: Vec<String>,
    more: u64,
}

impl Problems {
    fn add(&mut self, problem: impl FnOnce() -> String) {
        if self.told.len() < MAX_PROBLEMS {
            self.told.push(problem());
        } else {
            self.more += 1;
        }
    }

    fn sentences(mut self) -> Vec<String> {
        if self.more > 0 {
            self.told.push(format!("and {} more", self.more));
        }
        self.told
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
