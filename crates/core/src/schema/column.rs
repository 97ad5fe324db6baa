//! One column of a CSV file.

use super::InvalidContract;
use crate::limits::MAX_CATEGORIES;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// One column that is read; columns that the contract does not name are never read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawColumn", into = "RawColumn")]
pub struct Column {
    /// The name in the header of the data. In a series, one with [`STEP`](super::STEP) stands for a column a step.
    pub name: String,
    /// What it holds. In TOML: `kind = "number"` with `range`, or `kind = "category"` with `values`.
    pub kind: ColumnKind,
    /// Whether values may be missing; adds an indicator feature that is 1 where one is.
    pub optional: bool,
    /// Values of this column that mean "missing", besides the contract's own list; numbers compare as numbers.
    pub missing: Vec<String>,
}

/// A column as it is written: serde cannot refuse unknown keys in a flattened enum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawColumn {
    name: String,
    kind: RawKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    range: Option<[f64; 2]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outside: Option<Outside>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    values: Option<Vec<String>>,
    #[serde(default)]
    optional: bool,
    #[serde(default)]
    missing: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawKind {
    Number,
    Category,
}

impl TryFrom<RawColumn> for Column {
    type Error = String;

    fn try_from(raw: RawColumn) -> Result<Self, String> {
        let name = raw.name;
        let kind = match (raw.kind, raw.range, raw.outside, raw.values) {
            (RawKind::Number, Some(range), outside, None) => {
                ColumnKind::Number { range, outside: outside.unwrap_or_default() }
            }
            (RawKind::Number, ..) => {
                return Err(format!(
                    "column \"{name}\": kind = \"number\" takes range = [low, high] and no values"
                ));
            }
            (RawKind::Category, None, None, Some(values)) => ColumnKind::Category { values },
            (RawKind::Category, ..) => {
                return Err(format!(
                    "column \"{name}\": kind = \"category\" takes values = [..] and no range"
                ));
            }
        };
        Ok(Self { name, kind, optional: raw.optional, missing: raw.missing })
    }
}

impl From<Column> for RawColumn {
    fn from(c: Column) -> Self {
        let (kind, range, outside, values) = match c.kind {
            ColumnKind::Number { range, outside } => (RawKind::Number, Some(range), Some(outside), None),
            ColumnKind::Category { values } => (RawKind::Category, None, None, Some(values)),
        };
        Self { name: c.name, kind, range, outside, values, optional: c.optional, missing: c.missing }
    }
}

/// What a column holds.
#[derive(Debug, Clone, PartialEq)]
pub enum ColumnKind {
    /// A number in a public range, scaled to [-1, 1].
    Number {
        /// Lowest and highest value.
        range: [f64; 2],
        /// What happens to a value outside the range.
        outside: Outside,
    },
    /// One of a public list of values, one feature for each.
    Category {
        /// The values.
        values: Vec<String>,
    },
}

/// What happens to a number outside its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outside {
    /// The data is refused.
    #[default]
    Refuse,
    /// The value is moved to the nearer end.
    Clamp,
    /// The value counts as missing (the column must be optional).
    Missing,
}

impl Column {
    /// How many features the column becomes.
    pub fn width(&self) -> usize {
        let values = match &self.kind {
            ColumnKind::Number { .. } => 1,
            ColumnKind::Category { values } => values.len(),
        };
        values + usize::from(self.optional)
    }

    /// The names of its features, if the column is called `name`.
    pub(super) fn feature_names(&self, name: &str) -> Vec<String> {
        let mut names = match &self.kind {
            ColumnKind::Number { .. } => vec![name.to_owned()],
            ColumnKind::Category { values } => values.iter().map(|v| format!("{name}={v}")).collect(),
        };
        if self.optional {
            names.push(format!("{name} is missing"));
        }
        names
    }

    pub(super) fn validate(&self) -> Result<(), InvalidContract> {
        let name = &self.name;
        let bad = |text: String| Err(InvalidContract(text));
        if name.is_empty() {
            return bad("a column has no name".into());
        }
        if !self.missing.is_empty() && !self.optional {
            return bad(format!(
                "column \"{name}\" lists values that mean missing but is not optional: add optional = true"
            ));
        }
        match &self.kind {
            ColumnKind::Number { range, outside } => {
                check_range(*range, &format!("column \"{name}\""))?;
                if *outside == Outside::Missing && !self.optional {
                    return bad(format!("column \"{name}\": outside = \"missing\" needs optional = true"));
                }
            }
            ColumnKind::Category { values } => {
                let distinct: BTreeSet<_> = values.iter().map(|v| v.trim()).collect();
                if values.is_empty() || values.len() > MAX_CATEGORIES || distinct.len() != values.len() {
                    return bad(format!(
                        "column \"{name}\": a category needs 1 to {MAX_CATEGORIES} values, no two the same"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// A range is two finite numbers, the lower first.
pub(super) fn check_range([low, high]: [f64; 2], whose: &str) -> Result<(), InvalidContract> {
    if low.is_finite() && high.is_finite() && low < high {
        Ok(())
    } else {
        Err(InvalidContract(format!("{whose}: range = [low, high] needs two finite numbers, low < high")))
    }
}
