//! Durations in our files: `"90s"`, `"10m"`, `"1h 30m"`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::time::Duration;

/// A duration that reads and writes as text with a unit. A bare number is refused: sixty what?
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub Duration);

impl Span {
    /// A span of whole seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&humantime::format_duration(self.0))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl std::str::FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let span = humantime::parse_duration(text).map_err(|e| {
            format!("\"{text}\" is not a duration ({e}): write for example \"90s\" or \"10m\"")
        })?;
        if span.is_zero() || span > Duration::from_secs(366 * 86_400) {
            return Err(format!("\"{text}\" is out of bounds: use more than zero and at most a year"));
        }
        Ok(Self(span))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_required() {
        assert_eq!("90s".parse(), Ok(Span::seconds(90)));
        assert!("90".parse::<Span>().is_err());
        assert!("0s".parse::<Span>().is_err());
        assert!("500 years".parse::<Span>().is_err());
    }
}
