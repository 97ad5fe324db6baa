//! A CSV file against the job's data contract.
//!
//! Columns are found by the names in the header; columns that the contract does not name are never looked at.
//! Every problem is a sentence with the line, the column and the value, for the person who can mend the file.

use crate::csv_source::{CsvError, CsvSource, Record};
use crate::problems::Problems;
use crate::tokens::Tokenizer;
use crate::truth::{Tally, Truth, outside_range};
use crate::value::{ValueList, nearest, number, shown};
use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::Path;
use undertone_core::schema::{Column, ColumnKind, Content, DataContract, LabelKind, Outside, column_at};
use undertone_core::trainer::{DataReport, TextSummary, TrainerError};

pub use crate::problems::MAX_PROBLEMS;

/// Most rows of one file.
pub const MAX_ROWS: u64 = 10_000_000;
/// Most features, or tokens, of one file: rows times inputs (1 GiB of f32).
pub const MAX_VALUES: u64 = 1 << 28;

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

/// A good row.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    /// One for each of the contract's columns, in its order; of a series step by step.
    pub(crate) cells: &'a [Cell],
    /// Of a text.
    pub(crate) tokens: &'a [u32],
    /// The label.
    pub(crate) truth: Truth,
}

/// Checks the file at `path` row by row and gives each good row to `take`.
pub(crate) fn scan(
    path: &Path,
    contract: &DataContract,
    take: impl FnMut(Row<'_>),
) -> Result<DataReport, TrainerError> {
    let unreadable = |e: CsvError| TrainerError::Data(format!("cannot read {}: {e}", path.display()));
    let file = std::fs::File::open(path).map_err(|e| unreadable(e.into()))?;
    scan_reader(file, contract, take).map_err(unreadable)
}

/// [`scan`] for any source of bytes.
pub(crate) fn scan_reader(
    input: impl Read,
    contract: &DataContract,
    mut take: impl FnMut(Row<'_>),
) -> Result<DataReport, CsvError> {
    let mut source = CsvSource::new(input)?;
    let mut problems = Problems::default();
    let mut tally = Tally::new(contract.label());
    let Some(header) = source.next()? else {
        problems.add(|| "the file is empty: it needs a header line with the names of the columns".into());
        return Ok(tally.report(problems));
    };
    let width = header.len();
    let Some(mut rules) = Rules::find(&header, contract, &mut problems) else {
        return Ok(tally.report(problems));
    };
    let most_rows = MAX_ROWS.min(MAX_VALUES / contract.inputs() as u64);
    let (mut cells, mut tokens) = (Vec::with_capacity(rules.order.len()), Vec::new());
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
        } else if let Some(truth) = rules.read(&record, &mut cells, &mut tokens, &mut problems) {
            tally.count(truth);
            take(Row { cells: &cells, tokens: &tokens, truth });
        }
    }
    if seen < contract.min_rows() {
        problems.add(|| format!("too few rows: {seen}, the job asks for at least {}", contract.min_rows()));
    }
    let texts = rules.text.as_ref().map(|text| text.summary);
    Ok(DataReport { missing: rules.missing_counts(), texts, ..tally.report(problems) })
}

/// The contract's columns, found in a header.
struct Rules<'a> {
    /// How values are read, for each column of the contract.
    columns: Vec<ColumnRule<'a>>,
    /// The columns of the file that are read.
    fields: Vec<Field>,
    /// For each value that goes into a row, the place in `fields`: a series repeats what does not change.
    order: Vec<usize>,
    text: Option<TextRule<'a>>,
    label: LabelRule<'a>,
    /// The values of `fields` in one row.
    read: Vec<Cell>,
}

struct Field {
    name: String,
    /// The place in the header.
    at: usize,
    /// The place in the contract.
    column: usize,
}

struct ColumnRule<'a> {
    column: &'a Column,
    missing: ValueList,
    categories: ValueList,
    missing_seen: u64,
}

struct TextRule<'a> {
    column: &'a str,
    at: usize,
    missing: ValueList,
    tokenizer: Tokenizer<'a>,
    summary: TextSummary,
}

struct LabelRule<'a> {
    contract: &'a DataContract,
    column: &'a str,
    at: usize,
    classes: ValueList,
    missing: ValueList,
}

impl<'a> Rules<'a> {
    fn find(header: &Record<'_>, contract: &'a DataContract, problems: &mut Problems) -> Option<Self> {
        let label_column = contract.label().column.as_deref().unwrap_or_default();
        let (wanted, order) = wanted_columns(contract);
        let text = match contract.content() {
            Content::Text(text) => Some(text),
            _ => None,
        };
        let names = header.lossy();
        let ours: HashSet<&str> = wanted
            .iter()
            .map(|(_, name)| name.as_str())
            .chain([label_column])
            .chain(text.map(|t| t.column.as_str()))
            .collect();
        let mut places: HashMap<&str, (usize, usize)> = HashMap::new();
        for (at, name) in names.iter().enumerate() {
            places.entry(name).or_insert((at, 0)).1 += 1;
        }
        let mut place = |wanted: &str| match places.get(wanted.trim()) {
            Some((at, 1)) => Some(*at),
            Some((_, n)) => {
                problems.add(|| {
                    format!("the header names column {} {n} times: rename all but one", shown(wanted))
                });
                None
            }
            None => {
                problems.add(|| no_such_column(wanted, &names, &ours));
                None
            }
        };
        let found: Vec<Option<Field>> = wanted
            .iter()
            .map(|(column, name)| place(name).map(|at| Field { at, name: name.clone(), column: *column }))
            .collect();
        let text_at = text.map(|text| place(&text.column));
        let label_at = place(label_column);

        let missing_everywhere = contract.missing();
        let columns = contract.columns().iter().map(|column| ColumnRule {
            column,
            missing: missing_values(missing_everywhere.iter().chain(&column.missing)),
            categories: match &column.kind {
                ColumnKind::Number { .. } => ValueList::default(),
                ColumnKind::Category { values } => {
                    ValueList::new(values.iter().zip(0..).map(|(v, i)| (v.as_str(), i)))
                }
            },
            missing_seen: 0,
        });
        let text = match text {
            Some(text) => Some(TextRule {
                column: &text.column,
                at: text_at.flatten()?,
                missing: missing_values(missing_everywhere),
                tokenizer: Tokenizer::new(text),
                summary: TextSummary::default(),
            }),
            None => None,
        };
        let classes = contract.label().classes().iter().zip(0..);
        Some(Self {
            columns: columns.collect(),
            fields: found.into_iter().collect::<Option<_>>()?,
            order,
            text,
            label: LabelRule {
                contract,
                column: label_column,
                at: label_at?,
                classes: ValueList::new(
                    classes.flat_map(|(c, i)| c.values.iter().map(move |v| (v.as_str(), i))),
                ),
                missing: missing_values(missing_everywhere),
            },
            read: Vec::new(),
        })
    }

    /// Fills `cells` and `tokens` and gives the label; `None` if the row has problems.
    fn read(
        &mut self,
        record: &Record<'_>,
        cells: &mut Vec<Cell>,
        tokens: &mut Vec<u32>,
        problems: &mut Problems,
    ) -> Option<Truth> {
        self.read.clear();
        let mut good = true;
        for field in &self.fields {
            let rule = &mut self.columns[field.column];
            match text(record.field(field.at)).and_then(|t| rule.read(t)) {
                Ok(cell) => self.read.push(cell),
                Err(problem) => {
                    good = false;
                    problems.add(|| place(record, &field.name, &problem));
                }
            }
        }
        if let Some(rule) = &mut self.text
            && let Err(problem) = text(record.field(rule.at)).and_then(|t| rule.check(t))
        {
            good = false;
            problems.add(|| place(record, rule.column, &problem));
        }
        let truth = text(record.field(self.label.at)).and_then(|t| self.label.read(t));
        let truth = truth.map_err(|problem| problems.add(|| place(record, self.label.column, &problem)));
        let truth = truth.ok().filter(|_| good)?;
        cells.clear();
        cells.extend(self.order.iter().map(|&i| self.read[i]));
        if let Some(rule) = &mut self.text {
            // It is text: that was checked above.
            rule.tokenizer.read(text(record.field(rule.at)).ok()?, tokens, &mut rule.summary);
        }
        Some(truth)
    }

    fn missing_counts(&self) -> Vec<(String, u64)> {
        let optional = self.columns.iter().filter(|r| r.column.optional);
        optional.map(|r| (r.column.name.clone(), r.missing_seen)).collect()
    }
}

/// The columns of the file that are read (place in the contract, name), and, for each value of a row, which of them it is.
fn wanted_columns(contract: &DataContract) -> (Vec<(usize, String)>, Vec<usize>) {
    let columns = contract.columns();
    let Content::Series { steps, .. } = contract.content() else {
        let wanted: Vec<_> = columns.iter().map(|c| c.name.clone()).enumerate().collect();
        let order = (0..wanted.len()).collect();
        return (wanted, order);
    };
    let (mut wanted, mut order) = (Vec::new(), Vec::new());
    // Where what is the same at all steps is read.
    let mut fixed = vec![None; columns.len()];
    for t in steps.numbers() {
        for (i, column) in columns.iter().enumerate() {
            let known = fixed[i];
            let at = known.unwrap_or(wanted.len());
            order.push(at);
            match column_at(&column.name, t) {
                Some(name) => wanted.push((i, name)),
                None if known.is_none() => {
                    fixed[i] = Some(at);
                    wanted.push((i, column.name.clone()));
                }
                None => {}
            }
        }
    }
    (wanted, order)
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
                    Outside::Refuse => Err(outside_range(n, [*low, *high])),
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

impl TextRule<'_> {
    fn check(&self, text: &str) -> Result<(), String> {
        match self.missing.find(text) {
            Some(_) => Err("the text is missing: fill it in or remove the row".into()),
            None => Ok(()),
        }
    }
}

impl LabelRule<'_> {
    fn read(&self, text: &str) -> Result<Truth, String> {
        // Before missing values: a class may be written as, say, "none".
        if let Some(class) = self.classes.find(text) {
            return Ok(Truth::Class(class));
        }
        if self.missing.find(text).is_some() {
            return Err("the label is missing: fill it in or remove the row".into());
        }
        match &self.contract.label().kind {
            LabelKind::Classes(classes) => {
                let values = classes.iter().flat_map(|c| &c.values).map(String::as_str);
                Err(format!("label {} is none of {}", shown(text), listed(text, values)))
            }
            LabelKind::Number { range, outside } => {
                let n = number(text).ok_or_else(|| not_a_number(text))?;
                Truth::number(n, *range, *outside).map_err(|e| format!("label {e}"))
            }
        }
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

fn no_such_column(wanted: &str, names: &[String], ours: &HashSet<&str>) -> String {
    let problem = format!("the header has no column {}", shown(wanted));
    if let [only] = names
        && let Some(mark) = [';', '\t', '|'].into_iter().find(|m| only.contains(*m))
    {
        return format!("{problem}: values seem to be separated by {mark:?}, save the file with commas");
    }
    // A column that the contract names itself was not meant for another.
    match nearest(wanted, names.iter().map(String::as_str).filter(|n| !ours.contains(n))) {
        Some(near) => format!("{problem}: is it {}? Rename it in the header", shown(near)),
        None => format!("{problem}: add it, or ask for a job that does without"),
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
