//! The text of TorchScript's code as tokens and lines: a small part of Python.

use super::ModuleError;

/// One file of code.
#[derive(Debug)]
pub(super) struct SourceFile {
    /// What its classes' names begin with: `__torch__.torch.nn.modules.linear`, say.
    pub(super) module: String,
    /// Logical lines: what stands in brackets over several lines of text is one.
    pub(super) lines: Vec<Line>,
}

/// A line of code.
#[derive(Debug)]
pub(super) struct Line {
    /// Spaces before it.
    pub(super) indent: usize,
    /// Its tokens; never none.
    pub(super) tokens: Vec<Token>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// A name or a number.
    Word(String),
    /// A text, without its quotes and as it is written.
    Text(String),
    /// Anything else, one character (two where a `=` follows, and for `->`).
    Sign(String),
}

impl Token {
    pub(super) fn is(&self, sign: &str) -> bool {
        matches!(self, Self::Sign(s) if s == sign)
    }

    pub(super) fn word(&self) -> Option<&str> {
        match self {
            Self::Word(word) => Some(word),
            _ => None,
        }
    }

    pub(super) fn is_word(&self, wanted: &str) -> bool {
        self.word() == Some(wanted)
    }

    /// How much deeper in brackets what follows is.
    pub(super) fn deeper(&self) -> i32 {
        match self {
            Self::Sign(s) => match s.as_str() {
                "(" | "[" | "{" => 1,
                ")" | "]" | "}" => -1,
                _ => 0,
            },
            _ => 0,
        }
    }
}

/// Tokens as they stood, without spaces, for messages.
pub(super) fn written(tokens: &[Token]) -> String {
    let text = |token: &Token| match token {
        Token::Word(s) | Token::Text(s) | Token::Sign(s) => s.clone(),
    };
    tokens.iter().map(text).collect()
}

impl SourceFile {
    /// Reads code.
    ///
    /// # Errors
    /// [`ModuleError::Inconsistent`] for what PyTorch never writes: it could be read in more than one way.
    pub(super) fn read(module: &str, text: &str) -> Result<Self, ModuleError> {
        let odd = |what: &str| {
            ModuleError::Inconsistent(format!(
                "{module}: {what} is nothing that PyTorch writes into a TorchScript file"
            ))
        };
        let mut lines: Vec<Line> = Vec::new();
        let mut line = Line { indent: 0, tokens: vec![] };
        let mut depth = 0;
        let mut fresh = true;
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            let byte = bytes[at];
            match byte {
                b'\n' => {
                    at += 1;
                    if depth == 0 {
                        if !line.tokens.is_empty() {
                            lines.push(std::mem::replace(&mut line, Line { indent: 0, tokens: vec![] }));
                        }
                        line.indent = 0;
                        fresh = true;
                    }
                }
                b' ' => {
                    at += 1;
                    line.indent += usize::from(fresh && depth == 0);
                }
                b'#' => {
                    at += bytes[at..].iter().position(|b| *b == b'\n').unwrap_or(bytes.len() - at);
                }
                b'"' | b'\'' => {
                    let quotes = &bytes[at..(at + 3).min(bytes.len())];
                    if quotes.len() == 3 && quotes.iter().all(|b| *b == byte) {
                        return Err(odd("a text over several lines"));
                    }
                    let mut end = at + 1;
                    while bytes.get(end).is_some_and(|b| *b != byte && *b != b'\n') {
                        end += if bytes[end] == b'\\' { 2 } else { 1 };
                    }
                    if bytes.get(end) != Some(&byte) {
                        return Err(odd("a text without an end"));
                    }
                    line.tokens
                        .push(Token::Text(text.get(at + 1..end).ok_or_else(|| odd("such a text"))?.into()));
                    at = end + 1;
                    fresh = false;
                }
                b'_' | b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => {
                    let end = bytes[at..].iter().position(|b| !(*b == b'_' || b.is_ascii_alphanumeric()));
                    let end = end.map_or(bytes.len(), |n| at + n);
                    line.tokens.push(Token::Word(text[at..end].into()));
                    at = end;
                    fresh = false;
                }
                b';' | b'\\' | b'\t' | b'\r' => return Err(odd(&format!("{:?} in code", char::from(byte)))),
                b if b.is_ascii_graphic() => {
                    let pair = &bytes[at..(at + 2).min(bytes.len())];
                    let two = pair.len() == 2
                        && (pair[1] == b'=' && b"=!<>+-*/%|&^@".contains(&byte) || pair == b"->");
                    let sign = &text[at..at + 1 + usize::from(two)];
                    let token = Token::Sign(sign.into());
                    depth += token.deeper();
                    if depth < 0 {
                        return Err(odd("a bracket that was never opened"));
                    }
                    line.tokens.push(token);
                    at += sign.len();
                    fresh = false;
                }
                _ => return Err(odd("a character beyond ASCII outside a text")),
            }
        }
        if depth != 0 {
            return Err(odd("a bracket that is never closed"));
        }
        if !line.tokens.is_empty() {
            lines.push(line);
        }
        Ok(Self { module: module.to_owned(), lines })
    }
}

impl Line {
    /// Where the names end that this line assigns to, if it assigns.
    pub(super) fn target(&self) -> Option<&[Token]> {
        let mut depth = 0;
        for (i, token) in self.tokens.iter().enumerate() {
            depth += token.deeper();
            let assigns = match token {
                Token::Sign(s) => {
                    s == "=" || s.len() == 2 && s.ends_with('=') && !matches!(&s[..1], "=" | "!" | "<" | ">")
                }
                _ => false,
            };
            if depth == 0 && assigns {
                return Some(&self.tokens[..i]);
            }
        }
        None
    }
}
