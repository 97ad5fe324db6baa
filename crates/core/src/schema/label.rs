//! What is to be predicted.

use super::InvalidContract;
use super::column::{Outside, check_range};
use crate::limits::MAX_CATEGORIES;
use crate::shape::Target;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The label of a record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawLabel", into = "RawLabel")]
pub struct Label {
    /// The column's name. `None` for pictures, whose labels are a file of their own.
    pub column: Option<String>,
    /// What it holds. In TOML: `classes = [..]`, or `range = [low, high]`.
    pub kind: LabelKind,
}

/// What a label holds.
#[derive(Debug, Clone, PartialEq)]
pub enum LabelKind {
    /// One of these classes, in order; class 1 of two is the positive one.
    Classes(Vec<Class>),
    /// A number in a public range, scaled to [-1, 1] for training.
    Number {
        /// Lowest and highest value, in the label's own unit.
        range: [f64; 2],
        /// What happens to a value outside the range. Never [`Outside::Missing`].
        outside: Outside,
    },
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

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLabel {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    column: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    classes: Option<Vec<Class>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    range: Option<[f64; 2]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outside: Option<Outside>,
}

impl TryFrom<RawLabel> for Label {
    type Error = String;

    fn try_from(raw: RawLabel) -> Result<Self, String> {
        let kind = match (raw.classes, raw.range, raw.outside) {
            (Some(classes), None, None) => LabelKind::Classes(classes),
            (None, Some(range), outside) => LabelKind::Number { range, outside: outside.unwrap_or_default() },
            _ => {
                return Err("the label needs either classes = [..], to tell classes apart, or range = [low, high], to \
                            predict a number"
                    .into());
            }
        };
        Ok(Self { column: raw.column, kind })
    }
}

impl From<Label> for RawLabel {
    fn from(label: Label) -> Self {
        let (classes, range, outside) = match label.kind {
            LabelKind::Classes(classes) => (Some(classes), None, None),
            LabelKind::Number { range, outside } => (None, Some(range), Some(outside)),
        };
        Self { column: label.column, classes, range, outside }
    }
}

impl Label {
    /// The classes; none if the label is a number.
    pub fn classes(&self) -> &[Class] {
        match &self.kind {
            LabelKind::Classes(classes) => classes,
            LabelKind::Number { .. } => &[],
        }
    }

    /// What a model sees of it.
    pub fn target(&self) -> Target {
        match &self.kind {
            LabelKind::Classes(classes) => Target::Class { classes: classes.len() },
            LabelKind::Number { .. } => Target::Number,
        }
    }

    pub(super) fn validate(&self) -> Result<(), InvalidContract> {
        let bad = |text: String| Err(InvalidContract(text));
        if self.column.as_deref() == Some("") {
            return bad("the label's column has no name".into());
        }
        let classes = match &self.kind {
            LabelKind::Classes(classes) => classes,
            LabelKind::Number { outside: Outside::Missing, .. } => {
                return bad("a label cannot be missing: outside = \"refuse\" or \"clamp\"".into());
            }
            LabelKind::Number { range, .. } => return check_range(*range, "the label"),
        };
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
        Ok(())
    }
}
