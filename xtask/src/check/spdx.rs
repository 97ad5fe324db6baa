//! SPDX licence expressions (SPDX specification 2.3, annex D): may we use this under one of the licences we accept?

use anyhow::{Result, anyhow, bail};

/// Is there a choice in `expression` that needs only accepted licences? `accepted` is asked for simple licences and
/// for "licence WITH exception".
///
/// `/` means OR, as in manifests from before 2018.
pub(super) fn satisfied(expression: &str, accepted: &dyn Fn(&str) -> bool) -> Result<bool> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut parser = Parser { words: spaced.split_whitespace().collect(), next: 0, accepted };
    let answer = parser.any_of().and_then(|answer| match parser.peek() {
        None => Ok(answer),
        Some(word) => bail!("`{word}` is one word too many"),
    });
    answer.map_err(|error| anyhow!("`{expression}` is no SPDX expression: {error}"))
}

/// Recursive descent; WITH binds tighter than AND, AND tighter than OR.
struct Parser<'a> {
    words: Vec<&'a str>,
    next: usize,
    accepted: &'a dyn Fn(&str) -> bool,
}

impl<'a> Parser<'a> {
    fn any_of(&mut self) -> Result<bool> {
        let mut answer = self.all_of()?;
        while self.take_if("OR") {
            // The right side is parsed whatever the left side says.
            let right = self.all_of()?;
            answer = answer || right;
        }
        Ok(answer)
    }

    fn all_of(&mut self) -> Result<bool> {
        let mut answer = self.one()?;
        while self.take_if("AND") {
            let right = self.one()?;
            answer = answer && right;
        }
        Ok(answer)
    }

    fn one(&mut self) -> Result<bool> {
        if self.take_if("(") {
            let answer = self.any_of()?;
            if !self.take_if(")") {
                bail!("a bracket is not closed");
            }
            return Ok(answer);
        }
        let licence = self.identifier()?;
        if self.take_if("WITH") {
            let exception = self.identifier()?;
            return Ok((self.accepted)(&format!("{licence} WITH {exception}")));
        }
        Ok((self.accepted)(licence))
    }

    fn identifier(&mut self) -> Result<&'a str> {
        let word = self.peek().ok_or_else(|| anyhow!("it ends too early"))?;
        let is_identifier =
            word.chars().all(|letter| letter.is_ascii_alphanumeric() || "-.+:".contains(letter));
        if !is_identifier || ["OR", "AND", "WITH"].contains(&word) {
            bail!("`{word}` stands where a licence should");
        }
        self.next += 1;
        Ok(word)
    }

    fn take_if(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(word);
        self.next += usize::from(found);
        found
    }

    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.next).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(expression: &str) -> Result<bool> {
        satisfied(expression, &|licence| {
            ["MIT", "ISC", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"].contains(&licence)
        })
    }

    #[test]
    fn expressions_are_evaluated_with_the_precedence_of_the_specification() {
        for (expression, answer) in [
            ("MIT", true),
            ("GPL-3.0-only", false),
            ("MIT OR GPL-3.0-only", true),
            ("GPL-3.0-only OR MIT", true),
            ("MIT AND GPL-3.0-only", false),
            ("MIT AND ISC", true),
            // AND before OR: MIT OR (GPL AND Unknown).
            ("MIT OR GPL-3.0-only AND Unknown", true),
            ("GPL-3.0-only AND Unknown OR MIT", true),
            ("(MIT OR GPL-3.0-only) AND Unknown", false),
            ("(MIT OR Unknown) AND (ISC OR Unknown)", true),
            ("((MIT))", true),
            ("MIT/Apache-2.0", true),
            ("GPL-2.0 / MIT", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("Apache-2.0 WITH LLVM-exception OR Unknown", true),
            // An exception makes another licence of it; it has to be accepted by name.
            ("MIT WITH Some-exception", false),
            // "or any later version" is another licence than the plain one.
            ("Apache-2.0+", false),
            ("LicenseRef-ours", false),
        ] {
            assert_eq!(ask(expression).expect(expression), answer, "{expression}");
        }
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for expression in [
            "",
            "MIT OR",
            "OR MIT",
            "(MIT",
            "MIT)",
            "MIT ISC",
            "MIT WITH",
            "MIT and ISC",
            "MIT, ISC",
            "()",
            "WITH",
        ] {
            assert!(ask(expression).is_err(), "{expression:?}");
        }
    }
}
