//! How the learning rate moves.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// The learning rate as a factor of the plan's `learning_rate`: a linear warm-up, then a decay.
///
/// It moves over the local steps of each round, or over the rounds of the job; `warm_up` and `every` count in these.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Schedule {
    /// No decay.
    Constant {
        /// See [`Over`].
        #[serde(default)]
        over: Over,
        /// Steps or rounds in which the rate climbs in a line: 1/n, 2/n, … 1.
        #[serde(default)]
        warm_up: u32,
    },
    /// Multiplied by `factor` again after every so many steps or rounds.
    Step {
        /// See [`Over`].
        #[serde(default)]
        over: Over,
        /// Steps or rounds in which the rate climbs in a line: 1/n, 2/n, … 1.
        #[serde(default)]
        warm_up: u32,
        /// How many.
        every: u32,
        /// Above 0, at most 1.
        factor: f64,
    },
    /// Half a cosine wave from 1 down to `end` (Loshchilov and Hutter 2017, without restarts).
    Cosine {
        /// See [`Over`].
        #[serde(default)]
        over: Over,
        /// Steps or rounds in which the rate climbs in a line: 1/n, 2/n, … 1.
        #[serde(default)]
        warm_up: u32,
        /// Where it would be one step or round past the last; 0 to 1.
        #[serde(default)]
        end: f64,
    },
}

/// What a schedule moves over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Over {
    /// The local steps of a round; each round begins it anew.
    #[default]
    Round,
    /// The rounds of the job; within a round the rate stands still.
    Job,
}

impl Schedule {
    /// What it moves over.
    pub fn over(&self) -> Over {
        match *self {
            Self::Constant { over, .. } | Self::Step { over, .. } | Self::Cosine { over, .. } => over,
        }
    }

    fn warm_up(&self) -> u32 {
        match *self {
            Self::Constant { warm_up, .. } | Self::Step { warm_up, .. } | Self::Cosine { warm_up, .. } => {
                warm_up
            }
        }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// A sentence that says which number is wrong.
    pub fn validate(&self) -> Result<(), String> {
        match *self {
            Self::Step { every: 0, .. } => Err("every of the step schedule must be at least 1".into()),
            Self::Step { factor, .. } if !(factor > 0.0 && factor <= 1.0) => {
                Err(format!("factor of the step schedule must be above 0 and at most 1, not {factor}"))
            }
            Self::Cosine { end, .. } if !(0.0..=1.0).contains(&end) => {
                Err(format!("end of the cosine schedule must be 0 to 1, not {end}"))
            }
            _ => Ok(()),
        }
    }

    /// Checks that the warm-up ends within `of` steps or rounds, whichever [`Over`] names.
    ///
    /// # Errors
    /// A sentence with both numbers.
    pub fn check_length(&self, of: u32) -> Result<(), String> {
        let (warm_up, what) = (
            self.warm_up(),
            match self.over() {
                Over::Round => "local_steps",
                Over::Job => "rounds",
            },
        );
        if warm_up > of {
            return Err(format!(
                "warm_up of the schedule is {warm_up} but there are {of} {what}: the learning rate would never get there"
            ));
        }
        Ok(())
    }

    /// The factor at step or round `at`, counted from 0, of `of`.
    pub fn factor(&self, at: u64, of: u64) -> f64 {
        let warm_up = u64::from(self.warm_up());
        if at < warm_up {
            return (at + 1) as f64 / warm_up as f64;
        }
        let past = at - warm_up;
        match *self {
            Self::Constant { .. } => 1.0,
            Self::Step { every, factor, .. } => factor.powf((past / u64::from(every)) as f64),
            Self::Cosine { end, .. } => {
                let way = (past as f64 / of.saturating_sub(warm_up).max(1) as f64).min(1.0);
                end + (1.0 - end) * (1.0 + (PI * way).cos()) / 2.0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(text: &str, of: u64) -> Vec<f64> {
        let schedule: Schedule = toml::from_str(text).unwrap();
        schedule.validate().unwrap();
        (0..of).map(|at| schedule.factor(at, of)).collect()
    }

    fn close(found: Vec<f64>, wanted: &[f64]) {
        assert_eq!(found.len(), wanted.len());
        assert!(found.iter().zip(wanted).all(|(f, w)| (f - w).abs() < 1e-12), "{found:?} {wanted:?}");
    }

    #[test]
    fn schedules_are_as_documented() {
        close(factors("kind = \"constant\"\nwarm_up = 4", 6), &[0.25, 0.5, 0.75, 1.0, 1.0, 1.0]);
        close(
            factors("kind = \"step\"\nevery = 2\nfactor = 0.1\nwarm_up = 1", 6),
            &[1.0, 1.0, 1.0, 0.1, 0.1, 0.01],
        );
        let root = 0.5f64.sqrt() / 2.0;
        close(factors("kind = \"cosine\"", 4), &[1.0, 0.5 + root, 0.5, 0.5 - root]);
        close(
            factors("kind = \"cosine\"\nwarm_up = 2\nend = 0.2", 6),
            &[0.5, 1.0, 1.0, 0.6 + 0.8 * root, 0.6, 0.6 - 0.8 * root],
        );
    }

    #[test]
    fn numbers_out_of_bounds_are_named() {
        for (text, says) in [
            ("kind = \"step\"\nevery = 0\nfactor = 0.5", "every"),
            ("kind = \"step\"\nevery = 1\nfactor = 0.0", "factor"),
            ("kind = \"step\"\nevery = 1\nfactor = 1.5", "factor"),
            ("kind = \"cosine\"\nend = -0.1", "end"),
        ] {
            let e = toml::from_str::<Schedule>(text).unwrap().validate().unwrap_err();
            assert!(e.contains(says), "{text}: {e}");
        }
        let schedule: Schedule = toml::from_str("kind = \"constant\"\nwarm_up = 9\nover = \"job\"").unwrap();
        assert_eq!(schedule.check_length(9), Ok(()));
        assert!(schedule.check_length(8).unwrap_err().contains("8 rounds"));
    }
}
