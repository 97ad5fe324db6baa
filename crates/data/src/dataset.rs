//! Records as a model takes them, in memory.

use undertone_core::schema::{Content, DataContract, Picture};

/// Records that meet a data contract.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// The records, one behind the other, each as its dimensions say (row-major).
    pub examples: Examples,
    /// The label of each.
    pub labels: Labels,
    /// Number of records.
    pub rows: usize,
    /// Numbers, bytes or tokens of one record: the product of its dimensions.
    pub inputs: usize,
    /// The dimensions of one record in a tensor: (features), (channels, height, width), (steps, features) or (tokens).
    pub dimensions: Vec<usize>,
}

/// What records hold.
#[derive(Debug, Clone, PartialEq)]
pub enum Examples {
    /// Features.
    Numbers(Vec<f32>),
    /// Picture elements, which a model sees as n/255. They stay bytes in memory: a quarter of what numbers take.
    Bytes(Vec<u8>),
    /// Numbers of tokens.
    Tokens(Vec<u32>),
}

/// What is true of records.
#[derive(Debug, Clone, PartialEq)]
pub enum Labels {
    /// Classes.
    Classes(Vec<u32>),
    /// Numbers, scaled from their range to [-1, 1].
    Numbers {
        /// The scaled numbers.
        scaled: Vec<f32>,
        /// One in the scaled numbers is this much in the label's own unit.
        unit: f64,
    },
}

impl Dataset {
    /// Rows of `inputs` features each, of these classes.
    ///
    /// # Panics
    /// If there are not as many features as that makes.
    pub fn table(features: Vec<f32>, labels: Vec<u32>, inputs: usize) -> Self {
        assert_eq!(features.len(), labels.len() * inputs, "rows times inputs");
        let rows = labels.len();
        let labels = Labels::Classes(labels);
        Self { examples: Examples::Numbers(features), labels, rows, inputs, dimensions: vec![inputs] }
    }

    /// No records yet.
    pub(crate) fn empty(contract: &DataContract, labels: Labels) -> Self {
        let examples = match contract.content() {
            Content::Table { .. } | Content::Series { .. } => Examples::Numbers(vec![]),
            Content::Picture(Picture { scattering: Some(_), .. }) => Examples::Numbers(vec![]),
            Content::Picture(_) => Examples::Bytes(vec![]),
            Content::Text(_) => Examples::Tokens(vec![]),
        };
        let input = contract.shape().input;
        Self { examples, labels, rows: 0, inputs: input.len(), dimensions: input.dimensions() }
    }

    /// The features of row `i`.
    ///
    /// # Panics
    /// If there is no such row, or records are no features.
    pub fn row(&self, i: usize) -> &[f32] {
        match &self.examples {
            Examples::Numbers(features) => &features[i * self.inputs..(i + 1) * self.inputs],
            _ => panic!("these records are no rows of features"),
        }
    }

    /// The class of each record.
    ///
    /// # Panics
    /// If labels are numbers.
    pub fn classes(&self) -> &[u32] {
        match &self.labels {
            Labels::Classes(classes) => classes,
            Labels::Numbers { .. } => panic!("these labels are numbers"),
        }
    }

    /// Puts the records of another set behind its own.
    ///
    /// # Panics
    /// If the two are not of one contract.
    pub fn append(&mut self, other: Self) {
        assert_eq!(self.dimensions, other.dimensions, "sets of one contract");
        match (&mut self.examples, other.examples) {
            (Examples::Numbers(all), Examples::Numbers(more)) => all.extend(more),
            (Examples::Bytes(all), Examples::Bytes(more)) => all.extend(more),
            (Examples::Tokens(all), Examples::Tokens(more)) => all.extend(more),
            _ => panic!("sets of one contract hold the same"),
        }
        match (&mut self.labels, other.labels) {
            (Labels::Classes(all), Labels::Classes(more)) => all.extend(more),
            (Labels::Numbers { scaled: all, .. }, Labels::Numbers { scaled: more, .. }) => all.extend(more),
            _ => panic!("sets of one contract have the same labels"),
        }
        self.rows += other.rows;
    }
}
