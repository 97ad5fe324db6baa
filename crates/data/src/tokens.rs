//! From a text to numbers of tokens, by a contract's public vocabulary.

use std::collections::HashMap;
use undertone_core::schema::{PADDING, Text, Tokens, UNKNOWN, words};
use undertone_core::trainer::TextSummary;

/// The vocabulary of a contract, to look tokens up in.
#[derive(Debug)]
pub(crate) struct Tokenizer<'a> {
    text: &'a Text,
    characters: HashMap<char, u32>,
    words: HashMap<&'a str, u32>,
}

impl<'a> Tokenizer<'a> {
    pub(crate) fn new(text: &'a Text) -> Self {
        let (mut characters, mut listed) = (HashMap::new(), HashMap::new());
        match &text.tokens {
            Tokens::Bytes => {}
            Tokens::Characters { alphabet } => characters = alphabet.chars().zip(UNKNOWN + 1..).collect(),
            Tokens::Words { words } => {
                listed = words.iter().map(String::as_str).zip(UNKNOWN + 1..).collect();
            }
        }
        Self { text, characters, words: listed }
    }

    /// Replaces `tokens` by those of `text`, as many as the contract says, and counts them.
    pub(crate) fn read(&self, text: &str, tokens: &mut Vec<u32>, summary: &mut TextSummary) {
        tokens.clear();
        let lowered;
        let text = match self.text.lowercase {
            true => {
                lowered = text.to_lowercase();
                lowered.as_str()
            }
            false => text,
        };
        // One more than fits shows that the text is cut.
        let most = self.text.length + 1;
        match &self.text.tokens {
            Tokens::Bytes => tokens.extend(text.bytes().take(most).map(|b| 1 + u32::from(b))),
            Tokens::Characters { .. } => {
                let find = |c: char| self.characters.get(&c).copied().unwrap_or(UNKNOWN);
                tokens.extend(text.chars().take(most).map(find));
            }
            Tokens::Words { .. } => {
                let find = |w: &str| self.words.get(w).copied().unwrap_or(UNKNOWN);
                tokens.extend(words(text).take(most).map(find));
            }
        }
        summary.cut += u64::from(tokens.len() == most);
        tokens.truncate(self.text.length);
        summary.tokens += tokens.len() as u64;
        if self.text.tokens != Tokens::Bytes {
            summary.unknown += tokens.iter().filter(|t| **t == UNKNOWN).count() as u64;
        }
        tokens.resize(self.text.length, PADDING);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(tokens: Tokens, lowercase: bool) -> Text {
        Text { column: "t".into(), length: 5, tokens, lowercase }
    }

    fn read(rule: &Text, of: &str) -> (Vec<u32>, TextSummary) {
        let (mut tokens, mut summary) = (vec![9], TextSummary::default());
        Tokenizer::new(rule).read(of, &mut tokens, &mut summary);
        (tokens, summary)
    }

    #[test]
    fn tokens_stand_where_the_contract_lists_them() {
        let bytes = text(Tokens::Bytes, false);
        assert_eq!(read(&bytes, "aé").0, [98, 0xc3 + 1, 0xa9 + 1, 0, 0]);
        assert_eq!(
            read(&bytes, "\u{1}"),
            (vec![2, 0, 0, 0, 0], TextSummary { tokens: 1, ..Default::default() })
        );
        let letters = text(Tokens::Characters { alphabet: "ab ".into() }, true);
        assert_eq!(
            read(&letters, "Ab x"),
            (vec![2, 3, 4, 1, 0], TextSummary { cut: 0, tokens: 4, unknown: 1 })
        );
        let list = text(Tokens::Words { words: vec!["good".into(), "!".into()] }, false);
        assert_eq!(
            read(&list, "good, Good! good bad"),
            (vec![2, 1, 1, 3, 2], TextSummary { cut: 1, tokens: 5, unknown: 2 })
        );
        assert_eq!(read(&list, "").0, [0; 5]);
    }

    proptest! {
        #[test]
        fn tokens_are_in_the_vocabulary_and_padding_ends_a_text(of in "\\PC{0,12}", lowercase: bool, kind in 0..3) {
            let tokens = match kind {
                0 => Tokens::Bytes,
                1 => Tokens::Characters { alphabet: "abcdef ".into() },
                _ => Tokens::Words { words: vec!["a".into(), "b".into()] },
            };
            let rule = text(tokens, lowercase);
            let (found, summary) = read(&rule, &of);
            prop_assert_eq!(found.len(), 5);
            prop_assert!(found.iter().all(|t| (*t as usize) < rule.tokens.vocabulary()));
            let seen = found.iter().take_while(|t| **t != PADDING).count();
            prop_assert!(found[seen..].iter().all(|t| *t == PADDING));
            prop_assert_eq!(summary.tokens, seen as u64);
        }
    }
}
