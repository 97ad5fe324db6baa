//! From a file that meets the contract to numbers.
//!
//! The order of features is that of [`DataContract::feature_names`]. A number is scaled from its public range to
//! [-1, 1]; a category is one-hot; a missing value is all zeros, and 1 in the column's indicator.

use crate::check::{Cell, scan};
use std::path::Path;
use undertone_core::schema::{Column, ColumnKind, DataContract};
use undertone_core::trainer::{DataReport, TrainerError};

/// Rows as a model takes them.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// Shape (rows, inputs), row by row.
    pub features: Vec<f32>,
    /// The class of each row.
    pub labels: Vec<u32>,
    /// Number of rows.
    pub rows: usize,
    /// Number of features of a row.
    pub inputs: usize,
}

impl Dataset {
    /// The features of row `i`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.features[i * self.inputs..(i + 1) * self.inputs]
    }
}

/// Checks the CSV file at `path` without keeping any of it.
///
/// # Errors
/// [`TrainerError::Data`] only if the file cannot be read as CSV at all; what is wrong *in* it is in the report.
pub fn inspect(path: &Path, contract: &DataContract) -> Result<DataReport, TrainerError> {
    scan(path, contract, |_, _| {})
}

/// Reads the CSV file at `path`.
///
/// # Errors
/// [`TrainerError::Data`] with every problem on a line of its own. It names values of the data: show it to the
/// data owner, send it nowhere.
pub fn load(path: &Path, contract: &DataContract) -> Result<Dataset, TrainerError> {
    let mut set = Dataset { features: Vec::new(), labels: Vec::new(), rows: 0, inputs: contract.inputs() };
    let report = scan(path, contract, |cells, class| {
        for (column, cell) in contract.columns().iter().zip(cells) {
            encode(column, *cell, &mut set.features);
        }
        set.labels.push(class);
        set.rows += 1;
    })?;
    if report.is_fit() {
        Ok(set)
    } else {
        let problems = report.problems.join("\n  ");
        Err(TrainerError::Data(format!("{} does not meet the data contract:\n  {problems}", path.display())))
    }
}

/// Appends the features of one cell: as many as [`Column::width`] says.
fn encode(column: &Column, cell: Cell, features: &mut Vec<f32>) {
    match &column.kind {
        ColumnKind::Number { range, .. } => {
            features.push(if let Cell::Number(n) = cell { scale(n, *range) } else { 0.0 });
        }
        ColumnKind::Category { values } => {
            let start = features.len();
            features.resize(start + values.len(), 0.0);
            if let Cell::Category(i) = cell {
                features[start + i as usize] = 1.0;
            }
        }
    }
    if column.optional {
        features.push(if cell == Cell::Missing { 1.0 } else { 0.0 });
    }
}

/// (x - middle) / half of the range, in [-1, 1]. Halves come first where the difference of the ends would overflow.
fn scale(x: f64, [low, high]: [f64; 2]) -> f32 {
    let (middle, half) = if (high - low).is_finite() {
        (low + (high - low) / 2.0, (high - low) / 2.0)
    } else {
        (low / 2.0 + high / 2.0, high / 2.0 - low / 2.0)
    };
    // A range of two neighbouring subnormals has a half of zero: then every value is at the middle.
    if half == 0.0 { 0.0 } else { ((x - middle) / half).clamp(-1.0, 1.0) as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONTRACT: &str = r#"
        min_rows = 2
        missing = ["", "?"]
        label = { column = "num", classes = [{ name = "no", values = ["0"] }, { name = "yes", values = ["1"] }] }
        columns = [
            { name = "age", kind = "number", range = [20, 80] },
            { name = "chol", kind = "number", range = [100, 300], optional = true, missing = ["0"] },
            { name = "sex", kind = "category", values = ["Male", "Female"] },
            { name = "slope", kind = "category", values = ["up", "flat", "down"], optional = true },
        ]
    "#;

    fn write(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn features_stand_where_the_contract_names_them() {
        let contract: DataContract = toml::from_str(CONTRACT).unwrap();
        let file = write("num,age,chol,sex,slope\n1,80,150,Female,flat\n0,50,0,Male,?\n");
        let set = load(file.path(), &contract).unwrap();
        assert_eq!((set.rows, set.inputs, set.labels.as_slice()), (2, 9, [1, 0].as_slice()));
        assert_eq!(
            contract.feature_names(),
            [
                "age",
                "chol",
                "chol is missing",
                "sex=Male",
                "sex=Female",
                "slope=up",
                "slope=flat",
                "slope=down",
                "slope is missing",
            ]
        );
        assert_eq!(set.row(0), [1.0, -0.5, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0]);
        assert_eq!(set.row(1), [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn a_file_with_problems_is_not_loaded() {
        let contract: DataContract = toml::from_str(CONTRACT).unwrap();
        let file = write("num,age,chol,sex,slope\n1,x,150,Female,flat\n0,50,0,male,?\n");
        let report = inspect(file.path(), &contract).unwrap();
        assert_eq!(report.problems.len(), 2);
        let Err(TrainerError::Data(text)) = load(file.path(), &contract) else { panic!("loaded") };
        assert!(report.problems.iter().all(|p| text.contains(p.as_str())), "{text}");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let contract: DataContract = toml::from_str(CONTRACT).unwrap();
        let Err(TrainerError::Data(text)) = inspect(Path::new("no/such.csv"), &contract) else {
            panic!("read")
        };
        assert!(text.starts_with("cannot read no/such.csv: "), "{text}");
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(inspect(folder.path(), &contract), Err(TrainerError::Data(_))));
    }

    #[test]
    fn the_ends_and_the_middle_of_a_range_are_exact() {
        for [low, high] in [[0.0, 3.0], [-5.0, 10.0], [0.1, 0.7], [-f64::MAX, f64::MAX]] {
            assert_eq!((scale(low, [low, high]), scale(high, [low, high])), (-1.0, 1.0), "{low} {high}");
        }
        assert_eq!(scale(20.0, [10.0, 30.0]), 0.0);
        assert_eq!(scale(f64::from_bits(1), [0.0, f64::from_bits(1)]), 0.0);
    }

    proptest! {
        #[test]
        fn scaling_stays_within_bounds(a in any::<f64>(), b in any::<f64>(), t in 0.0..=1.0f64) {
            prop_assume!(a.is_finite() && b.is_finite() && a < b);
            let x = (a * (1.0 - t) + b * t).clamp(a, b);
            prop_assert!((-1.0..=1.0).contains(&scale(x, [a, b])));
        }

        #[test]
        fn widths_are_those_of_the_contract(
            widths in proptest::collection::vec((0usize..5, any::<bool>(), any::<bool>()), 1..6),
        ) {
            let columns: Vec<String> = widths.iter().enumerate().map(|(i, (n, optional, _))| match n {
                0 => format!("{{ name = \"c{i}\", kind = \"number\", range = [0, 1], optional = {optional} }}"),
                n => {
                    let values: Vec<String> = (0..*n).map(|v| format!("v{v}")).collect();
                    format!("{{ name = \"c{i}\", kind = \"category\", values = {values:?}, optional = {optional} }}")
                }
            }).collect();
            let contract: DataContract = toml::from_str(&format!(
                "label = {{ column = \"y\", classes = [{{ name = \"a\", values = [\"0\"] }}, \
                 {{ name = \"b\", values = [\"1\"] }}] }}\ncolumns = [{}]",
                columns.join(", ")
            )).unwrap();
            for (column, (n, optional, missing)) in contract.columns().iter().zip(widths) {
                let cell = match n {
                    _ if optional && missing => Cell::Missing,
                    0 => Cell::Number(0.5),
                    n => Cell::Category(n as u32 - 1),
                };
                let mut features = Vec::new();
                encode(column, cell, &mut features);
                prop_assert_eq!(features.len(), column.width());
                // One-hot and indicator together: exactly one is set, whatever the cell.
                if n > 0 {
                    prop_assert_eq!(features.iter().sum::<f32>(), 1.0);
                }
            }
        }
    }
}
