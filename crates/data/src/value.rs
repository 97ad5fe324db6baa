//! When two written values mean the same.
//!
//! Tools rewrite numbers: what was `1` in one export is `1.0` in the next. So values are compared as text (white space
//! around them does not count, upper and lower case do), and, if both sides are numbers, as numbers.

use std::collections::HashMap;

/// `text` as a finite number, if it is one.
pub(crate) fn number(text: &str) -> Option<f64> {
    // "inf" and "nan" parse, but are no measurements. Adding zero makes -0 into 0.
    text.parse::<f64>().ok().filter(|n| n.is_finite()).map(|n| n + 0.0)
}

/// A list of values to look others up in.
#[derive(Debug, Default)]
pub(crate) struct ValueList {
    by_text: HashMap<String, u32>,
    by_number: HashMap<u64, u32>,
}

impl ValueList {
    /// A list of (value, what it stands for). Of two equal values the first counts.
    pub(crate) fn new<'a>(values: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let mut list = Self::default();
        for (value, meaning) in values {
            let value = value.trim();
            list.by_text.entry(value.to_owned()).or_insert(meaning);
            if let Some(n) = number(value) {
                list.by_number.entry(n.to_bits()).or_insert(meaning);
            }
        }
        list
    }

    /// What `text` (trimmed) stands for. The very text goes before the same number written otherwise.
    pub(crate) fn find(&self, text: &str) -> Option<u32> {
        let as_number = || {
            if self.by_number.is_empty() {
                return None;
            }
            number(text).and_then(|n| self.by_number.get(&n.to_bits()))
        };
        self.by_text.get(text).or_else(as_number).copied()
    }
}

/// The word of `words` that `word` is most like, if one is like it at all.
pub(crate) fn nearest<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    words
        .into_iter()
        .map(|w| (strsim::jaro_winkler(&word, &w.to_lowercase()), w))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, w)| w)
}

/// A value as it may stand in a message: quoted, short, without control characters.
pub(crate) fn shown(text: &str) -> String {
    const LONGEST: usize = 40;
    let mut short: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST).is_some() {
        short.push('…');
    }
    format!("\"{short}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_compare_as_numbers_and_texts_as_texts() {
        let list = ValueList::new([("0", 0), (" NA ", 1), ("1", 2), ("1.0", 3)]);
        for zero in ["0", "0.0", "-0", "0e5", "+0"] {
            assert_eq!(list.find(zero), Some(0), "{zero}");
        }
        assert_eq!(list.find("NA"), Some(1));
        assert_eq!(list.find("na"), None);
        assert_eq!((list.find("1"), list.find("1.0"), list.find("1.00")), (Some(2), Some(3), Some(2)));
        assert_eq!((list.find("nan"), list.find("inf"), list.find("")), (None, None, None));
    }

    #[test]
    fn the_nearest_word_is_near() {
        assert_eq!(nearest("chol", ["age", "Cholesterol", "ca"]), Some("Cholesterol"));
        assert_eq!(nearest("chol", ["age", "sex"]), None);
    }

    #[test]
    fn a_shown_value_is_short_and_harmless() {
        assert_eq!(shown("a\u{1b}[31m\"b"), "\"a\\u{1b}[31m\\\"b\"");
        assert_eq!(shown(&"é".repeat(50)).chars().count(), 43);
    }
}
