//! What goes into a model and what comes out of it: all that a model must know of the data.
//!
//! A data contract has exactly one shape ([`DataContract::shape`](crate::schema::DataContract::shape)); a model's layout
//! follows from its spec and that shape, on every machine alike.

use std::fmt;

/// One example and its label, as a model sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// What an example holds.
    pub input: Input,
    /// What is to be predicted.
    pub target: Target,
}

/// What one example holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A row of a table: numbers that come from columns.
    Features {
        /// How many of the numbers each column gives, in order; none gives zero.
        columns: Vec<usize>,
    },
    /// A picture, channel by channel, row by row, values in [0, 1].
    Image {
        /// 1 for grey, 3 for colours.
        channels: usize,
        /// Rows of picture elements.
        height: usize,
        /// Picture elements of a row.
        width: usize,
    },
    /// Measurements over time, all of one length.
    Series {
        /// Points in time.
        steps: usize,
        /// Numbers at each.
        features: usize,
    },
    /// A text as numbers of tokens, cut or padded to one length; token 0 is the padding.
    Tokens {
        /// Tokens of one example.
        length: usize,
        /// Different tokens, the padding among them.
        vocabulary: usize,
    },
}

/// What is to be predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// One of this many classes, at least two.
    Class {
        /// How many.
        classes: usize,
    },
    /// A number.
    Number,
}

impl Input {
    /// A row of this many features, one to a column.
    pub fn features(count: usize) -> Self {
        Self::Features { columns: vec![1; count] }
    }

    /// The numbers (or tokens) of one example, or `None` past `usize`.
    pub fn checked_len(&self) -> Option<usize> {
        match self {
            Self::Features { columns } => columns.iter().try_fold(0usize, |sum, &n| sum.checked_add(n)),
            Self::Image { channels, height, width } => channels.checked_mul(*height)?.checked_mul(*width),
            Self::Series { steps, features } => steps.checked_mul(*features),
            Self::Tokens { length, .. } => Some(*length),
        }
    }

    /// The numbers (or tokens) of one example.
    ///
    /// # Panics
    /// If they are more than a `usize` counts; a data contract's are not.
    pub fn len(&self) -> usize {
        self.checked_len().expect("the data contract bounds it")
    }

    /// Whether an example holds nothing.
    pub fn is_empty(&self) -> bool {
        self.checked_len() == Some(0)
    }

    /// The dimensions of one example in a tensor.
    pub fn dimensions(&self) -> Vec<usize> {
        match self {
            Self::Features { .. } => vec![self.len()],
            Self::Image { channels, height, width } => vec![*channels, *height, *width],
            Self::Series { steps, features } => vec![*steps, *features],
            Self::Tokens { length, .. } => vec![*length],
        }
    }
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Features { .. } => write!(f, "rows of {} features", self.len()),
            Self::Image { channels, height, width } => write!(f, "pictures of {channels}x{height}x{width}"),
            Self::Series { steps, features } => write!(f, "series of {steps} steps of {features} features"),
            Self::Tokens { length, vocabulary } => {
                write!(f, "texts of {length} tokens out of {vocabulary}")
            }
        }
    }
}

impl Target {
    /// The number of values that a model puts out: one (a logit) for two classes, else one a class; one for a number.
    pub fn outputs(self) -> usize {
        match self {
            Self::Class { classes: 2 } | Self::Number => 1,
            Self::Class { classes } => classes,
        }
    }
}

impl Shape {
    /// Rows of `inputs` features of one of `classes` classes.
    pub fn table(inputs: usize, classes: usize) -> Self {
        Self { input: Input::features(inputs), target: Target::Class { classes } }
    }

    /// See [`Target::outputs`].
    pub fn outputs(&self) -> usize {
        self.target.outputs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_classes_are_one_logit() {
        let outputs = |target: Target| target.outputs();
        assert_eq!(outputs(Target::Class { classes: 2 }), 1);
        assert_eq!(outputs(Target::Class { classes: 3 }), 3);
        assert_eq!(outputs(Target::Number), 1);
    }

    #[test]
    fn dimensions_hold_what_an_example_holds() {
        let inputs = [
            Input::Features { columns: vec![1, 3, 2] },
            Input::Image { channels: 3, height: 5, width: 4 },
            Input::Series { steps: 6, features: 2 },
            Input::Tokens { length: 9, vocabulary: 100 },
        ];
        for input in inputs {
            assert_eq!(input.dimensions().iter().product::<usize>(), input.len(), "{input}");
        }
        let vast = Input::Image { channels: 3, height: usize::MAX, width: 2 };
        assert_eq!(vast.checked_len(), None);
    }
}
