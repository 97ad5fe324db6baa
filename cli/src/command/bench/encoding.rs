//! Encodings as they are named on the command line: the kind as in a job file, then its numbers in the order of
//! their keys there, each after a colon.

use anyhow::{Result, anyhow};
use serde_json::{Map, Value};
use undertone_core::encoding::Encoding;
use undertone_core::encoding::delta::DeltaEncoding;

/// What a kind may be followed by.
const KEYS: [(&str, &[&str]); 3] =
    [("fixed", &["bits"]), ("top-k", &["fraction", "values"]), ("block", &["bits", "block"])];

/// Reads `fixed32`, `f32`, `bf16`, `fixed:8`, `top-k:0.01:bf16`, `block:4:64`; what is left out is as in a job file.
///
/// # Errors
/// What is wrong, in the words of the job file.
pub(super) fn parse(text: &str) -> Result<Encoding> {
    let (kind, rest) = text.split_once(':').map_or((text, None), |(kind, rest)| (kind, Some(rest)));
    let keys = KEYS.iter().find(|(name, _)| *name == kind).map_or(&[][..], |(_, keys)| keys);
    let mut table = Map::from_iter([("kind".to_owned(), Value::from(kind))]);
    let mut keys = keys.iter();
    for part in rest.into_iter().flat_map(|rest| rest.split(':')) {
        let key = keys.next().ok_or_else(|| anyhow!("\"{part}\" is one too many after {kind}"))?;
        let value = serde_json::from_str(part).unwrap_or_else(|_| Value::from(part));
        table.insert((*key).to_owned(), value);
    }
    Ok(serde_json::from_value(Value::Object(table))?)
}

/// Reads what [`parse`] does, for differences that lose something, or `exact`.
///
/// # Errors
/// What is wrong, in the words of the job file.
pub(super) fn parse_deltas(text: &str) -> Result<DeltaEncoding> {
    match text {
        "exact" => Ok(DeltaEncoding::Exact),
        lossy => Ok(DeltaEncoding::Lossy { encoding: parse(lossy)? }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use undertone_core::encoding::SparseValues;

    #[test]
    fn every_kind_has_a_name() {
        for (text, wanted) in [
            ("fixed32", Encoding::Fixed32),
            ("f32", Encoding::F32),
            ("bf16", Encoding::Bf16),
            ("fixed", Encoding::Fixed { bits: 8 }),
            ("fixed:12", Encoding::Fixed { bits: 12 }),
            ("top-k", Encoding::TopK { fraction: 0.01, values: SparseValues::Bf16 }),
            ("top-k:0.1:f32", Encoding::TopK { fraction: 0.1, values: SparseValues::F32 }),
            ("block:4", Encoding::Block { bits: 4, block: 64 }),
            ("block:8:1024", Encoding::Block { bits: 8, block: 1024 }),
        ] {
            assert_eq!(parse(text).unwrap(), wanted, "{text}");
            assert_eq!(parse_deltas(text).unwrap(), DeltaEncoding::Lossy { encoding: wanted });
        }
        assert_eq!(parse_deltas("exact").unwrap(), DeltaEncoding::Exact);
        assert!(
            parse_deltas("exact:8").unwrap_err().to_string().contains("\"8\" is one too many after exact")
        );
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, words) in [
            ("f64", "unknown variant `f64`"),
            ("fixed:1", "bits of a fixed encoding must be 2 to 24, not 1"),
            ("fixed:8:8", "\"8\" is one too many after fixed"),
            ("bf16:2", "\"2\" is one too many after bf16"),
            ("top-k:0.9", "at most 0.5, not 0.9"),
            ("top-k:all", "invalid type"),
            ("block:8:65", "a power of two from 16 to 4096, not 65"),
        ] {
            let e = parse(text).unwrap_err().to_string();
            assert!(e.contains(words), "{text}: {e}");
        }
    }
}
