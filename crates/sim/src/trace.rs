//! What a run was: a digest of every line, and the last lines themselves.

use std::collections::VecDeque;
use undertone_core::digest::{Digest, Digester};

/// Lines that are kept of a run that nobody watches.
const TAIL: usize = 120;

/// The story of a run.
pub(crate) struct Trace {
    digester: Digester,
    tail: VecDeque<String>,
    /// Whether all lines are kept.
    whole: bool,
}

impl Trace {
    pub(crate) fn new(whole: bool) -> Self {
        Self { digester: Digester::new(), tail: VecDeque::new(), whole }
    }

    pub(crate) fn line(&mut self, now_ms: u64, text: &str) {
        let line = format!("{:>9}.{:03} s  {text}", now_ms / 1000, now_ms % 1000);
        self.digester.field(line.as_bytes());
        if !self.whole && self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    /// The digest of all lines, and the lines that were kept.
    pub(crate) fn finish(self) -> (Digest, Vec<String>) {
        (self.digester.finish(), self.tail.into())
    }
}
