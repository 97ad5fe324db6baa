//! How our TOML files are read: unknown keys are refused, and the error says where and what was meant.

use serde::de::DeserializeOwned;

/// What is wrong with a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct ConfigError {
    /// File and line, for example `job.toml line 3`.
    pub place: String,
    /// What is wrong and what to do.
    pub problem: String,
}

/// Reads `text` (the content of `file`, named in errors).
///
/// # Errors
/// [`ConfigError`] with the line; for an unknown key, with the nearest known one.
pub fn parse_toml<T: DeserializeOwned>(text: &str, file: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|e| {
        let place = match e.span() {
            Some(span) => {
                let end = span.start.min(text.len());
                format!("{file} line {}", 1 + text.as_bytes()[..end].iter().filter(|&&b| b == b'\n').count())
            }
            None => file.to_owned(),
        };
        ConfigError { place, problem: with_suggestion(e.message()) }
    })
}

/// Turns serde's "unknown field `x`, expected one of `a`, `b`" (or "unknown variant") into a sentence with the
/// nearest known word.
pub fn with_suggestion(message: &str) -> String {
    let what = if message.starts_with("unknown field") {
        "unknown key"
    } else if message.starts_with("unknown variant") {
        "unknown value"
    } else {
        return message.to_owned();
    };
    let words: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let Some((unknown, known)) = words.split_first() else {
        return message.to_owned();
    };
    let nearest = known
        .iter()
        .map(|k| (strsim::jaro_winkler(unknown, k), *k))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let list = || known.iter().map(|k| format!("\"{k}\"")).collect::<Vec<_>>().join(", ");
    match nearest {
        Some((_, nearest)) => format!("{what} \"{unknown}\": did you mean \"{nearest}\"?"),
        None if known.is_empty() => format!("{what} \"{unknown}\""),
        None => format!("{what} \"{unknown}\": known are {}", list()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only parsed")]
    struct Sample {
        rounds: u32,
        name: String,
    }

    #[test]
    fn an_unknown_key_names_line_and_neighbour() {
        let e = parse_toml::<Sample>("name = \"x\"\nroundz = 3\n", "job.toml").unwrap_err();
        assert_eq!(e.to_string(), "job.toml line 2: unknown key \"roundz\": did you mean \"rounds\"?");
        let e = parse_toml::<Sample>("zzz = 3\n", "job.toml").unwrap_err();
        assert!(e.problem.contains("known are \"rounds\", \"name\""), "{e}");
        let e = parse_toml::<Sample>("name = 3\n", "job.toml").unwrap_err();
        assert!(e.to_string().starts_with("job.toml line 1"), "{e}");
    }
}
