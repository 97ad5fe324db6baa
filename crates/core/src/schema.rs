//! The data contract: what a client's data must look like before it takes part, and how records become what a model sees.
//!
//! Everything that shapes a feature is public and fixed in the job: ranges, categories, vocabularies, what counts as
//! missing. Nothing is scaled by statistics of private data, so the encoding itself tells nothing about anybody.
//!
//! A record is one row of a CSV file, or one picture of an IDX file:
//!
//! | `[data]` has | a record is | a model sees |
//! |---|---|---|
//! | `columns` | a row | features: numbers and one-hot categories |
//! | `columns` and `series` | a row with a column for each step | the features of each step |
//! | `text` | a row with a text | numbers of tokens |
//! | `picture` | a picture | bytes, scaled to \[0, 1\] |

mod column;
mod label;
mod picture;
#[cfg(test)]
mod tests;
mod text;

pub use column::{Column, ColumnKind, Outside};
pub use label::{Class, Label, LabelKind};
pub use picture::{Picture, Scattering};
pub use text::{PADDING, Text, Tokens, UNKNOWN, words};

use crate::limits::{MAX_COLUMNS, MAX_FEATURES};
use crate::shape::{Input, Shape};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Stands for the number of a step in the name of a series' column.
pub const STEP: &str = "{t}";

/// What a job says about data: what a record holds, ranges, labels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawContract", into = "RawContract")]
pub struct DataContract {
    min_rows: u64,
    missing: Vec<String>,
    label: Label,
    content: Content,
}

/// What a record holds besides its label.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Columns of a CSV file.
    Table {
        /// The columns, in order.
        columns: Vec<Column>,
    },
    /// Columns of a CSV file that repeat over time. A row is a whole series: a column whose name holds [`STEP`] stands for
    /// one column a step, and one without for a value that is the same at all steps.
    Series {
        /// The columns of one step, in order.
        columns: Vec<Column>,
        /// Which steps there are.
        steps: Steps,
    },
    /// A column of a CSV file that holds text.
    Text(Text),
    /// A picture of an IDX file.
    Picture(Picture),
}

/// The steps of a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Steps {
    /// How many.
    pub steps: usize,
    /// The number of the first one in the columns' names.
    #[serde(default)]
    pub first: usize,
}

impl Steps {
    /// The numbers of the steps.
    pub fn numbers(&self) -> std::ops::Range<usize> {
        self.first..self.first + self.steps
    }
}

/// The contract as it is written. What older versions wrote reads, and is written again, as it was: a job is known by the
/// digest of its document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawContract {
    #[serde(default = "one")]
    min_rows: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    missing: Option<Vec<String>>,
    label: Label,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    columns: Vec<Column>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    series: Option<Steps>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    picture: Option<Picture>,
}

fn one() -> u64 {
    1
}

/// Why a data contract makes no sense.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("data contract: {0}")]
pub struct InvalidContract(String);

impl DataContract {
    /// Fewest records that a client may train on.
    pub fn min_rows(&self) -> u64 {
        self.min_rows
    }

    /// Values that mean "missing" in every column of a CSV file (compared after trimming white space).
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    /// The label.
    pub fn label(&self) -> &Label {
        &self.label
    }

    /// What a record holds besides its label.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// The columns that become features, in order; none for texts and pictures.
    pub fn columns(&self) -> &[Column] {
        match &self.content {
            Content::Table { columns } | Content::Series { columns, .. } => columns,
            Content::Text(_) | Content::Picture(_) => &[],
        }
    }

    /// The names of the features in order, of a series step by step; none for texts and pictures.
    pub fn feature_names(&self) -> Vec<String> {
        match &self.content {
            Content::Table { columns } => columns.iter().flat_map(|c| c.feature_names(&c.name)).collect(),
            Content::Series { columns, steps } => steps
                .numbers()
                .flat_map(|t| {
                    columns.iter().flat_map(move |c| {
                        let name = match column_at(&c.name, t) {
                            Some(name) => name,
                            None => format!("{} at {t}", c.name),
                        };
                        c.feature_names(&name)
                    })
                })
                .collect(),
            Content::Text(_) | Content::Picture(_) => vec![],
        }
    }

    /// The numbers, or tokens, of one record.
    pub fn inputs(&self) -> usize {
        self.shape().input.len()
    }

    /// What a model sees of the data.
    pub fn shape(&self) -> Shape {
        let width = |columns: &[Column]| columns.iter().map(Column::width).sum();
        let input = match &self.content {
            Content::Table { columns } => {
                Input::Features { columns: columns.iter().map(Column::width).collect() }
            }
            Content::Series { columns, steps } => {
                Input::Series { steps: steps.steps, features: width(columns) }
            }
            Content::Text(text) => {
                Input::Tokens { length: text.length, vocabulary: text.tokens.vocabulary() }
            }
            Content::Picture(picture) => picture.input(),
        };
        Shape { input, target: self.label.target() }
    }
}

/// The name at step `t` of a column that has one for each step.
pub fn column_at(name: &str, t: usize) -> Option<String> {
    name.contains(STEP).then(|| name.replace(STEP, &t.to_string()))
}

impl TryFrom<RawContract> for DataContract {
    type Error = InvalidContract;

    fn try_from(raw: RawContract) -> Result<Self, InvalidContract> {
        let bad = |text: &str| Err(InvalidContract(text.into()));
        if raw.min_rows == 0 {
            return bad("min_rows must be at least 1");
        }
        raw.label.validate()?;
        let content = match (raw.columns.is_empty(), raw.series, raw.text, raw.picture) {
            (_, None, None, None) => Content::Table { columns: raw.columns },
            (_, Some(steps), None, None) => Content::Series { columns: raw.columns, steps },
            (true, None, Some(text), None) => Content::Text(text),
            (true, None, None, Some(picture)) => Content::Picture(picture),
            _ => {
                return bad(
                    "a record holds columns (with or without series), a text, or a picture: name one of them",
                );
            }
        };
        let label_column = raw.label.column.as_deref();
        match &content {
            Content::Picture(picture) => {
                picture.validate(&raw.label)?;
                if raw.missing.is_some() {
                    return bad("a picture misses nothing: remove missing");
                }
            }
            _ if label_column.is_none() => {
                return bad("the label needs the name of its column: column = \"..\"");
            }
            Content::Text(text) => {
                text.validate()?;
                if label_column == Some(text.column.as_str()) {
                    return bad("the text's column is the label too");
                }
            }
            Content::Table { columns } => check_columns(columns, label_column, None)?,
            Content::Series { columns, steps } => check_columns(columns, label_column, Some(*steps))?,
        }
        let missing = match &content {
            Content::Picture(_) => vec![],
            _ => raw.missing.unwrap_or_else(|| vec![String::new()]),
        };
        Ok(Self { min_rows: raw.min_rows, missing, label: raw.label, content })
    }
}

/// Columns that make sense, each of a name of its own (at each step).
fn check_columns(
    columns: &[Column],
    label: Option<&str>,
    series: Option<Steps>,
) -> Result<(), InvalidContract> {
    let bad = |text: String| Err(InvalidContract(text));
    if columns.is_empty() || columns.len() > MAX_COLUMNS {
        return bad(format!("name between 1 and {MAX_COLUMNS} columns, not {}", columns.len()));
    }
    columns.iter().try_for_each(Column::validate)?;
    let width = columns.iter().map(Column::width).sum::<usize>();
    let steps = series.unwrap_or(Steps { steps: 1, first: 0 });
    if steps.steps == 0 || steps.first > MAX_FEATURES {
        return bad(format!("a series has at least 1 step, and first is at most {MAX_FEATURES}"));
    }
    match width.checked_mul(steps.steps) {
        Some(features) if features <= MAX_FEATURES => {}
        _ => {
            let times = series.map_or(String::new(), |s| format!(" at each of {} steps", s.steps));
            return bad(format!("{width} features{times}, at most {MAX_FEATURES}"));
        }
    }
    if series.is_some() && !columns.iter().any(|c| c.name.contains(STEP)) {
        return bad(format!(
            "in a series the name of a column that changes holds {STEP}, which stands for the number of the step: \
             none does"
        ));
    }
    let mut seen: BTreeSet<String> = label.map(str::to_owned).into_iter().collect();
    for c in columns {
        let names = match series {
            Some(steps) if c.name.contains(STEP) => {
                steps.numbers().filter_map(|t| column_at(&c.name, t)).collect()
            }
            _ => vec![c.name.clone()],
        };
        for name in names {
            if seen.contains(&name) {
                return bad(format!("column \"{name}\" is named twice (or is the label too)"));
            }
            seen.insert(name);
        }
    }
    Ok(())
}

impl From<DataContract> for RawContract {
    fn from(c: DataContract) -> Self {
        let mut raw = Self {
            min_rows: c.min_rows,
            missing: Some(c.missing),
            label: c.label,
            columns: vec![],
            series: None,
            text: None,
            picture: None,
        };
        match c.content {
            Content::Table { columns } => raw.columns = columns,
            Content::Series { columns, steps } => (raw.columns, raw.series) = (columns, Some(steps)),
            Content::Text(text) => raw.text = Some(text),
            Content::Picture(picture) => (raw.picture, raw.missing) = (Some(picture), None),
        }
        raw
    }
}
