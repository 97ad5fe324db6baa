//! Names and numbers that must not be mixed up.

use crate::limits::MAX_NAME_BYTES;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A text that is not a valid name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{name}\" is not a valid {what}: use 1 to {MAX_NAME_BYTES} lower-case letters, digits, '-', '_' or '.', \
     starting with a letter or digit"
)]
pub struct InvalidName {
    what: &'static str,
    name: String,
}

fn check(what: &'static str, name: &str) -> Result<(), InvalidName> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
    let starts_well = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if name.len() <= MAX_NAME_BYTES && starts_well && name.bytes().all(allowed) {
        Ok(())
    } else {
        let mut shown: String = name.chars().take(MAX_NAME_BYTES).collect();
        if shown.len() < name.len() {
            shown.push('…');
        }
        Err(InvalidName { what, name: shown })
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks `name` and wraps it.
            ///
            /// # Errors
            /// If the text is empty, too long, or holds characters outside `[a-z0-9._-]`.
            pub fn new(name: impl Into<String>) -> Result<Self, InvalidName> {
                let name = name.into();
                check($what, &name)?;
                Ok(Self(name))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(name: String) -> Result<Self, InvalidName> {
                Self::new(name)
            }
        }
        impl std::str::FromStr for $name {
            type Err = InvalidName;
            fn from_str(name: &str) -> Result<Self, InvalidName> {
                Self::new(name)
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    };
}

name_type!(
    /// A job, unique in a deployment: the name from the job file and a short random suffix.
    JobId,
    "job name"
);
name_type!(
    /// An enrolled participant (trainer or evaluator), unique in a deployment.
    ClientId,
    "client name"
);
name_type!(
    /// An operator.
    OperatorId,
    "operator name"
);

macro_rules! number_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u32);

        impl $name {
            /// The first one.
            pub const FIRST: Self = Self(1);

            /// The one after this.
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_type!(
    /// A round of a job, counted from 1.
    Round
);
number_type!(
    /// An attempt at a round, counted from 1 in each round.
    Attempt
);

/// What identifies one attempt everywhere: in uploads, in the ledger, in logs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptKey {
    /// The job.
    pub job: JobId,
    /// The round.
    pub round: Round,
    /// The attempt within the round.
    pub attempt: Attempt,
}

impl fmt::Display for AttemptKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} round {} attempt {}", self.job, self.round, self.attempt)
    }
}

/// What a participant does for the deployment; part of its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientRole {
    /// Trains on its own data and uploads updates.
    Trainer,
    /// Measures released models on data of its own that no job trains on.
    Evaluator,
}

impl ClientRole {
    /// The word used in config, certificates and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trainer => "trainer",
            Self::Evaluator => "evaluator",
        }
    }
}

impl std::str::FromStr for ClientRole {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "trainer" => Ok(Self::Trainer),
            "evaluator" => Ok(Self::Evaluator),
            other => Err(format!("\"{other}\" is not a role: use \"trainer\" or \"evaluator\"")),
        }
    }
}

impl fmt::Display for ClientRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_on_every_way_in() {
        assert!(ClientId::new("hospital-1.eu").is_ok());
        for bad in ["", "-x", "A", "a b", "é", "../etc", &"a".repeat(65)] {
            assert!(ClientId::new(bad).is_err(), "{bad:?}");
        }
    }
}
