//! From files that meet the contract to numbers.
//!
//! The order of features is that of [`DataContract::feature_names`]. A number is scaled from its public range to
//! [-1, 1]; a category is one-hot; a missing value is all zeros, and 1 in the column's indicator. A label that is a
//! number is scaled likewise. Texts become tokens, pictures stay bytes.

use crate::check::{Cell, Row, scan};
pub use crate::dataset::{Dataset, Examples, Labels};
use crate::pictures;
use crate::scattering::Transform;
use crate::truth::Truth;
use undertone_core::data_files::DataFiles;
use undertone_core::schema::{Column, ColumnKind, Content, DataContract, LabelKind, Picture};
use undertone_core::trainer::{DataReport, TrainerError};

/// Checks files without keeping any of them.
///
/// # Errors
/// [`TrainerError::Data`] only if a file cannot be read as CSV or IDX at all; what is wrong *in* it is in the report.
pub fn inspect(files: impl Into<DataFiles>, contract: &DataContract) -> Result<DataReport, TrainerError> {
    let files = files.into();
    match contract.content() {
        Content::Picture(picture) => pictures::scan(&files, contract, picture, |_| {}, |_| {}),
        _ => scan(&csv(&files)?, contract, |_| {}),
    }
}

/// Reads files.
///
/// # Errors
/// [`TrainerError::Data`] with every problem on a line of its own. It names values of the data: show it to the
/// data owner, send it nowhere.
pub fn load(files: impl Into<DataFiles>, contract: &DataContract) -> Result<Dataset, TrainerError> {
    let files = files.into();
    let mut labels = Truths::new(contract);
    let mut set = Dataset::empty(contract, Labels::Classes(vec![]));
    let report = match (contract.content(), &mut set.examples) {
        (Content::Picture(picture), Examples::Bytes(bytes)) => {
            let take = |piece: &[u8]| bytes.extend_from_slice(piece);
            pictures::scan(&files, contract, picture, take, |truth| labels.push(truth))?
        }
        (
            Content::Picture(picture @ Picture { scattering: Some(scattering), .. }),
            Examples::Numbers(maps),
        ) => {
            let transform = Transform::new(picture, scattering);
            let mut rest = Vec::new();
            let take = |mut piece: &[u8]| {
                // Pieces end anywhere.
                while !piece.is_empty() {
                    let (now, later) = piece.split_at(piece.len().min(picture.len() - rest.len()));
                    rest.extend_from_slice(now);
                    piece = later;
                    if rest.len() == picture.len() {
                        transform.apply(&rest, maps);
                        rest.clear();
                    }
                }
            };
            pictures::scan(&files, contract, picture, take, |truth| labels.push(truth))?
        }
        (Content::Text(_), Examples::Tokens(tokens)) => scan(&csv(&files)?, contract, |row: Row<'_>| {
            tokens.extend_from_slice(row.tokens);
            labels.push(row.truth);
        })?,
        (_, Examples::Numbers(features)) => scan(&csv(&files)?, contract, |row: Row<'_>| {
            for (column, cell) in contract.columns().iter().cycle().zip(row.cells) {
                encode(column, *cell, features);
            }
            labels.push(row.truth);
        })?,
        _ => unreachable!("a set holds what its contract's shape says"),
    };
    if report.is_fit() {
        set.rows = report.rows as usize;
        set.labels = labels.labels;
        Ok(set)
    } else {
        let problems = report.problems.join("\n  ");
        Err(TrainerError::Data(format!("{files} does not meet the data contract:\n  {problems}")))
    }
}

/// The path of a data set that is one CSV file.
fn csv(files: &DataFiles) -> Result<std::path::PathBuf, TrainerError> {
    match &files.labels {
        None => Ok(files.path.clone()),
        Some(labels) => Err(TrainerError::Data(format!(
            "the job reads one CSV file with the labels in it, but a file of labels is named too: remove {}",
            labels.display()
        ))),
    }
}

/// Labels as they are trained on.
struct Truths {
    labels: Labels,
    range: [f64; 2],
}

impl Truths {
    fn new(contract: &DataContract) -> Self {
        match &contract.label().kind {
            LabelKind::Classes(_) => Self { labels: Labels::Classes(vec![]), range: [-1.0, 1.0] },
            LabelKind::Number { range, .. } => {
                Self { labels: Labels::Numbers { scaled: vec![], unit: halves(*range).1 }, range: *range }
            }
        }
    }

    fn push(&mut self, truth: Truth) {
        match (&mut self.labels, truth) {
            (Labels::Classes(classes), Truth::Class(class)) => classes.push(class),
            (Labels::Numbers { scaled, .. }, Truth::Number(n)) => scaled.push(scale(n, self.range)),
            _ => unreachable!("a label is what its contract says"),
        }
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

/// The middle of a range and half its length. Halves come first where the difference of the ends would overflow.
fn halves([low, high]: [f64; 2]) -> (f64, f64) {
    if (high - low).is_finite() {
        (low + (high - low) / 2.0, (high - low) / 2.0)
    } else {
        (low / 2.0 + high / 2.0, high / 2.0 - low / 2.0)
    }
}

/// (x - middle) / half of the range, cut to [-1, 1].
fn scale(x: f64, range: [f64; 2]) -> f32 {
    let (middle, half) = halves(range);
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
        assert_eq!((set.rows, set.inputs, set.classes()), (2, 9, &[1, 0][..]));
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
        let Err(TrainerError::Data(text)) = inspect("no/such.csv", &contract) else { panic!("read") };
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

    #[test]
    fn a_number_is_scaled_and_knows_its_unit() {
        let contract: DataContract = toml::from_str(
            "label = { column = \"y\", range = [100, 300], outside = \"clamp\" }\n\
             columns = [{ name = \"x\", kind = \"number\", range = [0, 2] }]",
        )
        .unwrap();
        let file = write("x,y\n0,150\n2,300\n1,999\n");
        let set = load(file.path(), &contract).unwrap();
        assert_eq!(set.labels, Labels::Numbers { scaled: vec![-0.5, 1.0, 1.0], unit: 100.0 });
        let report = inspect(file.path(), &contract).unwrap();
        let numbers = report.numbers.unwrap();
        assert_eq!((numbers.lowest, numbers.highest, report.class_rows.len()), (150.0, 999.0, 0));
        let e = load(write("x,y\n0,much\n1,\n").path(), &contract).unwrap_err().to_string();
        assert!(
            e.contains("column \"y\": \"much\" is not a number") && e.contains("the label is missing"),
            "{e}"
        );
    }

    #[test]
    fn a_series_is_laid_out_step_by_step() {
        let contract: DataContract = toml::from_str(
            "label = { column = \"y\", classes = [{ name = \"a\", values = [\"0\"] }, { name = \"b\", values = [\"1\"] }] }\n\
             series = { steps = 3 }\n\
             columns = [{ name = \"hr{t}\", kind = \"number\", range = [0, 200], optional = true },\n\
             { name = \"old\", kind = \"category\", values = [\"no\", \"yes\"] }]",
        )
        .unwrap();
        let file = write("y,hr2,old,hr0,hr1\n1,200,yes,0,\n");
        let set = load(file.path(), &contract).unwrap();
        assert_eq!((set.dimensions.as_slice(), set.inputs), (&[3, 4][..], 12));
        assert_eq!(
            set.row(0),
            [[-1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]].concat().as_slice()
        );
        let report = inspect(file.path(), &contract).unwrap();
        assert_eq!(report.missing, [("hr{t}".to_owned(), 1)]);
        let e = load(write("y,hr0,hr1,old\n1,1,1,no\n").path(), &contract).unwrap_err().to_string();
        assert!(e.contains("no column \"hr2\""), "{e}");
    }

    #[test]
    fn texts_become_tokens() {
        let contract: DataContract = toml::from_str(
            "label = { column = \"y\", classes = [{ name = \"a\", values = [\"0\"] }, { name = \"b\", values = [\"1\"] }] }\n\
             text = { column = \"t\", length = 3, tokens = \"words\", words = [\"yes\"], lowercase = true }",
        )
        .unwrap();
        let file = write("t,y\nYES,1\n\"yes, no, yes\",0\n");
        let set = load(file.path(), &contract).unwrap();
        assert_eq!(set.examples, Examples::Tokens(vec![2, 0, 0, 2, 1, 1]));
        assert_eq!((set.dimensions.as_slice(), set.classes()), (&[3][..], &[1, 0][..]));
        let texts = inspect(file.path(), &contract).unwrap().texts.unwrap();
        assert_eq!((texts.cut, texts.tokens, texts.unknown), (1, 4, 2));
        let e = load(write("t,y\n ,1\n").path(), &contract).unwrap_err().to_string();
        assert!(e.contains("line 2, column \"t\": the text is missing"), "{e}");
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
