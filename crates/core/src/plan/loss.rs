//! What local training makes small.

use crate::shape::Target;
use serde::{Deserialize, Serialize};

/// The loss of one example. A batch's loss is the plain mean over its examples, class weights or not: what one example
/// adds does not hang on its neighbours, so that it can be clipped by itself, and a batch can be computed in parts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Loss {
    /// Cross-entropy in nats; the default for classes. Of two classes there is one logit, of more one each.
    CrossEntropy {
        /// What an example's loss is multiplied by, one number for each class in the order of the data contract.
        /// (PyTorch's mean also divides by the weights in the batch; this one does not.)
        #[serde(default, skip_serializing_if = "Option::is_none")]
        class_weights: Option<Vec<f64>>,
    },
    /// Binary cross-entropy of each class against all others, in nats, the mean over the classes: for classes that are
    /// scored one by one. Of two classes the same as cross-entropy.
    Bce {},
    /// The squared difference; the default for numbers.
    Mse {},
    /// Half the squared difference up to `delta`, and `delta` times what is left from there on (Huber 1964): outliers
    /// pull no harder than `delta`.
    Huber {
        /// Where it turns from a square into a line, on the scale of \[-1, 1\] that labels are put on: 1 is half the label's
        /// range.
        #[serde(default = "one")]
        delta: f64,
    },
}

fn one() -> f64 {
    1.0
}

/// Largest class weight: a guard against slips of the pen.
const MAX_CLASS_WEIGHT: f64 = 1e6;

impl Loss {
    /// The usual one for this kind of target.
    pub fn usual(target: Target) -> Self {
        match target {
            Target::Class { .. } => Self::CrossEntropy { class_weights: None },
            Target::Number => Self::Mse {},
        }
    }

    /// Its name in a job file.
    pub fn name(&self) -> &'static str {
        match self {
            Self::CrossEntropy { .. } => "cross-entropy",
            Self::Bce {} => "bce",
            Self::Mse {} => "mse",
            Self::Huber { .. } => "huber",
        }
    }

    /// Checks the numbers, as far as they go without the data contract.
    ///
    /// # Errors
    /// A sentence that says which number is wrong.
    pub fn validate(&self) -> Result<(), String> {
        match self {
            Self::CrossEntropy { class_weights: Some(weights) } => {
                match weights.iter().find(|w| !(**w > 0.0 && **w <= MAX_CLASS_WEIGHT)) {
                    Some(w) => Err(format!(
                        "each of the loss's class_weights must be above 0 and at most {MAX_CLASS_WEIGHT}, not {w}"
                    )),
                    None => Ok(()),
                }
            }
            Self::Huber { delta } if !(delta.is_finite() && *delta > 0.0) => {
                Err(format!("delta of the huber loss must be a positive number, not {delta}"))
            }
            _ => Ok(()),
        }
    }

    /// Checks that it fits what is to be predicted.
    ///
    /// # Errors
    /// A sentence that names what would fit.
    pub fn check_target(&self, target: Target) -> Result<(), String> {
        self.validate()?;
        match (self, target) {
            (Self::CrossEntropy { class_weights: Some(weights) }, Target::Class { classes })
                if weights.len() != classes =>
            {
                Err(format!(
                    "the loss has {} class_weights, the data contract {classes} classes: give one for each, in its order",
                    weights.len()
                ))
            }
            (Self::CrossEntropy { .. } | Self::Bce {}, Target::Class { .. })
            | (Self::Mse {} | Self::Huber { .. }, Target::Number) => Ok(()),
            (_, Target::Class { .. }) => Err(format!(
                "the loss \"{}\" is for numbers, the data contract's label is a class: take \"cross-entropy\" or \"bce\"",
                self.name()
            )),
            (_, Target::Number) => Err(format!(
                "the loss \"{}\" is for classes, the data contract's label is a number: take \"mse\" or \"huber\"",
                self.name()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Loss {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn a_loss_is_refused_where_it_does_not_fit_the_target() {
        let (two, three, number) =
            (Target::Class { classes: 2 }, Target::Class { classes: 3 }, Target::Number);
        for (text, target, says) in [
            ("kind = \"mse\"", two, Some("\"mse\" is for numbers")),
            ("kind = \"huber\"", three, Some("take \"cross-entropy\" or \"bce\"")),
            ("kind = \"bce\"", number, Some("take \"mse\" or \"huber\"")),
            ("kind = \"cross-entropy\"", number, Some("is for classes")),
            ("kind = \"cross-entropy\"\nclass_weights = [1, 2]", three, Some("has 2 class_weights")),
            ("kind = \"cross-entropy\"\nclass_weights = [1, 0]", two, Some("above 0")),
            ("kind = \"cross-entropy\"\nclass_weights = [1, inf]", two, Some("above 0")),
            ("kind = \"huber\"\ndelta = 0.0", number, Some("delta")),
            ("kind = \"huber\"\ndelta = nan", number, Some("delta")),
            ("kind = \"cross-entropy\"\nclass_weights = [1, 2.5, 1]", three, None),
            ("kind = \"bce\"", two, None),
            ("kind = \"huber\"", number, None),
        ] {
            match (read(text).check_target(target), says) {
                (Ok(()), None) => {}
                (Err(e), Some(says)) => assert!(e.contains(says), "{text}: {e}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
        for target in [two, three, number] {
            assert_eq!(Loss::usual(target).check_target(target), Ok(()));
        }
    }
}
