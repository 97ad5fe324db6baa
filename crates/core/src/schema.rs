//! The data contract: what a client's data must look like before it takes part, and how rows become features.
//!
//! Everything that shapes a feature is public and fixed in the job: ranges, categories, what counts as missing.
//! Nothing is scaled by statistics of private data, so the encoding itself tells nothing about anybody.

use crate::limits::{MAX_CATEGORIES, MAX_COLUMNS, MAX_FEATURES};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What a job says about data: columns, ranges, labels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawContract", into = "RawContract")]
pub struct DataContract {
    raw: RawContract,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawContract {
    #[serde(default = "one")]
    min_rows: u64,
    #[serde(default = "empty_is_missing")]
    missing: Vec<String>,
    label: Label,
    columns: Vec<Column>,
}

fn one() -> u64 {
    1
}

fn empty_is_missing() -> Vec<String> {
    vec![String::new()]
}

/// The column to predict and its classes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Label {
    /// The column's name.
    pub column: String,
    /// The classes in order; class 1 of two is the positive one.
    pub classes: Vec<Class>,
}

/// One class of the label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// A name for people.
    pub name: String,
    /// The values in the data that mean this class.
    pub values: Vec<String>,
}

/// One column that is read; columns that the contract does not name are never read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawColumn", into = "RawColumn")]
pub struct Column {
    /// The name in the header of the data.
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

/// Why a data contract makes no sense.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("data contract: {0}")]
pub struct InvalidContract(String);

impl DataContract {
    /// Fewest rows that a client may train on.
    pub fn min_rows(&self) -> u64 {
        self.raw.min_rows
    }

    /// Values that mean "missing" in every column (compared after trimming white space).
    pub fn missing(&self) -> &[String] {
        &self.raw.missing
    }

    /// The label.
    pub fn label(&self) -> &Label {
        &self.raw.label
    }

    /// The columns that become features, in order.
    pub fn columns(&self) -> &[Column] {
        &self.raw.columns
    }

    /// The names of the features in order: the width of the model's input is their number.
    pub fn feature_names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for c in &self.raw.columns {
            match &c.kind {
                ColumnKind::Number { .. } => names.push(c.name.clone()),
                ColumnKind::Category { values } => {
                    names.extend(values.iter().map(|v| format!("{}={v}", c.name)));
                }
            }
            if c.optional {
                names.push(format!("{} is missing", c.name));
            }
        }
        names
    }

    /// The number of features.
    pub fn inputs(&self) -> usize {
        self.raw.columns.iter().map(Column::width).sum()
    }

    /// The number of values that the model puts out: one (a logit) for two classes, else one a class.
    pub fn outputs(&self) -> usize {
        match self.raw.label.classes.len() {
            2 => 1,
            n => n,
        }
    }
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
}

impl TryFrom<RawContract> for DataContract {
    type Error = InvalidContract;

    fn try_from(raw: RawContract) -> Result<Self, InvalidContract> {
        let bad = |text: String| Err(InvalidContract(text));
        if raw.columns.is_empty() || raw.columns.len() > MAX_COLUMNS {
            return bad(format!("name between 1 and {MAX_COLUMNS} columns, not {}", raw.columns.len()));
        }
        if raw.min_rows == 0 {
            return bad("min_rows must be at least 1".into());
        }
        let mut seen = BTreeSet::from([raw.label.column.as_str()]);
        for c in &raw.columns {
            if c.name.is_empty() {
                return bad("a column has no name".into());
            }
            if !seen.insert(&c.name) {
                return bad(format!("column \"{}\" is named twice (or is the label too)", c.name));
            }
            if !c.missing.is_empty() && !c.optional {
                return bad(format!(
                    "column \"{}\" lists values that mean missing but is not optional: add optional = true",
                    c.name
                ));
            }
            match &c.kind {
                ColumnKind::Number { range: [low, high], outside } => {
                    if !(low.is_finite() && high.is_finite() && low < high) {
                        return bad(format!(
                            "column \"{}\": range = [low, high] needs two finite numbers, low < high",
                            c.name
                        ));
                    }
                    if *outside == Outside::Missing && !c.optional {
                        return bad(format!(
                            "column \"{}\": outside = \"missing\" needs optional = true",
                            c.name
                        ));
                    }
                }
                ColumnKind::Category { values } => {
                    let distinct: BTreeSet<_> = values.iter().map(|v| v.trim()).collect();
                    if values.is_empty() || values.len() > MAX_CATEGORIES || distinct.len() != values.len() {
                        return bad(format!(
                            "column \"{}\": a category needs 1 to {MAX_CATEGORIES} values, no two the same",
                            c.name
                        ));
                    }
                }
            }
        }
        let classes = &raw.label.classes;
        if classes.len() < 2 || classes.len() > MAX_CATEGORIES {
            return bad(format!("the label needs 2 to {MAX_CATEGORIES} classes, not {}", classes.len()));
        }
        let mut values = BTreeSet::new();
        for class in classes {
            if class.values.is_empty() {
                return bad(format!("class \"{}\" has no values", class.name));
            }
            for v in &class.values {
                if !values.insert(v.trim()) {
                    return bad(format!("label value \"{v}\" belongs to two classes"));
                }
            }
        }
        let contract = Self { raw };
        if contract.inputs() > MAX_FEATURES {
            return bad(format!("{} features, at most {MAX_FEATURES}", contract.inputs()));
        }
        Ok(contract)
    }
}

impl From<DataContract> for RawContract {
    fn from(contract: DataContract) -> Self {
        contract.raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEART: &str = r#"
        missing = ["", "?"]
        [label]
        column = "num"
        classes = [{ name = "healthy", values = ["0"] }, { name = "ill", values = ["1", "2"] }]
        [[columns]]
        name = "age"
        kind = "number"
        range = [0, 120]
        [[columns]]
        name = "chol"
        kind = "number"
        range = [50, 700]
        optional = true
        missing = ["0"]
        [[columns]]
        name = "sex"
        kind = "category"
        values = ["Male", "Female"]
    "#;

    #[test]
    fn features_are_counted_and_named() {
        let c: DataContract = toml::from_str(HEART).unwrap();
        assert_eq!(c.feature_names(), ["age", "chol", "chol is missing", "sex=Male", "sex=Female"]);
        assert_eq!((c.inputs(), c.outputs()), (5, 1));
    }

    #[test]
    fn nonsense_is_refused() {
        for (from, to) in [
            ("range = [0, 120]", "range = [120, 0]"),
            ("range = [0, 120]", "range = [0, inf]"),
            ("\"Male\", \"Female\"", "\"Male\", \"Male\""),
            ("name = \"age\"", "name = \"num\""),
            ("optional = true", "optional = false"),
            ("[\"1\", \"2\"]", "[\"0\", \"2\"]"),
        ] {
            let text = HEART.replace(from, to);
            assert_ne!(text, HEART);
            assert!(toml::from_str::<DataContract>(&text).is_err(), "{to}");
        }
    }
}
