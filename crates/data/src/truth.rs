//! Labels: what is true of a record.

use crate::problems::Problems;
use undertone_core::schema::{Label, LabelKind, Outside};
use undertone_core::trainer::{DataReport, NumberSummary};

/// The label of one record.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Truth {
    /// The class.
    Class(u32),
    /// A number in its own unit; outside the range only where the contract clamps it.
    Number(f64),
}

impl Truth {
    /// A number that the contract's range admits, or a sentence that begins with it.
    pub(crate) fn number(n: f64, range: [f64; 2], outside: Outside) -> Result<Self, String> {
        if (range[0]..=range[1]).contains(&n) || outside == Outside::Clamp {
            Ok(Self::Number(n))
        } else {
            Err(outside_range(n, range))
        }
    }
}

/// What to say of a number outside its range.
pub(crate) fn outside_range(n: f64, [low, high]: [f64; 2]) -> String {
    format!("{n} is outside {low} to {high}: correct it or remove the row")
}

/// The labels of good records, counted.
#[derive(Debug)]
pub(crate) struct Tally {
    rows: u64,
    class_rows: Vec<u64>,
    lowest: f64,
    sum: f64,
    highest: f64,
}

impl Tally {
    pub(crate) fn new(label: &Label) -> Self {
        Self {
            rows: 0,
            class_rows: vec![0; label.classes().len()],
            lowest: f64::INFINITY,
            sum: 0.0,
            highest: f64::NEG_INFINITY,
        }
    }

    /// Counts one.
    pub(crate) fn count(&mut self, truth: Truth) {
        self.rows += 1;
        match truth {
            Truth::Class(class) => self.class_rows[class as usize] += 1,
            Truth::Number(n) => {
                self.lowest = self.lowest.min(n);
                self.sum += n;
                self.highest = self.highest.max(n);
            }
        }
    }

    /// The report of a data set with these labels and problems.
    pub(crate) fn report(self, problems: Problems) -> DataReport {
        let numbers = (self.lowest <= self.highest).then(|| NumberSummary {
            lowest: self.lowest,
            mean: self.sum / self.rows as f64,
            highest: self.highest,
        });
        DataReport {
            rows: self.rows,
            class_rows: self.class_rows,
            numbers,
            problems: problems.sentences(),
            ..DataReport::default()
        }
    }
}

/// For each byte that may be a label of pictures, what it means.
pub(crate) struct ByteLabels<'a> {
    label: &'a Label,
    classes: [Option<u32>; 256],
}

impl<'a> ByteLabels<'a> {
    pub(crate) fn new(label: &'a Label) -> Self {
        let mut classes = [None; 256];
        for (class, i) in label.classes().iter().zip(0..) {
            // A contract for pictures admits no other values.
            for byte in class.values.iter().filter_map(|v| v.trim().parse::<u8>().ok()) {
                classes[usize::from(byte)] = Some(i);
            }
        }
        Self { label, classes }
    }

    /// What a byte means, or why it means nothing.
    pub(crate) fn read(&self, byte: u8) -> Result<Truth, String> {
        match &self.label.kind {
            LabelKind::Classes(_) => self.classes[usize::from(byte)]
                .map(Truth::Class)
                .ok_or_else(|| format!("{byte} is the value of no class of the job")),
            LabelKind::Number { range, outside } => Truth::number(byte.into(), *range, *outside),
        }
    }
}
