//! What is wrong with data, for the person who can mend it.

/// Problems that are told in full; the rest is counted.
pub const MAX_PROBLEMS: usize = 20;

/// Collects problems: the first ones in full, the rest as a number.
#[derive(Default)]
pub(crate) struct Problems {
    told: Vec<String>,
    more: u64,
}

impl Problems {
    /// Adds one.
    pub(crate) fn add(&mut self, problem: impl FnOnce() -> String) {
        if self.told.len() < MAX_PROBLEMS {
            self.told.push(problem());
        } else {
            self.more += 1;
        }
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.told.is_empty()
    }

    /// All of them.
    pub(crate) fn sentences(mut self) -> Vec<String> {
        if self.more > 0 {
            self.told.push(format!("and {} more", self.more));
        }
        self.told
    }
}
