//! Text: one column of a CSV file as numbers of tokens.
//!
//! The vocabulary is public and fixed in the job: nothing is learnt about which words occur at anybody's. Number 0 is the
//! padding after a text's end.

use super::InvalidContract;
use crate::limits::{MAX_FEATURES, MAX_VOCABULARY};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The number of the token that fills a text up to its length.
pub const PADDING: u32 = 0;
/// The number of characters and words that the contract does not list. Bytes have none: all are known.
pub const UNKNOWN: u32 = 1;

/// How a column becomes tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawText", into = "RawText")]
pub struct Text {
    /// The column's name.
    pub column: String,
    /// Tokens of one example: longer texts are cut at their end, shorter ones padded there.
    pub length: usize,
    /// What a token is.
    pub tokens: Tokens,
    /// Whether letters are made small (as Unicode has it) before they are looked up.
    pub lowercase: bool,
}

/// What a token is. In TOML: `tokens = "bytes"`, `"characters"` with `alphabet`, or `"words"` with `words`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tokens {
    /// A byte of the text in UTF-8: number 1 + the byte.
    Bytes,
    /// A character: number 2 + its place in the alphabet, or [`UNKNOWN`].
    Characters {
        /// The characters that are told apart.
        alphabet: String,
    },
    /// A word (see [`words`]): number 2 + its place in the list, or [`UNKNOWN`].
    Words {
        /// The words that are told apart.
        words: Vec<String>,
    },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawText {
    column: String,
    length: usize,
    tokens: RawTokens,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alphabet: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    words: Option<Vec<String>>,
    #[serde(default)]
    lowercase: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawTokens {
    Bytes,
    Characters,
    Words,
}

impl TryFrom<RawText> for Text {
    type Error = String;

    fn try_from(raw: RawText) -> Result<Self, String> {
        let tokens = match (raw.tokens, raw.alphabet, raw.words) {
            (RawTokens::Bytes, None, None) => Tokens::Bytes,
            (RawTokens::Characters, Some(alphabet), None) => Tokens::Characters { alphabet },
            (RawTokens::Words, None, Some(words)) => Tokens::Words { words },
            _ => {
                return Err("text: tokens = \"bytes\" takes neither alphabet nor words, \"characters\" takes alphabet = \
                            \"abc\", and \"words\" takes words = [..]"
                    .into());
            }
        };
        Ok(Self { column: raw.column, length: raw.length, tokens, lowercase: raw.lowercase })
    }
}

impl From<Text> for RawText {
    fn from(text: Text) -> Self {
        let (tokens, alphabet, words) = match text.tokens {
            Tokens::Bytes => (RawTokens::Bytes, None, None),
            Tokens::Characters { alphabet } => (RawTokens::Characters, Some(alphabet), None),
            Tokens::Words { words } => (RawTokens::Words, None, Some(words)),
        };
        Self { column: text.column, length: text.length, tokens, alphabet, words, lowercase: text.lowercase }
    }
}

impl Tokens {
    /// How many different tokens there are, padding (and unknown) among them.
    pub fn vocabulary(&self) -> usize {
        match self {
            Self::Bytes => 257,
            Self::Characters { alphabet } => 2 + alphabet.chars().count(),
            Self::Words { words } => 2 + words.len(),
        }
    }
}

/// The words of a text: runs of letters and digits (as Unicode has them), and each other character that is not white
/// space.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        let first = rest.chars().next()?;
        let end = match first.is_alphanumeric() {
            true => rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len()),
            false => first.len_utf8(),
        };
        let (word, after) = rest.split_at(end);
        rest = after;
        Some(word)
    })
}

impl Text {
    pub(super) fn validate(&self) -> Result<(), InvalidContract> {
        let bad = |text: String| Err(InvalidContract(format!("text: {text}")));
        if self.column.is_empty() {
            return bad("the column has no name".into());
        }
        if self.length == 0 || self.length > MAX_FEATURES {
            return bad(format!("length must be 1 to {MAX_FEATURES} tokens, not {}", self.length));
        }
        let vocabulary = self.tokens.vocabulary();
        if vocabulary > MAX_VOCABULARY {
            return bad(format!("{vocabulary} different tokens, at most {MAX_VOCABULARY}"));
        }
        // What is looked up has small letters: a capital in the list would never be found.
        let never = |listed: &str| self.lowercase && listed.to_lowercase() != listed;
        match &self.tokens {
            Tokens::Bytes => {}
            Tokens::Characters { alphabet } => {
                if alphabet.is_empty() {
                    return bad("alphabet holds no character".into());
                }
                let mut seen = BTreeSet::new();
                if let Some(c) = alphabet.chars().find(|c| !seen.insert(*c)) {
                    return bad(format!("alphabet holds {c:?} twice"));
                }
                if never(alphabet) {
                    return bad("with lowercase = true the alphabet must hold no capital letter".into());
                }
            }
            Tokens::Words { words: list } => {
                if list.is_empty() {
                    return bad("words holds no word".into());
                }
                let mut seen = BTreeSet::new();
                for word in list {
                    if !words(word).eq([word.as_str()]) {
                        return bad(format!(
                            "{word:?} is not one word: a word is a run of letters and digits, or one other character"
                        ));
                    }
                    if !seen.insert(word) {
                        return bad(format!("words holds {word:?} twice"));
                    }
                    if never(word) {
                        return bad(format!("with lowercase = true the word {word:?} would never be found"));
                    }
                }
            }
        }
        Ok(())
    }
}
