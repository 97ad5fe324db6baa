//! Augmentation: random views of an example that is trained on.

use crate::shape::Input;
use serde::{Deserialize, Serialize};

/// Most views of one example.
pub const MAX_VIEWS: u32 = 64;

/// How an example is varied whenever it is in a batch; `[training] augmentation = { views = 4, shift = 2, flip = true }`.
///
/// The gradients of an example's views are averaged before anything else happens to them. So under a record-level privacy
/// contract several views are one example still: their mean is clipped, and costs the same (augmentation multiplicity, De et
/// al. 2022, arXiv 2204.13650, section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Augmentation {
    /// Views of an example in each step, 1 to [`MAX_VIEWS`]; each is drawn by itself.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub views: u32,
    /// Pictures: moved by up to so many picture elements each way, both ways, zeros moving in (a random crop with padding).
    #[serde(default, skip_serializing_if = "is_none")]
    pub shift: u32,
    /// Pictures: turned left to right, half of the time.
    #[serde(default, skip_serializing_if = "is_false")]
    pub flip: bool,
    /// Numbers of any kind: normal noise of this standard deviation on each, as the model sees it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub jitter: f64,
}

fn one() -> u32 {
    1
}

fn is_one(x: &u32) -> bool {
    *x == 1
}

fn is_none(x: &u32) -> bool {
    *x == 0
}

fn is_false(x: &bool) -> bool {
    !*x
}

fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

impl Augmentation {
    /// Checks the numbers.
    ///
    /// # Errors
    /// A sentence that says which number is wrong.
    pub fn validate(&self) -> Result<(), String> {
        if !(1..=MAX_VIEWS).contains(&self.views) {
            return Err(format!("augmentation views must be 1 to {MAX_VIEWS}, not {}", self.views));
        }
        if !(self.jitter.is_finite() && self.jitter >= 0.0) {
            return Err(format!("augmentation jitter must be a number of at least 0, not {}", self.jitter));
        }
        if self.shift == 0 && !self.flip && self.jitter == 0.0 {
            return Err(
                "augmentation varies nothing: give shift, flip or jitter, or leave augmentation out".into()
            );
        }
        Ok(())
    }

    /// Checks that there is something to vary in this kind of example.
    ///
    /// # Errors
    /// A sentence that says what does not go together.
    pub fn check(&self, input: &Input) -> Result<(), String> {
        match input {
            Input::Image { height, width, .. } if self.shift as usize >= (*height).min(*width) => {
                Err(format!(
                    "augmentation shift = {} moves a picture of {height}x{width} out of sight: take less",
                    self.shift
                ))
            }
            Input::Image { .. } => Ok(()),
            _ if self.shift > 0 || self.flip => Err(format!(
                "augmentation shift and flip are for pictures, and the data holds {input}: take jitter"
            )),
            Input::Tokens { .. } => {
                Err(format!("augmentation jitter is for numbers, and the data holds {input}"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(views: u32, shift: u32, flip: bool, jitter: f64) -> Augmentation {
        Augmentation { views, shift, flip, jitter }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_key() {
        assert_eq!(of(4, 2, true, 0.1).validate(), Ok(()));
        for (bad, key) in [
            (of(0, 2, true, 0.0), "views"),
            (of(65, 2, true, 0.0), "views"),
            (of(1, 0, true, -0.1), "jitter"),
            (of(1, 0, true, f64::NAN), "jitter"),
            (of(8, 0, false, 0.0), "varies nothing"),
        ] {
            assert!(bad.validate().unwrap_err().contains(key), "{bad:?}");
        }
    }

    #[test]
    fn pictures_move_and_turn_and_tokens_do_not() {
        let image = Input::Image { channels: 1, height: 28, width: 20 };
        let (row, text) = (Input::features(3), Input::Tokens { length: 4, vocabulary: 9 });
        assert_eq!(of(4, 19, true, 0.1).check(&image), Ok(()));
        assert!(of(4, 20, false, 0.0).check(&image).unwrap_err().contains("28x20"));
        assert_eq!(of(4, 0, false, 0.1).check(&row), Ok(()));
        assert_eq!(of(4, 0, false, 0.1).check(&Input::Series { steps: 3, features: 2 }), Ok(()));
        assert!(of(4, 1, false, 0.0).check(&row).is_err() && of(4, 0, true, 0.0).check(&row).is_err());
        assert!(of(4, 0, false, 0.1).check(&text).is_err());
    }

    #[test]
    fn keys_that_say_nothing_stay_unwritten() {
        let json = serde_json::to_string(&of(4, 0, true, 0.0)).unwrap();
        assert_eq!(json, r#"{"views":4,"flip":true}"#);
        assert_eq!(serde_json::from_str::<Augmentation>(&json).unwrap(), of(4, 0, true, 0.0));
        assert!(serde_json::from_str::<Augmentation>(r#"{"rotate":3}"#).is_err());
    }
}
